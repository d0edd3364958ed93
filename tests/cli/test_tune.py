import json
import signal
import time
import tomllib
from pathlib import Path

import pytest
from tests.cli.conftest import Start

from setpoint.cli.step_times import load_step_time, step_time_path
from setpoint.cli.tune import classes_of, strategies_of, time_of
from setpoint.errors import ConfigError
from setpoint.planner.result import decode
from setpoint.settings import parse_settings

SIZES = (
    "--slots",
    "4",
    "--threads",
    "1",
    "--prompt",
    "24",
    "--output",
    "6",
    "--ttft-ms",
    "60000",
    "--tpot-ms",
    "60000",
)
"""Little work under targets that any machine meets: the test is of the path, not of the speed."""


def outcome(start: Start, *arguments: str) -> tuple[int, str, str]:
    process = start("tune", *arguments)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


@pytest.mark.model
def test_tuning_a_real_model_ends_in_a_point_that_serve_accepts_and_in_four_files(
    start: Start, starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = outcome(
        start, str(starter), "--quick", "--seconds", "20", "--strategies", "slack", *SIZES, "--json"
    )
    assert code == 0, err
    result = decode(out.encode())
    assert result.choice is not None
    assert result.choice.is_met
    assert result.shortfall is None
    assert result.bill is not None
    assert result.bill.requests_per_hour > 0.0
    trial = result.chosen_trial
    assert trial is not None
    assert trial.classes["chat"].requests > 0
    folder = tmp_path / "setpoint-results"
    assert json.loads((folder / "result.json").read_text()) == json.loads(out)
    settings = parse_settings(tomllib.loads((folder / "setpoint.toml").read_text()))
    assert settings.strategy.name == result.choice.strategy
    assert settings.engine.slots == 4
    assert settings.server.default_class == "chat"
    assert settings.classes["chat"].slo.ttft_s == pytest.approx(60.0)
    svg = (folder / "curve.svg").read_text()
    assert "<svg" in svg
    assert "chosen" in svg
    report = (folder / "report.html").read_text()
    assert "<svg" in report
    assert "http" not in report.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert step_time_path(result.step_time.key).is_file()
    kept = load_step_time(result.step_time.key)
    assert kept is not None
    assert kept.mape == result.step_time.mape


@pytest.mark.model
def test_ctrl_c_keeps_what_was_measured_and_says_so(start: Start, starter: Path, tmp_path: Path) -> None:
    process = start("tune", str(starter), "--seconds", "120", "--strategies", "slack,continuous", *SIZES)
    assert process.stderr is not None
    lines: list[str] = []
    deadline = time.monotonic() + 180.0
    while not any("simulated" in line for line in lines):
        assert time.monotonic() < deadline
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "interrupted" in err
    assert "interrupted" in out
    result = decode((tmp_path / "setpoint-results" / "result.json").read_bytes())
    assert result.is_cut
    assert result.step_time.samples >= 20


def test_a_kept_step_time_of_another_engine_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_step_time("some model | some processor | some build") is None
    path = step_time_path("some model | some processor | some build")
    path.parent.mkdir(parents=True)
    path.write_text("{ not json")
    assert load_step_time("some model | some processor | some build") is None


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["--target", "chatt"], "unknown class 'chatt'", "chat"),
        (["--target", "batch"], "batch has no latency targets", "--mix"),
        (["--mix", "chat=0.7,batch=0.7"], "add up to 1.4", "adding up to 1"),
        (["--mix", "chat=0.5,bach=0.5"], "unknown class 'bach'", "batch"),
        (["--mix", "voice=0.7,batch=0.3"], "chat has no share", "--target"),
        (["--strategies", "slack,fifo"], "unknown strategy 'fifo'", "continuous"),
        (["--strategies", "static"], "nothing to choose from", "slack"),
        (["--price-per-hour", "-1"], "--price-per-hour is -1", "0 or more"),
        (["--price-per-hour", "nan"], "--price-per-hour is nan", "0 or more"),
        (["--ttft-ms", "0"], "--ttft-ms is 0", "above 0"),
        (["--percentile", "95"], "--percentile is 95", "0.95"),
        (["--seconds", "3"], "--seconds is 3", "20"),
        (["--slots", "0"], "--slots is 0", "1 to 256"),
        (["--prompt", "many"], "cannot read the length", "lognormal"),
        (["missing.gguf"], "no model file missing.gguf", "path"),
    ],
)
def test_bad_input_gets_a_sentence_and_a_hint(start: Start, arguments: list[str], words: str, hint: str) -> None:
    code, out, err = outcome(start, *arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert hint in err.partition("hint: ")[2]
    assert "Traceback" not in err


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = outcome(start, "--out", "file/inside")
    assert code == 2
    assert "cannot write to file/inside" in err


def test_targets_given_on_the_command_line_replace_those_of_the_preset() -> None:
    slo = classes_of("chat", {"ttft_ms": 350.0, "percentile": 0.9})["chat"].slo
    assert slo.ttft_s == pytest.approx(0.35)
    assert slo.tpot_s == pytest.approx(0.05)
    assert slo.percentile == 0.9


def test_a_quick_run_compares_fewer_strategies_in_less_time() -> None:
    assert set(strategies_of(None, is_quick=True)) < set(strategies_of(None, is_quick=False))
    assert time_of(None, is_quick=True).total_s < 180.0
    assert time_of(None, is_quick=False).total_s < 900.0
    with pytest.raises(ConfigError):
        time_of(float("nan"), is_quick=True)
