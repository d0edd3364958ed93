"""One route: its key, its body within limits, and its handler beside a watch on the connection.

A client that leaves takes its request with it, before the first token as well as after it.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from setpoint.gateway.auth import Keyring
from setpoint.gateway.faults import Fault, fault_of
from setpoint.gateway.telemetry import Telemetry
from setpoint.settings import ApiKey, ServerSettings

REQUEST_ID_CHARACTERS_MAX = 128

log = logging.getLogger(__name__)

Handler = Callable[[Request, bytes, ApiKey | None], Awaitable[Response]]


class Endpoint:
    """One route as an ASGI application."""

    def __init__(
        self, path: str, handler: Handler, keyring: Keyring | None, limits: ServerSettings, telemetry: Telemetry
    ) -> None:
        """Serve `handler` at the path template `path`, behind the keys of `keyring` unless it is `None`."""
        self._path = path
        self._handler = handler
        self._keyring = keyring
        self._limits = limits
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or drop it as soon as its client leaves."""
        request = Request(scope, receive, send)
        try:
            key = None if self._keyring is None else self._keyring.identify(request.headers)
            body = await read_body(request, self._limits)
        except ClientDisconnect:
            return
        except Fault as fault:
            await self._send(fault_response(fault), request, send)
            return
        work = asyncio.ensure_future(self._answer(request, body, key, send))
        watch = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.wait((work, watch))
        if not work.cancelled():
            work.result()

    async def _answer(self, request: Request, body: bytes, key: ApiKey | None, send: Send) -> None:
        try:
            response = await self._handler(request, body, key)
        except Exception as error:
            fault = fault_of(error)
            if fault.code == "internal_error":
                log.exception("an unforeseen error in %s", request.url.path)
            response = fault_response(fault)
        with suppress(TimeoutError):
            # a client that does not read its answer is cut off by the return without an end
            await self._send(response, request, send)

    async def _send(self, response: Response, request: Request, send: Send) -> None:
        response.headers["x-request-id"] = _request_id(request)
        self._telemetry.count_response(self._path, response.status_code)
        await response(request.scope, request.receive, send)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    if 0 < len(given) <= REQUEST_ID_CHARACTERS_MAX and given.isascii() and given.isprintable():
        return given
    return "req_" + secrets.token_hex(12)


async def read_body(request: Request, limits: ServerSettings) -> bytes:
    """Return the body; raise a `Fault` when it is too large (413) or takes too long (408)."""
    too_large = Fault(413, f"the body has more than {limits.body_bytes_max} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limits.body_bytes_max:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for part in request.stream():
                body += part
                if len(body) > limits.body_bytes_max:
                    raise too_large
    except TimeoutError:
        raise Fault(408, f"the body did not arrive within {limits.body_timeout_s:g} s") from None
    return bytes(body)


def fault_response(fault: Fault) -> Response:
    """Return the response of an error."""
    return Response(fault.body(), fault.status, fault.headers, media_type="application/json")
