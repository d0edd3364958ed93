"""Where a throughput-latency curve turns: more load still adds latency, and hardly any throughput.

Kneedle (Satopaa et al., 2011) on the curve scaled to a unit square: the point farthest above the chord. Its interval
holds all points within a tenth of that distance. The power point (Kleinrock 1979) has the most throughput for its
latency and needs no scaling.
"""

from collections.abc import Sequence

import msgspec

POINTS_MIN = 5
NEAR = 0.9


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """Indices into the curve: the knee with the points that are as good, and the power point."""

    index: int
    first: int
    last: int
    power_index: int


def find_knee(throughputs: Sequence[float], latencies: Sequence[float]) -> Knee | None:
    """Return the knee of a curve given in order of load; `None` for fewer than five points or a curve without range."""
    if len(throughputs) < POINTS_MIN or min(latencies) <= 0.0:
        return None
    wide, high = max(throughputs) - min(throughputs), max(latencies) - min(latencies)
    if wide <= 0.0 or high <= 0.0:
        return None
    distances = [
        (x - min(throughputs)) / wide - (y - min(latencies)) / high for x, y in zip(throughputs, latencies, strict=True)
    ]
    best = max(range(len(distances)), key=lambda index: distances[index])
    near = [index for index, distance in enumerate(distances) if distance >= NEAR * distances[best]]
    powers = [x / y for x, y in zip(throughputs, latencies, strict=True)]
    return Knee(index=best, first=near[0], last=near[-1], power_index=max(range(len(powers)), key=lambda i: powers[i]))
