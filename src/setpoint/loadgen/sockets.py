"""Plain sockets whose reads the kernel has dated, taken in batches: for Linux, without TLS.

An event loop dates a read when it comes to it: a client that waits for the processor dates late, and to date each event
well it must wake for each. Here every read brings the instant at which its last bytes reached this machine
(SO_TIMESTAMPNS), so that neither a busy machine nor a late wake-up moves it. That makes patience free: after a wake-up
the sockets are left alone for a moment, and what has arrived by then is taken in one go, which costs about a third less
processor time an event. Patience stays far below the gap between two events of a stream, or their dates would merge; it
is none at all while a next request waits for the end of the last.

All sockets are in one epoll set, which the loop watches as a single descriptor.
"""

import asyncio
import contextlib
import platform
import select
import socket
import struct
import sys
import time
from typing import Protocol

SO_TIMESTAMPNS = 35
"""Its number on the machines of `MACHINES`; Python has no name for it."""
MACHINES = ("x86_64", "aarch64")
TIMESPEC = struct.Struct("qq")
NOTES_BYTES = 64
READ_BYTES = 32768
AGE_MAX_S, AHEAD_MAX_S = 60.0, 0.001
"""A date outside of these is not believed: the wall clock was set meanwhile."""
PATIENCE_MAX_S = 0.004
PATIENCE_MIN_S = 0.001
"""Below this it is not worth a timer, whose grain it is."""
PATIENCE_OF_GAP = 0.2
GAP_MAX_S = PATIENCE_MAX_S / PATIENCE_OF_GAP
"""Longer gaps count as this one: they ask for no more patience, and would outweigh the short ones."""
GAP_MEMORY = 0.05


class Receiver(Protocol):
    """What a socket serves."""

    def connection_made(self, transport: "DatedSocket") -> None:
        """Take the way to write."""

    def received(self, data: bytes, at: float) -> None:
        """Take bytes that had arrived at `at` of `time.monotonic`."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Learn that no more will come."""


def is_dating_possible() -> bool:
    """Tell whether this machine's kernel can date reads in the way that is known here."""
    return sys.platform == "linux" and platform.machine() in MACHINES


