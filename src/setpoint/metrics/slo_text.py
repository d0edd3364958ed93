"""Reading objectives: `chat: ttft_p95<200ms, tpot_p95<50ms; batch: e2e_p90<30s`, or the name of a preset.

Grammar: groups apart by `;`, each `[class:] term, term`; a term is `METRIC_pNN<LIMIT` with LIMIT in us, ms, s or min,
or `(METRIC<LIMIT & METRIC<LIMIT)_pNN`, or `errors<N%`, or the name of a preset. Presets are the service classes of this
project and MLPerf's limits.
"""

import re
from collections.abc import Sequence
from typing import get_args

from setpoint.errors import WorkloadError
from setpoint.metrics.judge import ALL_CLASSES
from setpoint.metrics.objective import Limit, Metric, Objective
from setpoint.model import PRESETS

METRICS = tuple(name for name in get_args(Metric) if name not in {"errors", "joint"})
JOINABLE = tuple(name for name in METRICS if name != "itl")
"""Those that a request has one value of."""
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
_JOINT = re.compile(rf"\((?P<inner>[^()]*)\)\s*_p(?P<quantile>{_NUMBER})$")
_PART = re.compile(rf"(?P<metric>[a-z0-9_]+)\s*<=?\s*(?P<limit>{_NUMBER})\s*(?P<unit>[a-z]+)$")
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
    kinds = [(each.class_name, each.metric, each.quantile, len(each.parts)) for each in (one, other)]
    return kinds[0] == kinds[1]


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
    return [_joint(text, start, term, owner) if term.startswith("(") else _one(text, start, term, owner)]


def _one(text: str, start: int, term: str, owner: str) -> Objective:
    match = _TERM.match(term)
    if match is None:
        raise _fault(text, start + _first_fault(term), "expected METRIC_pNN<LIMIT, such as ttft_p95<200ms")
    limit = _limit(text, start, match, METRICS)
    return Objective(
        class_name=owner, metric=limit.metric, quantile=_quantile(text, start, match), limit_s=limit.limit_s
    )


def _joint(text: str, start: int, term: str, owner: str) -> Objective:
    match = _JOINT.match(term)
    if match is None:
        at = len(term) if ")" not in term else term.index(")") + 1
        raise _fault(text, start + at, "expected (METRIC<LIMIT & METRIC<LIMIT)_pNN")
    parts: list[Limit] = []
    at = start + 1
    for part in match.group("inner").split("&"):
        place = at + len(part) - len(part.lstrip())
        found = _PART.match(part.strip())
        if found is None:
            raise _fault(text, place, "expected METRIC<LIMIT, such as ttft<200ms")
        limit = _limit(text, place, found, JOINABLE)
        if any(limit.metric == other.metric for other in parts):
            raise _fault(text, place, f"{limit.metric} is limited twice")
        parts.append(limit)
        at += len(part) + 1
    return Objective(class_name=owner, metric="joint", quantile=_quantile(text, start, match), parts=tuple(parts))


def _limit(text: str, start: int, match: re.Match[str], metrics: Sequence[str]) -> Limit:
    metric, unit, limit = match.group("metric"), match.group("unit"), float(match.group("limit"))
    if metric not in metrics:
        raise _fault(text, start, f"unknown metric {metric!r}: one of {', '.join(metrics)}")
    if unit not in UNITS_S:
        raise _fault(text, start + match.start("unit"), f"unknown unit {unit!r}: one of {', '.join(UNITS_S)}")
    if limit <= 0.0:
        raise _fault(text, start + match.start("limit"), "a limit must be positive")
    return Limit(metric, limit * UNITS_S[unit])  # type: ignore[arg-type]  # checked above


def _quantile(text: str, start: int, match: re.Match[str]) -> float:
    quantile = float(match.group("quantile"))
    if not 0.0 < quantile <= QUANTILE_MAX:
        raise _fault(text, start + match.start("quantile"), f"a percentile lies above 0 and up to {QUANTILE_MAX}")
    return quantile / 100.0


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
