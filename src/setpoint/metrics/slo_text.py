"""Reading objectives: `chat: ttft_p95<200ms, tpot_p95<50ms; batch: e2e_p90<30s`, or the name of a preset.

Grammar: groups apart by `;`, each `[class:] term, term`; a term is `METRIC_pNN<LIMIT` with LIMIT in us, ms, s or min,
or `errors<N%`, or the name of a preset. Presets are the service classes of this project and MLPerf's limits.
"""

import re
from typing import get_args

from setpoint.errors import WorkloadError
from setpoint.metrics.judge import ALL_CLASSES
from setpoint.metrics.objective import Metric, Objective
from setpoint.model import PRESETS

UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
QUANTILE_MAX = 99.99

MLPERF: dict[str, tuple[float, float]] = {
    "mlperf:llama2-70b": (2.0, 0.200),
    "mlperf:llama2-70b-interactive": (0.450, 0.040),
    "mlperf:llama3.1-8b": (2.0, 0.100),
    "mlperf:llama3.1-8b-interactive": (0.500, 0.030),
    "mlperf:llama3.1-405b": (6.0, 0.175),
    "mlperf:llama3.1-405b-interactive": (4.5, 0.080),
    "mlperf:mixtral-8x7b": (2.0, 0.200),
    "mlperf:deepseek-r1": (2.0, 0.080),
    "mlperf:deepseek-r1-interactive": (1.5, 0.015),
    "mlperf:gpt-oss-120b": (3.0, 0.080),
    "mlperf:gpt-oss-120b-interactive": (2.0, 0.020),
}
"""P99 limits of TTFT and TPOT in seconds, of the Server and Interactive scenarios (inference_rules.adoc)."""

_NUMBER = r"\d+(?:\.\d+)?"
_TERM = re.compile(
    rf"(?P<metric>[a-z0-9_]+?)_p(?P<quantile>{_NUMBER})\s*<=?\s*(?P<limit>{_NUMBER})\s*(?P<unit>[a-z]+)$"
)
_PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"[a-z0-9_]+_p{_NUMBER}\s*<=?\s*{_NUMBER}",
        rf"[a-z0-9_]+_p{_NUMBER}\s*<=?",
        rf"[a-z0-9_]+_p{_NUMBER}",
        r"[a-z0-9_]+",
    )
)
"""Ever shorter beginnings of a term, to find how far a faulty one can be read."""
_ERRORS = re.compile(r"errors\s*<=?\s*(?P<percent>\d+(?:\.\d+)?)\s*%$")
_CLASS = re.compile(r"\s*(?P<name>[A-Za-z][\w.-]*)\s*:(?!\w)")


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Return the objectives that `text` names; raises WorkloadError pointing at the place that cannot be read."""
    found: list[Objective] = []
    at = 0
    for group in text.split(";"):
        named = _CLASS.match(group)
        owner = named.group("name") if named else ALL_CLASSES
        start = at + (named.end() if named else 0)
        for term in group[start - at :].split(","):
            found += _term(text, start, term, owner)
            start += len(term) + 1
        at += len(group) + 1
    twice = [one for index, one in enumerate(found) if any(_is_same(one, other) for other in found[:index])]
    if twice:
        raise WorkloadError(f"the SLO names {twice[0].text.rpartition('<')[0]} twice", hint="keep one limit of it")
    return tuple(found)


def _is_same(one: Objective, other: Objective) -> bool:
    return (one.class_name, one.metric, one.quantile) == (other.class_name, other.metric, other.quantile)


def _term(text: str, start: int, term: str, owner: str) -> list[Objective]:
    start += len(term) - len(term.lstrip())
    term = term.strip()
    if not term:
        raise _fault(text, start, "an objective is missing here")
    if term in MLPERF:
        ttft_s, tpot_s = MLPERF[term]
        return _pair(owner, 0.99, ttft_s, tpot_s)
    if term in PRESETS:
        return _of_class(owner if owner != ALL_CLASSES else term, term)
    errors = _ERRORS.match(term)
    if errors:
        return [_errors(text, start, owner, float(errors.group("percent")))]
    return [_limit(text, start, term, owner)]


def _limit(text: str, start: int, term: str, owner: str) -> Objective:
    match = _TERM.match(term)
    if match is None:
        raise _fault(text, start + _first_fault(term), "expected METRIC_pNN<LIMIT, such as ttft_p95<200ms")
    metric, unit = match.group("metric"), match.group("unit")
    metrics = [name for name in get_args(Metric) if name != "errors"]
    if metric not in metrics:
        raise _fault(text, start, f"unknown metric {metric!r}: one of {', '.join(metrics)}")
    if unit not in UNITS_S:
        raise _fault(text, start + match.start("unit"), f"unknown unit {unit!r}: one of {', '.join(UNITS_S)}")
    quantile, limit = float(match.group("quantile")), float(match.group("limit"))
    if not 0.0 < quantile <= QUANTILE_MAX:
        raise _fault(text, start + match.start("quantile"), f"a percentile lies above 0 and up to {QUANTILE_MAX}")
    if limit <= 0.0:
        raise _fault(text, start + match.start("limit"), "a limit must be positive")
    return Objective(
        class_name=owner,
        metric=metric,  # type: ignore[arg-type]  # checked above
        quantile=quantile / 100.0,
        limit_s=limit * UNITS_S[unit],
    )


def _first_fault(term: str) -> int:
    """Return where a term stops being readable."""
    return next((match.end() for pattern in _PREFIXES if (match := pattern.match(term))), 0)


def _errors(text: str, start: int, owner: str, percent: float) -> Objective:
    if not 0.0 < percent < 100.0:  # noqa: PLR2004 - per cent
        raise _fault(text, start, "a share of errors lies between 0% and 100%")
    return Objective(class_name=owner, metric="errors", quantile=1.0 - percent / 100.0)


def _pair(owner: str, quantile: float, ttft_s: float | None, tpot_s: float | None) -> list[Objective]:
    limits: tuple[tuple[Metric, float | None], ...] = (("ttft", ttft_s), ("tpot", tpot_s))
    return [
        Objective(class_name=owner, metric=metric, quantile=quantile, limit_s=limit)
        for metric, limit in limits
        if limit is not None
    ]


def _of_class(owner: str, preset: str) -> list[Objective]:
    slo = PRESETS[preset].slo
    found = _pair(owner, slo.percentile, slo.ttft_s, slo.tpot_s)
    if slo.e2e_s is not None:
        found.append(Objective(class_name=owner, metric="e2e", quantile=slo.percentile, limit_s=slo.e2e_s))
    return found


def _fault(text: str, at: int, words: str) -> WorkloadError:
    return WorkloadError(
        f"cannot read the SLO: {words}\n  {text}\n  {' ' * at}^",
        hint="write 'chat: ttft_p95<200ms, tpot_p95<50ms', or the name of a preset such as chat or mlperf:llama2-70b",
    )
