"""A histogram of durations with logarithmic buckets: a fixed relative error, and merging without loss.

The idea is DDSketch's (Masson, Rim, Lee; VLDB 2019): bucket `i` holds values in (g^(i-1), g^i], so that any quantile is
within `error` of the truth, relative to its size. Workers count apart and their counts are added. Used for inter-token
gaps, of which there are too many to keep.
"""

import math
from collections.abc import Iterable

import msgspec

ERROR = 0.002
"""Relative error of a quantile; five orders of magnitude take some 2,900 buckets at most."""

_GROWTH_LOG = math.log((1.0 + ERROR) / (1.0 - ERROR))
_MIDDLE = 2.0 / (1.0 + (1.0 + ERROR) / (1.0 - ERROR))
SMALLEST_S = 1e-7


class Histogram(msgspec.Struct, kw_only=True):
    """Counts by bucket; `zeros` are values below 100 nanoseconds."""

    buckets: dict[int, int] = {}
    zeros: int = 0
    count: int = 0
    total: float = 0.0
    largest: float = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count `value` (non-negative seconds) `times` over."""
        self.count += times
        self.total += value * times
        self.largest = max(self.largest, value)
        if value < SMALLEST_S:
            self.zeros += times
            return
        bucket = math.ceil(math.log(value) / _GROWTH_LOG)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + times

    def extend(self, values: Iterable[float]) -> None:
        """Count each of `values` once."""
        for value in values:
            self.add(value)

    def merge(self, other: "Histogram") -> None:
        """Add the counts of `other`."""
        self.count += other.count
        self.zeros += other.zeros
        self.total += other.total
        self.largest = max(self.largest, other.largest)
        for bucket, times in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + times

    def quantile(self, q: float) -> float | None:
        """Return the `q` quantile within the relative error, or `None` when empty."""
        if self.count == 0:
            return None
        rank = max(1, math.ceil(q * self.count - 1e-9))
        seen = self.zeros
        if seen >= rank:
            return 0.0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                break
        return min(self.largest, math.exp(bucket * _GROWTH_LOG) * _MIDDLE)

    def share_above(self, value: float) -> float:
        """Return the share of the counted values in buckets above that of `value`."""
        if self.count == 0:
            return 0.0
        edge = math.ceil(math.log(max(value, SMALLEST_S)) / _GROWTH_LOG)
        return sum(times for bucket, times in self.buckets.items() if bucket > edge) / self.count
