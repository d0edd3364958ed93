"""A run in processes of its own: the schedule is dealt out once, and no request needs a word between processes.

All clocks are the machine's one monotonic clock, so that the workers start together and their records need no
alignment.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import msgspec

from setpoint.errors import EngineError
from setpoint.loadgen.client import LoadClient, RunOptions
from setpoint.loadgen.health import ClientSamples
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.run import Run
from setpoint.loadgen.target import EndpointTarget
from setpoint.loadgen.worker import RECORDS, SAMPLES, START, Progress, StartNote, WorkerSpec
from setpoint.metrics import RequestRecord
from setpoint.workload import PlannedRequest

HEAD_START_S = 0.3
LOOK_S = 0.2
READY_S, READY_LOOK_S = 60.0, 0.05
LEAVE_S = 30.0


class Snapshot(msgspec.Struct, kw_only=True):
    """A run as it stands: `records` are those that are new since the last snapshot."""

    elapsed_s: float
    sent: int
    ended: int
    in_flight: int
    records: list[RequestRecord]


OnProgress = Callable[[Snapshot], str | None] | Callable[[Snapshot], None]
"""Is shown each snapshot; an answer that is not `None` ends the run and says by which rule."""


async def measure(
    target: EndpointTarget,
    plan: Sequence[PlannedRequest],
    options: RunOptions | None = None,
    *,
    lexicon: Lexicon | None = None,
    warmup_s: float | None = None,
) -> Run:
    """Carry out `plan` on this event loop; for code that shares its interpreter with nothing that matters."""
    options = options or RunOptions()
    records: list[RequestRecord] = []
    client = LoadClient(target, plan, options, lexicon or Lexicon(), records.append)
    start_at = time.monotonic()
    await client.run(start_at)
    return Run(
        target=target,
        options=options,
        start_at=start_at,
        records=records,
        samples=[client.samples],
        warmup_s=warmup_s,
        planned_until_s=_planned_until(plan, options),
    )


def _planned_until(plan: Sequence[PlannedRequest], options: RunOptions) -> float | None:
    return max((one.at_s for one in plan), default=None) if options.concurrency is None else None


def measure_in_process(  # noqa: PLR0913 - what, how, and who looks on; each with a default but the first two
    target: EndpointTarget,
    plan: Sequence[PlannedRequest],
    options: RunOptions | None = None,
    *,
    lexicon: Lexicon | None = None,
    warmup_s: float | None = None,
    workers: int = 1,
    on_progress: OnProgress | None = None,
    directory: Path | None = None,
) -> Run:
    """Carry out `plan` in `workers` processes; records are kept in `directory` too, when given, as they come.

    An interrupt (Ctrl-C) ends the run and returns what there is, marked as partial. Raises EngineError when a worker
    dies before it has begun.
    """
    options = options or RunOptions()
    with contextlib.ExitStack() as stack:
        folder = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="setpoint-")))
        folder.mkdir(parents=True, exist_ok=True)
        crew = [
            stack.enter_context(_Worker(spec, folder, index))
            for index, spec in enumerate(deal(target, plan, options, lexicon or Lexicon(), workers))
        ]
        for worker in crew:
            worker.await_ready()
        start_at = time.monotonic() + HEAD_START_S
        note = StartNote(start_at=start_at, warmup_s=warmup_s, workers=len(crew), options=options)
        (folder / START).write_bytes(msgspec.json.encode(note))
        for worker in crew:
            worker.tell(f"{start_at!r}\n")
        is_partial, stopped_by, records = _watch(crew, start_at, on_progress)
        note.is_ended = not is_partial
        (folder / START).write_bytes(msgspec.json.encode(note))
    return Run(
        target=target,
        options=options,
        start_at=start_at,
        records=records,
        samples=[worker.samples for worker in crew if worker.samples is not None],
        warmup_s=warmup_s,
        is_partial=is_partial,
        stopped_by=stopped_by,
        planned_until_s=_planned_until(plan, options),
    )


def deal(
    target: EndpointTarget, plan: Sequence[PlannedRequest], options: RunOptions, lexicon: Lexicon, workers: int
) -> list[WorkerSpec]:
    """Deal the plan out; a conversation stays with one worker, and so do its share of a closed loop's slots."""
    concurrency = options.concurrency
    workers = max(1, min(workers, concurrency or workers, len(plan) or 1))
    hands: list[list[PlannedRequest]] = [[] for _ in range(workers)]
    for index, one in enumerate(plan):
        hands[(index if one.session is None else one.session) % workers].append(one)
    specs = []
    for index, hand in enumerate(hands):
        slots = None if concurrency is None else concurrency // workers + (index < concurrency % workers)
        own = msgspec.structs.replace(options, concurrency=slots)
        specs.append(WorkerSpec(target=target, plan=hand, options=own, lexicon=lexicon, records_path=""))
    return specs


