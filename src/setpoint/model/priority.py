"""A band and a deadline in the one number by which stock engines order: what can be had without the plug-in.

With `--scheduling-policy priority` vLLM takes the lowest `priority` first and preempts the highest when KV is short. So

    priority = band x 2**44 + deadline in milliseconds since the epoch

makes of it strict bands, within each the earliest deadline first. 2**44 ms reach to the year 2527. The number has no
say over the size of a step, over batch decodes that stretch it, or over who is given up.
"""

BAND_STEP = 2**44
_NO_DEADLINE_MS = BAND_STEP - 1


def encode_priority(band: int, deadline_epoch_s: float | None) -> int:
    """Return the priority of a request whose first token (or whole answer) is due then; `None`: whenever."""
    deadline_ms = _NO_DEADLINE_MS if deadline_epoch_s is None else round(deadline_epoch_s * 1e3)
    return band * BAND_STEP + min(deadline_ms, _NO_DEADLINE_MS)


def decode_priority(priority: int) -> tuple[int, float | None]:
    """Return the band and the deadline (seconds since the epoch, `None`: none) of an encoded priority."""
    band, deadline_ms = divmod(priority, BAND_STEP)
    return band, None if deadline_ms == _NO_DEADLINE_MS else deadline_ms / 1e3
