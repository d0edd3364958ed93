"""A real server process on the starter model, shared by all tests, and a way to start one more."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import openai
import pytest

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0

CONFIG = """
[server]
header_timeout_s = 3
body_timeout_s = 3
body_bytes_max = 65536
drain_timeout_s = 10

[engine]
slots = 4
kv_tokens = 4096
context_tokens = 1024

[classes.tiny]
queue_max = 1
"""


class Server:
    """A `setpoint serve` process and how to reach it."""

    def __init__(self, directory: Path, config: str, *options: str) -> None:
        """Start the process; `wait_ready` says when it serves."""
        path = directory / "setpoint.toml"
        path.write_text(config)
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self.port = probe.getsockname()[1]
        self.log_path = directory / "server.log"
        command = "import sys; from setpoint.cli import main; main(sys.argv[1:])"
        arguments = ["serve", "--config", str(path), "--port", str(self.port), *options]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command, *arguments], stdout=subprocess.PIPE, stderr=log
            )

    @property
    def url(self) -> str:
        """The root of the server."""
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self) -> None:
        """Return once it serves."""
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log_path.read_text()
            try:
                if httpx.get(f"{self.url}/ready").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(self.log_path.read_text())

    def stop(self) -> int:
        """End it in order; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        return self.process.returncode

    def client(self, key: str = "none", **headers: str) -> openai.OpenAI:
        """Return the official client, which shall not retry."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, default_headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric summed over its samples that carry the labels."""
        total = 0.0
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            match = re.fullmatch(rf"setpoint:{name}(\{{.*\}})? (\S+)", line)
            if match and all(f'{label.removesuffix("_")}="{value}"' in line for label, value in labels.items()):
                total += float(match[2])
        return total

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Return once `is_true()`; fail after a bounded wait."""
        until = time.monotonic() + START_TIMEOUT_S
        while not is_true():
            assert time.monotonic() < until, self.log_path.read_text()
            time.sleep(0.02)

    def wait_idle(self) -> None:
        """Return once nothing runs and nothing waits."""
        self.wait_until(lambda: self.metric("num_requests_running") + self.metric("num_requests_waiting") == 0)


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Give a function that starts one more server, with settings of its own."""
    started: list[Server] = []

    def start(config: str, *options: str) -> Server:
        started.append(Server(tmp_path_factory.mktemp("server"), config, *options))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), CONFIG)
    try:
        server.wait_ready()
        yield server
    finally:
        code = server.stop()
    assert code == 0, server.log_path.read_text()
    assert "Traceback" not in server.log_path.read_text()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client
    server.wait_idle()


@pytest.fixture(scope="session")
def model(server: Server) -> str:
    with server.client() as client:
        return client.models.list().data[0].id
