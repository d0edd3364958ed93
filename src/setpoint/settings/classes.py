"""One `[classes.NAME]` table to and from a service class.

A table with the name of a preset edits that preset; any other starts from the preset that it names with `preset`, or
from a class without targets. A target that a preset sets is removed with the word `"none"`.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from setpoint.model import PRESETS, JudgedBy, ServiceClass, Slo
from setpoint.units import Seconds

NONE = "none"
Target = Annotated[float, Meta(gt=0.0, le=366 * 24 * 3600_000.0)] | Literal["none"] | UnsetType


class ClassTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The keys of a class as the file spells them."""

    preset: str | UnsetType = UNSET
    percentile: Annotated[float, Meta(gt=0.0, lt=1.0)] | UnsetType = UNSET
    ttft_ms: Target = UNSET
    ttft_per_prompt_token_ms: Annotated[float, Meta(ge=0.0)] | UnsetType = UNSET
    tpot_ms: Target = UNSET
    e2e_s: Target = UNSET
    judged_by: JudgedBy | UnsetType = UNSET
    band: Annotated[int, Meta(ge=0, le=1000)] | UnsetType = UNSET
    weight: Annotated[float, Meta(gt=0.0)] | UnsetType = UNSET
    is_harvest: bool | UnsetType = UNSET
    late: Literal["wait", "refuse"] | UnsetType = UNSET
    queue_max: Annotated[int, Meta(ge=0, le=10_000_000)] | UnsetType = UNSET
    wait_max_s: Target = UNSET


def _seconds(value: Target, inherited: Seconds | None, unit: float) -> Seconds | None:
    if isinstance(value, UnsetType):
        return inherited
    return None if isinstance(value, str) else Seconds(value / unit)


def _changes(table: ClassTable, *names: str) -> dict[str, Any]:
    return {name: getattr(table, name) for name in names if getattr(table, name) is not UNSET}


def build_class(name: str, table: ClassTable) -> ServiceClass:
    """Return the class that the table describes; `table.preset` must be known."""
    base = ServiceClass(name=name, slo=Slo())
    if not isinstance(table.preset, UnsetType):
        base = PRESETS[table.preset]
    elif name in PRESETS:
        base = PRESETS[name]
    slopes = table.ttft_per_prompt_token_ms
    slope = base.slo.ttft_per_prompt_token_s if isinstance(slopes, UnsetType) else Seconds(slopes / 1000.0)
    slo = msgspec.structs.replace(
        base.slo,
        ttft_s=_seconds(table.ttft_ms, base.slo.ttft_s, 1000.0),
        ttft_per_prompt_token_s=slope,
        tpot_s=_seconds(table.tpot_ms, base.slo.tpot_s, 1000.0),
        e2e_s=_seconds(table.e2e_s, base.slo.e2e_s, 1.0),
        **_changes(table, "percentile", "judged_by"),
    )
    changes = _changes(table, "band", "weight", "is_harvest", "late", "queue_max")
    wait_max_s = _seconds(table.wait_max_s, base.wait_max_s, 1.0)
    return msgspec.structs.replace(base, name=name, slo=slo, wait_max_s=wait_max_s, **changes)


def class_faults(service_class: ServiceClass) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) for each contradiction inside the class."""
    slo = service_class.slo
    if service_class.is_harvest and (slo.ttft_s is not None or slo.tpot_s is not None):
        yield "is_harvest", "batch work has no TTFT or TPOT target; give it e2e_s alone, or drop is_harvest"
    if slo.judged_by == "pace" and (slo.ttft_s is None or slo.tpot_s is None):
        yield "judged_by", '"pace" is a reading speed from the first token on and needs both ttft_ms and tpot_ms'
    if service_class.late == "refuse" and slo.ttft_s is None:
        yield "late", '"refuse" needs ttft_ms: without it no request is ever late'
    if slo.ttft_per_prompt_token_s > 0.0 and slo.ttft_s is None:
        yield "ttft_per_prompt_token_ms", "needs ttft_ms, to which it adds"
    if slo.e2e_s is not None and slo.ttft_s is not None and slo.e2e_s < slo.ttft_s:
        yield "e2e_s", f"the whole answer is due ({slo.e2e_s:g} s) before its first token ({slo.ttft_s:g} s)"


def _target(value: Seconds | None, unit: float) -> float | str:
    # the shortest decimal that reads back as the same duration: 0.15 s is 150 ms, not 149.99999999999997
    return NONE if value is None else float(f"{value * unit:.12g}")


def class_table(service_class: ServiceClass) -> Mapping[str, Any]:
    """Return the table that describes the class in full: reading it back gives the same class."""
    slo = service_class.slo
    table = {
        "percentile": slo.percentile,
        "ttft_ms": _target(slo.ttft_s, 1000.0),
        "tpot_ms": _target(slo.tpot_s, 1000.0),
        "e2e_s": _target(slo.e2e_s, 1.0),
        "judged_by": slo.judged_by,
        "band": service_class.band,
        "weight": service_class.weight,
        "is_harvest": service_class.is_harvest,
        "late": service_class.late,
        "queue_max": service_class.queue_max,
        "wait_max_s": _target(service_class.wait_max_s, 1.0),
    }
    if slo.ttft_per_prompt_token_s > 0.0:
        table["ttft_per_prompt_token_ms"] = _target(slo.ttft_per_prompt_token_s, 1000.0)
    return table
