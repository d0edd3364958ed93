"""What the scheduler itself costs: microseconds a step, on the core alone, at 16 to 1,024 running sequences.

    python benchmarks/core_cost.py            all strategies, 400 steps a point
    python benchmarks/core_cost.py --quick    100 steps a point, under a minute
    python benchmarks/core_cost.py --core     without the engine, so without `of_step_16`

Half of what runs is interactive (class `standard`) and half is batch work, 64 batch requests wait behind them, and
whoever ends is replaced at once; the step-time model learns from each step, as it does when serving. A step's cost is
all that the machine does between the end of one step and the plan of the next, arrivals included, in processor time of
its thread.

Ratios: `of_step_16`: cost of `slack` at 16 sequences over the measured step of the embedded engine that decodes 16
sequences; `ms_1024`: milliseconds of `slack` at 1,024 sequences.
"""

import argparse
import time
from statistics import median, quantiles

from embedded import Bench
from reporting import arguments, report, say

from setpoint import seeds
from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.engines.api import Generation, Sampling
from setpoint.model import (
    PRESETS,
    AnyCommand,
    AnyEvent,
    Arrived,
    Capacity,
    Finish,
    Reject,
    Request,
    StepFinished,
)
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Blocks, Instant, Seconds, Tokens

SIZES = (16, 64, 256, 1024)
STRATEGIES = ("static", "continuous", "priority", "qoserve", "slack")
STEP_TOKENS = 2048
BACKLOG = 64
ENGINE_STEPS = 60
FULL = 0.85
"""Share of the slots that must run before costs count; `slack` keeps a tenth of them from batch work."""
FILLING_MAX = 1000
"""Steps within which they do."""


class Crowd:
    """A machine with `sequences` running and a backlog, whose every reply is timed."""

    def __init__(self, strategy: str, sequences: int, seed: int) -> None:
        self._draw = seeds.stream(seed, "core_cost", strategy, sequences)
        capacity = Capacity(
            slots=sequences,
            kv_blocks=Blocks(sequences * 64),
            block_tokens=Tokens(16),
            step_tokens_max=Tokens(STEP_TOKENS),
            context_tokens_max=Tokens(1024),
        )
        step_time = LearnedStepTime(
            linear(key="core_cost", step_s=0.008, decode_s=1e-5, context_s=1e-9, prefill_s=2e-5, work_s=1e-9)
        )
        options = {"static": {"batch": sequences}}.get(strategy, {})
        if strategy in {"continuous", "priority"}:
            options = {"token_budget": STEP_TOKENS}
        self.machine = ReplicaMachine(make_strategy(strategy, **options), PRESETS, capacity, step_time)
        self._now = 0.0
        self._requests = 0
        self._cost_ns = 0
        for i in range(sequences + BACKLOG):
            self._arrive("standard" if i % 2 and i < sequences else "batch")

    def cost_us(self, steps: int) -> list[float]:
        """Return the microseconds of each of `steps` steps, once everyone runs."""
        slots = self.machine.ledger.capacity.slots
        for _ in range(FILLING_MAX):
            if self.machine.ledger.running >= FULL * slots:
                break
            self._step()
        assert self.machine.ledger.running >= FULL * slots, "the crowd does not get in"
        costs = []
        for _ in range(steps):
            self._cost_ns = 0
            self._step()
            costs.append(self._cost_ns / 1000)
        return costs

    def _step(self) -> None:
        plan = self.machine.step_in_flight
        assert plan is not None
        seconds = Seconds(plan.predicted_s * self._draw.uniform(0.95, 1.1))
        self._now += seconds
        classes = {i: s.service_class.name for i, s in self.machine.ledger.sequences.items()}
        ended = self._tell(StepFinished(at=Instant(self._now), step_id=plan.step_id, step_seconds=(seconds,)))
        for command in ended:
            if isinstance(command, Finish | Reject):
                self._arrive(classes[command.request_id])

    def _arrive(self, class_name: str) -> None:
        request = Request(
            id=self._requests,
            class_name=class_name,
            arrived_at=Instant(self._now),
            prompt_tokens=Tokens(self._draw.randint(16, 64)),
            output_tokens_max=Tokens(self._draw.randint(256, 768)),
        )
        self._requests += 1
        self._tell(Arrived(at=Instant(self._now), request=request))

    def _tell(self, event: AnyEvent) -> list[AnyCommand]:
        start = time.thread_time_ns()
        commands = self.machine.handle(event)
        self._cost_ns += time.thread_time_ns() - start
        return commands


def engine_step_s(args: argparse.Namespace, sequences: int) -> float:
    """Return the median seconds of a step of the embedded engine that decodes `sequences` sequences."""
    with Bench(args, slots=sequences) as bench:
        executor = bench.executor
        sampling = Sampling(temperature=0.0, is_eos_ignored=True)
        for i in range(sequences):
            generation = Generation(
                prompt=bench.prompt(64), class_name="", output_tokens_max=Tokens(ENGINE_STEPS + 8), sampling=sampling
            )
            executor.prepare(i, generation)
            executor.admit(i, i)
            executor.run([], [(i, 64)])
        durations = []
        for _ in range(ENGINE_STEPS):
            start = time.perf_counter()
            executor.run(range(sequences), [])
            durations.append(time.perf_counter() - start)
        for i in range(sequences):
            executor.release(i)
    return median(durations)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--core", action="store_true", help="leave the engine out")


def main() -> None:
    """Measure every strategy at every size, then the engine's step."""
    args = arguments("What the scheduler costs a step.", _options)
    steps = 100 if args.quick else 400
    rows: list[dict[str, object]] = []
    means: dict[tuple[str, int], float] = {}
    for sequences in SIZES:
        row: dict[str, object] = {"sequences": sequences}
        for strategy in STRATEGIES:
            say(f"{strategy} at {sequences} sequences")
            costs = Crowd(strategy, sequences, args.seed).cost_us(steps)
            means[strategy, sequences] = sum(costs) / len(costs)
            row[f"{strategy} us"] = means[strategy, sequences]
            if strategy == "slack":
                row["slack P50"] = median(costs)
                row["slack P99"] = quantiles(costs, n=100)[98]
        rows.append(row)
    ratios: dict[str, float | None] = {"of_step_16": None, "ms_1024": means["slack", 1024] / 1000}
    if not args.core:
        step_s = engine_step_s(args, 16)
        rows[0]["engine's step us"] = step_s * 1e6
        ratios["of_step_16"] = means["slack", 16] / 1e6 / step_s
    report("core_cost", ratios, rows, args)


if __name__ == "__main__":
    main()
