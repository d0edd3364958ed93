"""Quantiles that say how far they can be trusted.

*Estimator.* The inverse of the empirical distribution function, rank `ceil(q n)`: it agrees with counting violations,
which numpy's linear interpolation does not. A failure is a value of plus infinity.

*Interval.* Neighbouring requests share a backlog, so that n of them are worth fewer independent ones. The run is cut
into batches in order of arrival; the variance of the share above the quantile, between batches, gives the effective
sample size `n_eff` (batch means; Law, Simulation Modeling and Analysis, chapter 9). Batches whose means are still
correlated are merged, and what correlation is left widens the variance as in an AR(1) process. The distribution-free
order-statistic interval is then taken at `n_eff`, shrunk further by (z / t)^2 because the variance was itself estimated
from few batches. A tail too thin to show its own correlation borrows that of the quantile with 20 values above it.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

import msgspec

from setpoint.metrics.binomial import binomial_cdf, student_t_quantile

Support = Literal["full", "too_few", "failures"]

BATCHES_MAX = 20
BATCHES_MIN = 5
BATCH_SIZE_MIN = 10
THIN_TAIL = 20
CORRELATION_MAX = 0.9


class Quantile(msgspec.Struct, frozen=True, kw_only=True):
    """The `q` quantile of `n` values, with its confidence interval.

    `value`: `None` when there are no values, or when failures reach this rank (the quantile is infinite).
    `low`, `high`: `None` where the sample has no finite bound. `support`: `too_few` when the sample cannot bound this
    quantile from above at the stated confidence: such a value must not be shown as if it were known.
    """

    q: float
    value: float | None
    low: float | None
    high: float | None
    n: int
    n_eff: float
    support: Support


class EffectiveSize(msgspec.Struct, frozen=True, kw_only=True):
    """How many independent observations a correlated series of `n` flags is worth.

    `batches` is 0 when the series is too short to tell: independence is then assumed. `n_test` is `n_eff` reduced for
    the uncertainty of the variance, to be put into binomial intervals and tests.
    """

    n: int
    n_eff: float
    n_test: float
    batches: int
    correlation: float


def rank_quantile(ordered: Sequence[float], q: float) -> float:
    """Return the inverse empirical distribution function at `q` of values sorted in rising order."""
    if not ordered:
        message = "no values"
        raise ValueError(message)
    return ordered[max(1, math.ceil(q * len(ordered) - 1e-9)) - 1]


def binomial_ranks(q: float, n: float, confidence: float = 0.95) -> tuple[int | None, int | None]:
    """Return the ranks (from 1) of the order statistics that enclose the `q` quantile, `None` where there is none."""
    tail = (1.0 - confidence) / 2.0
    low = _smallest(lambda k: binomial_cdf(k, n, q) > tail, n)
    high = _smallest(lambda k: binomial_cdf(k, n, q) >= 1.0 - tail, n)
    return (low if 1 <= low <= n else None), (high + 1 if high + 1 <= n else None)


def _smallest(is_reached: Callable[[int], bool], n: float) -> int:
    low, high = 0, math.ceil(n)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_reached(middle) else (middle + 1, high)
    return low


def sample_size_min(q: float, confidence: float = 0.95) -> int:
    """Return how many independent values a two-sided interval of the `q` quantile needs for a finite upper end."""
    return math.ceil(math.log((1.0 - confidence) / 2.0) / math.log(q))


def effective_size(flags: Sequence[float], confidence: float = 0.95) -> EffectiveSize:
    """Return the effective size of a series of flags (0 or 1, or batch-wise shares) in order of arrival."""
    n = len(flags)
    batches = min(BATCHES_MAX, n // BATCH_SIZE_MIN)
    if batches < BATCHES_MIN:
        return EffectiveSize(n=n, n_eff=float(n), n_test=float(n), batches=0, correlation=0.0)
    means = batch_means(flags, batches)
    correlation = lag_one(means)
    while correlation > max(0.2, 1.0 / math.sqrt(batches)) and batches // 2 >= BATCHES_MIN:
        batches //= 2
        means = batch_means(flags, batches)
        correlation = lag_one(means)
    return _size_of(means, n, correlation, confidence)


def _size_of(means: Sequence[float], n: int, correlation: float, confidence: float) -> EffectiveSize:
    batches = len(means)
    share = sum(means) / batches
    variance = sum((mean - share) ** 2 for mean in means) / (batches - 1) / batches
    left = min(max(correlation, 0.0), CORRELATION_MAX)
    variance *= (1.0 + left) / (1.0 - left)
    n_eff = float(n)
    if variance > 0.0:
        n_eff = min(n_eff, max(1.0, share * (1.0 - share) / variance))
    tail = (1.0 + confidence) / 2.0
    shrink = (NormalDist().inv_cdf(tail) / student_t_quantile(tail, batches - 1)) ** 2
    return EffectiveSize(n=n, n_eff=n_eff, n_test=n_eff * shrink, batches=batches, correlation=correlation)


def batch_means(values: Sequence[float], batches: int) -> list[float]:
    """Return the means of `batches` runs of neighbours, whose sizes differ by one at most."""
    edges = [len(values) * index // batches for index in range(batches + 1)]
    return [sum(values[low:high]) / (high - low) for low, high in pairwise(edges)]


def lag_one(means: Sequence[float]) -> float:
    """Return the lag-one autocorrelation; 0 for a constant series."""
    centre = sum(means) / len(means)
    spread = sum((mean - centre) ** 2 for mean in means)
    if spread <= 0.0:
        return 0.0
    return sum((a - centre) * (b - centre) for a, b in pairwise(means)) / spread


def estimate(
    values: Sequence[float], q: float, *, confidence: float = 0.95, ordered: Sequence[float] | None = None
) -> Quantile:
    """Return the `q` quantile of `values`, given in order of arrival with infinity for failures.

    `ordered`: the same values sorted, where the caller has them already.
    """
    n = len(values)
    if n == 0:
        return Quantile(q=q, value=None, low=None, high=None, n=0, n_eff=0.0, support="too_few")
    if ordered is None:
        ordered = sorted(values)
    value = rank_quantile(ordered, q)
    thick = min(value, ordered[max(0, n - 1 - THIN_TAIL)])
    size = effective_size([float(one > thick) for one in values], confidence)
    low, high = binomial_ranks(q, size.n_test, confidence)
    return Quantile(
        q=q,
        value=_finite(value),
        low=None if low is None else _finite(min(value, ordered[max(0, math.floor(low * n / size.n_test) - 1)])),
        high=None if high is None else _finite(max(value, ordered[min(n, math.ceil(high * n / size.n_test)) - 1])),
        n=n,
        n_eff=size.n_eff,
        support="failures" if math.isinf(value) else "full" if high is not None else "too_few",
    )


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value
