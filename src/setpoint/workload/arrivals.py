"""When requests arrive: a process of unit rate, carried through a rate that may change with time.

Gaps are drawn once, at one arrival per unit; a rate profile then says at which second the cumulative rate reaches each
of them (the time-change theorem for point processes). The same draws at another rate give the same pattern, faster or
slower: common random numbers, which make neighbouring rates comparable. For a constant rate this divides by the rate.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import msgspec

from setpoint.chance import Chance
from setpoint.errors import WorkloadError


class Gaps(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Gaps of mean 1 with coefficient of variation `cv`: 0 is constant, 1 is Poisson, more is bursty (gamma)."""

    cv: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not 0.0 <= self.cv <= 100.0:  # noqa: PLR2004 - beyond this a run never sees two bursts
            raise WorkloadError(
                f"the burstiness of arrivals must lie in 0..100, not {self.cv:g}",
                hint="0 spaces them evenly, 1 is Poisson",
            )

    def draw(self, chance: Chance) -> float:
        """Return the next gap."""
        if self.cv == 0.0:
            return 1.0
        if self.cv == 1.0:
            return chance.expovariate(1.0)
        return chance.gammavariate(self.cv**-2, self.cv**2)


CONSTANT = Gaps(cv=0.0)
POISSON = Gaps(cv=1.0)


class Rate(Protocol):
    """A rate of arrivals over time."""

    def when(self, units: float) -> float:
        """Return the second at which `units` arrivals are due in all; infinity when the rate never gets there."""
        ...


class Steady(msgspec.Struct, frozen=True, tag=True):
    """The same `rps` requests per second throughout."""

    rps: float

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _positive("rate", self.rps)

    def when(self, units: float) -> float:
        """Return the second at which `units` arrivals are due."""
        return units / self.rps


class Ramp(msgspec.Struct, frozen=True, tag=True):
    """A rate that goes linearly from `start_rps` to `end_rps` within `over_s` seconds, and stays there."""

    start_rps: float
    end_rps: float
    over_s: float

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _positive("rate at the end of the ramp", self.end_rps)
        _positive("length of the ramp", self.over_s)
        if not 0.0 <= self.start_rps < math.inf:
            raise WorkloadError(
                f"the rate at the start of the ramp is {self.start_rps:g}: it must not be negative",
                hint="write ramp:0-8,over=60",
            )

    def when(self, units: float) -> float:
        """Return the second at which `units` arrivals are due: the root of a quadratic while the ramp lasts."""
        within = (self.start_rps + self.end_rps) / 2.0 * self.over_s
        if units >= within:
            return self.over_s + (units - within) / self.end_rps
        bend = (self.end_rps - self.start_rps) / self.over_s
        return 2.0 * units / (self.start_rps + math.sqrt(max(0.0, self.start_rps**2 + 2.0 * bend * units)))


class Diurnal(msgspec.Struct, frozen=True, tag=True):
    """A day: `mean_rps x (1 + swing_ratio x sin(2 pi t / period_s))`, so that it starts at the mean and rises."""

    mean_rps: float
    swing_ratio: float = 0.5
    period_s: float = 86_400.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _positive("mean rate", self.mean_rps)
        _positive("period", self.period_s)
        if not 0.0 <= self.swing_ratio <= 1.0:
            raise WorkloadError(
                f"the swing of a day must lie in 0..1, not {self.swing_ratio:g}",
                hint="0.5: the rate goes from half the mean to one and a half",
            )

    def when(self, units: float) -> float:
        """Return the second at which `units` arrivals are due, by bisection on the cumulative rate."""
        turn = 2.0 * math.pi / self.period_s
        whole = math.floor(units / (self.mean_rps * self.period_s))
        rest = units / self.mean_rps - whole * self.period_s
        low, high = 0.0, self.period_s
        for _ in range(60):
            middle = (low + high) / 2.0
            reached = middle + self.swing_ratio / turn * (1.0 - math.cos(turn * middle))
            low, high = (middle, high) if reached < rest else (low, middle)
        return whole * self.period_s + high


class Stairs(msgspec.Struct, frozen=True, tag=True):
    """Constant rates one after another: pairs of (seconds, requests per second); the last goes on for ever."""

    steps: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for seconds, rps in self.steps:
            _positive("length of a step", seconds)
            _positive("rate of a step", rps)
        if not self.steps:
            raise WorkloadError("a staircase of rates needs one step at least", hint="write stairs:30x2,30x4")

    def when(self, units: float) -> float:
        """Return the second at which `units` arrivals are due."""
        begun = 0.0
        for seconds, rps in self.steps[:-1]:
            if units <= seconds * rps:
                return begun + units / rps
            units -= seconds * rps
            begun += seconds
        return begun + units / self.steps[-1][1]


AnyRate = Steady | Ramp | Diurnal | Stairs


def arrival_times(rate: Rate, chance: Chance, gaps: Gaps = POISSON) -> Iterator[float]:
    """Yield the instants of arrival in seconds from the start, in rising order, without end."""
    units = 0.0
    while True:
        units += gaps.draw(chance)
        yield rate.when(units)


def _positive(what: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise WorkloadError(f"the {what} must be positive, not {value:g}", hint="give a number above 0")
