"""What falls into a window of time: requests in the system, tokens, and which window a run has by default."""

from collections.abc import Iterable, Sequence

from setpoint.metrics.stationarity import Warmup
from setpoint.metrics.timeline import RequestRecord


def default_window(ordered: Sequence[RequestRecord], warmup: Warmup) -> tuple[float, float]:
    """Return the window of records in order of arrival: from the end of the warm-up to one gap after the last."""
    answered = [record.scheduled_at for record in ordered if record.ttft_s is not None]
    start = answered[warmup.dropped] if warmup.is_settled and warmup.dropped else ordered[0].scheduled_at
    last = ordered[-1].scheduled_at
    gap = (last - ordered[0].scheduled_at) / (len(ordered) - 1) if len(ordered) > 1 else 0.0
    if gap <= 0.0:
        return start, max((record.ended_at or last for record in ordered), default=last) + 1e-9
    return start, last + gap


def time_inside(record: RequestRecord, start: float, end: float) -> float:
    """Return for how many seconds of the window a request was in the system, from when it was due."""
    gone = record.ended_at if record.ended_at is not None else end
    return max(0.0, min(gone, end) - max(record.scheduled_at, start))


def tokens_inside(records: Iterable[RequestRecord], start: float, end: float) -> tuple[float, float]:
    """Return the prompt tokens computed and the output tokens produced in the window.

    A prompt counts where its first token falls; an output that straddles an edge counts for the part inside, by its
    events where they are known, else evenly.
    """
    prompt = output = 0.0
    for record in records:
        if record.first_token_at is None:
            continue
        if start <= record.first_token_at < end:
            prompt += record.prompt_tokens
        output += _output_inside(record, start, end)
    return prompt, output


def _output_inside(record: RequestRecord, start: float, end: float) -> float:
    first = record.first_token_at or 0.0
    last = record.ended_at if record.ended_at is not None else first
    if start <= first and last < end:
        return record.output_tokens
    if record.event_at:
        inside = sum(1 for at in record.event_at if start <= at < end)
        return record.output_tokens * inside / len(record.event_at)
    if last <= first:
        return float(record.output_tokens) if start <= first < end else 0.0
    return record.output_tokens * max(0.0, min(last, end) - max(first, start)) / (last - first)
