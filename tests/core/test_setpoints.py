"""What `slack` reckons with: the tightest TTFT target of late, and whose misses batch work had a part in."""

import pytest

from setpoint.core.sequence import Sequence
from setpoint.core.setpoints import Setpoints
from setpoint.model import PRESETS, Request
from setpoint.units import Instant, Seconds, Tokens


def arrives(setpoints: Setpoints, at: float, ttft_s: float) -> float:
    """Let a request of this target arrive; return how long a step may last then."""
    request = Request(
        id=0,
        class_name="chat",
        arrived_at=Instant(at),
        prompt_tokens=Tokens(8),
        output_tokens_max=Tokens(8),
        ttft_s=Seconds(ttft_s),
    )
    setpoints.saw_arrival(Sequence(request, PRESETS["chat"]), at, pace=0.9)
    return setpoints.longest_step_s(at)


def test_the_tightest_target_counts_for_one_memory_at_least_and_two_at_most() -> None:
    setpoints = Setpoints(boldness=0.25, arrival=0.5, idle_step_s=9.0, memory_s=60.0, is_moving=True)
    assert setpoints.longest_step_s(0.0) == 9.0
    assert arrives(setpoints, 0.0, 2.0) == pytest.approx(1.0)
    assert arrives(setpoints, 50.0, 0.2) == pytest.approx(0.1)
    found = [arrives(setpoints, 50.0 + 10.0 * i, 2.0) for i in range(1, 20)]
    assert found[:5] == pytest.approx([0.1] * 5)
    assert found[12:] == pytest.approx([1.0] * 7)
    assert setpoints.longest_step_s(50.0 + 190.0 + 61.0) == 9.0
    assert arrives(setpoints, 500.0, 0.2) == pytest.approx(0.1)
    assert arrives(setpoints, 630.0, 2.0) == pytest.approx(1.0)


def ended(setpoints: Setpoints, *, late_s: float, batch_s: float) -> float:
    """Let a request end that was late by so much, of whose time batch work took `batch_s`; return the boldness."""
    request = Request(
        id=0,
        class_name="chat",
        arrived_at=Instant(0.0),
        prompt_tokens=Tokens(8),
        output_tokens_max=Tokens(20),
        ttft_s=Seconds(1.0),
        tpot_s=Seconds(0.1),
    )
    sequence = Sequence(request, PRESETS["chat"])
    setpoints.saw_arrival(sequence, 0.0, pace=0.9)
    sequence.begin(Instant(1.0 + late_s))
    sequence.output_tokens = 11
    setpoints.saw_finish(sequence, 2.0 + late_s, batch_s=batch_s, is_harvesting=True)
    return setpoints.boldness(0.0)


def bold() -> Setpoints:
    """Return setpoints that have seen nothing."""
    return Setpoints(boldness=0.5, arrival=0.5, idle_step_s=9.0, memory_s=60.0, is_moving=True)


def test_a_miss_that_batch_work_had_no_part_in_counts_as_long_as_it_is_one_of_few() -> None:
    setpoints = bold()
    found = [ended(setpoints, late_s=0.3, batch_s=0.2) for _ in range(10)]
    assert 0.2 < found[0] < 0.5
    assert found[1:] == [found[1]] * 9
    before = max(ended(setpoints, late_s=-0.5, batch_s=0.2) for _ in range(40))
    assert ended(setpoints, late_s=0.3, batch_s=0.2) < before


def test_one_that_batch_work_took_the_time_of_always_counts() -> None:
    setpoints = bold()
    found = [ended(setpoints, late_s=0.3, batch_s=0.4) for _ in range(5)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.1


def test_so_it_is_with_one_that_was_refused() -> None:
    def after(batch_s: float) -> float:
        setpoints = bold()
        sequence = Sequence(
            Request(
                id=0,
                class_name="chat",
                arrived_at=Instant(0.0),
                prompt_tokens=Tokens(8),
                output_tokens_max=Tokens(8),
            ),
            PRESETS["chat"],
        )
        setpoints.saw_arrival(sequence, 0.0, pace=0.9)
        for _ in range(5):
            setpoints.saw_refusal(sequence, 0.3, batch_s=batch_s, is_harvesting=True)
        return setpoints.boldness(0.0)

    assert after(0.3) < 0.1 < after(0.2)
