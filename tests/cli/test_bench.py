"""`setpoint bench` and `setpoint compare` as a user meets them, against the null server."""

import json
import random
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from setpoint.cli import main
from setpoint.cli.bench_options import (
    WorkloadOptions,
    read_class,
    read_headers,
    read_json_object,
    read_rate,
    read_source,
)
from setpoint.cli.bench_output import read_report
from setpoint.cli.bench_show import show_report
from setpoint.dashboard.bench import render_bench
from setpoint.errors import ConfigError, WorkloadError
from setpoint.loadgen.compare import compare, differences
from setpoint.loadgen.report_words import CURVE_HEAD, curve_rows, load_words
from setpoint.loadgen.run import SECRET
from setpoint.loadgen.scrape import parse_prometheus, sample_of
from setpoint.metrics import parse_objectives
from setpoint.metrics.knee import Slice, find_knee, knee_with_interval
from setpoint.workload import Diurnal, Ramp, Stairs, Steady


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


LOAD = ("--rate", "40", "--seconds", "1", "--warmup", "0", "--prompt", "20", "--output", "5")


def test_one_run_writes_its_files_and_meets_a_wide_target(
    url: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run("bench", url, *LOAD, "--slo", "e2e_p90<30s", "--out", str(tmp_path), "--json") == 0
    told = json.loads(capfdbinary.readouterr().out)
    report = read_report(tmp_path)
    assert told["schema"] == report.schema == "setpoint.bench/1"
    summary = report.points[0].summary
    assert summary is not None
    assert summary.requests == pytest.approx(40, abs=25)
    assert summary.overall.failed == 0
    assert report.is_lexicon_exact
    rows = (tmp_path / "requests.csv").read_text().splitlines()
    assert rows[0].startswith("point,id,class_name,scheduled_at")
    assert len(rows) > summary.requests
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_a_key_is_taken_from_the_environment_and_written_nowhere(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SETPOINT_API_KEY", "sk-0123456789")
    assert run("bench", url, *LOAD, "--out", str(tmp_path)) == 0
    assert read_report(tmp_path).target.api_key == SECRET
    assert all(b"sk-0123456789" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_target_that_is_not_met_is_exit_code_one(url: str) -> None:
    assert run("bench", url, *LOAD, "--slo", "e2e_p90<1us") == 1


def test_an_infeasible_target_is_named_before_any_search(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    load = ("--prompt", "20", "--output", "5", "--seconds", "1")
    assert run("bench", url, "--find-max-rate", *load, "--slo", "e2e_p90<1us") == 1
    assert "one user alone misses e2e_p90<0.001ms" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--rate", "-2"), "the rate must be positive"),
        (("--rate", "0"), "the rate must be positive"),
        (("--rate", "ramp:1"), "cannot read the rate"),
        ((), "there is no load to offer"),
        (("--rate", "1", "--sweep"), "exclude each other"),
        (("--find-max-rate",), "needs to know what must hold"),
        (("--rate", "1", "--slo", "ttft_p95 200ms"), "cannot read the SLO"),
        (("--rate", "1", "--api", "soap"), "--api 'soap' is unknown"),
        (("--rate", "1", "--extra-body", "[1]"), "must be a JSON object"),
        (("--rate", "1", "--trace", "nowhere.csv"), "cannot read the trace"),
        (("--rate", "1", "--class", "chat speed=3"), "cannot read 'speed=3'"),
        (("--rate", "1"), "cannot reach 127.0.0.1:9"),
    ],
)
def test_bad_input_is_one_sentence_and_a_hint(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", "http://127.0.0.1:9", *arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("hint: ")


def test_a_model_that_is_not_there_is_told_with_those_that_are(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", url, "--rate", "1", "--model", "gpt-9") == 2
    assert "it has 'null'" in capsys.readouterr().err


def test_a_curve_has_the_same_cells_on_the_terminal_and_on_the_page(url: str, tmp_path: Path) -> None:
    run("bench", url, *LOAD, "--slo", "e2e_p90<30s", "--out", str(tmp_path))
    report = read_report(tmp_path)
    seen, unseen = report.points[0], msgspec.structs.replace(report.points[0], summary=None)
    curve = msgspec.structs.replace(report, points=(seen, unseen))
    rows = curve_rows(curve)
    assert rows[0][0] == load_words(seen)
    assert rows[0][-1] == "yes"
    assert rows[1][1:] == ("-",) * (len(CURVE_HEAD) - 1)
    console = Console(width=200)
    with console.capture() as said:
        show_report(console, curve)
    terminal, page = said.get(), render_bench(curve, [])
    for row in (CURVE_HEAD, *rows):
        assert " ".join(row).split() in [line.split() for line in terminal.splitlines()]
        assert all(f">{cell}</t" in page for cell in row)


def test_two_runs_are_compared_and_different_loads_are_refused(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    run("bench", url, *LOAD, "--out", str(before))
    run("bench", url, *LOAD, "--out", str(after))
    assert run("compare", str(before), str(after), "--json") == 0
    one, other = read_report(before), read_report(after)
    figures = {change.figure for change in compare(one, other)}
    assert {"requests per second", "TTFT P50", "TPOT P95"} <= figures
    load = msgspec.structs.replace(other.points[0].load, rate_rps=80.0)
    faster = msgspec.structs.replace(other, points=(msgspec.structs.replace(other.points[0], load=load),))
    assert differences(one, faster) == ["point 1: 40/s against 80/s"]
    with pytest.raises(ConfigError, match="different loads"):
        compare(one, faster)
    assert compare(one, faster, is_forced=True)
    rare = next(change for change in compare(one, other) if change.figure == "TTFT P99")
    assert (rare.before_support, rare.change_ratio) == ("too_few", None)
    assert run("compare", str(before), str(after)) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("TTFT P99"))
    assert shown.count("too few") == 2
    assert run("compare", str(before), str(tmp_path / "nothing")) == 2


def test_rates_are_read_as_written() -> None:
    assert read_rate("2.5") == Steady(2.5)
    assert read_rate("ramp:1-8,over=60") == Ramp(1.0, 8.0, 60.0)
    assert read_rate("diurnal:mean=4,swing=0.5,period=600") == Diurnal(4.0, 0.5, 600.0)
    assert read_rate("stairs:30x2,30x4") == Stairs(((30.0, 2.0), (30.0, 4.0)))


def test_a_class_is_read_with_its_targets_and_the_rest_from_the_options() -> None:
    traffic, targets = read_class("chat share=0.7 prompt=uniform:5-9 band=1 ttft_ms=200", WorkloadOptions(output="33"))
    assert (traffic.class_name, traffic.share, traffic.output.mean) == ("chat", 0.7, 33.0)
    assert (targets.band, targets.ttft_ms, targets.tpot_ms) == (1, 200.0, None)


def test_the_class_of_the_objectives_is_the_class_of_the_requests() -> None:
    source, _ = read_source(WorkloadOptions(), parse_objectives("chat"))
    assert {one.class_name for one in source.plan(5.0, 1, 4.0)} == {"chat"}


def test_a_trace_is_stretched_to_the_rate_and_goes_round(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,1\n1,20,2\n2,30,3\n")
    source, words = read_source(WorkloadOptions(trace=path, prompt_max=25), ())
    plan = source.plan(2.0, 0, 10.0)
    assert len(plan) == pytest.approx(20, abs=2)
    assert [one.prompt_tokens for one in plan[:4]] == [10, 20, 25, 10]
    assert "clipped to 25 prompt" in words


def test_headers_and_bodies_that_are_none_are_refused() -> None:
    assert read_headers(["X-A: b"]) == {"x-a": "b"}
    assert read_json_object('{"top_p": 0.5}', "--extra-body") == {"top_p": 0.5}
    with pytest.raises(ConfigError):
        read_headers(["nonsense"])
    with pytest.raises(ConfigError):
        read_headers(["x: a\r\nb: c"])
    with pytest.raises(WorkloadError):
        read_rate("sawtooth:3")


def test_the_counters_of_each_engine_are_understood() -> None:
    vllm = (
        b"# HELP vllm:num_requests_running x\n"
        b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 2.0\n'
        b"vllm:num_requests_waiting 7\nvllm:kv_cache_usage_perc 0.25\n"
    )
    found = sample_of(vllm, 1.0)
    assert found is not None
    assert (found.running, found.waiting, found.kv_ratio) == (5.0, 7.0, 0.25)
    llama = sample_of(b"llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n", 1.0)
    assert llama is not None
    assert (llama.running, llama.waiting, llama.kv_ratio) == (2.0, 1.0, None)
    entry = {"numActiveRequests": 4, "numQueuedRequests": 1, "kvCacheStats": {"usedNumBlocks": 1, "maxNumBlocks": 4}}
    tensorrt = sample_of(json.dumps([entry]).encode(), 1.0)
    assert tensorrt is not None
    assert (tensorrt.running, tensorrt.kv_ratio) == (4, 0.25)
    assert sample_of(b"<html>", 1.0) is None
    assert sample_of(b"[{", 1.0) is None
    assert parse_prometheus("garbage\nx 1\n") == {"x": 1.0}


def test_the_knee_is_where_the_curve_turns() -> None:
    knee = find_knee([10.0, 20.0, 38.0, 60.0, 70.0, 72.0, 73.0], [1.0, 1.05, 1.1, 1.3, 2.0, 4.0, 8.0])
    assert knee is not None
    assert knee.index in {3, 4}
    assert knee.first <= knee.index <= knee.last
    assert find_knee([1.0, 2.0], [1.0, 1.0]) is None


def curve_of(throughputs: list[float], latencies: list[float], noise: float) -> list[list[Slice]]:
    """Return the points of a curve in slices whose throughput and latency scatter by `noise`."""
    chance = random.Random(1)
    return [
        [
            Slice(1.0, x * (1.0 + noise * chance.gauss(0, 1)), 10 * y * (1.0 + noise * chance.gauss(0, 1)), 10)
            for _ in range(20)
        ]
        for x, y in zip(throughputs, latencies, strict=True)
    ]


def test_the_interval_of_the_knee_is_narrow_where_it_is_sharp_and_widens_with_noise() -> None:
    x, y = [10.0, 20.0, 40.0, 78.0, 80.0, 81.0, 82.0], [1.0, 1.0, 1.02, 1.1, 2.0, 4.0, 8.0]
    sharp = knee_with_interval(curve_of(x, y, 0.02), random.Random(2))
    assert sharp is not None
    assert (sharp.first, sharp.index, sharp.last) == (3, 3, 3)
    assert sharp.share == 1.0
    blunt = [10.0, 18.0, 26.0, 33.0, 39.0, 44.0, 48.0]
    wide = knee_with_interval(curve_of(blunt, [1.0, 1.1, 1.25, 1.5, 1.9, 2.5, 3.4], 0.4), random.Random(2))
    assert wide is not None
    assert wide.last - wide.first >= 2
    assert wide.share is not None
    assert wide.share < 1.0
    assert knee_with_interval(curve_of(x[:3], y[:3], 0.1), random.Random(2)) is None