class Inbox:
    """All sockets of one client; `is_patient`: reads may be taken a little after they have come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, is_patient: bool) -> None:
        self._loop, self._is_patient = loop, is_patient
        self._ready = select.epoll()
        self._open: dict[int, DatedSocket] = {}
        self._gap_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(self._ready.fileno(), self._wake)

    async def connect(self, host: str, port: int, receiver: Receiver) -> None:
        """Open a connection for `receiver`; raises OSError when no address of the host takes it."""
        error: OSError | None = None
        for family, kind, number, _, address in await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            plain = socket.socket(family, kind, number)
            plain.setblocking(False)
            try:
                await self._loop.sock_connect(plain, address)
            except OSError as refused:
                plain.close()
                error = refused
            except BaseException:
                plain.close()
                raise
            else:
                self._take(plain, receiver)
                return
        raise error or OSError(f"the host {host!r} has no address")

    def close(self) -> None:
        """Drop all sockets and the set."""
        if self._ready.closed:
            return
        for one in list(self._open.values()):
            one.abort()
        if self._timer is not None:
            self._timer.cancel()
        else:
            self._loop.remove_reader(self._ready.fileno())
        self._ready.close()

    def forget(self, descriptor: int) -> None:
        """Watch a socket no longer."""
        if self._open.pop(descriptor, None) is not None:
            self._ready.unregister(descriptor)

    def _take(self, plain: socket.socket, receiver: Receiver) -> None:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            plain.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        one = DatedSocket(self, self._loop, plain, receiver)
        self._open[plain.fileno()] = one
        receiver.connection_made(one)
        self._ready.register(plain.fileno(), select.EPOLLIN)

    def _wake(self) -> None:
        """Take what is there; be patient about the rest where the streams are slow enough."""
        self._drain()
        patience_s = min(PATIENCE_MAX_S, PATIENCE_OF_GAP * self._gap_s)
        if self._is_patient and patience_s >= PATIENCE_MIN_S and not self._ready.closed:
            self._loop.remove_reader(self._ready.fileno())
            self._timer = self._loop.call_later(patience_s, self._wake_again)

    def _wake_again(self) -> None:
        """Take what has come meanwhile; once nothing has, let the loop watch again."""
        if self._drain():
            patience_s = min(PATIENCE_MAX_S, PATIENCE_OF_GAP * self._gap_s)
            self._timer = self._loop.call_later(patience_s, self._wake_again)
        else:
            self._timer = None
            self._loop.add_reader(self._ready.fileno(), self._wake)

    def _drain(self) -> int:
        """Read each socket that has something once; return how many had."""
        found = self._ready.poll(0)
        now = time.monotonic()
        shift = time.time() - now
        for descriptor, _ in found:
            one = self._open.get(descriptor)
            if one is not None:
                gap = one.read(now, shift)
                if gap > 0.0:
                    self._gap_s += GAP_MEMORY * (min(gap, GAP_MAX_S) - self._gap_s)
        return len(found)


class DatedSocket:
    """One socket, with the part of a transport's face that is used here."""

    __slots__ = ("_inbox", "_is_closed", "_last_at", "_loop", "_plain", "_receiver", "_unsent")

    def __init__(self, inbox: Inbox, loop: asyncio.AbstractEventLoop, plain: socket.socket, receiver: Receiver) -> None:
        self._inbox, self._loop, self._plain, self._receiver = inbox, loop, plain, receiver
        self._unsent = b""
        self._last_at = 0.0
        self._is_closed = False

    def is_closing(self) -> bool:
        """Tell whether it is closed, or about to be."""
        return self._is_closed

    def write(self, data: bytes) -> None:
        """Send `data` now, and what the kernel does not take as soon as it does."""
        if self._unsent:
            self._unsent += data
        elif not self._is_closed:
            self._unsent = self._send(data)
            if self._unsent:
                self._loop.add_writer(self._plain.fileno(), self._write_on)
        self._last_at = 0.0

    def abort(self) -> None:
        """Close at once; the receiver learns of it in the next turn of the loop."""
        self._lose(None)

    def read(self, now: float, shift: float) -> float:
        """Hand over what is there; return the seconds since the last read of this answer, 0 for its first.

        `shift`: what the wall clock, by which the kernel dates, is ahead of `time.monotonic`.
        """
        try:
            data, notes, _, _ = self._plain.recvmsg(READ_BYTES, NOTES_BYTES)
        except (BlockingIOError, InterruptedError):
            return 0.0
        except OSError as error:
            self._lose(error)
            return 0.0
        if not data:
            self._lose(None)
            return 0.0
        at = now
        if notes and notes[0][1] == SO_TIMESTAMPNS:
            seconds, nanoseconds = TIMESPEC.unpack(notes[0][2])
            dated = seconds - shift + nanoseconds * 1e-9
            if now - AGE_MAX_S < dated < now + AHEAD_MAX_S:
                at = dated
        last = self._last_at
        at = self._last_at = max(at, last)
        self._receiver.received(data, at)
        return at - last if last else 0.0

    def _send(self, data: bytes) -> bytes:
        try:
            return data[self._plain.send(data) :]
        except (BlockingIOError, InterruptedError):
            return data
        except OSError as error:
            self._lose(error)
            return b""

    def _write_on(self) -> None:
        self._unsent = self._send(self._unsent)
        if not self._unsent and not self._is_closed:
            self._loop.remove_writer(self._plain.fileno())

    def _lose(self, error: OSError | None) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._inbox.forget(self._plain.fileno())
        if self._unsent:
            self._loop.remove_writer(self._plain.fileno())
        self._plain.close()
        self._loop.call_soon(self._receiver.connection_lost, error)
