from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.core.ledger import Ledger, Sequence
from setpoint.engines.vllm.arrange import arrange
from setpoint.engines.vllm.begun import begun
from setpoint.engines.vllm.numbers import Numbers, unpack
from setpoint.engines.vllm.queue import PlannedQueue
from setpoint.model import PRESETS, Capacity, Request, StepPlan
from setpoint.units import Blocks, Instant, Tokens


def request(request_id: int, prompt: int) -> Request:
    return Request(
        id=request_id,
        class_name="chat",
        arrived_at=Instant(0.0),
        prompt_tokens=Tokens(prompt),
        output_tokens_max=Tokens(5),
    )


def sequence(request_id: int, prompt: int, *, is_running: bool) -> Sequence:
    made = Sequence(request(request_id, prompt), PRESETS["chat"])
    made.slot = 0 if is_running else None
    return made


def scheduled(plan: StepPlan, sequences: dict[int, Sequence]) -> dict[int, int]:
    """Return what vLLM's two loops make of the arrangement of `plan`."""
    arrangement = arrange(plan, sequences.__getitem__)
    left, given = arrangement.budget, {}
    for request_id in (*arrangement.running, *arrangement.admitted):
        lacking = 1 if request_id in plan.decodes else sequences[request_id].remaining_tokens
        if arrangement.chunk_max:
            lacking = min(lacking, arrangement.chunk_max)
        if min(lacking, left):
            given[request_id] = min(lacking, left)
            left -= given[request_id]
    return given


chunks = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.booleans()), max_size=6)


@given(chunks, st.integers(0, 5))
def test_vllm_gives_nobody_more_than_the_plan_and_the_whole_chunks_just_that(
    drawn: list[tuple[int, int, bool]], decodes: int
) -> None:
    sequences = {i: sequence(i, max(a, b), is_running=r) for i, (a, b, r) in enumerate(drawn)}
    prefills = tuple((i, a) for i, (a, _, _) in enumerate(drawn))
    plan = StepPlan(step_id=1, decodes=tuple(range(100, 100 + decodes)), prefills=prefills)
    given_to = scheduled(plan, sequences)
    for request_id, tokens in prefills:
        assert given_to.get(request_id, 0) <= tokens
        if tokens == sequences[request_id].remaining_tokens:
            assert given_to[request_id] == tokens
    assert all(given_to[i] == 1 for i in plan.decodes)


@given(st.integers(1, 50), st.lists(st.integers(1, 50), max_size=4))
def test_a_plan_with_one_incomplete_chunk_at_its_end_is_reached_exactly(partial: int, whole: list[int]) -> None:
    sequences = {i: sequence(i, n, is_running=True) for i, n in enumerate(whole)}
    sequences[99] = sequence(99, partial + 1, is_running=False)
    plan = StepPlan(step_id=1, prefills=(*((i, n) for i, n in enumerate(whole)), (99, partial)))
    assert scheduled(plan, sequences) == dict(plan.prefills)


@given(chunks, st.integers(0, 5), st.data())
def test_what_vllm_has_begun_is_told_alike_whether_it_is_as_shown_or_not(
    drawn: list[tuple[int, int, bool]], decodes: int, data: st.DataObject
) -> None:
    ledger = Ledger(
        Capacity(
            slots=20,
            kv_blocks=Blocks(1000),
            block_tokens=Tokens(16),
            step_tokens_max=Tokens(512),
            context_tokens_max=Tokens(512),
        )
    )
    sequences = {i: Sequence(request(i, a + b), PRESETS["chat"]) for i, (a, b, _) in enumerate(drawn)}
    sequences |= {100 + i: Sequence(request(100 + i, 5), PRESETS["chat"]) for i in range(decodes)}
    for i, one in sequences.items():
        ledger.wait(one, (0.0,))
        if i >= 100 or drawn[i][2]:
            ledger.admit(one)
        if i >= 100:
            ledger.decode(one, Instant(0.0))
    plan = StepPlan(
        step_id=1,
        decodes=tuple(range(100, 100 + decodes)),
        prefills=tuple((i, a) for i, (a, _, _) in enumerate(drawn)),
    )
    shown = arrange(plan, sequences.__getitem__)
    everyone = {i: tokens for i, tokens in scheduled(plan, sequences).items() if tokens}
    some = data.draw(st.sets(st.sampled_from([*everyone]))) if everyone else set()
    done = {i: everyone[i] for i in some}
    for took in (everyone, done):
        result = SimpleNamespace(
            num_scheduled_tokens={f"r{i}": n for i, n in took.items()}, total_num_scheduled_tokens=sum(took.values())
        )
        ids = {f"r{i}": i for i in sequences}
        hosts: dict[int, Any] = {
            i: SimpleNamespace(request_id=f"r{i}", num_computed_tokens=took.get(i, 0), num_tokens=5) for i in sequences
        }
        told = begun(result, shown, ledger, ids, hosts)
        assert {*told.decodes} == {i for i in took if i >= 100}
        assert {*told.prefills} == {(i, n) for i, n in took.items() if i < 100}
        assert {i for i, _, _ in told.admitted} == {i for i in took if i < 100 and not drawn[i][2]}


def entry(name: str, priority: int = 0) -> SimpleNamespace:
    return SimpleNamespace(request_id=name, priority=priority)


def test_a_queue_shows_only_the_plan_and_counts_all() -> None:
    queue = PlannedQueue()
    a, b, c = entry("a"), entry("b"), entry("c")
    for one in (a, b, c):
        queue.add_request(one)
    queue.show_only([c, a])
    assert (queue.peek_request(), queue.pop_request(), queue.pop_request()) == (c, c, a)
    assert not queue
    assert len(queue) == 1
    queue.prepend_request(a)
    assert not queue
    queue.show_all()
    assert list(queue) == [a, b]


def test_a_queue_without_a_plan_is_first_come_first_served_and_who_is_put_back_comes_first() -> None:
    queue = PlannedQueue()
    a, b = entry("a"), entry("b")
    queue.add_request(a)
    queue.add_request(b)
    assert queue.pop_request() is a
    queue.prepend_requests([a])
    assert list(queue) == [a, b]
    queue.remove_requests([a, entry("elsewhere")])
    assert list(queue) == [b]
    with pytest.raises(ValueError, match="does not wait"):
        queue.remove_request(a)


@given(st.dictionaries(st.sampled_from(["finished", "refused"]), st.integers(1, 10**6)), st.floats(0, 1e6))
def test_numbers_arrive_as_they_were_sent(counts: dict[str, int], measured_s: float) -> None:
    numbers = Numbers()
    for name, count in counts.items():
        numbers.add(name, "chat/ttft", count)
    numbers.measured(predicted_s=measured_s, measured_s=measured_s)
    table = {**numbers.packed(), "waiting": 3, "setpoint/not known here": 1}
    found = {(n.name, n.label): n.value for n in unpack(table)}
    assert {k[0]: v for k, v in found.items() if k[1]} == counts
    assert found["last_measured_s", ""] == pytest.approx(measured_s, abs=1e-6)
