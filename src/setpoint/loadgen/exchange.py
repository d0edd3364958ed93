"""One request and its answer, as bytes and instants while it runs, and as a record once it has ended."""

from setpoint.loadgen.decode import BadStreamError, Decoded, StreamedError, decode_answer
from setpoint.loadgen.target import EndpointTarget
from setpoint.loadgen.wire import AnswerParser
from setpoint.metrics import ErrorKind, RequestRecord
from setpoint.workload import PlannedRequest

OK_FIRST, OK_LAST = 200, 299
UNAUTHORIZED = (401, 403)
NOT_FOUND, RATE_LIMITED, SERVER_ERRORS_FROM = 404, 429, 500
DETAIL_MAX = 200


class Exchange:
    """A request in flight; every instant is on `time.monotonic`, every call comes from the event loop."""

    __slots__ = (
        "detail",
        "dispatched_at",
        "ended_at",
        "ends",
        "error",
        "is_retried",
        "parser",
        "parts",
        "payload",
        "planned",
        "scheduled_at",
        "sent_at",
        "size",
        "times",
    )

    def __init__(self, planned: PlannedRequest, scheduled_at: float, dispatched_at: float, payload: bytes) -> None:
        self.planned = planned
        self.scheduled_at = scheduled_at
        self.dispatched_at = dispatched_at
        self.payload = payload
        self.parser = AnswerParser()
        self.parts: list[bytes] = []
        self.ends: list[int] = []
        self.times: list[float] = []
        self.size = 0
        self.sent_at: float | None = None
        self.ended_at: float | None = None
        self.error: ErrorKind | None = None
        self.detail = ""
        self.is_retried = False

    def take(self, body: bytes, now: float) -> None:
        """Keep body bytes that arrived at `now`."""
        self.size += len(body)
        self.parts.append(body)
        self.ends.append(self.size)
        self.times.append(now)

    def fail(self, error: ErrorKind, detail: str, now: float) -> None:
        """Note why it failed; the first reason stands."""
        if self.error is None:
            self.error = error
            self.detail = detail[:DETAIL_MAX]
        self.ended_at = self.ended_at or now

    def restart(self) -> None:
        """Be sent again, over another connection; its latency still counts from the plan."""
        self.parser = AnswerParser()
        self.sent_at = None
        self.is_retried = True


def status_error(status: int) -> ErrorKind | None:
    """Return the kind of error that an HTTP status means."""
    if OK_FIRST <= status <= OK_LAST:
        return None
    if status in UNAUTHORIZED:
        return "unauthorized"
    if status == NOT_FOUND:
        return "not_found"
    if status == RATE_LIMITED:
        return "rate_limited"
    return "server_error" if status >= SERVER_ERRORS_FROM else "client_error"


def to_record(exchange: Exchange, target: EndpointTarget) -> tuple[RequestRecord, str]:
    """Return the record of an exchange that has ended, and the text of its answer."""
    parser = exchange.parser
    decoded = Decoded()
    if exchange.error is None and (kind := status_error(parser.status)) is not None:
        exchange.fail(kind, _refusal(exchange), exchange.ended_at or 0.0)
    if exchange.error is None:
        decoded = _decode(exchange, target)
    record = RequestRecord(
        id=exchange.planned.id,
        class_name=exchange.planned.class_name,
        scheduled_at=exchange.scheduled_at,
        sent_at=exchange.sent_at,
        error=exchange.error,
        detail=exchange.detail,
        status=parser.status,
        ended_at=exchange.ended_at,
        prompt_tokens=decoded.prompt_tokens or exchange.planned.prompt_tokens,
    )
    if exchange.error is None:
        _fill(record, decoded, exchange, target)
    elif exchange.times and parser.status == OK_FIRST:
        record.first_token_at = exchange.times[0]
    return record, decoded.text


def _decode(exchange: Exchange, target: EndpointTarget) -> Decoded:
    body = b"".join(exchange.parts)
    is_event_stream = target.is_streaming and "application/json" not in exchange.parser.headers.get("content-type", "")
    try:
        return decode_answer(body, exchange.ends, exchange.times, target.api, is_streamed=is_event_stream)
    except BadStreamError as error:
        exchange.fail("bad_stream", str(error), exchange.ended_at or 0.0)
    except StreamedError as error:
        exchange.fail("server_error", str(error), exchange.ended_at or 0.0)
    return Decoded()


def _fill(record: RequestRecord, decoded: Decoded, exchange: Exchange, target: EndpointTarget) -> None:
    ended_at = exchange.ended_at or 0.0
    record.event_at = decoded.event_at
    record.event_tokens = decoded.event_tokens
    record.first_token_at = decoded.event_at[0] if decoded.event_at else ended_at
    record.first_answer_at = decoded.first_answer_at
    record.ended_at = decoded.event_at[-1] if decoded.event_at else ended_at
    record.cached_tokens = decoded.cached_tokens
    record.queue_s = decoded.queue_s
    if decoded.output_tokens is not None:
        record.output_tokens = decoded.output_tokens
    else:
        record.output_tokens = len(decoded.event_at)
        record.token_source = "events"  # noqa: S105 - tokens of text, not of access
    if not target.is_streaming:
        record.event_tokens = [record.output_tokens] if decoded.event_at else []


def _refusal(exchange: Exchange) -> str:
    retry = exchange.parser.headers.get("retry-after")
    words = b"".join(exchange.parts)[:DETAIL_MAX].decode("utf-8", "replace")
    return f"HTTP {exchange.parser.status}" + (f", retry after {retry} s" if retry else "") + f": {words}"
