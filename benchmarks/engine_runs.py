"""Engines under one plain load (completions of fixed lengths), run by our client and read like any other."""

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

from served import llama_server, ours
from vllm_server import Setting
from vllm_server import server as vllm_server

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.probe import identify, learn_words
from setpoint.loadgen.process import measure_in_process
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.run import Run
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import RequestRecord, rank_quantile
from setpoint.model import Slo
from setpoint.seeds import stream
from setpoint.units import Seconds
from setpoint.workload import Fixed, PlannedRequest, Steady, Traffic, plan_traffic

PROMPT, OUTPUT, SLOTS = 64, 32, 32
AT_ONCE = 1000.0
"""Requests a second of a plan that a closed loop draws from: all are there from the start."""
LOOSE = Slo(percentile=0.95, ttft_s=Seconds(60.0), tpot_s=Seconds(10.0))
"""Targets that hold nothing back: the engine is to do all that it can."""
LATENCIES = (("TTFT", "p50"), ("TTFT", "p95"), ("TPOT", "p50"), ("TPOT", "p95"))


class Engine(NamedTuple):
    """A running engine: its name, and how it is asked."""

    name: str
    target: EndpointTarget
    lexicon: Lexicon


@contextlib.contextmanager
def started(name: str, model: Path, vllm: Path | None) -> Iterator[Engine]:
    """Run an engine until the block ends; vLLM serves the model that SETPOINT_VLLM_MODEL names."""
    with contextlib.ExitStack() as stack:
        if name == "vllm":
            args = argparse.Namespace(vllm=str(vllm), model=os.environ["SETPOINT_VLLM_MODEL"])
            url = stack.enter_context(vllm_server(args, Setting("stock", ("--max-num-seqs", str(SLOTS)))))
        elif name == "llama-server":
            url = stack.enter_context(llama_server(model, slots=SLOTS)).url
        else:
            url = stack.enter_context(ours(model, slots=SLOTS, slo=LOOSE)).url
        target = identify(EndpointTarget(url=url, api="completions"))
        yield Engine(name, target, learn_words(target))


def planned(count: int, rate: float, seed: int) -> list[PlannedRequest]:
    """Return `count` requests of the fixed lengths."""
    traffic = Traffic(class_name="standard", prompt=Fixed(PROMPT), output=Fixed(OUTPUT))
    return plan_traffic([traffic], Steady(rate), partial(stream, seed), count=count)


def run_ours(engine: Engine, plan: Sequence[PlannedRequest], options: RunOptions) -> Run:
    """Offer a plan with our client."""
    return measure_in_process(engine.target, plan, options, lexicon=engine.lexicon, warmup_s=0.0)


def latencies_ms(records: Sequence[RequestRecord], *, is_interpolated: bool) -> dict[str, float]:
    """Return the quantiles of TTFT and TPOT in milliseconds, between samples (as numpy does) or as one of them."""
    values = {
        "TTFT": [record.ttft_s for record in records if record.ttft_s is not None],
        "TPOT": [record.tpot_s for record in records if record.tpot_s is not None],
    }
    return {f"{name} {q} ms": 1e3 * _quantile(values[name], q, is_interpolated) for name, q in LATENCIES}


def _quantile(values: Sequence[float], name: str, is_interpolated: bool) -> float:  # noqa: FBT001 - one caller
    rank = int(name.removeprefix("p"))
    if len(values) < 2:
        return values[0] if values else float("nan")
    if is_interpolated:
        return quantiles(values, n=100, method="inclusive")[rank - 1]
    return rank_quantile(sorted(values), rank / 100.0)
