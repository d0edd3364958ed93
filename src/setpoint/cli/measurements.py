"""Reads what `setpoint calibrate` is given: folders of `setpoint bench --out`, and tables of published points."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from setpoint.cli.bench_output import read_report
from setpoint.errors import ConfigError, SetpointError, WorkloadError
from setpoint.metrics import RequestRecord
from setpoint.sim import catalog
from setpoint.sim.calibrations import Key, format_words
from setpoint.sim.published import Point, point

_INSTANTS = ("scheduled_at", "sent_at", "first_token_at", "ended_at")
_COUNTS = ("prompt_tokens", "output_tokens", "cached_tokens")


class RunOfFile(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a bench report: its requests, and `users` where it was a closed loop."""

    name: str
    records: tuple[RequestRecord, ...]
    users: int | None


def read_runs(folder: Path) -> list[RunOfFile]:
    """Return the runs that `setpoint bench --out FOLDER` left; raises `ConfigError` or `WorkloadError`."""
    report = read_report(folder)
    path = folder / "requests.csv" if folder.is_dir() else folder.with_name("requests.csv")
    groups: dict[int, list[RequestRecord]] = defaultdict(list)
    for row in _rows(path):
        groups[int(row["point"])].append(_record(row, path))
    if not groups:
        raise WorkloadError(f"{path} holds no request", hint="name a folder that `setpoint bench --out` wrote")
    runs = []
    for number, records in sorted(groups.items()):
        load = report.points[number].load if number < len(report.points) else None
        users = load.users if load is not None and load.kind == "closed" else None
        name = f"{folder.name}/{number}" if len(groups) > 1 else folder.name
        runs.append(RunOfFile(name=name, records=tuple(records), users=users))
    return runs


def read_points(path: Path, key: Key) -> tuple[list[Point], str]:
    """Return the rows of a table that are of this set-up, and the version of the engine that they name.

    Raises `WorkloadError` when no row is, or when they are of several versions and the key names none.
    """
    found: list[tuple[Point, str]] = []
    seen = 0
    for number, row in enumerate(_rows(path), start=2):
        seen += 1
        one = _point(row, f"{path.name}, row {number}")
        version = row["engine_version"].removeprefix("vLLM ")
        if one is not None and _is_of(one, key) and key.version in {"", version}:
            found.append((one, version))
    if not found:
        raise WorkloadError(
            f"none of the {seen} rows of {path} is of {key.words()}",
            hint="the columns model, gpu, precision, parallelism (TP2) and engine must name it; docs/simulate.md",
        )
    versions = sorted({version for _, version in found})
    if len(versions) > 1:
        raise WorkloadError(
            f"the rows of {path} are of {len(versions)} versions of {key.engine}",
            hint=f"give --engine-version, one of {', '.join(versions)}",
        )
    return [one for one, _ in found], versions[0]


def _point(row: Mapping[str, str], where: str) -> Point | None:
    try:
        return point(row)
    except SetpointError as error:
        raise WorkloadError(f"{where}: {error.message}", hint=error.hint) from error
    except (ValueError, KeyError) as error:
        raise WorkloadError(f"{where} cannot be read: {error}", hint="see docs/simulate.md for the columns") from error


def _is_of(one: Point, key: Key) -> bool:
    try:
        model, hardware = catalog.model(one.model).name, catalog.hardware(one.hardware).name
    except SetpointError:
        return False
    is_laid_out = any(x.tensor == key.tensor and x.pipeline == 1 and not x.is_spread for x in one.layouts)
    named = (model, hardware, format_words(one.quantization), one.engine.removesuffix("-v0"))
    return is_laid_out and named == (key.model, key.hardware, key.quantization, key.engine.removesuffix("-v0"))


def _rows(path: Path) -> Iterable[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield defaultdict(str, {"gpu_count": "1"} | {key: value for key, value in row.items() if value})
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="is the path right?") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path} is not a table: {error}", hint="give CSV with a line of names") from error


def _record(row: Mapping[str, str], path: Path) -> RequestRecord:
    fields: dict[str, object] = {"id": row["id"], "class_name": row["class_name"] or "standard"}
    fields |= {name: row[name] for name in (*_INSTANTS, *_COUNTS) if row[name]}
    fields |= {"error": row["error"]} if row["error"] else {}
    try:
        return msgspec.convert(fields, RequestRecord, strict=False)
    except msgspec.ValidationError as error:
        raise WorkloadError(f"{path}: {error}", hint="name a folder that `setpoint bench --out` wrote") from error