def _watch(
    crew: "Sequence[_Worker]", start_at: float, on_progress: OnProgress | None
) -> tuple[bool, str | None, list[RequestRecord]]:
    records: list[RequestRecord] = []
    is_partial, stopped_by = False, None
    while any(worker.is_running for worker in crew):
        try:
            time.sleep(LOOK_S)
            fresh = [record for worker in crew for record in worker.read_records()]
            records += fresh
            if on_progress is not None and stopped_by is None and not is_partial:
                stopped_by = on_progress(_snapshot(crew, start_at, fresh))
                if stopped_by is not None:
                    _stop(crew)
        except KeyboardInterrupt:
            if is_partial:
                break
            is_partial = True
            _stop(crew)
    records += [record for worker in crew for record in worker.read_records()]
    return is_partial, stopped_by, records


def _stop(crew: "Sequence[_Worker]") -> None:
    for worker in crew:
        worker.tell("stop\n")


def _snapshot(crew: "Sequence[_Worker]", start_at: float, fresh: list[RequestRecord]) -> Snapshot:
    return Snapshot(
        elapsed_s=max(0.0, time.monotonic() - start_at),
        sent=sum(worker.progress.sent for worker in crew),
        ended=sum(worker.progress.ended for worker in crew),
        in_flight=sum(worker.progress.in_flight for worker in crew),
        records=fresh,
    )


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(self, spec: WorkerSpec, folder: Path, index: int) -> None:
        self.progress = Progress(sent=0, ended=0, in_flight=0)
        self.samples: ClientSamples | None = None
        self._records_path = folder / RECORDS.format(index)
        samples_path = folder / SAMPLES.format(index)
        self._records_path.unlink(missing_ok=True)
        samples_path.unlink(missing_ok=True)
        spec.records_path, spec.samples_path = str(self._records_path), str(samples_path)
        spec_path = folder / f"spec-{index}.json"
        spec_path.touch(mode=0o600)
        spec_path.write_bytes(msgspec.json.encode(spec))
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "setpoint.loadgen", str(spec_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._spec_path = spec_path
        self._read_to = 0
        self._decoder = msgspec.json.Decoder(RequestRecord)
        self._ready = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(LEAVE_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._spec_path.unlink(missing_ok=True)

    @property
    def is_running(self) -> bool:
        """Whether it still works, or has something left to say."""
        return self._process.poll() is None or self._listener.is_alive()

    def await_ready(self) -> None:
        """Wait until it has prepared itself; raises EngineError when it died instead."""
        for _ in range(round(READY_S / READY_LOOK_S)):  # turns, not a deadline, which a suspended machine would pass
            if self._ready.wait(READY_LOOK_S):
                break
            if self._process.poll() is not None:
                raise EngineError("a worker of the measuring client died before it had begun")
        else:
            raise EngineError(f"a worker of the measuring client did not start within {READY_S:g} s")
        self._spec_path.unlink(missing_ok=True)

    def tell(self, line: str) -> None:
        """Write a line to it; one that is gone hears nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()

    def read_records(self) -> list[RequestRecord]:
        """Return the records that it has written since the last call."""
        if not self._records_path.exists():
            return []
        with self._records_path.open("rb") as file:
            file.seek(self._read_to)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._read_to += whole
        return [self._decoder.decode(line) for line in data[:whole].splitlines()]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == b'"ready"\n':
                self._ready.set()
                continue
            self.progress = msgspec.json.decode(line, type=Progress)
            self.samples = self.progress.samples
