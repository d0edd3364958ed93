"""What a run keeps on disk while it lasts, and how a report is made from it when the command did not live to make one.

    FOLDER/bench.json              the report without its points
    FOLDER/000/load.json           what was offered in the first run
    FOLDER/000/start.json          its zero on the machine's clock, warm-up and options; in the end, that it ended
    FOLDER/000/records-0.jsonl     a line for each request that had ended, written as it did
    FOLDER/000/samples-0.json      what the worker saw of itself, once it had ended

Nothing is held back in memory: killing the command loses none of it. A worker whose parent is gone ends its run, and
notes what was in flight; a worker that was killed itself notes nothing, and requests missing between those that are
there tell where what is complete ends.
"""

from pathlib import Path

import msgspec

from setpoint.errors import ConfigError
from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.health import ClientSamples
from setpoint.loadgen.report import BenchReport, Load, Point, point_of
from setpoint.loadgen.run import Run
from setpoint.loadgen.worker import RECORDS, SAMPLES, START, StartNote
from setpoint.metrics import RequestRecord

HEADER, LOAD = "bench.json", "load.json"
HINT = "name the folder that --out named, or that the next `setpoint bench` told of"


def keep_header(folder: Path, report: BenchReport) -> None:
    """Write what is known before the first run; raises ConfigError when that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HEADER).write_bytes(msgspec.json.encode(report))
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror}", hint="choose another folder with --out"
        ) from None


def keep_load(folder: Path | None, load: Load) -> None:
    """Write what the run in `folder` is to offer."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOAD).write_bytes(msgspec.json.encode(load))


def recover(folder: Path) -> tuple[BenchReport, list[tuple[Point, Run]]]:
    """Return the header in `folder` and all runs that had begun, as far as they had come.

    Raises ConfigError when the folder holds no such records.
    """
    try:
        header = msgspec.json.decode((folder / HEADER).read_bytes(), type=BenchReport)
    except (OSError, msgspec.DecodeError):
        raise ConfigError(f"{folder} holds no records of a run that was cut off", hint=HINT) from None
    begun = sorted(path.parent for path in folder.glob(f"*/{START}") if (path.parent / LOAD).exists())
    found = [_point(each, header) for each in begun]
    return msgspec.structs.replace(header, points=tuple(point for point, _ in found)), found


def _point(folder: Path, header: BenchReport) -> tuple[Point, Run]:
    load = msgspec.json.decode((folder / LOAD).read_bytes(), type=Load)
    start = msgspec.json.decode((folder / START).read_bytes(), type=StartNote)
    records = [record for path in sorted(folder.glob(RECORDS.format("*"))) for record in _records(path)]
    samples = [
        msgspec.json.decode(path.read_bytes(), type=ClientSamples) for path in sorted(folder.glob(SAMPLES.format("*")))
    ]
    if len(samples) < start.workers:
        records += _missing(records)
    run = Run(
        target=header.target,
        options=start.options if start.options is not None else RunOptions(),
        start_at=start.start_at,
        records=records,
        samples=samples,
        warmup_s=start.warmup_s,
        is_partial=not start.is_ended,
    )
    return point_of(run, load, header.objectives), run


def _records(path: Path) -> list[RequestRecord]:
    data = path.read_bytes()
    decoder = msgspec.json.Decoder(RequestRecord)
    return [decoder.decode(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _missing(records: list[RequestRecord]) -> list[RequestRecord]:
    """Return a request, cut off, where the first is missing among those that are there (they are numbered in order)."""
    ordered = sorted(records, key=lambda record: record.id)
    for number, record in enumerate(ordered):
        if record.id != number and number:
            before = ordered[number - 1]
            return [
                RequestRecord(
                    id=number, class_name=before.class_name, scheduled_at=before.scheduled_at + 1e-9, error="cancelled"
                )
            ]
    return []
