"""Curves of three engines by our client, and whether other clients say the same of them.

    python benchmarks/loadgen_engines.py [--peers DIR] [--quick] [--json]

Engines: the embedded one (`setpoint serve`), llama-server (of the `xllamacpp` wheel), both on the same model file, and
vLLM on the CPU: `SETPOINT_VLLM_ENV` names its virtual environment, `SETPOINT_VLLM_MODEL` the folder of the same model
for it (unquantized). Each gets 1 to 32 users in a closed loop; prompts of 64 tokens, answers of 32, plain completions.

Then the same load is offered by `vllm bench serve` and by GuideLLM (found as in `loadgen_peers`): 4 users, and an open
loop at half of what these got. Our own client repeats it, with fresh prompts and arrivals, before, between and after
them: how its figures scatter is the noise. A peer *agrees* on a figure when it lies where 95 of 100 further runs of
ours would lie (Student's t prediction interval).

What is not there is left out, and said so: without `SETPOINT_VLLM_ENV` vLLM and its client, without
`SETPOINT_VLLM_MODEL` (whose tokenizer the peers need) all comparisons. `--quick` leaves out vLLM the engine and
GuideLLM, which take longer to start than it may take, and compares on llama-server alone.

Ratios: `vllm_agrees`, `guidellm_agrees`: shares of the figures; `vllm_off`, `guidellm_off`: the median relative
difference; `noise`: the median of the relative half-widths of the intervals.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from agreement import compared, load_of, ratios
from engine_runs import AT_ONCE, OUTPUT, Engine, latencies_ms, planned, run_ours, started
from peers import found
from reporting import Row, arguments, report, say

from setpoint.engines.llamacpp.quantize import quantized_model
from setpoint.engines.llamacpp.starter import resolve_model
from setpoint.loadgen.client import RunOptions

CLIENTS = ("vllm", "guidellm")
USERS = 4
"""Of the closed loop on which the clients are compared."""


class Size(NamedTuple):
    """How long things take: `window_s` a point of the curve, `requests` a compared run, `repeats` runs of ours."""

    streams: Sequence[int]
    window_s: float
    requests: int
    repeats: int


FULL = Size((1, 2, 4, 8, 16, 32), 12.0, 64, 5)
QUICK = Size((1, 8), 3.0, 24, 3)


def point(engine: Engine, streams: int, size: Size, seed: int) -> Row:
    """Return one point of the curve: a closed loop, of which the first fifth is cut."""
    options = RunOptions(concurrency=streams, window_s=size.window_s, seed=seed)
    run = run_ours(engine, planned(max(400, 60 * streams), AT_ONCE, seed), options)
    start, end = run.start_at + 0.2 * size.window_s, run.start_at + size.window_s
    inside = [record for record in run.records if start <= record.scheduled_at < end and record.error is None]
    tokens_per_s = sum(start <= at < end for record in run.records for at in record.event_at) / (end - start)
    latencies = latencies_ms(inside, is_interpolated=False)
    say(f"  {engine.name}, {streams} users: {tokens_per_s:.0f} tokens/s, TTFT P95 {latencies['TTFT p95 ms']:.0f} ms")
    return {
        "engine": engine.name,
        "load": f"{streams} users",
        "requests": len(inside),
        "output tokens/s": tokens_per_s,
        **latencies,
        "failed": sum(record.error not in {None, "cancelled"} for record in run.records),
        "vouched": run.health().is_valid,
    }


def agreed(engine: Engine, clients: dict[str, Path], size: Size, seed: int, *, is_quick: bool) -> Iterator[Row]:
    """Yield the comparisons on one engine: a closed loop, and an open one at half of its rate."""
    tokenizer = Path(os.environ["SETPOINT_VLLM_MODEL"])
    closed = load_of(engine, size.requests, tokenizer, streams=USERS, rate=None)
    rows = list(compared(engine, clients, closed, repeats=size.repeats, seed=2000 * seed))
    yield from rows
    if not is_quick:
        rate = 0.5 * float(str(rows[-1]["ours"])) / OUTPUT
        opened = load_of(engine, size.requests, tokenizer, streams=None, rate=rate)
        yield from compared(engine, clients, opened, repeats=size.repeats, seed=3000 * seed)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    default = os.environ.get("SETPOINT_PEERS", "peers")
    parser.add_argument("--peers", default=default, help="folder of the peers' environments (default: SETPOINT_PEERS)")
    parser.add_argument("--engine", action="append", help="measure only this engine; repeatable")


def chosen(args: argparse.Namespace, clients: dict[str, Path]) -> list[str]:
    """Return the engines to measure, and say which ones are left out."""
    names = ["setpoint", "llama-server"]
    if args.quick:
        say("  vLLM as an engine takes too long to start: left out of --quick")
    elif "vllm" in clients and "SETPOINT_VLLM_MODEL" in os.environ:
        names.append("vllm")
    else:
        say("  vLLM is left out: SETPOINT_VLLM_ENV and SETPOINT_VLLM_MODEL do not both name it and a model for it")
    return [name for name in names if args.engine is None or name in args.engine]


def main() -> None:
    """Measure each engine, compare the clients on it, and report."""
    args = arguments(__doc__ or "", options)
    size = QUICK if args.quick else FULL
    clients = found(Path(args.peers).absolute(), CLIENTS[:1] if args.quick else CLIENTS)
    engines = chosen(args, clients)
    vllm = clients["vllm"] / "vllm" if "vllm" in clients else None
    if "SETPOINT_VLLM_MODEL" not in os.environ:
        say("  SETPOINT_VLLM_MODEL names no model, whose tokenizer the peers need: no comparisons")
        clients = {}
    model = quantized_model(resolve_model(args.model), args.quantize)
    rows: list[Row] = []
    for name in engines:
        with started(name, model, vllm) as engine:
            rows += [point(engine, streams, size, 1000 * args.seed + streams) for streams in size.streams]
            if clients and not (args.quick and name != "llama-server"):
                rows += agreed(engine, clients, size, args.seed, is_quick=args.quick)
    report("loadgen_engines", ratios(rows, CLIENTS), rows, args)


if __name__ == "__main__":
    main()
