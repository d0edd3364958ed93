"""`setpoint tune --engine` and `--launch` as their users run them: on real llama-server, and on engines that fail."""

import json
import signal
import time
from pathlib import Path

import pytest
from tests.cli.conftest import Start

WORK = (
    *("--prompt", "24", "--output", "4", "--ttft-ms", "60000", "--tpot-ms", "60000", "--users", "4"),
    *("--context", "256", "--percentile", "0.5"),
)
"""Little work under targets that any machine meets: the test is of the path, not of the speed."""


def outcome(start: Start, *arguments: str) -> tuple[int, str, str]:
    process = start("tune", *arguments)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


@pytest.mark.model
def test_tuning_llama_server_ends_in_a_command_and_leaves_what_it_knows_to_the_next_run(
    start: Start, starter: Path, tmp_path: Path
) -> None:
    arguments = (str(starter), "--engine", "llama-server", "--knob", "slots=2", "--only", "slots", *WORK)
    code, out, err = outcome(start, *arguments, "--minutes", "1", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["evaluations"][0]["setting"] == []
    assert result["launch_defaults"].split()[-6:-4] == ["-m", str(starter)]
    assert json.loads((tmp_path / "setpoint-results" / "engine.json").read_text()) == result
    assert (tmp_path / "setpoint-results" / "launch.sh").read_text().startswith("#!/bin/sh\n")
    _, _, err = outcome(start, *arguments, "--minutes", "1")
    assert "evaluations of earlier runs are known" in err


@pytest.mark.model
def test_ctrl_c_keeps_the_best_so_far_and_the_engine_is_gone(start: Start, starter: Path) -> None:
    process = start("tune", str(starter), "--engine", "llama-server", "--minutes", "30", *WORK)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "measured" in line, line
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Interrupted. The best so far is" in out
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(b"setpoint.engines.llamacpp.server" in line and str(starter).encode() in line for line in running)


def test_an_engine_that_does_not_start_as_it_is_ends_the_run_with_its_own_words(start: Start) -> None:
    code, _, err = outcome(start, "--launch", "sh -c 'echo no such device; exit 1'", "--knob", "--x=1,2", *WORK)
    assert code == 2
    assert "crashed as it is: no such device" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--engine", "triton"), "unknown engine"),
        (("--engine", "vllm", "--command", "/nonexistent/vllm", "m"), "there is no command"),
        (("--engine", "llama-server", "--only", "speed"), "has no knob"),
        (("--launch", "server"), "there is no knob"),
        (("--launch", "server", "--engine", "vllm"), "one of them"),
        (("--launch", "true", "--knob", "--x=1,2", "--minutes", "0"), "--minutes"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_started(
    start: Start, arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = outcome(start, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
