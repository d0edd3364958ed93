"""Waking up on time: event loops round to a millisecond, the kernel's timer does not.

On Linux a timerfd watched by the loop wakes within some 50 microseconds; elsewhere the loop's own timer is used.
"""

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

CLOCK_MONOTONIC = 1
TFD_NONBLOCK = 0o4000
TFD_CLOEXEC = 0o2000000
ABSOLUTE = 1
SOONEST_S = 1e-6


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer(Protocol):
    """Calls back once at an instant of `time.monotonic`; setting it again replaces the instant."""

    def set(self, at: float) -> None:
        """Call back at `at`, at once when that is past."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


class LoopTimer:
    """The loop's own timer: rounds to about a millisecond."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Call back at `at`."""
        self.close()
        self._handle = self._loop.call_later(max(0.0, at - time.monotonic()), self._callback)

    def close(self) -> None:
        """Forget what was set."""
        if self._handle is not None:
            self._handle.cancel()


class FdTimer:
    """The kernel's timer as a file descriptor. Raises OSError where there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop, self._callback = loop, callback
        loop.add_reader(self._fd, self._fired)

    def set(self, at: float) -> None:
        """Call back at `at`."""
        at = max(at, SOONEST_S)
        seconds = int(at)
        value = _Timespec(seconds, max(1, int((at - seconds) * 1e9)))
        spec = _Itimerspec(_Timespec(0, 0), value)
        self._libc.timerfd_settime(self._fd, ABSOLUTE, ctypes.byref(spec), None)

    def close(self) -> None:
        """Close the descriptor."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._callback()


def make_timer(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Timer:
    """Return the most precise timer that this system has."""
    if sys.platform == "linux":
        try:
            return FdTimer(loop, callback)
        except (OSError, AttributeError, NotImplementedError):
            pass
    return LoopTimer(loop, callback)
