"""What holds for every strategy, whatever comes in."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.worlds import STRATEGIES, Run, worlds

from setpoint.model import Finish


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=20)
@given(data=st.data())
def test_every_request_ends_once_with_all_its_tokens_and_leaves_no_residue(strategy: str, data: st.DataObject) -> None:
    world = data.draw(worlds(strategy))
    run = Run(world).play()
    assert sorted(i for i, _ in run.ended) == [ask.request.id for ask in world.asks]
    for request_id, end in run.ended:
        if isinstance(end, Finish) and end.reason != "cancelled":
            assert run.tokens[request_id] == world.asks[request_id].output_tokens
    ledger = run.machine.ledger
    assert (ledger.blocks_held, ledger.running, ledger.waiting, ledger.sequences) == (0, 0, [], {})
    assert sorted(ledger.vacant) == list(range(ledger.capacity.slots))


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=5)
@given(data=st.data())
def test_the_same_events_give_the_same_commands(strategy: str, data: st.DataObject) -> None:
    world = data.draw(worlds(strategy))
    first, second = Run(world).play(), Run(world).play()
    assert msgspec.json.encode(first.journal) == msgspec.json.encode(second.journal)
