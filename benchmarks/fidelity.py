"""Predicted against measured: the embedded engine profiled once, then six loads, each predicted before it is run.

    python benchmarks/fidelity.py               about 12 minutes on an otherwise idle machine
    python benchmarks/fidelity.py --quick       short runs: the spread is then that of the sample
    python benchmarks/fidelity.py --write FILE  also replace the table between the markers in FILE (docs/validation.md)

The engine is the real one (replica machine over llama.cpp, one thread, without HTTP); the prediction is the same
machine on a virtual clock, with the step times of the profile and their measured scatter. Arrivals and lengths are
the same on both sides, so that what differs is the engine. The profile is made of steps of its own, none of the loads.

| load | what |
|---|---|
| light, knee, overload | chat at 0.3, 0.75 and 1.3 times the bound |
| bursty | the same at half the bound, gaps with CV 3 |
| two classes | chat at 0.4 beside batch requests at 0.3 times the bound |
| long prompts | prompts of 200 to 800 tokens at half the bound |

Ratios: medians over the loads of the relative error, `error_throughput`, `error_p50`, `error_p95`, `error_p99` (TTFT
and TPOT together).
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
from embedded import Bench, Run, arrivals_of
from reporting import arguments, report, say

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.metrics import RequestRecord, rank_quantile
from setpoint.model import PRESETS, ServiceClass, Slo
from setpoint.seeds import stream
from setpoint.sim.jitter import JitteredStepTime
from setpoint.sim.replica import ReplicaSimulator
from setpoint.sim.scenario import Scenario, bound_rps
from setpoint.steptime.learner import FixedStepTime, LearnedStepTime
from setpoint.units import Seconds
from setpoint.workload import Gaps, LogNormal, PlannedRequest, Steady, Traffic, Uniform, plan_traffic

CHAT = ServiceClass(name="chat", slo=Slo(ttft_s=Seconds(1.0), tpot_s=Seconds(0.1)), queue_max=100_000)
CLASSES = {"chat": CHAT, "batch": PRESETS["batch"]}
PROMPT, OUTPUT = LogNormal(70.0, 0.8, 8, 512), LogNormal(48.0, 0.6, 4, 160)
OUTPUT_MAX = 256
QUANTILES = (0.5, 0.95, 0.99)
BEGIN, END = "<!-- fidelity: begin -->", "<!-- fidelity: end -->"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One load: its traffic, and its rate as a share of the bound of that traffic."""

    name: str
    mix: tuple[Traffic, ...]
    share: float


def chat_traffic(*, cv: float = 1.0, share: float = 1.0) -> Traffic:
    """Return the usual chat."""
    return Traffic(class_name="chat", prompt=PROMPT, output=OUTPUT, share=share, gaps=Gaps(cv=cv))


LOADS = (
    Load(name="light", mix=(chat_traffic(),), share=0.3),
    Load(name="knee", mix=(chat_traffic(),), share=0.75),
    Load(name="overload", mix=(chat_traffic(),), share=1.3),
    Load(name="bursty", mix=(chat_traffic(cv=3.0),), share=0.5),
    Load(
        name="two classes",
        mix=(
            chat_traffic(share=0.6),
            Traffic(class_name="batch", prompt=Uniform(100, 300), output=Uniform(40, 120), share=0.4),
        ),
        share=0.7,
    ),
    Load(name="long prompts", mix=(Traffic(class_name="chat", prompt=Uniform(200, 800), output=OUTPUT),), share=0.5),
)


def plan_of(load: Load, rate: float, seconds: float, seed: int) -> list[PlannedRequest]:
    """Return the requests of one run."""
    return plan_traffic(load.mix, Steady(rate), partial(stream, seed, load.name), duration_s=seconds)


def predicted(
    bench: Bench, strategy: str, plan: list[PlannedRequest], seed: int, until_s: float
) -> list[RequestRecord]:
    """Return the records that the simulator expects."""
    assert bench.step_time is not None
    world = JitteredStepTime(bench.step_time, stream(seed, "jitter"))
    machine = ReplicaMachine(
        make_strategy(strategy), CLASSES, bench.executor.capacity, LearnedStepTime(bench.step_time)
    )
    return list(ReplicaSimulator(machine, world).run(arrivals_of(plan, OUTPUT_MAX), until=until_s))


