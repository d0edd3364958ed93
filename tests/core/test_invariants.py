"""The invariants notice what they are there to notice."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace
from tests.core.scheduler import BATCH, CHAT, SMALL, Scheduler

from setpoint.core.invariants import violations
from setpoint.core.ledger import Ledger
from setpoint.core.replica import ReplicaMachine


def busy() -> ReplicaMachine:
    """Return a machine in which requests 0 and 1 decode, 2 is in prefill, 3 and 4 wait."""
    it = Scheduler("continuous", replace(SMALL, slots=3), (CHAT, BATCH), token_budget=16)
    it.arrives(prompt=8, output=9)
    it.arrives(prompt=8, output=9)
    it.step()
    it.step()
    it.arrives(prompt=40)
    it.arrives("batch", prompt=7)
    it.arrives(prompt=7)
    it.step()
    machine = it.machine
    assert sorted(machine.ledger.decoding) == [0, 1]
    assert sorted(machine.ledger.prefilling) == [2]
    assert len(machine.ledger.waiting) == 2
    return machine


def lend(ledger: Ledger) -> None:
    ledger.sequences[3].slot = 9


def forget(ledger: Ledger) -> None:
    del ledger.sequences[3]


def vanish(ledger: Ledger) -> None:
    del ledger.decoding[1]


def unseat(ledger: Ledger) -> None:
    ledger.decoding[1].slot = None


def share(ledger: Ledger) -> None:
    ledger.decoding[1].slot = ledger.decoding[0].slot


def shuffle(ledger: Ledger) -> None:
    ledger.waiting.reverse()


def rename(ledger: Ledger) -> None:
    ledger.sequences[3].key = (99.0,)


def miscount(ledger: Ledger) -> None:
    ledger.waiting_by_class["chat"] += 1


def miscount_tokens(ledger: Ledger) -> None:
    ledger.waiting_tokens[True] += 1


def leak(ledger: Ledger) -> None:
    ledger.blocks_held += 1


def starve(ledger: Ledger) -> None:
    ledger.decoding[0].blocks = 0


def starve_prefill(ledger: Ledger) -> None:
    ledger.prefilling[2].blocks = 1


def uncompute(ledger: Ledger) -> None:
    ledger.sequences[3].computed_tokens = -1


def overshoot(ledger: Ledger) -> None:
    ledger.decoding[0].output_tokens = 99


def complete(ledger: Ledger) -> None:
    ledger.prefilling[2].computed_tokens = 40


def hasten(ledger: Ledger) -> None:
    ledger.sequences[4].ttft_deadline = -1.0


def sort_in_wrongly(ledger: Ledger) -> None:
    ledger.decoding[0].is_harvest = True


def postpone(ledger: Ledger) -> None:
    ledger._expiries.clear()


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lend, "waits and holds something"),
        (forget, "request 3 is in 1 places"),
        (vanish, "request 1 is in 0 places"),
        (unseat, "runs without a slot"),
        (share, "is held 2 times"),
        (share, "free slots are not those"),
        (shuffle, "out of order"),
        (rename, "a key that is not its own"),
        (miscount, "the waiting are miscounted"),
        (miscount_tokens, "tokens of the waiting are miscounted"),
        (leak, "do not add up"),
        (starve, "lacks blocks for its tokens"),
        (starve, "lacks a block for the token in flight"),
        (starve_prefill, "lacks blocks for its prefill"),
        (uncompute, "less than was cached"),
        (overshoot, "99 of 9 output tokens"),
        (overshoot, "decodes with"),
        (complete, "with nothing left"),
        (complete, "tokens left"),
        (hasten, "due before it arrived"),
        (sort_in_wrongly, "in another group than its own"),
        (postpone, "not the earliest"),
    ],
)
def test_harm_is_noticed(harm: Callable[[Ledger], None], complaint: str) -> None:
    machine = busy()
    assert violations(machine) == []
    harm(machine.ledger)
    assert complaint in "; ".join(violations(machine))


def test_a_sequence_twice_in_a_step_is_noticed() -> None:
    machine = busy()
    assert machine.step_in_flight is not None
    machine.step_in_flight = replace(machine.step_in_flight, decodes=(0, 0, 1))
    assert "2 times in the step" in "; ".join(violations(machine))


def test_more_than_there_is_may_be_held_only_after_the_capacity_shrank() -> None:
    machine = busy()
    machine.ledger.capacity = replace(SMALL, slots=2)
    assert "more is held than there is" in violations(machine)
    machine.ledger.vacant = []
    assert "more is held than there is" not in violations(machine, has_shrunk=True)
