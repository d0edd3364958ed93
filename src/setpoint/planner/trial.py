"""One trial: one strategy under one offered load, what it gave, and how far its targets were from being met.

`scale` is the figure on which decisions rest: the factor by which all latency targets of a class would have to be
multiplied so that the promised share of requests met them. At most 1 means that the class holds; 1.3 that its targets
are 30 % too tight for this load. Being a quantile of one ratio per request, it is exact: the same count of requests
decides it as decides the attainment.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from setpoint.metrics import Quantile, RequestRecord, Share, Summary, estimate, met, misses
from setpoint.metrics.judge import Miss
from setpoint.model import ServiceClass, Slo
from setpoint.units import Seconds

SCALE_MAX = 1024.0
_HALVINGS = 30
QUANTILES = (0.5, 0.95, 0.99)
DURATIONS = ("ttft", "tpot", "e2e")


class ClassTrial(msgspec.Struct, frozen=True, kw_only=True):
    """What one class saw in a trial.

    `latencies`: `ttft`, `tpot`, `e2e`, each with its P50, P95 and P99 in seconds. `scale` is `None` for a class without
    latency targets; `missed` counts the objectives that were missed.
    """

    class_name: str
    requests: int
    failed: int
    attainment: Share | None
    latencies: dict[str, tuple[Quantile, ...]]
    scale: Quantile | None
    missed: dict[Miss, int]

    def quantile(self, which: str, q: float) -> Quantile:
        """Return the quantile `q` of the duration `which`."""
        return next(one for one in self.latencies[which] if abs(one.q - q) < 1e-9)  # noqa: PLR2004 - rounding


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy under one offered load, in requests and tokens per second over a window of `window_s` seconds.

    `faults`: what the measuring client says against itself; a trial with any says nothing about the engine.
    """

    strategy: str
    rate_rps: float
    seed: int
    window_s: float
    requests: int
    offered_rps: float
    completed_rps: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    is_overloaded: bool
    is_cut: bool
    faults: tuple[str, ...]
    classes: dict[str, ClassTrial]

    @property
    def is_valid(self) -> bool:
        """Whether the client kept up, so that what was measured is the engine's doing."""
        return not self.faults

    def worst(self) -> ClassTrial | None:
        """Return the class with targets that is furthest from meeting them, or `None` when none has any."""
        judged = [one for one in self.classes.values() if one.scale is not None]
        return max(judged, key=scale_of, default=None)

    @property
    def scale(self) -> float:
        """The largest `scale` of any class."""
        worst = self.worst()
        return 0.0 if worst is None else scale_of(worst)


def scale_of(one: ClassTrial) -> float:
    """Return the scale of a class, infinite when failures reach its percentile."""
    if one.scale is None:
        return 0.0
    return math.inf if one.scale.value is None else one.scale.value


def scaled(slo: Slo, factor: float) -> Slo:
    """Return the objectives with every latency target multiplied by `factor`."""
    return msgspec.structs.replace(
        slo,
        ttft_s=None if slo.ttft_s is None else Seconds(slo.ttft_s * factor),
        ttft_per_prompt_token_s=Seconds(slo.ttft_per_prompt_token_s * factor),
        tpot_s=None if slo.tpot_s is None else Seconds(slo.tpot_s * factor),
        e2e_s=None if slo.e2e_s is None else Seconds(slo.e2e_s * factor),
    )


def scale_needed(record: RequestRecord, slo: Slo) -> float:
    """Return the least factor on all targets of `slo` with which the request meets them; infinite when it failed."""
    if record.is_failed:
        return math.inf
    if met(record, slo):
        low, high = 0.0, 1.0
    elif met(record, scaled(slo, SCALE_MAX)):
        low, high = 1.0, SCALE_MAX
    else:
        return SCALE_MAX
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if met(record, scaled(slo, middle)) else (middle, high)
    return high


def make_trial(  # noqa: PLR0913 - what a trial consists of
    summary: Summary,
    due: Sequence[RequestRecord],
    classes: Mapping[str, ServiceClass],
    *,
    strategy: str,
    rate_rps: float,
    seed: int,
    faults: Iterable[str] = (),
    is_cut: bool = False,
) -> Trial:
    """Return the trial that `summary` describes; `due` are the records of its window, in order of arrival."""
    names = sorted({record.class_name for record in due})
    return Trial(
        strategy=strategy,
        rate_rps=rate_rps,
        seed=seed,
        window_s=summary.window_s,
        requests=len(due),
        offered_rps=summary.offered_rps,
        completed_rps=summary.completed_rps,
        prompt_tokens_per_s=summary.prompt_tokens_per_s,
        output_tokens_per_s=summary.output_tokens_per_s,
        is_overloaded=summary.overload.is_overloaded,
        is_cut=is_cut,
        faults=tuple(faults),
        classes={name: _class_trial(name, summary, due, classes[name]) for name in names},
    )


def _class_trial(name: str, summary: Summary, due: Sequence[RequestRecord], service_class: ServiceClass) -> ClassTrial:
    mine = [record for record in due if record.class_name == name]
    seen = summary.classes[name]
    slo = service_class.slo
    missed: dict[Miss, int] = {}
    for record in mine:
        for objective in misses(record, slo):
            missed[objective] = missed.get(objective, 0) + 1
    has_targets = slo.ttft_s is not None or slo.tpot_s is not None
    ratios = [scale_needed(record, slo) for record in mine] if has_targets else []
    return ClassTrial(
        class_name=name,
        requests=len(mine),
        failed=seen.failed,
        attainment=seen.attainment,
        latencies={which: tuple(seen.latencies[which].at(q) for q in QUANTILES) for which in DURATIONS},
        scale=estimate(ratios, slo.percentile) if ratios else None,
        missed=missed,
    )
