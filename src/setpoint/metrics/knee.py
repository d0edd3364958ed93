"""Where a throughput-latency curve turns: more load still adds latency, and hardly any throughput.

Kneedle (Satopaa et al., 2011) on the curve scaled to a unit square: the point farthest above the chord. The power point
(Kleinrock 1979) has the most throughput for its latency and needs no scaling.

The interval is a bootstrap: each point of the curve is drawn again, from slices of its run with replacement (slices, as
neighbouring requests share a backlog), and the knee is found afresh on each such curve. On a curve without a sharp turn
it is wide, which is the truth about it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from setpoint.chance import Chance
from setpoint.metrics.timeline import RequestRecord

POINTS_MIN = 5
NEAR = 0.9
SLICES = 20
RESAMPLES = 400
TAIL = 0.05


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """Indices into the curve: the knee with its 90% interval (of load), and the power point.

    `share`: of the curves drawn again, those whose knee is at `index`; `None` when none were drawn, and the interval
    then holds the points within a tenth of the knee's distance from the chord.
    """

    index: int
    first: int
    last: int
    power_index: int
    share: float | None = None


class Slice(msgspec.Struct, frozen=True):
    """A part of a run: its seconds, the tokens of the answers ended in it, and the times of the requests due in it."""

    seconds: float
    tokens: float
    times_s: float
    requests: int


def slices_of(records: Iterable[RequestRecord], start: float, end: float, slices: int = SLICES) -> list[Slice]:
    """Return the window [start, end) of a run in slices of equal length."""
    width = (end - start) / slices
    tokens, times, counts = [0.0] * slices, [0.0] * slices, [0] * slices
    for record in records:
        ended, e2e = record.ended_at, record.e2e_s
        if ended is None or e2e is None:
            continue
        if start <= ended < end:
            tokens[min(slices - 1, int((ended - start) / width))] += record.output_tokens
        if start <= record.scheduled_at < end:
            index = min(slices - 1, int((record.scheduled_at - start) / width))
            times[index] += e2e
            counts[index] += 1
    return [Slice(width, *each) for each in zip(tokens, times, counts, strict=True)]


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


def knee_with_interval(curve: Sequence[Sequence[Slice]], chance: Chance) -> Knee | None:
    """Return the knee of a curve given as the slices of its points, in order of load; `None` as `find_knee`."""
    whole = _knee_of(curve)
    if whole is None:
        return None
    drawn = [_knee_of([_again(point, chance) for point in curve]) for _ in range(RESAMPLES)]
    found = sorted(knee.index for knee in drawn if knee is not None)
    if not found:
        return whole
    return msgspec.structs.replace(
        whole,
        first=min(whole.index, found[int(TAIL * len(found))]),
        last=max(whole.index, found[int((1.0 - TAIL) * len(found))]),
        share=Counter(found)[whole.index] / len(found),
    )


def _again(point: Sequence[Slice], chance: Chance) -> list[Slice]:
    return [point[chance.randrange(len(point))] for _ in point]


def _knee_of(curve: Sequence[Sequence[Slice]]) -> Knee | None:
    throughputs = [sum(one.tokens for one in point) / sum(one.seconds for one in point) for point in curve]
    latencies = [sum(one.times_s for one in point) / max(1, sum(one.requests for one in point)) for point in curve]
    return find_knee(throughputs, latencies)
