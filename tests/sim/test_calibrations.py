"""The book of corrections: one entry a key, nothing taken for another version; and what runs are held against."""

from pathlib import Path

import msgspec
import pytest
from tests.sim.worlds import CAPACITY, CLASSES, WORLD, plan

from setpoint.errors import ConfigError, WorkloadError
from setpoint.sim.calibrations import Book, Entry, Key, find_entry, read_book, write_book
from setpoint.sim.measured import MeasuredRun, calibrate
from setpoint.sim.scenario import Scenario, simulate
from setpoint.steptime.correction import CorrectedStepTime, Correction, prior_of

KEY = Key(source="roofline", model="m", hardware="h", quantization="bf16", engine="vllm", version="0.10.2")


def entry(key: Key = KEY, scale: float = 1.0) -> Entry:
    return Entry(key=key, correction=Correction(scale=scale), values=(), error_before=0.5, error_after=0.1)


def of_version(version: str) -> Key:
    return msgspec.structs.replace(KEY, version=version)


def test_a_key_has_one_entry_and_keeps_the_last() -> None:
    book = Book().with_entry(entry(scale=1.0)).with_entry(entry(of_version("0.11"))).with_entry(entry(scale=2.0))
    assert len(book.entries) == 2
    assert find_entry(book, KEY, Path("b")).correction.scale == 2.0


def test_nothing_is_taken_for_another_version() -> None:
    book = Book().with_entry(entry())
    with pytest.raises(ConfigError, match="no calibration") as caught:
        find_entry(book, of_version("0.11"), Path("b"))
    assert "0.10.2" in str(caught.value.hint)
    assert find_entry(book, of_version(""), Path("b")).key == KEY
    both = book.with_entry(entry(of_version("0.11")))
    with pytest.raises(ConfigError, match="2 calibrations") as caught:
        find_entry(both, of_version(""), Path("b"))
    assert "0.10.2, 0.11" in str(caught.value.hint)


@pytest.mark.parametrize(
    "change",
    [{"source": "kernel-tables"}, {"model": "n"}, {"hardware": "i"}, {"quantization": "fp8"}, {"tensor": 2}],
)
def test_nothing_is_taken_for_another_deployment(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="no calibration"):
        find_entry(Book().with_entry(entry()), msgspec.structs.replace(KEY, **change), Path("b"))


def test_a_book_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    assert read_book(path, is_new_allowed=True) == Book()
    book = Book().with_entry(entry()).with_entry(entry(of_version("0.11")))
    write_book(path, book)
    assert read_book(path) == book
    with pytest.raises(ConfigError, match="there is no file"):
        read_book(tmp_path / "other.json")
    with pytest.raises(ConfigError, match="cannot write"):
        write_book(tmp_path / "nowhere" / "book.json", book)
    path.write_text('{"schema": "setpoint.calibration/9"}')
    with pytest.raises(ConfigError, match="another version"):
        read_book(path)


SCENARIO = Scenario(world=WORLD, capacity=CAPACITY, classes=CLASSES, strategy="continuous")


@pytest.mark.parametrize("users", [None, 4])
def test_what_slowed_an_engine_down_is_found_from_its_runs(users: int | None) -> None:
    """The engine is half again as slow as believed; loads that were not fitted are then predicted."""
    slower = CorrectedStepTime(WORLD, Correction(scale=1.5))
    engine = msgspec.structs.replace(SCENARIO, world=slower, request_s=0.05)
    runs = []
    for seed, rate in enumerate((1.0, 2.0, 4.0)):
        requests = plan(seed, 60, rate)
        if users:
            requests = [
                msgspec.structs.replace(one, at_s=0.0, session=i % users, turn=i // users)
                for i, one in enumerate(requests)
            ]
        runs.append(MeasuredRun(f"run {seed}", simulate(engine, requests).records, SCENARIO, users=users))
    found = calibrate(runs[:2], prior_of(WORLD))
    assert found.error_before > 0.3
    assert found.error_after < 0.1
    assert found.error_left_out is None
    other = runs[2]
    predicted = other.predicted(found.correction)
    for (name, measured, _), value in zip(other.measured, predicted, strict=True):
        # light loads do not tell a costly prompt from a costly request: the tail of a heavier one is missed by more
        assert value == pytest.approx(measured, rel=0.5 if "p95" in name else 0.15), name
    assert calibrate(runs, prior_of(WORLD)).error_left_out is not None


def test_a_handful_of_requests_says_too_little() -> None:
    records = simulate(SCENARIO, plan(0, 3, 1.0)).records
    with pytest.raises(WorkloadError, match="too little"):
        MeasuredRun("short", records, SCENARIO)
