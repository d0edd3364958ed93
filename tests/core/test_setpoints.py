"""What `slack` reckons with: the tightest TTFT target of late, and who had time to spare."""

from math import log

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


@pytest.mark.parametrize(
    ("first_s", "pace_s", "is_easy"), [(0.2, 0.02, True), (0.5, 0.02, False), (0.2, 0.05, False), (0.2, None, True)]
)
def test_who_takes_little_of_both_targets_makes_batch_work_bolder_sooner(
    first_s: float, pace_s: float | None, *, is_easy: bool
) -> None:
    setpoints = Setpoints(boldness=0.1, arrival=0.5, idle_step_s=9.0, memory_s=60.0, is_moving=True)
    output = 1 if pace_s is None else 11

    def ends(first_s: float, pace_s: float) -> None:
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
        sequence.begin(Instant(first_s))
        sequence.output_tokens = output
        setpoints.saw_finish(sequence, first_s + (output - 1) * pace_s, is_harvesting=True)

    ends(2.0, 0.02)
    after_a_miss = setpoints.boldness(0.0)
    for _ in range(40):
        ends(first_s, pace_s or 0.0)
    allowed = 0.5 * (1.0 - PRESETS["chat"].slo.percentile)
    steps = log(setpoints.boldness(0.0) / after_a_miss) / (0.4 * allowed)
    assert (steps > 40 + 1) is is_easy