def compared(name: str, real: Run, expected: list[RequestRecord], seconds: float) -> list[dict[str, object]]:
    """Return a row for throughput and each quantile of TTFT and TPOT: measured, predicted, relative error."""
    rows = [_row(name, "output tokens/s", _throughput(real.records, seconds), _throughput(expected, seconds))]
    for which in ("ttft", "tpot"):
        measured, foreseen = _values(real.records, which), _values(expected, which)
        for q in QUANTILES:
            fewest = min(len(measured), len(foreseen))
            if fewest * (1.0 - q) >= 2.0 or (q == 0.5 and fewest):
                ours, theirs = rank_quantile(measured, q), rank_quantile(foreseen, q)
                rows.append(_row(name, f"{which.upper()} P{q * 100:g} ms", 1e3 * ours, 1e3 * theirs))
    return rows


def _row(name: str, figure: str, measured: float, foreseen: float) -> dict[str, object]:
    error = foreseen / measured - 1.0 if measured else 0.0
    return {"load": name, "figure": figure, "measured": measured, "predicted": foreseen, "error": error}


def _throughput(records: list[RequestRecord], seconds: float) -> float:
    return sum(r.output_tokens for r in records if (r.ended_at or 1e9) <= seconds) / seconds


def _values(records: list[RequestRecord], which: str) -> list[float]:
    chosen = [r for r in records if r.class_name == "chat"]
    return sorted(value for r in chosen if (value := getattr(r, f"{which}_s")) is not None)


def extend(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--strategy", default="slack")
    parser.add_argument("--seconds", type=float, default=None, help="length of each run (default: 90, quick: 12)")
    parser.add_argument("--write", type=Path, help="replace the table between the markers in this file")


def main() -> None:
    """Profile, predict and run each load, and compare."""
    args = arguments("Predicted against measured.", extend)
    seconds = args.seconds or (12.0 if args.quick else 90.0)
    rows: list[dict[str, object]] = []
    with Bench(args) as bench:
        model = bench.profile(15.0 if args.quick else 60.0, args.seed)
        say(f"the profile is off by {model.mape:.1%} a step; its tail ratio is {model.tail_ratio:.2f}")
        world = FixedStepTime(model)
        scenario = Scenario(world=world, capacity=bench.executor.capacity, classes=CLASSES)
        for load in LOADS:
            bound = bound_rps(scenario, plan_of(load, 10.0, 60.0, args.seed))
            plan = plan_of(load, load.share * bound, seconds, args.seed)
            expected = predicted(bench, args.strategy, plan, args.seed, seconds + 30.0)
            say(f"{load.name}: {len(plan)} requests at {load.share * bound:.2f}/s (bound {bound:.2f}/s)")
            real = bench.run(args.strategy, {}, CLASSES, arrivals_of(plan, OUTPUT_MAX), until_s=seconds + 30.0)
            rows += compared(load.name, real, expected, seconds)
    ratios = {f"error_{name}": _median(rows, mark) for name, mark in _MARKS.items()}
    if args.write:
        _write(args.write, rows, ratios)
    report("fidelity", ratios, rows, args)


_MARKS = {"throughput": "tokens/s", "p50": "P50", "p95": "P95", "p99": "P99"}


def _median(rows: list[dict[str, object]], mark: str) -> float | None:
    errors = [abs(float(row["error"])) for row in rows if mark in str(row["figure"])]  # type: ignore[arg-type]
    return median(errors) if errors else None


def _write(path: Path, rows: list[dict[str, object]], ratios: dict[str, float | None]) -> None:
    """Replace what stands between the markers."""
    lines = ["| load | figure | measured | predicted | error |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['load']} | {row['figure']} | {row['measured']:.1f} | {row['predicted']:.1f} | {row['error']:+.1%} |"
        for row in rows
    ]
    lines += ["", *(f"- `{name}`: {'-' if v is None else format(v, '.1%')}" for name, v in ratios.items())]
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
