"""The server: uvicorn with guarded connections, and an orderly end.

On SIGTERM (or Ctrl-C) the engine drains first, while the listener stays open: what runs finishes, what waits and what
still comes is told 503 with the reason, and `/ready` says so. Only then are connections closed. A second Ctrl-C ends it
at once.
"""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from setpoint.errors import ConfigError
from setpoint.gateway.connections import ConnectionLimits, GuardedProtocol, GuardedState
from setpoint.settings import ServerSettings

FILES_SPARED = 64
"""Descriptors kept for everything that is not a connection."""
CLOSE_TIMEOUT_S = 5
"""How long the last answers may take to leave, once the engine has drained."""
BACKLOG = 2048
LOOPBACK = ("127.0.0.1", "::1", "localhost")

log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains an engine before it closes connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        limits: ConnectionLimits,
        drain: Callable[[], Awaitable[object]],
        announce: Callable[[], None],
    ) -> None:
        """Call `announce` once the server listens, and wait for `drain()` before it closes."""
        super().__init__(config)
        self.server_state = GuardedState(limits)
        self._drain = drain
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the shape of a signal handler
        """Ask for the orderly end, and for the quick one when Ctrl-C comes again.

        Unlike uvicorn's own, the signal is not raised again at the end: what comes after the server (closing the
        journal, freeing the model) is to happen too.
        """
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close."""
        draining = asyncio.ensure_future(self._drain())
        while not draining.done() and not self.force_exit:
            await asyncio.wait({draining}, timeout=0.1)
        draining.cancel()
        await super().shutdown(sockets)


def open_listener(settings: ServerSettings) -> socket.socket:
    """Return a bound socket that does not listen yet; raise ConfigError when the address cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
            hint="another program may use the port: choose one with --port, or 0 for any",
        ) from error
    return listener


def connection_limit(connections_max: int) -> int:
    """Return how many connections the process may really hold, after asking for as many files as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections_max + FILES_SPARED
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    limit = min(connections_max, soft - FILES_SPARED)
    if limit < connections_max:
        log.warning("this process may open %d files: at most %d connections are held", soft, limit)
    return limit


def build_server(
    app: ASGIApp, settings: ServerSettings, drain: Callable[[], Awaitable[object]], announce: Callable[[], None]
) -> DrainingServer:
    """Return the server of `app`; run it with `await server.serve(sockets=[open_listener(settings)])`."""
    config = uvicorn.Config(
        app,
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=max(1, round(settings.keep_alive_s)),
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
        h11_max_incomplete_event_size=settings.header_bytes_max,
        backlog=BACKLOG,
    )
    limits = ConnectionLimits(
        connections_max=connection_limit(settings.connections_max),
        header_bytes_max=settings.header_bytes_max,
        header_timeout_s=settings.header_timeout_s,
    )
    return DrainingServer(config, limits, drain, announce)
