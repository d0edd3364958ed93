"""What one request of vLLM asks of the policy: its class and targets, read from where a client can put them.

In order: `vllm_xargs` of the request (`setpoint.class`, `setpoint.ttft_ms`, `setpoint.tpot_ms`), its `priority` where
the options give that number a class, the default class. vLLM dates arrivals by the wall clock of its front end; the
core counts on a monotonic clock, to which the age of the request is carried over.
"""

from collections.abc import Mapping

from setpoint.engines.vllm.host import HostRequest
from setpoint.engines.vllm.options import PluginOptions
from setpoint.errors import RequestError
from setpoint.model import Request
from setpoint.units import Instant, Seconds, Tokens

CLASS, TTFT, TPOT = "setpoint.class", "setpoint.ttft_ms", "setpoint.tpot_ms"
_KNOWN = {CLASS, TTFT, TPOT}
_TARGET_MS_MAX = 366 * 24 * 3600_000.0


def core_request(
    request: HostRequest, request_id: int, options: PluginOptions, *, now: float, wall: float, cached_tokens: int
) -> Request:
    """Return the request as the core sees it; raises `RequestError` for a class or a target that makes no sense."""
    if getattr(request, "resumable", False):
        raise RequestError("streaming input is not supported by this scheduler")
    xargs = getattr(request.sampling_params, "extra_args", None) or {}
    for key in xargs:
        if key.startswith("setpoint.") and key not in _KNOWN:
            raise RequestError(f"unknown {key}: known are {', '.join(sorted(_KNOWN))}", param=key)
    age = max(0.0, wall - request.arrival_time)
    return Request(
        id=request_id,
        class_name=_class_name(request, xargs, options),
        arrived_at=Instant(now - age),
        prompt_tokens=Tokens(request.num_prompt_tokens),
        output_tokens_max=Tokens(request.max_tokens),
        cached_tokens=Tokens(cached_tokens),
        ttft_s=_target(xargs, TTFT),
        tpot_s=_target(xargs, TPOT),
    )


def _class_name(request: HostRequest, xargs: Mapping[str, object], options: PluginOptions) -> str:
    name = xargs.get(CLASS)
    if name is None:
        return options.priorities.get(request.priority, options.settings.server.default_class)
    if not isinstance(name, str) or name not in options.settings.classes:
        known = ", ".join(sorted(options.settings.classes))
        raise RequestError(f"unknown {CLASS} {name!r}: known are {known}", param=CLASS)
    return name


def _target(xargs: Mapping[str, object], key: str) -> Seconds | None:
    value = xargs.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value <= _TARGET_MS_MAX:
        raise RequestError(f"{key} must be milliseconds above 0, not {value!r}", param=key)
    return Seconds(value / 1000.0)
