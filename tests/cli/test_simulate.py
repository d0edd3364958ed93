"""`setpoint simulate`, `calibrate` and `explain` as a user meets them: what is wrong is said, with a remedy."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest

from setpoint.cli import main

DEPLOYED = ("--model", "llama-3.1-8b", "--hardware", "h100-sxm")
SHORT = ("--rate", "5", "--duration", "10")


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return what is said of a command that is refused, on stderr alone."""
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "\nhint: " in said.err
    return said.err


def csv_trace(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(("arrival_s,prompt_tokens,output_tokens", *rows)) + "\n")
    return path


TWO = ("0,100,10", "1,200,20")


def test_a_model_or_hardware_that_is_not_known_says_how_to_add_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "simulate", "--model", "lama-3.1-8b", "--hardware", "h100-sxm", *SHORT)
    assert "did you mean llama-3.1-8b" in said
    assert "config.json or .gguf" in said
    assert "--catalog" in said
    said = refusal(capsys, "simulate", "--model", "llama-3.1-8b", "--hardware", "h900", *SHORT)
    assert "unknown hardware 'h900'" in said
    assert "--catalog" in said


def test_hardware_of_ones_own_is_added_by_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "mine.toml"
    own.write_text(
        "[my-card]\ngeneration = 'ada'\nmemory_gib = 48\nbandwidth_gb_s = 864\n"
        "peaks_tflops = { bf16 = 362, fp8 = 733, int8 = 733 }\nlink_gb_s = 64\nlink = 'PCIe4'\nwatts = 350\n"
        "source = 'data sheet'\ndate = '2026-11'\n"
    )
    assert run("simulate", "--model", "llama-3.1-8b", "--hardware", "my-card", "--catalog", own, *SHORT) == 0
    assert "my-card" in capsys.readouterr().err
    own.write_text(own.read_text() + "\n[my-model]\nlayer_count = 3\n")
    said = refusal(capsys, "simulate", "--model", "my-model", "--hardware", "my-card", "--catalog", own, *SHORT)
    assert "'my-model' is neither a model nor hardware" in said


def test_a_model_is_read_from_its_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {
        "model_type": "llama",
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_hidden_layers": 12,
        "intermediate_size": 4096,
        "vocab_size": 32000,
    }
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape))
    for path in (folder, folder / "config.json"):
        assert run("simulate", "--model", path, "--hardware", "l4", *SHORT) == 0
        assert "my-model" in capsys.readouterr().err
    (folder / "config.json").write_text("{")
    assert "is not JSON" in refusal(capsys, "simulate", "--model", folder, "--hardware", "l4", *SHORT)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00\xff\xff")
    assert "damaged" in refusal(capsys, "simulate", "--model", broken, "--hardware", "l4", *SHORT)


def test_times_that_cannot_be_are_refused_with_their_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "simulate", *DEPLOYED, "--trace", csv_trace(tmp_path / "t.csv", "0,10,5", "-1,10,5"))
    assert "row 3" in said
    assert "negative" in said
    unsorted = csv_trace(tmp_path / "u.csv", "0,10,5", "3,10,5", "2,10,5")
    said = refusal(capsys, "simulate", *DEPLOYED, "--trace", unsorted)
    assert "row 4" in said
    assert "sort the file" in said


def test_what_can_never_fit_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "simulate", *DEPLOYED, "--trace", csv_trace(tmp_path / "t.csv", "0,900000,5", "1,800000,5"))
    assert "no request fits: the shortest has 800,005 tokens" in said
    said = refusal(capsys, "simulate", "--model", "llama-3.1-405b", "--hardware", "l4", *SHORT)
    assert "does not fit" in said
    assert "--tp" in said
    said = refusal(capsys, "simulate", *DEPLOYED, *SHORT, "--kv-tokens", "9000000")
    assert "9,000,000 KV tokens do not fit" in said
    said = refusal(capsys, "simulate", *DEPLOYED, *SHORT, "--tp", "3")
    assert "32 heads" in said


