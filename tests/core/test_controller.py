"""A controlled margin settles where misses come at the allowed rate, and comes back at once from its bounds."""

import random

import pytest

from setpoint.core.controller import Margin


def misses(value: float) -> float:
    """Return the miss rate of a plant: the bolder, the more misses; none below 0.3, all above 1.3."""
    return min(1.0, max(0.0, value - 0.3))


@pytest.mark.parametrize("allowed", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("start", [0.05, 1.0])
@pytest.mark.parametrize("lead", [1.0, 5.0])
def test_it_settles_at_the_allowed_rate(allowed: float, start: float, lead: float) -> None:
    draw = random.Random(3)
    margin = Margin(start, low=0.01, high=1.2, allowed=allowed, gain=0.1, lead=lead)
    seen = []
    for _ in range(20_000):
        is_missed = draw.random() < misses(margin.value)
        margin.update(is_missed=is_missed)
        seen.append(is_missed)
    settled = seen[4000:]
    assert sum(settled) / len(settled) == pytest.approx(allowed, abs=0.012)


@pytest.mark.parametrize("is_missed", [True, False])
def test_however_long_it_stood_at_a_bound_it_leaves_it_with_the_next_request(*, is_missed: bool) -> None:
    margin = Margin(0.5, low=0.1, high=0.9, allowed=0.5)
    for _ in range(1000):
        margin.update(is_missed=is_missed)
    bound = margin.value
    assert bound == pytest.approx(0.1 if is_missed else 0.9)
    margin.update(is_missed=not is_missed)
    assert (margin.value > bound) is is_missed


def test_a_miss_costs_as_much_as_it_is_rare() -> None:
    margin = Margin(0.5, low=0.1, high=0.9, allowed=0.05)
    margin.update(is_missed=True)
    for _ in range(19):
        margin.update(is_missed=False)
    assert margin.value == pytest.approx(0.5)


def test_until_the_first_miss_and_after_a_long_row_without_it_hurries() -> None:
    def after(lead: float, *misses: bool) -> float:
        margin = Margin(0.1, low=0.01, high=1.0, allowed=0.05, gain=0.4, lead=lead)
        for is_missed in misses:
            margin.update(is_missed=is_missed)
        return margin.value

    assert after(5.0, *[False] * 10) == pytest.approx(after(1.0, *[False] * 50))
    assert after(5.0, True, *[False] * 60) == pytest.approx(after(1.0, True, *[False] * 60))
    assert after(5.0, True, *[False] * 70) == pytest.approx(after(1.0, True, *[False] * 110))
