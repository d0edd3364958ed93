"""Connections under guard: uvicorn's h11 protocol, with limits on those who hold a connection and send nothing.

uvicorn closes a connection that idles between two requests, but waits for ever for the first byte of the first. Here a
connection must bring its request line and headers within `header_timeout_s`, and dribbling them byte by byte does not
extend that. Above `connections_max` the connection that has been silent longest makes room for the new one; only when
each of them has a request in hand is the new one told 503. A thousand silent connections thus cost their sockets for
some seconds and stop nobody.
"""

import asyncio
from typing import cast

import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from setpoint.gateway.faults import Fault


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many connections, and how large a header may be and how long it may take to come, in seconds."""

    connections_max: int
    header_bytes_max: int
    header_timeout_s: float


class GuardedState(ServerState):
    """What the connections of one server share: uvicorn's own, the limits, and who is silent (oldest first)."""

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.limits = limits
        self.silent: dict[GuardedProtocol, None] = {}


class GuardedProtocol(H11Protocol):
    """One connection. It is silent while it has no request in hand."""

    _last_bytes = b""
    _deadline: asyncio.TimerHandle | None = None

    @property
    def guard(self) -> GuardedState:
        """What it shares with the others."""
        return cast("GuardedState", self.server_state)

    @property
    def has_request(self) -> bool:
        """Whether a request is in hand: its headers are there, and its answer is not over."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, at the expense of the one silent longest when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.guard.limits.connections_max:
            oldest = next(iter(self.guard.silent), None)
            if oldest is None:
                self._answer(Fault(503, "too many connections", code="too_many_connections"))
                return
            oldest.give_way()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in; the deadline stands until they make a whole header."""
        if not self.has_request:
            if self._deadline is None:
                self._await_request()
            # h11 bounds what it keeps of an unfinished header, not a long one that arrives in one piece
            limit = self.guard.limits.header_bytes_max
            if len(data) > limit and b"\r\n\r\n" not in self._last_bytes + data[:limit]:
                self.send_400_response("Headers over the limit.")
                return
            self._last_bytes = (self._last_bytes + data[-3:])[-3:]
        super().data_received(data)
        if self.has_request or self.transport.is_closing():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Be silent again."""
        super().on_response_complete()
        if not self.transport.is_closing() and not self.has_request:
            self.guard.silent[self] = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or has headers over the limit, in the shape of every other error."""
        self._answer(Fault(400, msg, code="invalid_http"))

    def give_way(self) -> None:
        """Close this connection, which is silent, in favour of another."""
        self._stop_waiting()
        self.transport.close()

    def _await_request(self) -> None:
        self.guard.silent[self] = None
        self._deadline = self.loop.call_later(self.guard.limits.header_timeout_s, self.give_way)

    def _stop_waiting(self) -> None:
        self.guard.silent.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _answer(self, fault: Fault) -> None:
        body = fault.body()
        head = (
            f"HTTP/1.1 {fault.status} {'Bad Request' if fault.status == 400 else 'Service Unavailable'}\r\n"  # noqa: PLR2004
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
