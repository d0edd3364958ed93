"""What `slack` reckons with: the tightest TTFT target of late."""

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
