"""One worker process: takes its share of a plan from a file, carries it out, and appends each record as it ends.

It shares no interpreter with the engine nor with its siblings. It says `ready`, is told the common start on standard
input, writes its progress twice a second, and its samples at the end. Whatever happens to it or to its parent, what
had been measured stands in the file.
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import msgspec

from setpoint.loadgen.client import LoadClient, RunOptions
from setpoint.loadgen.health import ClientSamples
from setpoint.loadgen.loops import run
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import RequestRecord
from setpoint.workload import PlannedRequest

PROGRESS_S = 0.25
RECORDS, SAMPLES, START = "records-{}.jsonl", "samples-{}.json", "start.json"
NICENESS = -20


class WorkerSpec(msgspec.Struct, kw_only=True):
    """All that a worker needs; `records_path` is the file that it appends to, one JSON object a line.

    `samples_path`: the file for what it saw of itself, written at the end.
    """

    target: EndpointTarget
    plan: list[PlannedRequest]
    options: RunOptions
    lexicon: Lexicon
    records_path: str
    samples_path: str = ""


class StartNote(msgspec.Struct, kw_only=True):
    """What must be known of a run to read its records: its zero on `time.monotonic`, warm-up, options and workers.

    `is_ended`: it came to its end, as planned or by a rule.
    """

    start_at: float
    warmup_s: float | None
    workers: int
    options: RunOptions | None = None
    is_ended: bool = False


class Progress(msgspec.Struct, kw_only=True):
    """How far a worker has come; `samples` with the last one only."""

    sent: int
    ended: int
    in_flight: int
    samples: ClientSamples | None = None


class _Writer:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._encoder = msgspec.json.Encoder()
        self.count = 0

    def __call__(self, record: RequestRecord) -> None:
        self.count += 1
        os.write(self._file, self._encoder.encode(record) + b"\n")


def main(spec_path: str) -> None:
    """Carry out the specification in the file `spec_path`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _take_precedence()
    spec = msgspec.json.decode(Path(spec_path).read_bytes(), type=WorkerSpec)
    run(_work(spec))


def _take_precedence() -> None:
    """Run before ordinary processes where that is allowed: a client that waits for the processor dates answers late.

    Real-time precedence would be sharper, but a mistake in it would take the machine away from the engine.
    """
    with contextlib.suppress(OSError):
        os.nice(NICENESS)


async def _work(spec: WorkerSpec) -> None:
    loop = asyncio.get_running_loop()
    writer = _Writer(spec.records_path)
    client = LoadClient(spec.target, spec.plan, spec.options, spec.lexicon, writer)
    _say(b'"ready"')
    start_at = float(await loop.run_in_executor(None, sys.stdin.readline))
    loop.add_reader(sys.stdin.fileno(), _told_to_stop, loop, client)
    reporting = loop.create_task(_report(client, writer))
    try:
        await client.run(start_at)
    finally:
        reporting.cancel()
        loop.remove_reader(sys.stdin.fileno())
    _keep(spec.samples_path, client.samples)
    _say(msgspec.json.encode(_progress(client, writer, client.samples)))


def _keep(path: str, samples: ClientSamples) -> None:
    if path:
        Path(path).write_bytes(msgspec.json.encode(samples))


def _told_to_stop(loop: asyncio.AbstractEventLoop, client: LoadClient) -> None:
    os.read(sys.stdin.fileno(), 4096)
    loop.remove_reader(sys.stdin.fileno())
    client.stop()


async def _report(client: LoadClient, writer: _Writer) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        _say(msgspec.json.encode(_progress(client, writer, None)))


def _progress(client: LoadClient, writer: _Writer, samples: ClientSamples | None) -> Progress:
    return Progress(sent=client.samples.sent, ended=writer.count, in_flight=client.in_flight, samples=samples)


def _say(line: bytes) -> None:
    """Tell the parent; one that is gone hears nothing, and the records are in the file all the same."""
    try:
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
