"""A vLLM of its own for each setting that is compared, and what its `/metrics` say.

On a CPU vLLM's compute threads spin where they wait for each other, and so does its engine process. On every core of a
small machine that leaves none to the front end and the client: steps of 50 ms then take 200 time and again. So half of
the cores compute, as vLLM's own guide has it that some be kept free.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

READY_S = 300.0
SCHEDULER = "setpoint.engines.vllm.SetpointScheduler"


class Setting(NamedTuple):
    """One way to run the server; `strategy`: that of the plug-in, if it is there."""

    name: str
    flags: tuple[str, ...]
    policy: str = "fcfs"
    strategy: str | None = None


def stock(policy: str, budget: int, sequences: int) -> Setting:
    """Return a stock vLLM with a scheduling policy, a token budget, and so many sequences at once."""
    flags = ("--scheduling-policy", policy, "--max-num-batched-tokens", str(budget), "--max-num-seqs", str(sequences))
    return Setting(f"stock {policy} {budget}, {sequences} at once", flags, policy)


def plugin(strategy: str, classes: Mapping[str, object], sequences: int) -> Setting:
    """Return the plug-in with a strategy and the classes that its user would configure, as in a `setpoint.toml`."""
    table = {"strategy": strategy, "default_class": "chat", "classes": classes}
    options = json.dumps({"setpoint": table})
    flags = ("--scheduler-cls", SCHEDULER, "--additional-config", options, "--max-num-seqs", str(sequences))
    return Setting(f"plug-in {strategy}", flags, "fcfs", strategy)


@contextmanager
def server(args: argparse.Namespace, setting: Setting) -> Iterator[str]:
    """Run a vLLM and yield its URL; it is gone afterwards, with all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(args.vllm, "serve", args.model, "--served-model-name", "model", "--enforce-eager"),
        *("--max-model-len", "2048", "--max-num-seqs", "16", "--host", "127.0.0.1", "--port", str(port)),
        *setting.flags,
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    with (
        tempfile.NamedTemporaryFile(prefix="setpoint-vllm-", suffix=".log") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            await_ready(process, f"{url}/health", Path(log.name))
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20.0)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def await_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Wait until the server answers; exits with the end of its `log` when it died or takes too long."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"{_end_of(log)}\nvLLM ended while it started: see above")
        try:
            with urllib.request.urlopen(url, timeout=2.0):  # noqa: S310 - our own server on this machine
                return
        except OSError:
            time.sleep(1.0)
    sys.exit(f"{_end_of(log)}\nvLLM was not ready after {READY_S:g} s: see above")


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def numbers(url: str) -> dict[str, float]:
    """Return the sums over all labels of the server's metrics, by name."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30.0) as answer:  # noqa: S310 - as above
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def tokens_done(url: str) -> float:
    """Return the tokens of prompts and of answers that the server has computed so far."""
    found = numbers(url)
    return found["vllm:prompt_tokens_total"] + found["vllm:generation_tokens_total"]
