"""The ratios of `policies.py`, each with its interval over the seeds.

A ratio is a median (or the least) over workloads of means over seeds. Its interval comes from the same figure taken for
each seed alone: all strategies see the same draws under a seed, so that what is common to them falls out (Student's t,
95 %). Which row is the best of several is decided by the means, for all seeds alike.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import msgspec
from policy_report import Estimate, estimate
from policy_settings import PUBLISHED
from policy_worlds import BY_NAME

if TYPE_CHECKING:
    from policies import Table

Pick = Callable[[Estimate], float]
"""Which value of an estimate counts: the mean, or that of one seed."""


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """One ratio: its value, half of its interval (`None`: one seed), and the least and most of the workloads."""

    value: float | None
    half: float | None = None
    range: tuple[float, float] | None = None


def ratios(table: "Table") -> dict[str, Ratio]:
    """Return the figures that the docstring of `policies.py` names."""
    tight = [name for name in table.capacities if BY_NAME[name].is_tight]
    loose = [name for name in table.capacities if not BY_NAME[name].is_tight]
    steady = [n for n in tight if BY_NAME[n].cv == 1.0 and BY_NAME[n].miss_max > 0.04]
    found = {
        "tight_over_best_fixed": _capacity(table, tight, median, _over("continuous, best budget", "srpf, best budget")),
        "tight_over_qoserve_published": _capacity(table, tight, median, _over(PUBLISHED.label)),
        "tight_over_qoserve_swept": _capacity(table, tight, median, _over("qoserve, best factor")),
        "tight_of_bound": _capacity(table, steady, median, lambda rows, pick: pick(rows["slack"])),
        "loose_of_best": _capacity(table, loose, min, _of_best),
    }
    return found | ({"past_bound_over_qoserve": _past_bound(table)} if table.overload else {})


Rows = dict[str, Estimate]


def _over(*others: str) -> Callable[[Rows, Pick], float]:
    """Return what puts `slack` over the better of `others`."""

    def ratio(rows: Rows, pick: Pick) -> float:
        return pick(rows["slack"]) / pick(max((rows[name] for name in others), key=lambda e: e.mean))

    return ratio


def _of_best(rows: Rows, pick: Pick) -> float:
    """Return `slack` over the best of the others, or over the bound where that is less."""
    best = max((e for name, e in rows.items() if not name.startswith("slack")), key=lambda e: e.mean)
    return pick(rows["slack"]) / min(1.0, pick(best))


def _capacity(
    table: "Table",
    names: Sequence[str],
    summarize: Callable[[Sequence[float]], float],
    ratio: Callable[[Rows, Pick], float],
) -> Ratio:
    if not names:
        return Ratio(value=None)
    seeds = range(len(table.capacities[names[0]]["slack"].values))
    each = [ratio(table.capacities[name], lambda e: e.mean) for name in names]
    by_seed = [
        summarize([ratio(table.capacities[name], lambda e, seed=seed: e.values[seed]) for name in names])  # type: ignore[misc]
        for seed in seeds
    ]
    half = estimate(by_seed).half if len(by_seed) > 1 else None
    return Ratio(value=summarize(each), half=half, range=(min(each), max(each)))


def _past_bound(table: "Table") -> Ratio:
    """Return attainment of `slack` over that of the best `qoserve`, at the load from the bound on where it is least."""
    past = [o for o in table.overload if o.load >= 1.0]
    seeds = sorted({o.seed for o in past})
    found: dict[float, Estimate] = {}
    for load in sorted({o.load for o in past}):
        runs = [o for o in past if o.load == load]
        by_policy = {
            policy: estimate([next(o.attainment for o in runs if (o.policy, o.seed) == (policy, s)) for s in seeds])
            for policy in {o.policy for o in runs}
        }
        best = max((e for name, e in by_policy.items() if "qoserve" in name), key=lambda e: e.mean)
        pairs = list(zip(by_policy["slack"].values, best.values, strict=True))
        whole = by_policy["slack"].mean / best.mean
        found[load] = Estimate(mean=whole, half=estimate([a / b for a, b in pairs]).half, values=())
    least = min(found.values(), key=lambda e: e.mean)
    means = [e.mean for e in found.values()]
    return Ratio(value=least.mean, half=least.half if len(seeds) > 1 else None, range=(min(means), max(means)))
