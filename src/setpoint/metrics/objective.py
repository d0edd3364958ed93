"""Objectives as people write them, and whether a run met one, failed it, or cannot tell.

`chat: ttft_p95<200ms, tpot_p95<50ms; batch: e2e_p90<30s` names classes, metrics, percentiles and limits. P95(TTFT) <= L
is exactly "at most 5% of requests are later than L", so an objective is tested by counting violations, at the
effective sample size, and never by comparing an estimated percentile with its limit. Failures violate; an undefined
TPOT does not.

`(ttft<200ms & tpot<50ms)_p95` is one objective over both: 95% of the requests are within each. That is stricter than
two percentiles apart, which different requests may spend.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from setpoint.metrics.binomial import binomial_cdf, binomial_tail, share_interval
from setpoint.metrics.judge import ALL_CLASSES
from setpoint.metrics.quantile import effective_size
from setpoint.metrics.timeline import RequestRecord
from setpoint.model import Slo
from setpoint.units import Seconds

Metric = Literal["ttft", "ttft_wire", "tpot", "itl", "e2e", "queue", "errors", "joint"]
Verdict = Literal["met", "missed", "undecided"]

ALPHA = 0.05
FROM_SEND = {"ttft", "ttft_wire", "e2e"}


class Limit(msgspec.Struct, frozen=True):
    """One part of a joint objective: `metric`, which each request has one value of, within `limit_s`."""

    metric: Metric
    limit_s: float


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """At least `quantile` of the requests of a class (`*`: of all) have `metric` within `limit_s`.

    For `errors` the limit is unused: at least `quantile` of the requests succeed. For `joint` they are within every one
    of `parts`.
    """

    class_name: str = ALL_CLASSES
    metric: Metric
    quantile: float
    limit_s: float = 0.0
    parts: tuple[Limit, ...] = ()

    @property
    def allowed(self) -> float:
        """The share of violations allowed."""
        return 1.0 - self.quantile

    @property
    def text(self) -> str:
        """The objective as it is written."""
        owner = "" if self.class_name == ALL_CLASSES else f"{self.class_name}: "
        if self.metric == "errors":
            return f"{owner}errors<{self.allowed * 100:g}%"
        if self.metric == "joint":
            inner = " & ".join(f"{part.metric}<{_limit_text(part.limit_s)}" for part in self.parts)
            return f"{owner}({inner})_p{self.quantile * 100:g}"
        return f"{owner}{self.metric}_p{self.quantile * 100:g}<{_limit_text(self.limit_s)}"

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Its limits on durations: one, those of a joint objective, none for errors."""
        return self.parts if self.metric == "joint" else (Limit(self.metric, self.limit_s),) if self.limit_s else ()


def _limit_text(limit_s: float) -> str:
    return f"{limit_s * 1e3:g}ms" if limit_s < 1.0 else f"{limit_s:g}s"


def tightest_s(objectives: Iterable[Objective]) -> float | None:
    """Return the tightest limit on a time that counts from the planned send, which a late client would spoil."""
    return min((one.limit_s for each in objectives for one in each.limits if one.metric in FROM_SEND), default=None)


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """An objective held against a run.

    `share` of the requests violated it, with an interval at the effective size; `n_test` is that size, reduced for its
    own uncertainty. `margin`: how many standard errors the share lies below what is allowed (negative: above).
    """

    objective: Objective
    verdict: Verdict
    requests: int
    share: float
    low: float
    high: float
    n_test: float
    margin: float


def violations(records: Iterable[RequestRecord], objective: Objective) -> list[float]:
    """Return for each request of the class, in order, 1 for a violation and 0 for none.

    A queue time that the server does not tell is no evidence: such requests are left out.
    For `itl`, whose percentile is over gaps, a request counts its gaps above the limit over the mean number of gaps, so
    that the mean of all is the share of gaps.
    """
    chosen = [r for r in records if objective.class_name in {ALL_CLASSES, r.class_name}]
    if objective.metric == "queue":
        chosen = [record for record in chosen if record.is_failed or record.queue_s is not None]
    if objective.metric == "errors":
        return [float(record.is_failed) for record in chosen]
    if objective.metric == "itl":
        return _gap_violations(chosen, objective.limit_s)
    limits = objective.limits
    return [float(record.is_failed or any(_is_outside(record, limit) for limit in limits)) for record in chosen]


def _is_outside(record: RequestRecord, limit: Limit) -> bool:
    value: float | None = getattr(record, f"{limit.metric}_s")
    return value is not None and value > limit.limit_s


def _gap_violations(records: Sequence[RequestRecord], limit_s: float) -> list[float]:
    gaps = [[] if record.is_failed else record.itl_s() for record in records]
    mean = sum(len(one) for one in gaps) / len(gaps) if gaps else 0.0
    return [
        1.0 if record.is_failed else sum(gap > limit_s for gap in one) / mean if mean else 0.0
        for record, one in zip(records, gaps, strict=True)
    ]


def judge(records: Iterable[RequestRecord], objective: Objective, alpha: float = ALPHA) -> Judged:
    """Hold `objective` against records in order of arrival, at the error rate `alpha` on either side."""
    flags = violations(records, objective)
    if not flags:
        return Judged(
            objective=objective, verdict="undecided", requests=0, share=0.0, low=0.0, high=1.0, n_test=0.0, margin=0.0
        )
    share = min(1.0, sum(flags) / len(flags))
    n = effective_size(flags).n_test
    low, high = share_interval(share * n, n)
    allowed = objective.allowed
    error = (max(share * (1.0 - share), allowed * (1.0 - allowed), 1e-12) / n) ** 0.5
    return Judged(
        objective=objective,
        verdict=verdict_of(share * n, n, allowed, alpha),
        requests=len(flags),
        share=share,
        low=low,
        high=high,
        n_test=n,
        margin=(allowed - share) / error,
    )


def verdict_of(violated: float, n: float, allowed: float, alpha: float = ALPHA) -> Verdict:
    """Return the verdict of the one-sided binomial tests: met when so few violations would be rare at `allowed`.

    Source: MLPerf's early stopping (inference rules, appendix) is this test at 99%.
    """
    if binomial_cdf(violated, n, allowed) <= alpha:
        return "met"
    if binomial_tail(violated, n, allowed) <= alpha:
        return "missed"
    return "undecided"


def slos_of(objectives: Iterable[Objective]) -> dict[str, Slo]:
    """Return the objectives of each class as one SLO, for counting the requests that meet all of them.

    The percentile is the loosest of the class. ITL, queue time and errors have no place in an SLO and are left out.
    """
    slos: dict[str, Slo] = {}
    for one in objectives:
        for limit in one.limits:
            if limit.metric not in {"ttft", "tpot", "e2e"}:
                continue
            slo = slos.get(one.class_name, Slo(percentile=one.quantile))
            change = {f"{limit.metric}_s": Seconds(limit.limit_s), "percentile": min(slo.percentile, one.quantile)}
            slos[one.class_name] = msgspec.structs.replace(slo, **change)
    return slos
