"""Runs a command in a process group of its own, and ends that group when it is told to, or when its parent is gone.

    python guard.py COMMAND ...      (its standard input is a pipe that the parent holds open)

An engine is many processes, and a tuner may be killed by what it cannot catch. The pipe closes either way: whatever
becomes of the parent, the engine does not outlive it. Standard library only: it is run by its path.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

STOP_S = 10.0


def main() -> int:
    """Run the command until it ends or standard input does; returns its exit code."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 - as asked

    def await_parent() -> None:
        while os.read(0, 4096):
            pass
        _end(process)

    threading.Thread(target=await_parent, daemon=True).start()
    code = process.wait()
    _signal(process, signal.SIGKILL)  # what the leader has left behind
    return code


def _end(process: "subprocess.Popen[bytes]") -> None:
    _signal(process, signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main())
