"""What the policy is worth inside vLLM, and what it costs: stock vLLM against the plug-in, with the same server flags.

    python benchmarks/vllm_plugin.py --vllm DIR/venv/bin/vllm --model DIR/smollm2 --json > vllm_plugin.json

DIR is a folder with a vLLM that has setpoint installed beside it, and a small model. Each setting gets a server of its
own, one after the other: stock first come first served and stock priority, both with swept `--max-num-batched-tokens`,
and the plug-in with `qoserve` and with `slack`. Each is asked the same chat requests beside the same backlog of batch
work, by the load generator in a process of its own. The bound is what the backlog alone reaches. `--cost` measures
nothing but the scheduler itself, in this process and without a model: run it with the Python of that vLLM.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from reporting import arguments, report

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.process import measure_in_process
from setpoint.loadgen.target import ClassTargets, EndpointTarget
from setpoint.metrics import RequestRecord
from setpoint.metrics.judge import met
from setpoint.model import Slo
from setpoint.seeds import stream
from setpoint.units import Seconds
from setpoint.workload import PlannedRequest
from setpoint.workload.arrivals import Steady
from setpoint.workload.lengths import Uniform
from setpoint.workload.traffic import Traffic, plan_traffic

CHAT = Slo(percentile=0.95, ttft_s=Seconds(2.0), tpot_s=Seconds(0.25))
BANDS = {"chat": 0, "batch": 9}
READY_S = 300.0


class Setting(NamedTuple):
    """One way to run the server."""

    name: str
    flags: tuple[str, ...]


def stock(policy: str, budget: int) -> Setting:
    """Return a stock vLLM with a scheduling policy and a token budget."""
    flags = ("--scheduling-policy", policy, "--max-num-batched-tokens", str(budget))
    return Setting(f"stock {policy} {budget}", flags)


def plugin(strategy: str) -> Setting:
    """Return the plug-in with a strategy; the clients name their class by `priority`, as they do for stock."""
    classes = {"chat": {"ttft_ms": 2000, "tpot_ms": 250}}
    options = {"strategy": strategy, "classes": classes, "priorities": {"0": "chat", "9": "batch"}}
    config = json.dumps({"setpoint": options})
    scheduler = "setpoint.engines.vllm.SetpointScheduler"
    flags = ("--scheduling-policy", "priority", "--scheduler-cls", scheduler, "--additional-config", config)
    return Setting(f"plug-in {strategy}", flags)


def settings(*, is_quick: bool) -> list[Setting]:
    """Return what is compared."""
    budgets = (128,) if is_quick else (48, 128, 512)
    stocks = [stock(policy, budget) for policy in ("fcfs", "priority") for budget in budgets]
    return [*stocks, *([] if is_quick else [plugin("qoserve")]), plugin("slack")]


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


def plan(args: argparse.Namespace, rate: float, backlog: int, duration_s: float) -> list[PlannedRequest]:
    """Return a backlog that is there from the start, and chat that arrives at `rate`."""
    streams = partial(stream, args.seed)
    chat = Traffic(class_name="chat", prompt=Uniform(30, 200), output=Uniform(16, 64))
    batch = Traffic(class_name="batch", prompt=Uniform(150, 500), output=Uniform(100, 101))
    asked = plan_traffic([chat], Steady(rate), streams, duration_s=duration_s) if rate else []
    jobs = plan_traffic([batch], Steady(1000.0), streams, count=backlog)
    both = sorted([*asked, *jobs], key=lambda one: one.at_s)
    return [replaced(one, index) for index, one in enumerate(both)]


def replaced(one: PlannedRequest, index: int) -> PlannedRequest:
    """Return the request under an id of its own."""
    import msgspec  # noqa: PLC0415 - beside its one use

    return msgspec.structs.replace(one, id=index)


def row(setting: Setting, rate: float, records: Sequence[RequestRecord], duration_s: float) -> dict[str, object]:
    """Return what came of one load on one setting."""
    chat = sorted((r for r in records if r.class_name == "chat"), key=lambda r: r.ttft_s or 1e9)
    tpots = sorted(r.tpot_s or 0.0 for r in chat)
    tokens = {name: sum(r.output_tokens for r in records if r.class_name == name) for name in BANDS}
    return {
        "setting": setting.name,
        "chat_per_s": rate,
        "chat_requests": len(chat),
        "chat_attainment": sum(met(r, CHAT) for r in chat) / len(chat) if chat else None,
        "chat_ttft_p95_s": chat[int(0.95 * (len(chat) - 1))].ttft_s if chat else None,
        "chat_tpot_p95_s": tpots[int(0.95 * (len(tpots) - 1))] if tpots else None,
        "chat_tokens_per_s": tokens["chat"] / duration_s,
        "batch_tokens_per_s": tokens["batch"] / duration_s,
        "failed": sum(r.is_failed for r in records),
    }


def compare(args: argparse.Namespace) -> list[dict[str, object]]:
    """Return a row for each setting and load."""
    rates = (0.0, 0.3) if args.quick else (0.0, 0.3, 0.6, 1.0)
    duration_s = 30.0 if args.quick else 180.0
    rows: list[dict[str, object]] = []
    for setting in settings(is_quick=args.quick):
        with server(args, setting) as url:
            classes = {name: ClassTargets(band=band) for name, band in BANDS.items()}
            is_fcfs = "fcfs" in setting.flags
            target = EndpointTarget(
                url=url, api="completions", model="model", engine="vllm", classes={} if is_fcfs else classes
            )
            measure_in_process(target, plan(args, 1.0, 1, 4.0), RunOptions())
            for rate in rates:
                run = measure_in_process(target, plan(args, rate, 12 if args.quick else 60, duration_s), RunOptions())
                ended = max((r.ended_at or 0.0 for r in run.records), default=0.0) - run.start_at
                rows.append(row(setting, rate, run.records, max(duration_s, ended)))
                print(f"{rows[-1]}", file=sys.stderr)
    return rows


def cost(args: argparse.Namespace) -> list[dict[str, object]]:
    """Return the scheduler's own time a step, stock and steered, at several numbers of running sequences."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    os.environ["SETPOINT_VLLM_MODEL"] = args.model
    from tests.engines.vllm.kits import Engine, VllmKit  # noqa: PLC0415 - they import vLLM

    steps = 100 if args.quick else 400
    rows: list[dict[str, object]] = []
    for running in (1, 16, 64, 256):
        times: dict[str, float] = {}
        for is_steered in (False, True):
            kit = VllmKit()
            loose = {"chat": {"ttft_ms": 1e6, "tpot_ms": 1e6}}
            scheduler = kit.scheduler(depth=2, blocks=40 * running, seqs=running, tokens=2048, classes=loose)
            engine: Any = Engine(scheduler, kit, depth=2)
            if not is_steered:
                scheduler.setpoint.machine, scheduler.setpoint._failures = None, 99  # noqa: SLF001 - vLLM's own rules
            for i in range(running):
                engine.ask(f"r{i}", 16, 490)
            spent: list[float] = []
            while len(spent) < steps and (engine.scheduler.requests or engine.flying):
                began_at = time.perf_counter()
                engine.begin()
                took = time.perf_counter() - began_at
                if len(engine.flying) == 2:
                    engine.end()
                if len(engine.steps[-1]) == running == sum(engine.steps[-1].values()):
                    spent.append(took)
            times["plug-in" if is_steered else "stock"] = sorted(spent)[len(spent) // 2] * 1e6
        more = times["plug-in"] - times["stock"]
        rows.append({"running": running, **{f"{k} us": v for k, v in times.items()}, "more us": more})
    return rows


def main() -> None:
    """Compare, or measure the cost, and report."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--vllm", default="vllm", help="the vllm command (default: vllm)")
        parser.add_argument("--cost", action="store_true", help="measure only the scheduler's own time")

    args = arguments(__doc__ or "", extend)
    if args.model is None:
        sys.exit("--model: name the folder of a model that vLLM can read")
    if args.cost:
        rows = cost(args)
        report("the scheduler's own time a step", {"more us at 256": float(str(rows[-1]["more us"]))}, rows, args)
        return
    rows = compare(args)
    bound = max(float(str(r["batch_tokens_per_s"])) for r in rows if not r["chat_per_s"])
    report("vLLM, stock and with the plug-in", {"bound, batch tokens/s": bound}, rows, args)


if __name__ == "__main__":
    main()
