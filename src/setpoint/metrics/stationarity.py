"""Whether a run had settled, and whether the engine kept up.

*Warm-up*: MSER-5 (White 1997): average the series in groups of five, and cut where the standard error of what is left
is least; a cut at half of the run means that it never settled.
*Drift*: the slope of a least-squares line through batch means with its t interval.
*Overload*: requests in flight grow and latency grows, both significantly (either alone is a common false alarm), or
in-flight grows and clearly fewer requests are completed than offered.
*Little's law*: L = X R holds in any stationary window; a gap beyond what the edges of the window explain says that it
is not one. The gap is what the requests cut in two by the start have left, less what those cut by the end have left
(both as areas). Where the two are alike but for chance, its variance is about the sum of the squares of all those
rests, whatever the distribution of times: long answers among short ones make it large.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import msgspec

from setpoint.metrics.binomial import student_t_quantile
from setpoint.metrics.timeline import RequestRecord

GROUP = 5
GROUPS_MIN = 4
SLICES = 20
KEEPING_UP_RATIO = 0.95
LITTLE_MAX = 0.05
EDGE_DEVIATIONS = 2.5


class Warmup(msgspec.Struct, frozen=True, kw_only=True):
    """How many leading observations to drop; `is_settled` is false when the series never came to rest."""

    dropped: int
    is_settled: bool


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A slope per second with its confidence interval, and the change over the run as a share of the mean."""

    slope: float
    low: float
    high: float
    change_ratio: float

    @property
    def is_rising(self) -> bool:
        """Whether the slope is significantly positive."""
        return self.low > 0.0

    @property
    def is_drifting(self) -> bool:
        """Whether the slope differs significantly from zero."""
        return self.low > 0.0 or self.high < 0.0


class Overload(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence on whether the engine kept up; `completed_ratio` is completed over offered requests."""

    is_overloaded: bool
    in_flight: Drift | None
    is_latency_rising: bool
    completed_ratio: float


def mser5(series: Sequence[float]) -> Warmup:
    """Return where the warm-up of a series ends; a series of fewer than 20 values is kept whole, as unsettled."""
    groups = [math.fsum(series[i : i + GROUP]) / GROUP for i in range(0, len(series) - GROUP + 1, GROUP)]
    if len(groups) < GROUPS_MIN:
        return Warmup(dropped=0, is_settled=False)
    best_cut, best = 0, math.inf
    total = squares = 0.0
    centre = groups[-1]
    for cut in range(len(groups) - 1, -1, -1):
        value = groups[cut] - centre
        total += value
        squares += value * value
        left = len(groups) - cut
        if cut <= len(groups) // 2:
            score = max(0.0, squares - total * total / left) / (left * left)
            if score <= best:
                best_cut, best = cut, score
    return Warmup(dropped=best_cut * GROUP, is_settled=best_cut < len(groups) // 2)


def drift(times: Sequence[float], values: Sequence[float], confidence: float = 0.95) -> Drift | None:
    """Return the trend of `values` (batch means) over `times` in seconds; `None` for fewer than four points."""
    n = len(times)
    if n < GROUPS_MIN:
        return None
    mean_time, mean = math.fsum(times) / n, math.fsum(values) / n
    spread = math.fsum((t - mean_time) ** 2 for t in times)
    if spread == 0.0:
        return None
    slope = math.fsum((t - mean_time) * (v - mean) for t, v in zip(times, values, strict=True)) / spread
    residual = math.fsum((v - mean - slope * (t - mean_time)) ** 2 for t, v in zip(times, values, strict=True))
    half = student_t_quantile((1.0 + confidence) / 2.0, n - 2) * math.sqrt(residual / (n - 2) / spread)
    change = slope * (times[-1] - times[0]) / mean if mean else 0.0
    return Drift(slope=slope, low=slope - half, high=slope + half, change_ratio=change)


def is_trend_rising(values: Sequence[float], confidence: float = 0.95) -> bool:
    """Tell whether `values` rise, by the Mann-Kendall test (rank-based, so heavy tails do not matter)."""
    n = len(values)
    if n < GROUPS_MIN:
        return False
    score = sum((later > earlier) - (later < earlier) for earlier, later in itertools.combinations(values, 2))
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18.0)
    return (score - 1) / deviation > NormalDist().inv_cdf(confidence)


def in_flight_means(records: Iterable[RequestRecord], start: float, end: float, slices: int = SLICES) -> list[float]:
    """Return the mean number of requests due and not ended in each of `slices` equal parts of [start, end)."""
    width = (end - start) / slices
    area = [0.0] * slices
    for record in records:
        born = max(record.scheduled_at, start)
        gone = min(record.ended_at if record.ended_at is not None else end, end)
        if gone <= born:
            continue
        first, last = int((born - start) / width), min(slices - 1, int((gone - start) / width))
        for index in range(first, last + 1):
            low, high = start + index * width, start + (index + 1) * width
            area[index] += max(0.0, min(gone, high) - max(born, low))
    return [one / width for one in area]


def overload(records: Sequence[RequestRecord], start: float, end: float) -> Overload:
    """Judge whether an open-loop run kept up in the window [start, end), from requests sorted by their arrival."""
    width = (end - start) / SLICES
    middles = [start + (index + 0.5) * width for index in range(SLICES)]
    in_flight = drift(middles, in_flight_means(records, start, end))
    due = [record for record in records if start <= record.scheduled_at < end]
    done = sum(1 for r in records if not r.is_failed and start <= (r.ended_at or 0.0) < end)
    ratio = done / len(due) if due else 1.0
    latencies: list[list[float]] = [[] for _ in range(SLICES)]
    for record in due:
        if (latency := record.ttft_s) is not None:
            latencies[min(SLICES - 1, int((record.scheduled_at - start) / width))].append(latency)
    rising = is_trend_rising([math.fsum(part) / len(part) for part in latencies if part])
    growing = in_flight is not None and in_flight.is_rising
    return Overload(
        is_overloaded=growing and (rising or ratio < KEEPING_UP_RATIO),
        in_flight=in_flight,
        is_latency_rising=rising,
        completed_ratio=ratio,
    )


def little_error(records: Iterable[RequestRecord], start: float, end: float) -> float | None:
    """Return `|L - X R| / L` over the window: R of the requests due in it, X their rate, L the mean in flight."""
    records = list(records)
    area = math.fsum(in_flight_means(records, start, end, slices=1)) * (end - start)
    times = [r.ended_at - r.scheduled_at for r in records if start <= r.scheduled_at < end and r.ended_at is not None]
    if area <= 0.0 or not times:
        return None
    return abs(area - math.fsum(times)) / area


def little_allowed(records: Iterable[RequestRecord], start: float, end: float) -> float:
    """Return the gap of `little_error` that a stationary window may show: 5%, or what its edges make of it."""
    area = squares = 0.0
    for record in records:
        born, gone = record.scheduled_at, end if record.ended_at is None else record.ended_at
        area += max(0.0, min(gone, end) - max(born, start))
        if born < start < gone:
            squares += (min(gone, end) - start) ** 2
        if start <= born < end < gone:
            squares += (gone - end) ** 2
    return max(LITTLE_MAX, EDGE_DEVIATIONS * math.sqrt(squares) / area) if area > 0.0 else LITTLE_MAX
