"""Which class a request is served in, and by which targets; pure.

In order: the header `x-setpoint-class`; `service_tier`, unless it is `auto`; the class of the API key; what the file
maps `auto` to; the default class. A key may be held to some classes: naming another is an error, not a silent change.
"""

from collections.abc import Mapping

import msgspec

from setpoint.errors import RequestError
from setpoint.gateway.faults import Fault
from setpoint.settings import ApiKey, Settings, Tier
from setpoint.units import Seconds

CLASS_HEADER = "x-setpoint-class"
TTFT_HEADER = "x-setpoint-ttft-ms"
TPOT_HEADER = "x-setpoint-tpot-ms"
TARGET_MS_MAX = 24 * 3600 * 1000.0


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """How one request is to be served."""

    class_name: str
    tier: Tier | None = None
    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None


def choose_service(settings: Settings, headers: Mapping[str, str], tier: Tier | None, key: ApiKey | None) -> Service:
    """Return the class and targets of a request; raise RequestError or a 403 `Fault` when it names what it may not."""
    name = _class_name(settings, headers, tier, key)
    return Service(
        class_name=name,
        tier=_served_tier(settings, name) if tier == "auto" else tier,
        ttft_s=_target(headers, TTFT_HEADER),
        tpot_s=_target(headers, TPOT_HEADER),
    )


def _class_name(settings: Settings, headers: Mapping[str, str], tier: Tier | None, key: ApiKey | None) -> str:
    named = headers.get(CLASS_HEADER)
    if named is None and tier not in (None, "auto"):
        named = settings.tiers.get(tier)
    if named is None:
        of_key = None if key is None else key.class_name
        return of_key or settings.tiers.get("auto") or settings.server.default_class
    if named not in settings.classes:
        raise RequestError(
            f"unknown service class {named!r}",
            param=CLASS_HEADER,
            code="unknown_class",
            hint="one of " + ", ".join(sorted(settings.classes)),
        )
    if key is not None and not key.may_use(named):
        raise Fault(403, f"this API key may not use the service class {named!r}", param=CLASS_HEADER)
    return named


def _served_tier(settings: Settings, class_name: str) -> Tier:
    return next((tier for tier, name in settings.tiers.items() if name == class_name and tier != "auto"), "default")


def _target(headers: Mapping[str, str], header: str) -> Seconds | None:
    text = headers.get(header)
    if text is None:
        return None
    try:
        value_ms = float(text)
    except ValueError:
        value_ms = 0.0
    if not 0.0 < value_ms <= TARGET_MS_MAX:
        raise RequestError(f"{header}: expected milliseconds above 0 and up to {TARGET_MS_MAX:g}", param=header)
    return Seconds(value_ms / 1000.0)
