"""A cache of its own with the starter model in it, a way to run the command line as a process, and an endpoint."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from setpoint.engines.llamacpp.starter import resolve_model
from setpoint.loadgen.ceiling import null_server

COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from setpoint.cli import main
main(sys.argv[1:])
"""
"""A shell has what it runs in the background ignore SIGINT, and so would the command of a test that is run there."""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def starter() -> Path:
    """Return the starter model's file."""
    return resolve_model()


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return a function that starts `setpoint` with arguments, with step times kept in a folder of the test's own."""

    def run(*arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        )

    return run


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve an event every 2 ms to each stream, from a process of its own."""
    with null_server(tick_ms=2.0) as url:
        yield url
