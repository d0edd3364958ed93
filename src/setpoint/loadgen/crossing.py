"""Where violations cross what is allowed: a posterior over the rate, from all trials at once. Pure.

Near the crossing the share of violations is taken as logistic in the logarithm of the rate, with unknown place and
slope; each trial is a binomial observation at its effective sample size. So a trial counts by how much it shows and not
by which side of a line it fell on, and an unlucky one is outweighed instead of moving a bracket for ever. Trials far
from the crossing, where the curve is no logistic, weigh little. (A monotone fit over all data; compare AIPerf's
isotonic search, and probabilistic bisection, Horstein 1963.)
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import msgspec

from setpoint.metrics.binomial import incomplete_beta

POINTS = 241
SLOPES = (3.0, 5.0, 8.0, 12.0, 18.0, 27.0, 40.0, 60.0)
N_MAX = 600.0
REACH = 0.35
"""Logarithmic distance from the crossing at which a trial weighs 1/e."""
WEIGHT_MIN = 0.05
SURE = 0.97
SPREAD_MIN, SPREAD_MAX = 1.5, 9.0


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """At `rate`, `share` of `n` independent requests violated one objective."""

    rate: float
    share: float
    n: float


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution over the highest rate that keeps the objective: `masses[i]` at `rates[i]`, rising rates."""

    rates: tuple[float, ...]
    masses: tuple[float, ...]

    def at(self, p: float) -> float:
        """Return the rate below which the crossing lies with probability `p`."""
        for rate, reached in zip(self.rates, accumulate(self.masses), strict=True):
            if reached >= p:
                return rate
        return self.rates[-1]

    def below(self, rate: float) -> float:
        """Return the probability that the crossing lies below `rate`."""
        return sum(mass for one, mass in zip(self.rates, self.masses, strict=True) if one < rate)


def crossing(observations: Sequence[Observation], allowed: float, low: float, high: float) -> Crossing:
    """Return where the share of violations crosses `allowed`, known beforehand to lie within [low, high]."""
    step = math.log(high / low) / (POINTS - 1)
    rates = tuple(low * math.exp(step * index) for index in range(POINTS))
    if not observations:
        return Crossing(rates=rates, masses=(1.0 / POINTS,) * POINTS)
    centre = _side_median(observations, allowed, rates)
    weighed = [
        (math.log(one.rate), one.share * n, n)
        for one in observations
        if (n := min(one.n, N_MAX) * max(WEIGHT_MIN, math.exp(-((math.log(one.rate / centre) / REACH) ** 2)))) > 0.0
    ]
    base = math.log(allowed / (1.0 - allowed))
    scores = {
        (index, slope): _log_likelihood(weighed, base, math.log(rate), slope)
        for index, rate in enumerate(rates)
        for slope in SLOPES
    }
    best = max(scores, key=lambda key: scores[key])
    spread = _overdispersion(weighed, base, math.log(rates[best[0]]), best[1])
    masses = [0.0] * POINTS
    for (index, _), score in scores.items():
        masses[index] += math.exp((score - scores[best]) / spread)
    total = sum(masses)
    return Crossing(rates=rates, masses=tuple(mass / total for mass in masses))


def _overdispersion(weighed: Sequence[tuple[float, float, float]], base: float, place: float, slope: float) -> float:
    """Return by how much the trials disagree beyond their own intervals (mean squared Pearson residual, bounded)."""
    squares = [1.0, 1.0]
    for log_rate, violated, n in weighed:
        p = 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, base + slope * (log_rate - place)))))
        squares.append((violated - n * p) ** 2 / max(1e-9, n * p * (1.0 - p)))
    return max(SPREAD_MIN, min(SPREAD_MAX, sum(squares) / max(1, len(squares) - 2)))


def _log_likelihood(weighed: Sequence[tuple[float, float, float]], base: float, place: float, slope: float) -> float:
    total = 0.0
    for log_rate, violated, n in weighed:
        x = base + slope * (log_rate - place)
        softplus = max(x, 0.0) + math.log1p(math.exp(-abs(x)))
        total += violated * (x - softplus) - (n - violated) * softplus
    return total


def _side_median(observations: Sequence[Observation], allowed: float, rates: Sequence[float]) -> float:
    """Return the median of the posterior that only asks on which side of the crossing each trial lies."""
    logs = [0.0] * len(rates)
    for one in observations:
        violated = one.share * one.n
        p_met = incomplete_beta(violated + 0.5, one.n - violated + 0.5, allowed)
        p_met = min(SURE, max(1.0 - SURE, p_met))
        for index, rate in enumerate(rates):
            logs[index] += math.log(p_met if rate >= one.rate else 1.0 - p_met)
    best = max(logs)
    masses = [math.exp(value - best) for value in logs]
    half = sum(masses) / 2.0
    return next(rate for rate, reached in zip(rates, accumulate(masses), strict=True) if reached >= half)


def least(crossings: Sequence[Crossing]) -> Crossing:
    """Return the distribution of the least of several crossings, taken as independent (all on the same rates)."""
    if len(crossings) == 1:
        return crossings[0]
    rates = crossings[0].rates
    survivals = [1.0] * (len(rates) + 1)
    for one in crossings:
        left = 1.0
        for index, mass in enumerate(one.masses):
            survivals[index] *= max(0.0, left)
            left -= mass
        survivals[-1] *= max(0.0, left)
    masses = [max(0.0, earlier - later) for earlier, later in pairwise(survivals)]
    total = sum(masses) or 1.0
    return Crossing(rates=rates, masses=tuple(mass / total for mass in masses))
