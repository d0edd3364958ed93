"""Whether a request kept the promise made to its class, and what share of requests did.

A failed request meets nothing. An undefined TPOT (an answer that came in one event) counts as met, as vLLM and SGLang
have it. Under `pace` every token that has an instant of its own is held against its deadline; a record without a
timeline is judged by its last token alone.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from setpoint.metrics.timeline import RequestRecord
from setpoint.model import Slo, decode_deadline
from setpoint.units import Instant, Tokens

Miss = Literal["failed", "ttft", "tpot", "pace", "e2e"]

ALL_CLASSES = "*"
"""Stands for every class."""

ROUNDING_S = 1e-9
"""Instants are sums of floats: a deadline met exactly must not be missed by the last bit."""


def misses(record: RequestRecord, slo: Slo) -> tuple[Miss, ...]:
    """Return the objectives of `slo` that the request missed, the empty tuple when it met them all."""
    if record.is_failed:
        return ("failed",)
    missed: list[Miss] = []
    target = slo.ttft_target(Tokens(record.prompt_tokens))
    if target is not None and not _within(record.ttft_s, target):
        missed.append("ttft")
    if slo.tpot_s is not None and slo.judged_by == "tpot" and not _within(record.tpot_s or 0.0, slo.tpot_s):
        missed.append("tpot")
    if slo.tpot_s is not None and slo.judged_by == "pace" and _is_behind_pace(record, slo):
        missed.append("pace")
    if slo.e2e_s is not None and not _within(record.e2e_s, slo.e2e_s):
        missed.append("e2e")
    return tuple(missed)


def met(record: RequestRecord, slo: Slo) -> bool:
    """Tell whether the request met every objective of `slo`."""
    return not misses(record, slo)


def is_good(record: RequestRecord, slos: Mapping[str, Slo]) -> bool:
    """Tell whether the request met the SLO of its class, or of all classes (`*`), or merely succeeded without one."""
    slo = slos.get(record.class_name, slos.get(ALL_CLASSES))
    return not record.is_failed if slo is None else met(record, slo)


def count_met(records: Iterable[RequestRecord], slos: Mapping[str, Slo]) -> tuple[int, int]:
    """Return (requests that met the SLO of their class, requests)."""
    good = total = 0
    for record in records:
        total += 1
        good += is_good(record, slos)
    return good, total


def attainment(records: Iterable[RequestRecord], slos: Mapping[str, Slo]) -> float | None:
    """Return the share of requests that met the SLO of their class, or `None` without any request."""
    good, total = count_met(records, slos)
    return good / total if total else None


def goodput_rps(records: Iterable[RequestRecord], slos: Mapping[str, Slo], window_s: float) -> float:
    """Return the requests per second that met the SLO of their class, over a window of `window_s` seconds."""
    return count_met(records, slos)[0] / window_s


def _within(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit + ROUNDING_S


def _is_behind_pace(record: RequestRecord, slo: Slo) -> bool:
    if record.first_token_at is None:
        return True

    def is_late(tokens: int, at: float) -> bool:
        due = decode_deadline(
            slo,
            arrived_at=Instant(record.scheduled_at),
            prompt_tokens=Tokens(record.prompt_tokens),
            first_token_at=Instant(record.first_token_at or 0.0),
            tokens=Tokens(tokens),
        )
        return due is not None and at > due + ROUNDING_S

    if not record.event_at or not (record.is_one_token_an_event or record.event_tokens):
        last = record.output_tokens - record.first_tokens
        return last > 0 and is_late(last, record.ended_at or 0.0)
    tokens = 0
    for index, at in enumerate(record.event_at[1:], start=1):
        tokens += record.event_tokens[index] if record.event_tokens else 1
        if is_late(tokens, at):
            return True
    return False
