"""Runs a command of any number of processes and takes down how much processor time all of them have used, as time goes.

The command leads a session of its own; ten times a second the times of all processes of that session are added up from
/proc, those of children that have ended included (their parents carry them). Linux only.
"""

import bisect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PERIOD_S = 0.1
TICKS = os.sysconf("SC_CLK_TCK")
SESSION, FIRST_TIME, LAST_TIME = 3, 11, 15
"""Fields of /proc/PID/stat after the name: the session, and the four times (own and of ended children)."""


class Usage:
    """Processor seconds used by a command up to each of some instants of `time.monotonic`."""

    def __init__(self) -> None:
        """Start empty."""
        self._at: list[float] = []
        self._used_s: list[float] = []

    def note(self, at: float, used_s: float) -> None:
        """Add what had been used at an instant; a sample that misses an ending process never counts backwards."""
        self._at.append(at)
        self._used_s.append(max(used_s, self.total_s))

    @property
    def total_s(self) -> float:
        """All that was used."""
        return self._used_s[-1] if self._used_s else 0.0

    def between_s(self, start: float, end: float) -> float:
        """Return what was used between two instants, straight lines assumed between the samples."""
        return self._until(end) - self._until(start)

    def _until(self, at: float) -> float:
        index = bisect.bisect(self._at, at)
        if index == 0:
            return 0.0
        if index == len(self._at):
            return self.total_s
        share = (at - self._at[index - 1]) / (self._at[index] - self._at[index - 1])
        return self._used_s[index - 1] + share * (self._used_s[index] - self._used_s[index - 1])


def run_watched(command: Sequence[str], folder: Path, environment: Mapping[str, str], limit_s: float) -> Usage:
    """Run a command to its end; its output goes to `folder/log.txt`. Exits, showing its end, when it fails."""
    usage = Usage()
    log = folder / "log.txt"
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        ) as process,
    ):
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, usage, ended))
        sampler.start()
        try:
            process.wait(limit_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                sys.exit(f"error: {command[0]} did not end within {limit_s:g} s\n{log.read_text()[-2000:]}")
            raise
        finally:
            ended.set()
            sampler.join()
    if process.returncode:
        sys.exit(f"error: {command[0]} failed\n{log.read_text()[-2000:]}")
    return usage


def _sample(session: int, usage: Usage, ended: threading.Event) -> None:
    while not ended.wait(PERIOD_S):
        usage.note(time.monotonic(), session_cpu_s(session))


def session_cpu_s(session: int) -> float:
    """Return the processor seconds of all processes of a session, and of their ended children."""
    total = 0
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a thousand entries ten times a second
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8") as file:  # noqa: PTH123 - as above
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[SESSION]) == session:
            total += sum(int(field) for field in fields[FIRST_TIME:LAST_TIME])
    return total / TICKS