def test_a_load_beyond_capacity_ends_at_a_stated_bound(capsys: pytest.CaptureFixture[str]) -> None:
    beyond = ("--rate", "400", "--duration", "20", "--drain", "5", "--strategy", "continuous")
    assert run("simulate", *DEPLOYED, *beyond, "--json") == 0
    said = capsys.readouterr()
    words = " ".join(json.loads(said.out)["notes"])
    assert "the queue grew without limit" in words
    assert "would be worked off at" in words
    assert "the run was ended at 25 s" in words


def notes_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return the notes of a report as one text."""
    capsys.readouterr()
    assert run("simulate", *DEPLOYED, *arguments, "--json") == 0
    return " ".join(json.loads(capsys.readouterr().out)["notes"])


def test_where_long_requests_are_given_up_the_bound_is_not_that_of_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{i / 10:g},{100_000 if i % 4 == 0 else 500},50" for i in range(400)]
    said = notes_of(capsys, "--trace", csv_trace(tmp_path / "t.csv", *rows))
    assert "the queue grew without limit, but for those given up" in said
    assert "were refused or expired" in said
    assert "more than that were done" in said
    assert "and all 25,375" in said


def test_a_run_that_ends_early_is_not_called_a_load_beyond_capacity(capsys: pytest.CaptureFixture[str]) -> None:
    said = notes_of(capsys, *SHORT, "--drain", "0")
    assert "the load can be carried, but the run ended before the last answers" in said
    assert "without limit" not in said


def test_never_is_explained_and_no_queue_is_shown_that_nobody_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", *DEPLOYED, "--rate", "200", "--duration", "20") == 0
    said = capsys.readouterr().err
    assert "never: more requests got no answer than this percentile leaves out" in said
    assert "QUEUE" not in said


CONTRADICTIONS = (
    (("--trace", "FILE", "--lengths", "FILE"), "exclude each other"),
    (("--trace", "FILE", "--mix", "chat=1"), "exclude each other"),
    (("--trace", "FILE", "--prompt", "100"), "--prompt has no effect beside --trace"),
    (("--trace", "FILE", "--turns", "3"), "--turns has no effect beside --trace"),
    (("--trace", "FILE", "--rate", "ramp:1-8,over=60"), "takes a plain rate only"),
    (("--lengths", "FILE"), "there is no load"),
    (("--rate", "5", "--prompt-max", "100"), "--prompt-max is about a trace"),
    (("--rate", "5", "--mix", "chat=1", "--output", "9"), "--output has no effect beside --mix"),
    (("--rate", "5", "--pools", "interactive=1,batch=1", "--replicas", "3"), "--replicas"),
    (("--rate", "5", "--seeds", "2", "--timeline", "t.json"), "of one run"),
    (("--rate", "5", "--step-time", "FILE"), "takes no --model or --hardware"),
    (("--rate", "5", "--routing", "nearest"), "unknown routing 'nearest'"),
    (("--rate", "5", "--engine", "orca"), "unknown engine 'orca'"),
    (("--rate", "5", "--strategy", "best"), "unknown strategy 'best'"),
    (("--rate", "5", "--option", "token_budget=9"), "token_budget"),
    (("--rate", "5", "--timeline", "nowhere/t.json"), "cannot write --timeline"),
    ((), "there is no load"),
)


@pytest.mark.parametrize(("options", "words"), CONTRADICTIONS, ids=[" ".join(c[0]) or "none" for c in CONTRADICTIONS])
def test_options_that_contradict_each_other_are_refused(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = csv_trace(tmp_path / "t.csv", *TWO)
    given = [str(file) if option == "FILE" else option for option in options]
    assert words in refusal(capsys, "simulate", *DEPLOYED, *given)


def test_a_step_time_has_its_own_quantization(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "simulate", "--step-time", tmp_path / "x.json", "--quantization", "fp8", *SHORT)
    assert "--quantization has no effect beside --step-time" in said


FORMS = {
    "own.csv": "arrival_s,prompt_tokens,output_tokens\n0,300,20\n0.5,900,5\n2,50,90\n",
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.68,300,20\n2023-11-16 18:15:47.18,900,5\n2023-11-16 18:15:48.68,50,90\n",
    "mooncake.jsonl": '{"timestamp": 0, "input_length": 1300, "output_length": 20, "hash_ids": [1, 2, 3]}\n'
    '{"timestamp": 500, "input_length": 1400, "output_length": 5, "hash_ids": [1, 2, 4]}\n'
    '{"timestamp": 2000, "input_length": 50, "output_length": 90, "hash_ids": [9]}\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_trace_gives_a_report(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / name
    trace.write_text(FORMS[name])
    assert run("simulate", *DEPLOYED, "--trace", trace, "--strategy", "slack", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "setpoint.bench/1"
    assert report["points"][0]["summary"]["requests"] == 3


def test_the_timeline_is_a_chrome_trace_and_a_late_request_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline, journal = tmp_path / "t.json", tmp_path / "j.jsonl"
    kept = ("--timeline", timeline, "--journal", journal)
    assert run("simulate", *DEPLOYED, "--rate", "30", "--duration", "5", "--prompt", "2000", *kept) == 0
    events = json.loads(timeline.read_bytes())["traceEvents"]
    bars = [event for event in events if event["ph"] == "X"]
    assert {event["ph"] for event in events} <= {"X", "M", "C", "i"}
    assert all(bar["dur"] >= 0 and bar["ts"] >= 0 and bar["args"]["bound by"] for bar in bars)
    starts = [(bar["ts"], bar["ts"] + bar["dur"]) for bar in bars if bar["tid"] == bars[0]["tid"]]
    assert all(end <= start + 1e-3 for (_, end), (start, _) in pairwise(starts))
    capsys.readouterr()
    assert run("explain", journal, "--request", "40") == 0
    said = capsys.readouterr().out
    assert "request 40 (standard): 2,000 prompt tokens" in said
    assert "its prompt was computed for" in said
    assert "no request 99999 came" in refusal(capsys, "explain", journal, "--request", "99999")


def test_the_journal_of_a_simulated_run_can_be_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal, points, book = tmp_path / "j.jsonl", tmp_path / "points.csv", tmp_path / "book.json"
    points.write_text(POINTS + ROWS)
    assert run("calibrate", points, *DEPLOYED, "--engine-version", "0.10.2", "--into", book) == 0
    for more in ((), ("--calibration", book)):
        assert run("simulate", *DEPLOYED, "--rate", "20", "--duration", "10", *more, "--journal", journal) == 0
        capsys.readouterr()
        assert run("replay", journal) == 0
        assert "identical" in capsys.readouterr().out


POINTS = "id,model,precision,gpu,parallelism,engine,engine_version,load,input_len,output_len,concurrency,output_tok_s\n"
ROWS = "".join(
    f"r{users},Llama-3.1-8B,BF16,H100-SXM,TP1,vLLM,{version},closed-loop,500,200,{users},{rate}\n"
    for users, rate, version in ((1, 110, "0.10.2"), (8, 780, "0.10.2"), (32, 2300, "0.10.2"), (64, 100, "0.6.3"))
)


def test_published_points_correct_a_roofline_under_their_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points, book = tmp_path / "points.csv", tmp_path / "book.json"
    points.write_text(POINTS + ROWS)
    said = refusal(capsys, "calibrate", points, *DEPLOYED, "--into", book)
    assert "2 versions of vllm" in said
    assert "0.10.2, 0.6.3" in said
    assert run("calibrate", points, *DEPLOYED, "--engine-version", "0.10.2", "--into", book, "--json") == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["key"]["version"] == "0.10.2"
    assert entry["error_after"] < entry["error_before"]
    assert run("simulate", *DEPLOYED, *SHORT, "--calibration", book) == 0
    assert "calibrated on 3 values measured of vllm 0.10.2" in " ".join(capsys.readouterr().err.split())
    said = refusal(capsys, "simulate", *DEPLOYED, *SHORT, "--calibration", book, "--engine-version", "0.9.0")
    assert "no calibration of llama-3.1-8b" in said
    assert "it has those of" in said
    said = refusal(capsys, "simulate", *DEPLOYED, *SHORT, "--calibration", book, "--quantization", "fp8")
    assert "no calibration" in said


def test_a_run_corrects_what_predicts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = ("--rate", "12", "--duration", "20", "--prompt", "600", "--output", "60", "--strategy", "continuous")
    real, book = tmp_path / "real", tmp_path / "book.json"
    assert run("simulate", "--model", "llama-3.1-8b", "--hardware", "a100-80-sxm", *load, "--out", real) == 0
    given = (*DEPLOYED, "--engine-version", "1", "--into", book)
    assert "--engine-version" in refusal(capsys, "calibrate", real, *DEPLOYED, "--into", book)
    assert run("calibrate", real, *given, "--json") == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["error_before"] > 0.3
    assert entry["error_after"] < 0.1


def test_what_is_no_measurement_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.json"
    said = refusal(capsys, "calibrate", tmp_path / "absent", *DEPLOYED, "--engine-version", "1", "--into", book)
    assert "cannot read" in said
    other = tmp_path / "points.csv"
    other.write_text(POINTS + ROWS)
    said = refusal(capsys, "calibrate", other, "--model", "qwen3-8b", "--hardware", "h100-sxm", "--into", book)
    assert "none of the 4 rows" in said
    book.write_text("[]")
    said = refusal(capsys, "calibrate", other, *DEPLOYED, "--engine-version", "0.10.2", "--into", book)
    assert "is not a calibration" in said


def faults_of(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


NO_EFFECT = (
    ("[[crash]]\nat_s = 900\nreplica = 0\n", "the crash of replica 0 at 900 s would change nothing"),
    ("[[spike]]\nat_s = 11\nfor_s = 5\nfactor = 2\n", "the spike at 11 s would change nothing"),
    ("[[crash]]\nat_s = 1\nreplica = 5\n", "there is no replica 5"),
    ('[[scale]]\nat_s = 1\npool = "nope"\nreplicas = 2\n', "there is no pool 'nope'"),
    ("[crash]\nat_s = 1\nreplica = 0\n", "each fault has two brackets"),
    (
        "".join(f"[[slow]]\nat_s = {at}\nfor_s = 5\nreplica = 0\nfactor = 2\n" for at in (1, 3)),
        "the slow replica 0 at 3 s begins while it is slow already",
    ),
)


@pytest.mark.parametrize(("text", "words"), NO_EFFECT, ids=[words for _, words in NO_EFFECT])
def test_a_fault_that_would_change_nothing_is_refused(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = faults_of(tmp_path / "f.toml", text)
    assert words in refusal(capsys, "simulate", *DEPLOYED, *SHORT, "--faults", schedule)


def test_a_fault_that_came_too_late_is_told_and_the_replicas_there_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '[[scale]]\nat_s = 2\npool = "main"\nreplicas = 3\n[[slow]]\nat_s = 90\nfor_s = 1\nreplica = 0\nfactor = 2\n'
    said = notes_of(capsys, *SHORT, "--faults", faults_of(tmp_path / "f.toml", text))
    assert "1 replica(s) (2." in said
    assert "the slow replica 0 at 90 s changed nothing: the run was over by then" in said


def test_the_requests_that_a_spike_brings_are_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spike = faults_of(tmp_path / "f.toml", "[[spike]]\nat_s = 9\nfor_s = 30\nfactor = 20\n")
    assert run("simulate", *DEPLOYED, *SHORT, "--faults", spike, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    point = report["points"][0]
    assert f"{point['summary']['requests']:,} requests and" in " ".join(report["notes"])
    assert point["summary"]["requests"] > 60
    assert point["summary"]["end_at"] > 20.0


def test_each_class_has_a_row_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("simulate", *DEPLOYED, *SHORT, "--mix", "chat=0.7,batch=0.3") == 0
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert {row[0] for row in rows if row} >= {"chat", "batch"}


def test_a_trace_that_breaks_off_is_called_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gzip.compress(
        csv_trace(tmp_path / "t.csv", *(f"{i},{100 + i * 7 % 90},10" for i in range(500))).read_bytes()
    )
    cut = tmp_path / "t.csv.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in refusal(capsys, "simulate", *DEPLOYED, "--trace", cut)
