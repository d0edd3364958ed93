"""The pacer as a conversation, and its laws."""

from hypothesis import given
from hypothesis import strategies as st

from setpoint.loadgen.pacer import Pacer
from setpoint.workload import PlannedRequest


def planned(number: int, at_s: float = 0.0, **changes: object) -> PlannedRequest:
    fields: dict[str, object] = {"id": number, "at_s": at_s, "prompt_tokens": 1, "output_tokens": 1}
    return PlannedRequest(**(fields | changes))  # type: ignore[arg-type]


def test_an_open_loop_waits_for_nobody() -> None:
    pacer = Pacer([planned(0, 1.0), planned(1, 2.0), planned(2, 2.5)])
    assert pacer.next_at() == 1.0
    assert pacer.due(0.5) == []
    assert [at for _, at in pacer.due(2.2)] == [1.0, 2.0]
    assert pacer.next_at() == 2.5
    assert pacer.in_flight == 2
    assert not pacer.is_done(2.2)


def test_a_late_client_still_counts_from_the_plan() -> None:
    pacer = Pacer([planned(0, 1.0)])
    assert pacer.due(9.0)[0][1] == 1.0


def test_a_closed_loop_counts_from_the_freed_slot() -> None:
    pacer = Pacer([planned(number) for number in range(4)], concurrency=2, stagger_s=1.0)
    (first, at) = pacer.due(0.0)[0]
    assert at == 0.0
    assert pacer.next_at() == 0.5
    assert [at for _, at in pacer.due(0.6)] == [0.5]
    assert pacer.next_at() is None
    pacer.ended(first, 0.0, 3.0)
    assert pacer.next_at() == 3.0
    assert [at for _, at in pacer.due(3.2)] == [3.0]


def test_a_turn_waits_for_the_one_before_and_for_thought() -> None:
    pacer = Pacer([planned(0, 1.0, session=5), planned(1, 1.0, session=5, turn=1, think_s=2.0)])
    (first, at) = pacer.due(1.0)[0]
    assert pacer.next_at() is None
    assert not pacer.is_done(1.0)
    pacer.ended(first, at, 4.0)
    assert pacer.next_at() == 6.0
    assert [one.turn for one, _ in pacer.due(6.0)] == [1]


def test_load_goes_on_until_the_window_has_drained() -> None:
    pacer = Pacer([planned(number, float(number)) for number in range(10)], window_s=3.0)
    inside = [pacer.due(float(second))[0] for second in range(3)]
    outside = pacer.due(3.0)[0]
    for one, at in inside[:2]:
        pacer.ended(one, at, 3.5)
    assert not pacer.is_done(3.5)
    pacer.ended(*outside, 3.6)
    assert not pacer.is_done(3.6)
    pacer.ended(*inside[2], 3.7)
    assert pacer.is_done(3.7)


def test_what_was_due_and_never_sent_is_told() -> None:
    pacer = Pacer([planned(0, 1.0), planned(1, 2.0), planned(2, 9.0)])
    pacer.due(1.0)
    pacer.stop()
    assert pacer.due(5.0) == []
    assert [one.id for one, _ in pacer.unsent(5.0)] == [1]


@given(
    st.lists(st.floats(0.0, 10.0), min_size=1, max_size=30),
    st.none() | st.integers(1, 5),
    st.lists(st.floats(0.001, 3.0), min_size=1, max_size=10),
)
def test_each_request_leaves_once_and_never_too_many_at_a_time(
    times: list[float], concurrency: int | None, services: list[float]
) -> None:
    plan = [planned(number, at) for number, at in enumerate(sorted(times))]
    pacer = Pacer(plan, concurrency=concurrency)
    running: list[tuple[float, PlannedRequest, float]] = []
    seen: list[int] = []
    now = 0.0
    while not pacer.is_done(now):
        for one, at in pacer.due(now):
            assert at <= now
            seen.append(one.id)
            running.append((now + services[len(seen) % len(services)], one, at))
        assert concurrency is None or pacer.in_flight <= concurrency
        running.sort(key=lambda entry: entry[0])
        upcoming = [at for at in (pacer.next_at(), running[0][0] if running else None) if at is not None]
        now = max(now, min(upcoming)) if upcoming else now
        while running and running[0][0] <= now:
            _, one, at = running.pop(0)
            pacer.ended(one, at, now)
    assert sorted(seen) == [one.id for one in plan]
