"""What changed between two reports; pure.

A difference is *shown* when the two confidence intervals do not overlap (stricter than a test at the same level, and
honest about what each run could know); otherwise it is not shown, whatever the point estimates say.
"""

from typing import Literal

import msgspec

from setpoint.errors import ConfigError
from setpoint.loadgen.report import BenchReport, Point
from setpoint.metrics import Quantile, Share
from setpoint.metrics.quantile import Support

Direction = Literal["better", "worse", "not shown", "unknown"]

COMPARED = ("ttft", "tpot", "itl", "e2e")
QUANTILES = (0.5, 0.95, 0.99)
RATE_APART = 0.02


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure before and after, each with its interval; `change_ratio` is after over before, less 1.

    `before_support`, `after_support`: `too_few` where the sample cannot carry the quantile, `failures` where it is
    never reached.
    """

    point: int
    figure: str
    before: float | None
    after: float | None
    before_interval: tuple[float | None, float | None]
    after_interval: tuple[float | None, float | None]
    change_ratio: float | None
    direction: Direction
    before_support: Support = "full"
    after_support: Support = "full"


def differences(before: BenchReport, after: BenchReport) -> list[str]:
    """Return in which ways the load of the two reports differs; the empty list when they can be compared."""
    found = []
    if len(before.points) != len(after.points):
        found.append(f"{len(before.points)} points against {len(after.points)}")
    if before.objectives != after.objectives:
        found.append("other objectives, on which attainment depends")
    for number, (one, other) in enumerate(zip(before.points, after.points, strict=False), start=1):
        a, b = one.load, other.load
        where = f"point {number}: "
        if (a.kind, a.users) != (b.kind, b.users):
            found.append(f"{where}{a.kind} {a.users or ''} against {b.kind} {b.users or ''}")
        elif a.rate_rps and b.rate_rps and abs(b.rate_rps / a.rate_rps - 1.0) > RATE_APART:
            found.append(f"{where}{a.rate_rps:.3g}/s against {b.rate_rps:.3g}/s")
        if a.arrivals != b.arrivals:
            found.append(f"{where}{a.arrivals} arrivals against {b.arrivals}")
        if a.workload != b.workload:
            found.append(f"{where}{a.workload!r} against {b.workload!r}")
    return found


def compare(before: BenchReport, after: BenchReport, *, is_forced: bool = False) -> list[Change]:
    """Return every figure of both, point by point; raises ConfigError when the loads differ, unless forced."""
    apart = differences(before, after)
    if apart and not is_forced:
        raise ConfigError(
            "the two runs had different loads: " + "; ".join(apart),
            hint="measure both under the same load, or say --different-load to compare all the same",
        )
    changes: list[Change] = []
    for number, (one, other) in enumerate(zip(before.points, after.points, strict=False)):
        changes += _of_point(number, one, other)
    return changes


def _of_point(number: int, before: Point, after: Point) -> list[Change]:
    if before.summary is None or after.summary is None:
        return []
    a, b = before.summary, after.summary
    changes = [
        _plain(number, "requests per second", a.completed_rps, b.completed_rps),
        _plain(number, "output tokens per second", a.output_tokens_per_s, b.output_tokens_per_s),
    ]
    if a.attainment is not None and b.attainment is not None and before.judged:
        changes.append(_of_share(number, a.attainment, b.attainment))
    for name in COMPARED:
        for q in QUANTILES:
            one, other = a.overall.latencies[name].at(q), b.overall.latencies[name].at(q)
            if one.n and other.n:
                changes.append(_of_quantile(number, f"{name.upper()} P{q * 100:g}", one, other))
    return changes


def _plain(number: int, figure: str, before: float, after: float) -> Change:
    """Return a rate, which carries no interval of its own: its direction is unknown."""
    return Change(
        point=number,
        figure=figure,
        before=before,
        after=after,
        before_interval=(None, None),
        after_interval=(None, None),
        change_ratio=after / before - 1.0 if before else None,
        direction="unknown",
    )


def _of_share(number: int, before: Share, after: Share) -> Change:
    return Change(
        point=number,
        figure="attainment",
        before=before.value,
        after=after.value,
        before_interval=(before.low, before.high),
        after_interval=(after.low, after.high),
        change_ratio=after.value / before.value - 1.0 if before.value else None,
        direction="better" if after.low > before.high else "worse" if after.high < before.low else "not shown",
    )


def _of_quantile(number: int, figure: str, before: Quantile, after: Quantile) -> Change:
    is_told = before.support == after.support == "full"
    has_both = is_told and before.value is not None and after.value is not None and before.value > 0.0
    return Change(
        point=number,
        figure=figure,
        before=before.value,
        after=after.value,
        before_interval=(before.low, before.high),
        after_interval=(after.low, after.high),
        change_ratio=(after.value or 0.0) / (before.value or 1.0) - 1.0 if has_both else None,
        direction=_direction(before, after),
        before_support=before.support,
        after_support=after.support,
    )


def _direction(before: Quantile, after: Quantile) -> Direction:
    if before.low is None or after.low is None:
        return "unknown"
    if after.high is not None and after.high < before.low:
        return "better"
    if before.high is not None and before.high < after.low:
        return "worse"
    if before.high is None or after.high is None:
        return "unknown"
    return "not shown"
