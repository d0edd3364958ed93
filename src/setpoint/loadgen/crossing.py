"""Where violations cross what is allowed: a posterior over the rate, from all trials at once. Pure.

Near the crossing the share of violations is taken as logistic in the logarithm of the rate, with unknown place and
slope; each trial is a binomial observation at its effective sample size. So a trial counts by how much it shows and not
by which side of a line it fell on, and an unlucky one is outweighed instead of moving a bracket for ever. (A monotone
fit over all data; compare AIPerf's isotonic search, and probabilistic bisection, Horstein 1963.)

Only near it: far below, the share rests on a floor (requests that are late for their own sake), far above it leaps to
one. Shares under a quarter of what is allowed, or over three times it, therefore only say that they lie beyond those
marks: the likelihood is censored there, on both sides, and weighs by the violations that were seen.

How many independent requests a trial is worth is not asked of that trial alone. A run of luck shows few violations and
no clusters of them, so that it would pass for many independent requests just because it was lucky. The design effect
(requests over independent ones) is instead shared among the trials at nearby rates, weighted by the violations that
each of them saw.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import msgspec

from setpoint.metrics.binomial import incomplete_beta

POINTS = 241
SLOPES = (2.0, 3.0, 4.5, 7.0, 10.0, 15.0, 23.0, 35.0, 55.0, 80.0)
BELOW, ABOVE, SHARE_MAX = 4.0, 3.0, 0.9
"""A share under `1 / BELOW` of what is allowed, or over `ABOVE` of it, says no more than that."""
REACH = 0.5
"""Logarithmic distance from the crossing at which a trial weighs 1/e."""
WEIGHT_MIN = 0.05
SURE = 0.97
SPREAD_MAX = 4.0
NEAR = 0.15
"""Logarithmic distance over which trials share their design effect."""
VIOLATIONS_BEYOND = 6.0
"""Most violations that a short trial beyond the upper mark weighs by: they come in clusters there."""
PRIOR_EFFECT, PRIOR_VIOLATIONS = 3.0, 10.0


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """At `rate`, `share` of `requests` violated one objective; by itself the trial passes for `n` independent ones.

    Without `requests` there were as many as independent ones.
    """

    rate: float
    share: float
    n: float
    requests: float | None = None

    @property
    def effect(self) -> float:
        """The design effect that the trial itself shows."""
        return (self.requests or self.n) / self.n


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


class _Weighed(msgspec.Struct, frozen=True):
    """An observation as the likelihood takes it: `violated` of `n`, censored."""

    log_rate: float
    violated: float
    n: float


class _Curve(msgspec.Struct, frozen=True):
    """The logistic through what is allowed, censored: log odds `base`, never outside of `low` to `high`."""

    base: float
    low: float
    high: float

    def at(self, distance: float, slope: float) -> float:
        """Return the log odds of a violation at a logarithmic distance from the crossing."""
        return max(self.low, min(self.high, self.base + slope * distance))


def crossing(observations: Sequence[Observation], allowed: float, low: float, high: float) -> Crossing:
    """Return where the share of violations crosses `allowed`, known beforehand to lie within [low, high]."""
    step = math.log(high / low) / (POINTS - 1)
    rates = tuple(low * math.exp(step * index) for index in range(POINTS))
    if not observations:
        return Crossing(rates=rates, masses=(1.0 / POINTS,) * POINTS)
    sizes = effective_sizes(observations, allowed)
    centre = _side_median(observations, sizes, allowed, rates)
    least_share, most_share = allowed / BELOW, min(SHARE_MAX, ABOVE * allowed)
    curve = _Curve(_log_odds(allowed), _log_odds(least_share), _log_odds(max(most_share, allowed)))
    weighed = []
    for one, size in zip(observations, sizes, strict=True):
        n = size * max(WEIGHT_MIN, math.exp(-((math.log(one.rate / centre) / REACH) ** 2)))
        seen = n * max(least_share, one.share)
        violated = min(seen, max(n * most_share, VIOLATIONS_BEYOND))
        weighed.append(_Weighed(math.log(one.rate), violated, max(n, violated / most_share)))
    scores = {
        (index, slope): _log_likelihood(weighed, curve, math.log(rate), slope)
        for index, rate in enumerate(rates)
        for slope in SLOPES
    }
    best = max(scores, key=lambda key: scores[key])
    spread = _overdispersion(weighed, curve, math.log(rates[best[0]]), best[1])
    masses = [0.0] * POINTS
    for (index, _), score in scores.items():
        masses[index] += math.exp((score - scores[best]) / spread)
    total = sum(masses)
    return Crossing(rates=rates, masses=tuple(mass / total for mass in masses))


def effective_sizes(observations: Sequence[Observation], allowed: float) -> list[float]:
    """Return how many independent requests each trial is worth, by the design effect about its rate."""
    told = [
        (math.log(one.rate), one.share * (one.requests or one.n), one.effect)
        for one in observations
        if one.n > 0.0 and 0.0 < one.share <= ABOVE * allowed
    ]
    sizes = []
    for one in observations:
        weight, total = PRIOR_VIOLATIONS, PRIOR_VIOLATIONS * PRIOR_EFFECT
        for log_rate, violated, effect in told:
            near = violated * math.exp(-(((math.log(one.rate) - log_rate) / NEAR) ** 2))
            weight += near
            total += near * effect
        sizes.append((one.requests or one.n) / max(1.0, total / weight))
    return sizes


def _log_odds(p: float) -> float:
    return math.log(p / (1.0 - p))


def _overdispersion(weighed: Sequence[_Weighed], curve: _Curve, place: float, slope: float) -> float:
    """Return by how much the trials disagree beyond their own intervals (mean squared Pearson residual, bounded)."""
    squares = [1.0, 1.0]
    for one in weighed:
        p = 1.0 / (1.0 + math.exp(-curve.at(one.log_rate - place, slope)))
        squares.append((one.violated - one.n * p) ** 2 / max(1e-9, one.n * p * (1.0 - p)))
    return max(1.0, min(SPREAD_MAX, sum(squares) / max(1, len(squares) - 2)))


def _log_likelihood(weighed: Sequence[_Weighed], curve: _Curve, place: float, slope: float) -> float:
    total = 0.0
    for one in weighed:
        x = curve.at(one.log_rate - place, slope)
        total += one.violated * x - one.n * (max(x, 0.0) + math.log1p(math.exp(-abs(x))))
    return total


def _side_median(
    observations: Sequence[Observation], sizes: Sequence[float], allowed: float, rates: Sequence[float]
) -> float:
    """Return the median of the posterior that only asks on which side of the crossing each trial lies."""
    logs = [0.0] * len(rates)
    for one, n in zip(observations, sizes, strict=True):
        violated = min(1.0, one.share) * n
        p_met = incomplete_beta(violated + 0.5, n - violated + 0.5, allowed)
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
