"""What `setpoint bench` waits for: it says so, it ends, and it does not begin where nothing would come."""

import io
import re
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from setpoint.cli import main
from setpoint.cli.bench_due import ENOUGH, faster_rate, refuse_empty
from setpoint.cli.bench_live import TOLD_EVERY_S, Live, awaiting
from setpoint.cli.bench_options import WorkloadOptions, refuse_made_up
from setpoint.cli.bench_output import read_report
from setpoint.cli.bench_raw import kept_records
from setpoint.errors import ConfigError, WorkloadError
from setpoint.loadgen import probe
from setpoint.loadgen.experiment import Setup, TraceSource, due_between, filled_s, open_plan
from setpoint.loadgen.process import Snapshot
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.recover import HEADER
from setpoint.loadgen.report import doubts_of
from setpoint.loadgen.target import EndpointTarget
from setpoint.workload import PlannedRequest

NOWHERE = EndpointTarget(url="http://127.0.0.1:9", model="none")


def recorded(*times_s: float) -> Setup:
    trace = [
        PlannedRequest(id=number, at_s=at, prompt_tokens=9, output_tokens=3)
        for number, at in enumerate(sorted(times_s))
    ]
    return Setup(target=NOWHERE, source=TraceSource(tuple(trace)), lexicon=Lexicon())


GAPS = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=8)
LATER = st.floats(0.0, 20.0)


@given(GAPS, st.floats(0.05, 5.0), LATER, st.integers(1, 6))
def test_a_window_made_longer_holds_what_was_asked_for(
    gaps: list[float], rps: float, warmup_s: float, count: int
) -> None:
    setup = recorded(0.0, *(sum(gaps[:number]) + 1.0 for number in range(1, len(gaps) + 1)))
    plan_until = partial(setup.source.plan, rps, 0)
    seconds = filled_s(plan_until, warmup_s=warmup_s, seconds=0.5, count=count)
    assert len(due_between(plan_until(warmup_s + seconds), warmup_s, warmup_s + seconds)) >= count


@given(st.floats(0.1, 2.0), st.floats(1.0, 5.0))
def test_the_hint_for_an_empty_window_is_one_that_works(rps: float, warmup_s: float) -> None:
    setup = recorded(*[0.0] * 10, *[60.0] * 10, *[120.0] * 10)
    plan_until = partial(setup.source.plan, rps, 0)
    with pytest.raises(WorkloadError, match="no request is due within 2 s") as caught:
        refuse_empty(plan_until, warmup_s=warmup_s, seconds=2.0)
    longer = float(re.findall(r"--seconds (\d+)", caught.value.hint or "")[0])
    assert len(due_between(plan_until(warmup_s + longer), warmup_s, warmup_s + longer)) >= ENOUGH
    refuse_empty(plan_until, warmup_s=warmup_s, seconds=longer)
    rate = faster_rate(setup, rps, 0, warmup_s=warmup_s, seconds=2.0)
    if rate is not None:
        plan = setup.source.plan(rate, 0, warmup_s + 2.0)
        assert len(due_between(plan, warmup_s, warmup_s + 2.0)) >= ENOUGH


def test_a_trial_whose_window_would_be_empty_is_made_longer() -> None:
    seconds, plan, options = open_plan(recorded(0.0, 0.0, 40.0, 80.0), 0.05, 0, warmup_s=3.0, seconds=10.0)
    assert seconds > 10.0
    assert due_between(plan, 3.0, 3.0 + seconds)
    assert options.window_s == 3.0 + seconds


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_an_empty_window_is_refused_before_the_load_and_leaves_nothing(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out = tmp_path / "lumps.csv", tmp_path / "out"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "0,9,3\n" * 5 + "30,9,3\n" * 20)
    asked = ("--trace", str(trace), "--rate", "2", "--warmup", "1", "--out", str(out))
    for _ in range(2):
        assert run("bench", url, *asked, "--seconds", "1") == 2
        said = capsys.readouterr().err
        assert "no request is due within 1 s after the warm-up of 1.0 s" in said
        assert re.search(r"hint: give --seconds \d+, or --rate [\d.]+: 10 requests are due then", said)
    assert not list(out.rglob(HEADER))


@pytest.mark.parametrize("option", [{"output": "32"}, {"burstiness": 2.0}, {"think_s": 1.0}])
def test_an_option_that_a_trace_would_ignore_is_refused(option: dict[str, str | float]) -> None:
    with pytest.raises(ConfigError, match="a trace brings its own"):
        refuse_made_up(WorkloadOptions(trace=Path("x.csv"), **option))  # type: ignore[arg-type]  # of any type
    refuse_made_up(WorkloadOptions(**option))  # type: ignore[arg-type]  # as above


def log() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=False, width=200), text


def snapshot(elapsed_s: float) -> Snapshot:
    return Snapshot(elapsed_s=elapsed_s, sent=10, ended=7, in_flight=3, records=[])


def test_a_log_gets_a_line_now_and_then_and_learns_when_only_the_last_answers_are_left() -> None:
    console, text = log()
    with Live(console) as live:
        live.begin("2.00/s", total_s=2.5 * TOLD_EVERY_S)
        for tenth in range(1, 41):
            live.show(snapshot(0.1 * tenth * TOLD_EVERY_S))
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    assert "2.00/s, 20 s" in lines[0]
    assert "3 in flight, 7 ended" in lines[0]
    assert "its time is over" in lines[2]


def test_a_wait_that_is_short_is_not_mentioned() -> None:
    console, text = log()
    with awaiting(console, "waiting for nothing"):
        pass
    assert not text.getvalue()


def test_a_command_that_ended_before_any_request_leaves_no_records(tmp_path: Path) -> None:
    console, text = log()

    def fail(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / HEADER).write_text("{}")
        raise ConfigError("no")

    with pytest.raises(ConfigError), kept_records(tmp_path, console) as folder:
        fail(folder)
    assert not list(tmp_path.iterdir())
    assert not text.getvalue()


def test_words_are_counted_by_whole_requests_for_a_while_only(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = EndpointTarget(url=url, model="null")
    assert probe.learn_words(target).is_exact
    monkeypatch.setattr(probe, "LEARN_S", 0.0)
    assert not probe.learn_words(target).is_exact


def test_a_handful_of_requests_convicts_no_server_of_a_backlog(url: str, tmp_path: Path) -> None:
    asked = ("--rate", "20", "--seconds", "1", "--warmup", "0", "--prompt", "20", "--output", "3")
    assert run("bench", url, *asked, "--out", str(tmp_path)) == 0
    summary = read_report(tmp_path).points[0].summary
    assert summary is not None
    grown = msgspec.structs.replace(summary.overload, is_overloaded=True)
    few, many = (msgspec.structs.replace(summary, overload=grown, requests=count) for count in (3, 30))
    assert "too short: 3 requests" in next(iter(doubts_of(few)))
    assert "overloaded" in next(iter(doubts_of(many)))
