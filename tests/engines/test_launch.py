"""Starting, waiting for and ending servers that are not ours: small real ones, run by this interpreter."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from setpoint.engines.launch import StartError, free_port, is_answering, launched

SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def command(source: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", source, *arguments]


def is_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def child_of(log: Path) -> int:
    return int(log.read_text().split("child ")[1].split()[0])


def test_a_server_is_ready_within_the_block_and_gone_with_its_children_after_it(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with launched(command(SERVER, str(port)), port, log, ready="/", limit_s=60.0) as running:
        assert running.is_alive
        assert is_answering(port, "/")
        child = child_of(log)
    assert not running.is_alive
    assert is_gone(child)
    assert not is_answering(port, "/")


def test_it_is_gone_as_well_when_the_block_fails(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with (
        pytest.raises(KeyboardInterrupt),
        launched(command(SERVER, str(port)), port, log, ready="/", limit_s=60.0),
    ):
        raise KeyboardInterrupt
    assert is_gone(child_of(log))


def test_one_that_ends_by_itself_has_crashed_and_its_last_words_are_told(tmp_path: Path) -> None:
    source = "import sys; print('loading'); sys.exit('error: quantized V cache needs flash attention')"
    with (
        pytest.raises(StartError) as caught,
        launched(command(source), free_port(), tmp_path / "log", ready="/", limit_s=60.0),
    ):
        pass
    assert caught.value.how == "crashed"
    assert "quantized V cache" in caught.value.message


def test_one_that_is_never_ready_hangs_and_is_ended(tmp_path: Path) -> None:
    with (
        pytest.raises(StartError) as caught,
        launched(command(DEAF), free_port(), tmp_path / "log", ready="/", limit_s=1.0),
    ):
        pass
    assert caught.value.how == "hung"


def test_a_command_that_does_not_exist_is_a_crash_with_its_name(tmp_path: Path) -> None:
    with (
        pytest.raises(StartError) as caught,
        launched(["/nonexistent/engine"], free_port(), tmp_path / "log", ready="/", limit_s=60.0),
    ):
        pass
    assert "/nonexistent/engine" in caught.value.message


def test_a_tuner_that_is_killed_takes_the_server_with_it(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    source = f"""
import time
from pathlib import Path
from setpoint.engines.launch import launched
with launched({command(SERVER, str(port))!r}, {port}, Path({str(log)!r}), ready="/", limit_s=60.0):
    print("ready", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen(command(source), stdout=subprocess.PIPE, text=True) as tuner:
        assert tuner.stdout is not None
        assert tuner.stdout.readline() == "ready\n"
        tuner.send_signal(signal.SIGKILL)
        tuner.wait(30)
    assert is_gone(child_of(log))
    assert not is_answering(port, "/")
