"""The mock server of `mock_server.c`: built with the system's C compiler and run; its log is the truth."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_name("mock_server.c")


class Mock:
    """A running mock server; `answers` are there once it has been stopped."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url, self._process = url, process
        self.answers: list[tuple[float, list[float]]] = []
        """Each answer: when its request had arrived, and after how many seconds each token was written."""


def read_log(log: Path) -> list[tuple[float, list[float]]]:
    """Return the answers in a log of the server."""
    lines = [[float(value) for value in line.split()] for line in log.read_text().splitlines()]
    return [(line[0], line[1:]) for line in lines]


def build(folder: Path) -> Path:
    """Compile the server into `folder`."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        sys.exit("error: no C compiler was found\nhint: install gcc or clang")
    binary = folder / "mock_server"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(SOURCE), "-lm"], check=True)
    return binary


@contextlib.contextmanager
def mock_server(
    *,
    slots: int = 4096,
    ttft_ms: float = 50.0,
    ttft_sigma: float = 0.5,
    itl_ms: float = 10.0,
    itl_sigma: float = 0.3,
    seed: int = 1,
) -> Iterator[Mock]:
    """Run the server on a free port of the loopback until the block ends."""
    with tempfile.TemporaryDirectory(prefix="setpoint-mock-") as name:
        folder = Path(name)
        log = folder / "answers.log"
        command = [
            str(build(folder)),
            "0",
            str(log),
            str(slots),
            str(ttft_ms),
            str(ttft_sigma),
            str(itl_ms),
            str(itl_sigma),
            str(seed),
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            mock = Mock(f"http://127.0.0.1:{int(process.stdout.readline())}", process)
            try:
                yield mock
            finally:
                process.stdin.close()
                process.wait(10)
                mock.answers = read_log(log)
