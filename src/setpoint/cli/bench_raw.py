"""Where the records of a bench command are kept while it lasts, and what is done with those of one that was cut off."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console

from setpoint.cache import cache_dir
from setpoint.errors import ConfigError
from setpoint.loadgen.recover import HEADER, recover
from setpoint.loadgen.report import BenchReport, relative
from setpoint.metrics import RequestRecord

RAW = "records"
CUT_OFF = "made from the records of a run that was cut off"


@contextlib.contextmanager
def kept_records(out: Path | None, console: Console) -> Iterator[Path]:
    """Yield the folder for records: below `out`, or in the user's cache; it goes when the block ends well, or has none.

    A run that was cut off earlier is told of, with the command that makes its report; raises ConfigError where its
    records are in the way.
    """
    runs = cache_dir("bench") / "runs"
    for left in sorted(runs.glob("*-*")) if out is None else ():
        if (left / HEADER).exists() and not _is_alive(left.name.rpartition("-")[2]):
            words = f"an earlier run was cut off: setpoint bench --recover {left} --out FOLDER, or delete that folder"
            console.print(words, style="yellow", soft_wrap=True)
    folder = runs / f"{time.strftime('%Y%m%d%H%M%S')}-{os.getpid()}" if out is None else out / RAW
    if (folder / HEADER).exists():
        raise ConfigError(
            f"{folder} holds the records of a run that was cut off",
            hint=f"setpoint bench --recover {out} makes its report; delete that folder when it is no longer wanted",
        )
    try:
        yield folder
    except BaseException:
        if any(path.stat().st_size for path in folder.glob("*/records-*.jsonl")):
            console.print(f"what had been measured is kept: setpoint bench --recover {folder}", style="yellow")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ValueError, OSError):
        return False
    return True


def recovered(folder: Path) -> tuple[BenchReport, list[tuple[int, RequestRecord]]]:
    """Return the report of what `folder` (or the records below it) holds, and its requests.

    Raises ConfigError when it holds no records.
    """
    below = folder / RAW
    report, runs = recover(below if (below / HEADER).exists() else folder)
    rows = [(number, relative(one, run.start_at)) for number, (_, run) in enumerate(runs) for one in run.records]
    return msgspec.structs.replace(report, notes=(*report.notes, CUT_OFF)), rows
