"""A vLLM of its own for each setting that is compared, and what its `/metrics` say."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

READY_S = 300.0
SCHEDULER = "setpoint.engines.vllm.SetpointScheduler"


class Setting(NamedTuple):
    """One way to run the server; `strategy`: that of the plug-in, if it is there."""

    name: str
    flags: tuple[str, ...]
    policy: str = "fcfs"
    strategy: str | None = None


def stock(policy: str, budget: int) -> Setting:
    """Return a stock vLLM with a scheduling policy and a token budget."""
    flags = ("--scheduling-policy", policy, "--max-num-batched-tokens", str(budget))
    return Setting(f"stock {policy} {budget}", flags, policy)


def plugin(strategy: str, **options: object) -> Setting:
    """Return the plug-in with a strategy; the clients name class and targets themselves."""
    table = {"strategy": strategy, "default_class": "chat", **options}
    flags = ("--scheduler-cls", SCHEDULER, "--additional-config", json.dumps({"setpoint": table}))
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
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            await_ready(process, f"{url}/health")
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20.0)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def await_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    """Wait until the server answers; exits when it died or takes too long."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit("vLLM ended while it started: run the same command by hand to see why")
        try:
            with urllib.request.urlopen(url, timeout=2.0):  # noqa: S310 - our own server on this machine
                return
        except OSError:
            time.sleep(1.0)
    sys.exit(f"vLLM was not ready after {READY_S:g} s")


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
