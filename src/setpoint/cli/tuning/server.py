"""The server under measurement: `setpoint serve` as a child process on a free port of the loopback.

It runs in a session of its own, so that Ctrl-C reaches the tuner alone, which then ends it in order.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tomli_w

from setpoint.engines.launch import HOST, free_port, is_answering
from setpoint.errors import EngineError
from setpoint.settings import Settings, settings_table

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
LOOK_S = 0.1
LINES_SHOWN = 5
_COMMAND = "from setpoint.cli import main; main()"


@contextlib.contextmanager
def serving(settings: Settings, folder: Path, tick: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Serve with `settings`, but on a free loopback port, and yield the base URL; end the server afterwards.

    `folder` takes the settings and the log. Raises EngineError with the last lines of the log when it does not start.
    """
    port = free_port()
    table = settings_table(settings)
    table["server"] = {**table.get("server", {}), "host": HOST, "port": port, "drain_timeout_s": 1.0}
    config, log = folder / f"serve-{port}.toml", folder / f"serve-{port}.log"
    config.write_text(tomli_w.dumps(table), encoding="utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-c", _COMMAND, "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _await_ready(process, port, log, tick)
        yield f"http://{HOST}:{port}"
    finally:
        _stop(process)


def _await_ready(process: "subprocess.Popen[bytes]", port: int, log: Path, tick: Callable[[], None]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_answering(port, "/ready", timeout_s=2.0):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_SHOWN:]
            state = "ended" if process.poll() is not None else f"was not ready within {START_TIMEOUT_S:.0f} s"
            raise EngineError(f"the server under measurement {state}: " + " / ".join(lines))
        tick()
        time.sleep(LOOK_S)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
