"""The zero-plug-in mode: class and deadline in the one number that a stock vLLM orders by.

With `--scheduling-policy priority` vLLM takes the lowest `priority` first and preempts the highest when KV is short. So

    priority = band x 2**44 + deadline in milliseconds since the epoch

makes of it strict bands, within each the earliest deadline first. 2**44 ms reach to the year 2527. The number has no
say over the size of a step, over batch decodes that stretch it, or over who is given up.
"""

from setpoint.model import Request, ServiceClass

BAND_STEP = 2**44
_NO_DEADLINE_MS = BAND_STEP - 1


def encode_priority(request: Request, service_class: ServiceClass, *, arrived_epoch_s: float) -> int:
    """Return the priority of a request that arrived at `arrived_epoch_s` (wall clock, seconds since the epoch).

    The deadline is that of the first token, or of the last where the class has an end-to-end target alone.
    """
    slo = request.slo(service_class)
    target_s = slo.ttft_target(request.prompt_tokens)
    if target_s is None:
        target_s = slo.e2e_s
    deadline_ms = _NO_DEADLINE_MS if target_s is None else round((arrived_epoch_s + target_s) * 1000.0)
    return service_class.band * BAND_STEP + min(deadline_ms, _NO_DEADLINE_MS)


def decode_priority(priority: int) -> tuple[int, float | None]:
    """Return the band and the deadline (seconds since the epoch, `None`: none) of an encoded priority."""
    band, deadline_ms = divmod(priority, BAND_STEP)
    return band, None if deadline_ms == _NO_DEADLINE_MS else deadline_ms / 1000.0
