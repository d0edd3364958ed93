"""One exchange: the generations of a request run together and told as one answer or one stream.

Whether a request is refused is known before the first byte: a stream sends its status when its first event is there, so
that a refusal is an honest 429 and not an error in the middle of a 200. What fails later is told as an error event,
after which the stream ends without `[DONE]`.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from setpoint.engines.api import Finished, Generation, GenerationEvent, Piece, Refused
from setpoint.gateway.answers import Answer, Chunk, Envelope, Gathered, served_of, usage_of
from setpoint.gateway.dialect import Dialect
from setpoint.gateway.engine import ServedEngine
from setpoint.gateway.faults import fault_of, refusal
from setpoint.gateway.merge import merge
from setpoint.gateway.service import CLASS_HEADER, Service
from setpoint.gateway.wire import Asked

log = logging.getLogger(__name__)

Events = AsyncGenerator[tuple[int, GenerationEvent], None]
E = TypeVar("E", bound=Envelope)


class EventStream(Response):
    """A response of server-sent events; a client that leaves its answer unread for `send_timeout_s` is cut off."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
        send_timeout_s: float,
    ) -> None:
        """Tell `events`; `close` frees what is behind them, however the telling ends."""
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._close = close
        self._send_timeout_s = send_timeout_s

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Set the headers, without a length."""
        super().init_headers(headers)
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the shape of ASGI
        """Send everything; raises TimeoutError when the client does not read."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events:
                async with asyncio.timeout(self._send_timeout_s):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._close()


class Exchange:
    """One request with the generations that answer it."""

    def __init__(
        self,
        *,
        engine: ServedEngine,
        request: Asked,
        service: Service,
        generations: Sequence[Generation],
        dialect: Dialect,
        send_timeout_s: float,
    ) -> None:
        self._engine = engine
        self._request = request
        self._service = service
        self._generations = generations
        self._dialect = dialect
        self._send_timeout_s = send_timeout_s
        self.id = dialect.id_prefix + secrets.token_hex(12)
        self._created = int(time.time())

    async def answer(self) -> Response:
        """Return the answer, whole or as a stream that has begun; raise a `Fault` when it is refused."""
        events = merge([self._engine.generate(generation) for generation in self._generations])
        if not self._request.stream:
            async with aclosing(events):
                return await self._whole(events)
        try:
            index, event = await anext(events)
        except BaseException:
            await events.aclose()
            raise
        if isinstance(event, Refused):
            await events.aclose()
            raise refusal(event)
        told = self._told((index, event), events)
        return EventStream(told, events.aclose, self._headers(), self._send_timeout_s)

    async def _whole(self, events: Events) -> Response:
        gathered = [Gathered() for _ in self._generations]
        finished: dict[int, Finished] = {}
        async for index, event in events:
            if isinstance(event, Refused):
                raise refusal(event)
            if isinstance(event, Piece):
                gathered[index].pieces.append(event)
            else:
                finished[index] = event
                gathered[index].reason = event.reason
        every = [finished[index] for index in range(len(gathered))]
        served = served_of(self._service.class_name, every)
        answer = self._fill(
            Answer,
            object=self._dialect.whole_object,
            choices=[self._dialect.whole(index, one) for index, one in enumerate(gathered)],
            usage=usage_of(every, self._request.n or 1),
            setpoint=served,
        )
        headers = {**self._headers(), "x-setpoint-queue-ms": f"{served.queue_ms:g}"}
        if served.ttft_ms is not None:
            headers["x-setpoint-ttft-ms"] = f"{served.ttft_ms:g}"
        return Response(msgspec.json.encode(answer), media_type="application/json", headers=headers)

    def _headers(self) -> dict[str, str]:
        return {CLASS_HEADER: self._service.class_name}

    def _fill(self, kind: type[E], **fields: Any) -> E:  # noqa: ANN401 - the fields of `kind`, checked by msgspec
        tier = UNSET if self._service.tier is None else self._service.tier
        return kind(id=self.id, created=self._created, model=self._engine.model_name, service_tier=tier, **fields)

    def _chunk(self, choice: dict[str, Any] | None, **fields: Any) -> bytes:  # noqa: ANN401 - see `_fill`
        """Return one event; when usage was asked for, every chunk but the last says `"usage": null`."""
        options = self._request.stream_options
        if options is not None and options.include_usage:
            fields.setdefault("usage", None)
        choices = [] if choice is None else [choice]
        chunk = self._fill(Chunk, object=self._dialect.chunk_object, choices=choices, **fields)
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    async def _told(self, first: tuple[int, GenerationEvent], events: Events) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(events):
                async for event in self._chunks(first, events):
                    yield event
        except Exception as error:  # noqa: BLE001 - the status is sent: all that is left is to tell it in the stream
            fault = fault_of(error)
            if fault.status >= 500:  # noqa: PLR2004 - the server's own faults
                log.warning("a stream ended with: %s", error)
            yield b"data: " + fault.body() + b"\n\n"

    async def _chunks(self, first: tuple[int, GenerationEvent], events: Events) -> AsyncGenerator[bytes, None]:
        finished: dict[int, Finished] = {}
        for index in range(len(self._generations)):
            opening = self._dialect.opening(index)
            if opening is not None:
                yield self._chunk(opening)
        yield self._event(first, finished)
        async for event in events:
            yield self._event(event, finished)
        options = self._request.stream_options
        if options is not None and options.include_usage:
            every = [finished[index] for index in range(len(self._generations))]
            usage = usage_of(every, self._request.n or 1)
            yield self._chunk(None, usage=usage, setpoint=served_of(self._service.class_name, every))
        yield b"data: [DONE]\n\n"

    def _event(self, told: tuple[int, GenerationEvent], finished: dict[int, Finished]) -> bytes:
        index, event = told
        if isinstance(event, Refused):
            raise refusal(event)
        if isinstance(event, Piece):
            return self._chunk(self._dialect.delta(index, event))
        finished[index] = event
        served = served_of(self._service.class_name, [event])
        return self._chunk(self._dialect.closing(index, event.reason), setpoint=served)
