"""A draft takes what fits: the chunk found by bisection is the one that a search one by one finds."""

from hypothesis import given
from hypothesis import strategies as st
from tests.core.scheduler import CHAT

from setpoint.core.filling import Draft
from setpoint.core.ledger import Ledger, Sequence
from setpoint.model import Capacity, Request, chunk_work
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Blocks, Instant, Tokens

STEP_TIME = FixedStepTime(linear(key="x", step_s=0.01, decode_s=0.001, prefill_s=0.0005, work_s=1e-6))


def ledger(step_tokens: int = 1000) -> Ledger:
    return Ledger(
        Capacity(
            slots=4,
            kv_blocks=Blocks(100),
            block_tokens=Tokens(16),
            step_tokens_max=Tokens(step_tokens),
            context_tokens_max=Tokens(2000),
        )
    )


def sequence(prompt: int, *, cached: int = 0, request_id: int = 1) -> Sequence:
    request = Request(
        id=request_id,
        class_name="chat",
        arrived_at=Instant(0.0),
        prompt_tokens=Tokens(prompt),
        output_tokens_max=Tokens(4),
        cached_tokens=Tokens(cached),
    )
    return Sequence(request, CHAT)


@given(
    prompt=st.integers(2, 400),
    cached=st.integers(0, 200),
    cap_s=st.floats(0.0, 0.3),
    step_tokens=st.integers(1, 300),
    chunk_min=st.integers(1, 20),
)
def test_bisection_finds_what_a_linear_search_finds(
    prompt: int, cached: int, cap_s: float, step_tokens: int, chunk_min: int
) -> None:
    cached = min(cached, prompt - 1)
    remaining = prompt - cached
    draft = Draft(ledger(step_tokens), STEP_TIME)
    bound = draft.add_prefill(sequence(prompt, cached=cached), cap_s, chunk_min=chunk_min)
    fitting = [
        n
        for n in range(1, min(remaining, step_tokens) + 1)
        if STEP_TIME.seconds(0, 0, n, chunk_work(cached, n), 1) <= cap_s
    ]
    least = min(chunk_min, remaining, step_tokens)
    expected = max(max(fitting, default=0), least)
    assert draft.prefill_tokens == expected
    assert (bound is None) == (expected == remaining)


def test_beside_other_work_a_chunk_that_time_cuts_too_short_stays_out() -> None:
    draft = Draft(ledger(), STEP_TIME)
    assert draft.add_prefill(sequence(20)) is None
    other = sequence(200)
    assert draft.add_prefill(other, draft.seconds + 0.003, chunk_min=16) == "slack"
    assert other not in draft.chunks


def test_a_decode_that_would_overrun_the_cap_stays_out() -> None:
    draft = Draft(ledger(), STEP_TIME)
    assert draft.add_decode(sequence(8), 0.001) == "slack"
    assert draft.is_empty


def test_a_budget_below_that_of_the_engine_is_kept() -> None:
    draft = Draft(ledger(step_tokens=64), STEP_TIME, tokens_max=10)
    assert draft.add_prefill(sequence(20)) == "tokens"
    assert draft.shape.prefill_tokens == 10


def test_where_tokens_are_short_the_first_decodes_go_in_and_only_full_blocks_take_new_ones() -> None:
    held = ledger()
    decoding = [sequence(prompt, request_id=i) for i, prompt in enumerate((8, 16, 8))]
    for one in decoding:
        held.wait(one, (0.0,))
        held.admit(one)
        held.hold(one, one.prompt_tokens)
        one.computed_tokens = one.prompt_tokens
        held.decode(one, Instant(0.0))
    draft = Draft(held, STEP_TIME, tokens_max=2)
    assert draft.add_decodes(decoding) == decoding[2:]
    assert draft.decodes == decoding[:2]
    assert draft.growing == decoding[1:2]
    assert draft.free_blocks == held.free_blocks - 1
