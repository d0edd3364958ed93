"""Claim of the field: larger batches give 2-4x the throughput, and raise each request's latency.

    python benchmarks/batching_gain.py [--quick] [--json]

Decodes 1, 2, 4 ... 32 sequences together and prints tokens per second and the time of a step. Beside it, in the same
minutes and in turn, a bare loop of `llama_decode` over the same context with nothing of Setpoint around it: what the
executor, the sampling and the core's planning add.

Ratios: `gain_16`, throughput of 16 sequences over that of one; `of_bare_16`, the engine's throughput over the bare
loop's at 16 sequences.
"""

import time
from statistics import median

from bare import Bare
from embedded import Bench
from reporting import arguments, report

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.engines.api import Generation, Sampling
from setpoint.model import PRESETS, Admit, Arrived, Request, RunStep, StepFinished, StepPlan
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Instant, Seconds, Tokens

WIDTHS = (1, 2, 4, 8, 16, 32)
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 512
STEPS_MAX = 120


class Engine:
    """`width` sequences that decode for ever under `slack`: machine, executor and sampling, as the server runs them."""

    def __init__(self, bench: Bench, width: int) -> None:
        """Prefill all of them."""
        step_time = LearnedStepTime(linear(key="", step_s=0.005, decode_s=0.001, prefill_s=0.001))
        executor = bench.executor
        self._machine = ReplicaMachine(make_strategy("slack"), PRESETS, executor.capacity, step_time)
        self._bench = bench
        self.ids = tuple(range(width))
        self._at = 0.0
        self._plan: StepPlan | None = None
        for request_id in self.ids:
            request = Request(
                id=request_id,
                class_name="batch",
                arrived_at=Instant(0.0),
                prompt_tokens=Tokens(PROMPT_TOKENS),
                output_tokens_max=Tokens(OUTPUT_TOKENS),
            )
            generation = Generation(
                prompt=bench.prompt(PROMPT_TOKENS),
                class_name="batch",
                output_tokens_max=request.output_tokens_max,
                sampling=Sampling(temperature=0.0, is_eos_ignored=True),
            )
            executor.prepare(request_id, generation)
            self._tell(Arrived(at=Instant(0.0), request=request))
        while len(self._machine.ledger.decoding) < width:
            self.step()

    def step(self) -> float:
        """Run one step; return its seconds, planning included."""
        start = time.perf_counter()
        assert self._plan is not None
        plan = self._plan
        self._bench.executor.run(plan.decodes, plan.prefills)
        # the machine is told a short step, so that it never holds a sequence back for the sake of an arrival
        self._at += 1e-4
        self._tell(StepFinished(at=Instant(self._at), step_id=plan.step_id, step_seconds=(Seconds(1e-4),)))
        return time.perf_counter() - start

    def close(self) -> None:
        """Release all sequences."""
        for request_id in self.ids:
            self._bench.executor.release(request_id)

    def _tell(self, event: Arrived | StepFinished) -> None:
        for command in self._machine.handle(event):
            if isinstance(command, RunStep):
                self._plan = command.plan
            elif isinstance(command, Admit):
                self._bench.executor.admit(command.request_id, command.slot)


def measure(bench: Bench, width: int, steps: int) -> tuple[float, float]:
    """Return the median seconds of a step of the engine and of the bare loop, run in turn."""
    engine, kv = Engine(bench, width), bench.executor.kv
    is_shared = kv.layout == "shared"
    bare = Bare(bench, range(width), PROMPT_TOKENS, slots=width, cells_each=kv.sequence_tokens, is_shared=is_shared)
    pairs = []
    for step in range(steps):
        sides = (engine.step, bare.step) if step % 2 else (bare.step, engine.step)
        first, second = sides[0](), sides[1]()
        pairs.append((second, first) if step % 2 == 0 else (first, second))
    engine.close()
    bare.close()
    kept = pairs[2:]
    return median(engine_s for engine_s, _ in kept), median(bare_s for _, bare_s in kept)


def main() -> None:
    """Measure all widths and report."""
    args = arguments(__doc__ or "")
    steps = 24 if args.quick else STEPS_MAX
    rows = []
    rates: dict[int, tuple[float, float]] = {}
    with Bench(args) as bench:
        for width in WIDTHS:
            engine_s, bare_s = measure(bench, width, steps)
            rates[width] = (width / engine_s, width / bare_s)
            rows.append(
                {
                    "sequences": width,
                    "engine tokens/s": width / engine_s,
                    "bare tokens/s": width / bare_s,
                    "gain": rates[width][0] / rates[1][0],
                    "ms a token": engine_s * 1e3,
                    "engine / bare": bare_s / engine_s,
                }
            )
    ratios = {"gain_16": rates[16][0] / rates[1][0], "of_bare_16": rates[16][0] / rates[16][1]}
    report("batching_gain", ratios, rows, args)


if __name__ == "__main__":
    main()
