"""Predicted against measured: an engine profiled once, then six loads, each predicted before it is run.

    python benchmarks/fidelity.py               the embedded engine, about 13 minutes on an otherwise idle machine
    python benchmarks/fidelity.py --quick       runs of a few seconds: the spread is then that of the sample
    python benchmarks/fidelity.py --write FILE  also replace the tables between the markers in FILE (docs/validation.md)

With `SETPOINT_VLLM_COMMAND` (the `vllm` command of an environment that has it) and `SETPOINT_VLLM_MODEL` (the folder of
a small model that it reads) the same follows for vLLM, profiled over HTTP and with its scheduler modelled by
`continuous`: another 17 minutes; `--quick` leaves it out. `--only embedded` or `--only vllm` runs one of them.

The embedded engine is the real one (replica machine over llama.cpp, one thread, without HTTP); its prediction is the
same machine on a virtual clock, with the step times of the profile and their measured scatter. Arrivals and lengths are
the same on both sides, so that what differs is the engine. The profile is made of steps of its own, none of the loads.
The knee is run twice: how far the engine is from itself is the floor of every error. The journal of the knee is
replayed (see fidelity_replay). A run in which this machine stood still for over a second is run again, twice at most.

Ratios: medians over the loads of the relative error, `error_throughput`, `error_p50`, `error_p95`, `error_p99` (TTFT
and TPOT together), with `vllm_` before them for vLLM; `floor_...` of the engine against itself; `replay_identical`
(1 or 0), `replay_step_error`, `replay_order`.
"""

import argparse
import os
import sys
from pathlib import Path

from embedded import Bench, Run, arrivals_of
from fidelity_loads import CLASSES, LOADS, Row, compared, errors, plan_of
from fidelity_replay import Recorder, Replayed, replayed
from reporting import arguments, machine, report, say
from stillness import Stillness

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.metrics import RequestRecord
from setpoint.seeds import stream
from setpoint.sim.jitter import JitteredStepTime
from setpoint.sim.replica import Arrival, ReplicaSimulator
from setpoint.sim.scenario import Scenario
from setpoint.steptime.learner import FixedStepTime, LearnedStepTime
from setpoint.steptime.model import StepTimeModel

OUTPUT_MAX = 256
STILL_MAX_S = 1.0
TRIES = 3
AGAIN = "knee"
MARKERS = "<!-- fidelity {}: begin -->", "<!-- fidelity {}: end -->"
"""Between which the tables of an engine stand in a page."""


def predicted(
    bench: Bench, strategy: str, arrivals: list[Arrival], seed: int, journal: Recorder
) -> list[RequestRecord]:
    """Return the records that the simulator expects."""
    assert bench.step_time is not None
    world = JitteredStepTime(bench.step_time, stream(seed, "jitter"))
    machine = ReplicaMachine(
        make_strategy(strategy), CLASSES, bench.executor.capacity, LearnedStepTime(bench.step_time)
    )
    return list(ReplicaSimulator(machine, world, journal=journal).run(arrivals))


def measured(
    bench: Bench, strategy: str, arrivals: list[Arrival], until_s: float, name: str
) -> tuple[Run, Recorder] | None:
    """Run the load on the engine, again where the machine stood still; `None` when it never held."""
    for _ in range(TRIES):
        journal = Recorder()
        with Stillness() as still:
            run = bench.run(strategy, {}, CLASSES, arrivals, until_s=until_s, journal=journal)
        if still.longest_s <= STILL_MAX_S:
            return run, journal
        say(f"{name}: the machine stood still for {still.longest_s:.1f} s")
    return None


def profiled(bench: Bench, budget_s: float, seed: int) -> StepTimeModel:
    """Profile the engine, again where the machine stood still."""
    for _ in range(TRIES - 1):
        with Stillness() as still:
            model = bench.profile(budget_s, seed)
        if still.longest_s <= STILL_MAX_S:
            return model
        say(f"profile: the machine stood still for {still.longest_s:.1f} s")
    return bench.profile(budget_s, seed)


