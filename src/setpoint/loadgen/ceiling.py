"""How many events a second one worker of the client can take in on this machine, measured against the null server.

What counts is processor time: the events of a calibration over the seconds of processor that the worker used for them.
So the figure holds although the null server is a Python program on the same machine, and whatever else runs there. It
is measured once for each interpreter, version and machine, and kept in the user's cache directory.
"""

import contextlib
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from setpoint.cache import cache_dir
from setpoint.errors import EngineError
from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.process import measure_in_process
from setpoint.loadgen.target import EndpointTarget
from setpoint.workload import PlannedRequest

STREAMS = 64
TOKENS = 150
ROUNDS = 3
TICK_MS = 6.0
READY_S = 20.0
FILE = "client-ceiling.json"


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """Events per second and worker; `made_on` names the interpreter, version and machine."""

    events_per_s: float
    made_on: str


@contextlib.contextmanager
def null_server(*, tick_ms: float = TICK_MS) -> Iterator[str]:
    """Serve from a process of its own until the block ends; yields the URL."""
    command = [sys.executable, "-m", "setpoint.loadgen.null_server", "--tick-ms", f"{tick_ms:g}"]
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        late = threading.Timer(READY_S, process.kill)
        late.start()
        port = process.stdout.readline().strip()
        late.cancel()
        if not port.isdigit():
            raise EngineError("the null server of the calibration did not start")
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()


def calibrate() -> float:
    """Return the events per second that one worker can take in; takes about four seconds."""
    plan = [
        PlannedRequest(id=number, at_s=0.0, prompt_tokens=16, output_tokens=TOKENS, class_name="standard")
        for number in range(STREAMS * ROUNDS)
    ]
    with null_server() as url:
        target = EndpointTarget(url=url, model="null")
        run = measure_in_process(target, plan, RunOptions(concurrency=STREAMS, connections=STREAMS, stagger_s=0.1))
    events = sum(one.events for one in run.samples)
    cpu_s = sum(one.cpu_s for one in run.samples)
    if not events or cpu_s <= 0.0:
        raise EngineError("the client could not be calibrated against its null server")
    return events / cpu_s


def ceiling(version: str, folder: Path | None = None) -> float:
    """Return the calibrated ceiling, from the file in `folder` (the user's cache directory) or by measuring it."""
    folder = folder or cache_dir("bench")
    made_on = f"{version}, Python {platform.python_version()}, {platform.machine()} x {os.cpu_count()}"
    path = folder / FILE
    with contextlib.suppress(OSError, msgspec.DecodeError):
        kept = msgspec.json.decode(path.read_bytes(), type=Ceiling)
        if kept.made_on == made_on:
            return kept.events_per_s
    found = calibrate()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(Ceiling(events_per_s=found, made_on=made_on)))
    return found
