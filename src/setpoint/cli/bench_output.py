"""The files of a bench run: JSON with everything, CSV and Parquet with a row for each request, HTML to look at."""

import csv
from collections.abc import Sequence
from pathlib import Path

import msgspec

from setpoint.errors import ConfigError
from setpoint.loadgen.report import BenchReport
from setpoint.metrics import RequestRecord

COLUMNS = (
    "point",
    "id",
    "class_name",
    "scheduled_at",
    "sent_at",
    "first_token_at",
    "ended_at",
    "ttft_s",
    "ttft_wire_s",
    "tpot_s",
    "e2e_s",
    "queue_s",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "events",
    "token_source",
    "error",
    "status",
    "detail",
)
TEXTS = {"class_name", "token_source", "error", "detail"}
Rows = Sequence[tuple[int, RequestRecord]]
"""Requests with the number of the point that they belong to, instants counted from the start of its run."""


def write_outputs(folder: Path, report: BenchReport, rows: Rows) -> list[Path]:
    """Write the report as JSON and HTML, and the requests as CSV and Parquet, where the libraries are installed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [write_json(folder / "report.json", report), write_csv(folder / "requests.csv", rows)]
        written += [path for path in (_parquet(folder, rows), _html(folder, report, rows)) if path is not None]
    except OSError as error:
        raise ConfigError(
            f"cannot write to {folder}: {error.strerror}", hint="choose another folder with --out"
        ) from None
    return written


def write_json(path: Path, report: BenchReport) -> Path:
    """Write the whole report, indented."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return path


def read_report(path: Path) -> BenchReport:
    """Return the report in a file, or in a folder that `--out` named; raises ConfigError when it is none."""
    file = path / "report.json" if path.is_dir() else path
    try:
        return msgspec.json.decode(file.read_bytes(), type=BenchReport)
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}", hint="name a report.json of `setpoint bench`"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not a report of `setpoint bench`: {error}") from None


def row_of(point: int, record: RequestRecord) -> dict[str, object]:
    """Return one request as the columns of a row."""
    own = {name: getattr(record, name) for name in COLUMNS if name not in {"point", "events"}}
    return {"point": point, "events": len(record.event_at)} | own


def write_csv(path: Path, rows: Rows) -> Path:
    """Write a row for each request."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(row_of(point, record) for point, record in rows)
    return path


def _parquet(folder: Path, rows: Rows) -> Path | None:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        import pyarrow.parquet as pq  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    path = folder / "requests.parquet"
    columns: dict[str, list[object]] = {name: [] for name in (*COLUMNS, "event_at")}
    for point, record in rows:
        for name, value in row_of(point, record).items():
            columns[name].append(value)
        columns["event_at"].append(record.event_at)
    kinds = {"float": pa.float64(), "int": pa.int64(), "text": pa.string()}
    fields = [(name, kinds[_kind(name)]) for name in COLUMNS] + [("event_at", pa.list_(pa.float64()))]
    pq.write_table(pa.table(columns, schema=pa.schema(fields)), path)
    return path


def _kind(column: str) -> str:
    """Return the kind of a column: stated, since one without a value in this run has the type that it has in others."""
    if column.endswith(("_at", "_s")):
        return "float"
    return "text" if column in TEXTS else "int"


def _html(folder: Path, report: BenchReport, rows: Rows) -> Path | None:
    try:
        from setpoint.dashboard.bench import render_bench  # noqa: PLC0415 - draws with an extra

        page = render_bench(report, rows)
    except ImportError:
        return None
    path = folder / "report.html"
    path.write_text(page)
    return path
