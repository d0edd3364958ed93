"""Starts somebody else's inference server, waits until it is ready, and ends it with all its processes.

The server runs below a guard (`setpoint.engines.guard`) in a session of its own: Ctrl-C reaches the tuner alone, and
the guard ends the server when the tuner lets go of it or dies. What does not start is an answer, not a mishap: the
error says whether the server ended by itself (`crashed`) or never became ready (`hung`), with the last of what it said.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Literal

from setpoint.engines import guard
from setpoint.errors import ConfigError, EngineError

HOST = "127.0.0.1"
LOOK_S = 0.25
LINES_SHOWN = 3
LINE_MAX = 300
LEAVE_S = guard.STOP_S + 5.0
OK = 200
_TELLING = ("error", "failed", "exception", "cannot", "invalid", "refused")


class StartError(EngineError):
    """A server did not become ready: it `crashed`, or it `hung`."""

    def __init__(self, how: Literal["crashed", "hung"], message: str) -> None:
        """Keep which of the two it was."""
        super().__init__(message)
        self.how = how


class Running:
    """A server that was started: where it is, and whether it still lives."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.url, self.log, self._process = url, log, process

    @property
    def is_alive(self) -> bool:
        """Whether the process is there; a server that hangs is alive."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The guard's process."""
        return self._process.pid

    def require_alive(self) -> None:
        """Raise StartError when the server has ended."""
        if not self.is_alive:
            raise StartError("crashed", self.last_words() or "it ended without a word")

    def last_words(self) -> str:
        """Return what the server said last, its complaints before anything else."""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        lines = [line for line in lines if line]
        telling = [line for line in lines if any(word in line.lower() for word in _TELLING)]
        return " / ".join(line[:LINE_MAX] for line in (telling or lines)[-LINES_SHOWN:])


def free_port() -> int:
    """Return a port of the loopback that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def launched(  # noqa: PLR0913 - what to start, and how long to wait for it
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    ready: str,
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Running]:
    """Start `command`, which is to answer GET `ready` on `port` within `limit_s` seconds; end it after the block.

    Raises StartError when it does not, ConfigError when there is no such command.
    """
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - the engine that the user asked for
                [sys.executable, guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | dict(environment or {}),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot start {command[0]}: {error}") from error
    running = Running(f"http://{HOST}:{port}", process, log)
    try:
        _await_ready(running, port, ready, limit_s, tick)
        yield running
    finally:
        _end(process)


def _await_ready(running: Running, port: int, ready: str, limit_s: float, tick: Callable[[], None]) -> None:
    for _ in range(max(1, round(limit_s / LOOK_S))):  # turns, not a deadline, which a suspended machine would pass
        running.require_alive()
        if is_answering(port, ready):
            return
        tick()
        time.sleep(LOOK_S)
    raise StartError("hung", f"not ready within {limit_s:.0f} s: {running.last_words()}")


def is_answering(port: int, path: str, timeout_s: float = 5.0) -> bool:
    """Tell whether GET `path` on the loopback's `port` is answered with 200."""
    connection = HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    while True:
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        except KeyboardInterrupt:  # an impatient second Ctrl-C must not leave the server behind
            continue
        else:
            return
