"""Connections that are kept open and used last in, first out; one timestamp for each read, and no task for each byte.

Where the kernel can date reads, connections are plain sockets (`setpoint.loadgen.sockets`), elsewhere and under TLS
transports of the event loop, whose reads are dated when the loop comes to them.

Idle connections are taken before a new one is opened, the most recent first: a server that holds a thread for each open
connection is then never kept from serving by the idle ones.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from setpoint.errors import ConfigError
from setpoint.loadgen.exchange import Exchange
from setpoint.loadgen.sockets import Inbox, is_dating_possible
from setpoint.loadgen.target import EndpointTarget
from setpoint.loadgen.wire import WireError
from setpoint.metrics import ErrorKind

Ended = Callable[[Exchange], None]


class Transport(Protocol):
    """What a connection needs of whatever carries its bytes."""

    def write(self, data: bytes) -> None:
        """Send `data`, without waiting."""

    def is_closing(self) -> bool:
        """Tell whether nothing can be sent any more."""

    def abort(self) -> None:
        """Close at once."""


class Connection(asyncio.Protocol):
    """One connection; carries one exchange at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: Transport | None = None
        self._served = 0
        self.exchange: Exchange | None = None

    def connection_made(self, transport: object) -> None:
        """Keep the transport."""
        self._transport = cast("Transport", transport)

    @property
    def is_open(self) -> bool:
        """Whether bytes may still be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def start(self, exchange: Exchange) -> None:
        """Send the request of `exchange` now."""
        self.exchange = exchange
        assert self._transport is not None
        exchange.sent_at = time.monotonic()
        self._transport.write(exchange.payload)

    def data_received(self, data: bytes) -> None:
        """Date what arrived, and keep it."""
        self.received(data, time.monotonic())

    def received(self, data: bytes, now: float) -> None:
        """Keep what had arrived at `now`."""
        exchange = self.exchange
        if exchange is None:
            self.abort()
            return
        try:
            body = exchange.parser.feed(data)
        except WireError as error:
            self._end("bad_stream", str(error), now)
            return
        if body:
            exchange.take(body, now)
            if exchange.size > self._pool.target.limits.answer_bytes_max:
                self._end("too_large", f"the answer exceeds {self._pool.target.limits.answer_bytes_max:,} bytes", now)
                return
        if exchange.parser.is_done:
            self._done(exchange, now)

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle what was in flight."""
        exchange, self.exchange = self.exchange, None
        self._pool.dropped(self)
        if exchange is None:
            return
        now = time.monotonic()
        if not exchange.parser.status and self._served and not exchange.is_retried:
            exchange.restart()
            self._pool.submit(exchange)
            return
        try:
            exchange.parser.close()
        except WireError as error:
            exchange.fail("cut", str(exc or error), now)
        exchange.ended_at = exchange.ended_at or now
        self._pool.ended(exchange)

    def give_up(self, error: ErrorKind, detail: str) -> None:
        """Fail the exchange in flight, and close: its answer could come at any time."""
        self._end(error, detail, time.monotonic())

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: ErrorKind, detail: str, now: float) -> None:
        exchange, self.exchange = self.exchange, None
        self.abort()
        if exchange is not None:
            exchange.fail(error, detail, now)
            self._pool.ended(exchange)

    def _done(self, exchange: Exchange, now: float) -> None:
        self.exchange = None
        self._served += 1
        exchange.ended_at = now
        if exchange.parser.is_kept_alive and self.is_open:
            self._pool.released(self)
        else:
            self.abort()
        self._pool.ended(exchange)


class Pool:
    """All connections to one endpoint; `ended` is called once for each exchange.

    `is_patient`: that may be a little after its end, since nothing waits for it.
    """

    def __init__(
        self, target: EndpointTarget, loop: asyncio.AbstractEventLoop, ended: Ended, *, is_patient: bool = False
    ) -> None:
        self.target = target
        self.ended = ended
        self.opened = 0
        self.is_full_seen = False
        self._address = target.address
        self._tls = tls_context(target) if self._address.is_tls else None
        is_dated = self._tls is None and is_dating_possible()
        self._inbox = Inbox(loop, is_patient=is_patient) if is_dated else None
        self._loop = loop
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[Exchange] = deque()

    @property
    def busy(self) -> list[Connection]:
        """Connections with an exchange in flight."""
        return [connection for connection in self._all if connection.exchange is not None]

    async def warm(self, count: int) -> None:
        """Open `count` connections ahead of time."""
        for _ in range(count):
            self._idle.append(await self._open())

    def submit(self, exchange: Exchange) -> None:
        """Send `exchange` over an idle connection, or over a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                connection.start(exchange)
                return
        if len(self._all) + len(self._opening) >= self.target.limits.connections_max:
            self.is_full_seen = True
            self._waiting.append(exchange)
            return
        task = self._loop.create_task(self._open_for(exchange))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def released(self, connection: Connection) -> None:
        """Take back a connection that is free."""
        if self._waiting:
            connection.start(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def dropped(self, connection: Connection) -> None:
        """Forget a connection that is gone."""
        self._all.discard(connection)
        if self._waiting:
            self.submit(self._waiting.popleft())

    async def close(self, error: ErrorKind = "cancelled", detail: str = "the run was stopped") -> None:
        """Close everything; what is in flight fails as `error`."""
        now = time.monotonic()
        while self._waiting:
            waiting = self._waiting.popleft()
            waiting.fail(error, detail, now)
            self.ended(waiting)
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self._all):
            connection.give_up(error, detail)
        if self._inbox is not None:
            self._inbox.close()
        await asyncio.sleep(0)

    async def _open(self) -> Connection:
        connection = Connection(self)
        await asyncio.wait_for(self._connect(connection), self.target.limits.connect_s)
        self.opened += 1
        self._all.add(connection)
        return connection

    async def _connect(self, connection: Connection) -> None:
        address = self._address
        if self._inbox is not None:
            await self._inbox.connect(address.host, address.port, connection)
            return
        await self._loop.create_connection(
            lambda: connection,
            address.host,
            address.port,
            ssl=self._tls,
            server_hostname=address.host if self._tls else None,
        )

    async def _open_for(self, exchange: Exchange) -> None:
        try:
            connection = await self._open()
        except (OSError, TimeoutError) as error:
            exchange.fail(connect_error(error), _reason(error), time.monotonic())
            self.ended(exchange)
        except asyncio.CancelledError:
            exchange.fail("cancelled", "the run was stopped", time.monotonic())
            self.ended(exchange)
            raise
        else:
            connection.start(exchange)


def connect_error(error: BaseException) -> ErrorKind:
    """Return the kind of an error met while connecting."""
    return "tls" if isinstance(error, ssl.SSLError) else "unreachable"


def _reason(error: BaseException) -> str:
    return "no connection within the limit" if isinstance(error, TimeoutError) else str(error)


def tls_context(target: EndpointTarget) -> ssl.SSLContext:
    """Return how certificates are checked; raises ConfigError when the authority's file is none."""
    try:
        context = ssl.create_default_context(cafile=target.ca_file)
    except OSError as error:
        raise ConfigError(
            f"cannot read the certificate authority {target.ca_file}: {error.strerror or error}",
            hint="--ca-file takes a file in PEM form",
        ) from None
    if not target.is_tls_checked:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