def embedded(args: argparse.Namespace, rows: list[Row]) -> tuple[Replayed | None, list[str]]:
    """Profile, predict and run each load on the embedded engine; return the replay, and what is to be said."""
    seconds = args.seconds or (2.0 if args.quick else 90.0)
    found: Replayed | None = None
    words = []
    with Bench(args) as bench:
        model = profiled(bench, 6.0 if args.quick else 60.0, args.seed)
        words.append(f"profile: off by {model.mape:.1%} a step, tail ratio {model.tail_ratio:.2f}")
        scenario = Scenario(world=FixedStepTime(model), capacity=bench.executor.capacity, classes=CLASSES)
        for load in LOADS:
            plan, rate = plan_of(load, scenario, seconds, args.seed)
            arrivals, foreseen = arrivals_of(plan, OUTPUT_MAX), Recorder()
            expected = predicted(bench, args.strategy, arrivals, args.seed, foreseen)
            say(f"{load.name}: {len(plan)} requests at {rate:.2f}/s")
            limit_s = plan[-1].at_s + (4.0 if args.quick else 2.0) * seconds
            real = measured(bench, args.strategy, arrivals, limit_s, load.name)
            if real is None:
                words.append(f"{load.name}: the machine stood still during the run, which does not count")
                continue
            run, journal = real
            rows += compared("embedded", load.name, run.records, expected)
            if load.name == AGAIN:
                found = replayed(
                    (journal, run.records),
                    (foreseen, expected),
                    strategy=args.strategy,
                    classes=CLASSES,
                    capacity=bench.executor.capacity,
                    model=model,
                )
                again = measured(bench, args.strategy, arrivals, limit_s, f"{load.name}, again")
                rows += compared("floor", f"{load.name}, again", run.records, again[0].records) if again else []
    return found, words


def extend(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--strategy", default="slack")
    parser.add_argument("--seconds", type=float, default=None, help="length of each run (default: 90, quick: 2)")
    parser.add_argument("--only", choices=("embedded", "vllm"), help="run one of the engines")
    parser.add_argument("--write", type=Path, help="replace the tables between the markers in this file")


def main() -> None:
    """Compare on each engine, write each as soon as it is done, and report."""
    args = arguments("Predicted against measured.", extend)
    has_vllm = bool(os.environ.get("SETPOINT_VLLM_COMMAND"))
    if args.only == "vllm" and not has_vllm:
        raise SystemExit("SETPOINT_VLLM_COMMAND names no vllm command, and SETPOINT_VLLM_MODEL no model")
    rows: list[Row] = []
    words: list[str] = []
    found: Replayed | None = None
    if args.only != "vllm":
        found, words = embedded(args, rows)
        _write(args.write, "embedded", rows, words, found)
    if args.only == "vllm" or (has_vllm and not (args.only or args.quick)):
        from fidelity_vllm import vllm  # noqa: PLC0415 - only where it is asked for

        told: list[str] = []
        try:
            vllm(args, rows, told)
        finally:
            # what was measured before it failed, if it did, is worth its minutes
            _write(args.write, "vllm", rows, told, None)
        words += told
    elif not args.only and not args.quick:
        words.append("vLLM is left out: SETPOINT_VLLM_COMMAND names no vllm command")
    for text in words:
        say(text)
    report("fidelity", _ratios(rows, found), rows, args)


def _ratios(rows: list[Row], found: Replayed | None) -> dict[str, float | None]:
    engines = {str(row["engine"]) for row in rows}
    ratios: dict[str, float | None] = {}
    for engine, prefix in (("embedded", ""), ("floor", "floor_"), ("vllm", "vllm_")):
        if engine in engines:
            ratios |= {f"{prefix}error_{name}": value for name, value in errors(rows, engine).items()}
    if found is not None:
        ratios["replay_identical"] = float(found.is_identical)
        ratios["replay_step_error"] = found.step_error_p50
        ratios["replay_order"] = found.order_ratio
    return ratios


def _write(path: Path | None, engine: str, rows: list[Row], words: list[str], found: Replayed | None) -> None:
    """Replace what stands between the markers of an engine in the file, if there is one and anything was measured."""
    own = [row for row in rows if row["engine"] in {engine, "floor" if engine == "embedded" else engine}]
    if path is None or not own:
        return
    where = ", ".join(f"{key} {value}" for key, value in machine().items())
    lines = [f"`{' '.join(['python', *sys.argv])}`; {where}.", ""]
    lines += ["| load | figure | measured | predicted | error |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['load']} | {row['figure']} | {row['measured']:.1f} | {row['predicted']:.1f} | "
        f"{'-' if row['error'] is None else format(row['error'], '+.1%')} |"
        for row in own
    ]
    if engine == "embedded":
        lines += [
            "",
            f"In the rows of `{AGAIN}, again` the engine is held against itself: `predicted` is its second run.",
        ]
    lines += ["", *(f"- `{k}`: {'-' if v is None else format(v, '.1%')}" for k, v in _ratios(own, found).items())]
    lines += [f"- {text}" for text in words]
    if found is not None:
        lines.append(f"- {found.words()}")
    text = path.read_text(encoding="utf-8")
    begin, end = MARKERS[0].format(engine), MARKERS[1].format(engine)
    before, mark, rest = text.partition(begin)
    _, other, after = rest.partition(end)
    if not mark or not other:
        raise SystemExit(f"{path} has no markers {begin} and {end} to write between")
    path.write_text(before + begin + "\n" + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
