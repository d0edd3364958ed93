"""A command that is killed loses nothing that had been measured."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from setpoint.cli import main
from setpoint.cli.bench_output import read_report
from setpoint.errors import ConfigError
from setpoint.loadgen.ceiling import null_server
from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.recover import LOAD, keep_header, keep_load, recover
from setpoint.loadgen.report import BenchReport, closed_load
from setpoint.loadgen.run import Run
from setpoint.loadgen.target import EndpointTarget
from setpoint.loadgen.worker import RECORDS, START, StartNote
from setpoint.metrics import RequestRecord

HEADER = BenchReport(
    version="1",
    created_at="",
    machine="",
    target=EndpointTarget(url="http://x"),
    lexicon_source="assumed",
    is_lexicon_exact=False,
    objectives=(),
    points=(),
)


def one(number: int) -> RequestRecord:
    at = 50.0 + number
    return RequestRecord(
        id=number, class_name="c", scheduled_at=at, sent_at=at, first_token_at=at + 0.1, ended_at=at + 0.2
    )


def test_what_a_killed_worker_left_ends_before_the_first_request_that_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "000"
    keep_header(tmp_path, HEADER)
    keep_load(folder, closed_load(1, "words", 0))
    (folder / START).write_bytes(msgspec.json.encode(StartNote(start_at=50.0, warmup_s=0.0, workers=1)))
    lines = b"".join(msgspec.json.encode(one(number)) + b"\n" for number in (0, 1, 2, 3, 5, 6))
    (folder / RECORDS.format(0)).write_bytes(lines + b'{"id":7,"class_na')
    report, ((point, run),) = recover(tmp_path)
    assert report.points == (point,)
    assert point.is_partial
    assert point.load == closed_load(1, "words", 0)
    assert [record.id for record in run.due()] == [0, 1, 2, 3]


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no records"):
        recover(tmp_path)
    keep_header(tmp_path, HEADER)
    (tmp_path / "000").mkdir()
    (tmp_path / "000" / LOAD).write_text("{}")
    assert recover(tmp_path)[1] == []


def test_killing_the_command_loses_nothing(tmp_path: Path) -> None:
    with null_server(tick_ms=2.0) as url:
        load = ("--rate", "50", "--seconds", "60", "--warmup", "0", "--prompt", "20", "--output", "5")
        run = "import sys; from setpoint.cli import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", run, "bench", url, *load, "--out", str(tmp_path)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            path = tmp_path / "records" / "000" / RECORDS.format(0)
            deadline = time.monotonic() + 60.0
            while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") > 30):
                time.sleep(0.1)
            os.kill(process.pid, signal.SIGKILL)
        samples = path.with_name("samples-0.json")
        while time.monotonic() < deadline and not samples.exists():
            time.sleep(0.1)
    measured = path.read_bytes().count(b"\n")
    assert measured > 30
    with pytest.raises(SystemExit):
        main(("bench", "--recover", str(tmp_path)))
    report = read_report(tmp_path)
    assert report.points[0].is_partial
    assert len((tmp_path / "requests.csv").read_text().splitlines()) == measured + 1


def test_the_window_of_a_single_request_lasts_until_it_has_ended() -> None:
    options = RunOptions(window_s=60.0)
    run = Run(target=HEADER.target, options=options, start_at=50.0, records=[one(0)], samples=[], warmup_s=0.0)
    summary = run.summary()
    assert summary is not None
    assert summary.offered_rps == pytest.approx(5.0)


def test_a_window_without_arrivals_at_its_end_is_as_long_as_planned() -> None:
    options = RunOptions(window_s=20.0)
    run = Run(
        target=HEADER.target,
        options=options,
        start_at=50.0,
        records=[one(0), one(1)],
        samples=[],
        warmup_s=0.0,
        planned_until_s=70.0,
    )
    assert run.window() == (50.0, 70.0)
