"""What the policy costs inside vLLM: microseconds a step over the stock scheduler, at 1 to 256 running sequences.

    DIR/venv/bin/python benchmarks/vllm_scheduler_cost.py --model DIR/smollm2            400 steps a point
    DIR/venv/bin/python benchmarks/vllm_scheduler_cost.py --model DIR/smollm2 --quick    100 steps a point

It runs in the Python of a vLLM that has setpoint beside it; of the model, only the configuration is read. The real
`Scheduler` and `AsyncScheduler` are driven as the engine core drives them, with made-up outputs in place of a model, so
that what is found holds for any device. Half of what runs is chat and half is batch work, 64 batch requests wait
behind, and whoever ends is replaced at once. A step's cost is all that the scheduler does for it: `schedule()`,
`update_from_output()` and the arrivals, in processor time of this thread. *Over stock* is what of it is not spent in
vLLM's own methods, in the same step; as a check, the difference to steps of a stock scheduler with as many sequences
stands beside it (their own part is milliseconds, whose noise it has). Steps of all contenders alternate, so that a slow
moment meets them alike. The policy's clock is a virtual one; `slack` may use every slot (`reserve` 0).

Ratios: `scheduler_us_256`: median microseconds of the plug-in with `slack` over stock, 256 sequences, two steps in
flight as under async scheduling; `scheduler_us_256_sync`: with one; `of_stock_256`: a whole step, in stock's.
"""

import argparse
import cProfile
import importlib
import itertools
import pstats
import time
from collections import deque
from collections.abc import Callable
from statistics import mean, median
from typing import Any, NamedTuple

from reporting import arguments, report, say
from vllm_made import BLOCK_TOKENS, CONTEXT_MAX, Made, made_request, made_scheduler

from setpoint import seeds

SIZES = (1, 16, 64, 256)
CONTENDERS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "qoserve": {"name": "qoserve"},
    "slack": {"name": "slack", "reserve": 0.0},
}
BACKLOG = 64
WARM_UP_STEPS = 60
STEP_S, TOKEN_S = 0.008, 2e-5
CLASSES = {"chat": {"ttft_ms": 2000, "tpot_ms": 100}}


class Own:
    """Counts the processor time of vLLM's own scheduler, whoever calls it; its methods are wrapped for that."""

    ns = 0
    _is_inside = False

    @classmethod
    def watch(cls) -> None:
        """Wrap the methods of `Scheduler`, which `AsyncScheduler` and the plug-in's inherit."""
        scheduler = importlib.import_module("vllm.v1.core.sched.scheduler").Scheduler
        for name in ("schedule", "update_from_output", "add_request"):
            setattr(scheduler, name, cls._timed(getattr(scheduler, name)))

    @classmethod
    def _timed(cls, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM has no types for us, as in all that follows
            assert not cls._is_inside, "none of these calls another"
            cls._is_inside = True
            start = time.thread_time_ns()
            try:
                return method(*args, **kwargs)
            finally:
                cls.ns += time.thread_time_ns() - start
                cls._is_inside = False

        return timed


class Step(NamedTuple):
    """Microseconds of one step: all of it, and what of it was not vLLM's own."""

    whole_us: float
    over_us: float


class Crowd:
    """A scheduler with `running` sequences and a backlog, `depth` steps ahead of a model that costs nothing."""

    def __init__(self, name: str, running: int, depth: int, args: argparse.Namespace) -> None:
        """Fill the scheduler called `name`."""
        self._draw = seeds.stream(args.seed, "vllm_scheduler_cost", running)
        self._names = itertools.count()
        self._made: dict[str, int] = {}
        self._is_batch: dict[str, bool] = {}
        self._flying: deque[Any] = deque()
        self._now = 100.0
        self._depth = depth
        self._spent_ns = 0
        self.computed = 0
        strategy = CONTENDERS[name]
        options = strategy and {"strategy": strategy, "default_class": "chat", "classes": CLASSES}
        blocks = running * (CONTEXT_MAX // BLOCK_TOKENS)
        self.scheduler = made_scheduler(Made(args.model, running, depth, blocks, options=options))
        pilot = getattr(self.scheduler, "setpoint", None)
        if pilot is not None:
            pilot._parts = pilot._parts._replace(clock=lambda: self._now, wall=lambda: self._now)  # noqa: SLF001
        for i in range(running):
            self._arrive(is_batch=i % 2 == 1)
        for _ in range(BACKLOG):
            self._arrive(is_batch=True)

    def step(self) -> Step:
        """Run one step; return what it cost."""
        self._spent_ns, own_ns = 0, Own.ns
        start = time.thread_time_ns()
        output = self.scheduler.schedule()
        self._spent_ns += time.thread_time_ns() - start
        self.computed = len(output.num_scheduled_tokens)
        self._flying.append((output, self._sampled(output)))
        if len(self._flying) >= self._depth:
            self._end()
        return Step(self._spent_ns / 1000, (self._spent_ns - (Own.ns - own_ns)) / 1000)

    def _end(self) -> None:
        output, sampled = self._flying.popleft()
        self._now += STEP_S + TOKEN_S * output.total_num_scheduled_tokens
        start = time.thread_time_ns()
        outputs = self.scheduler.update_from_output(output, sampled)
        self._spent_ns += time.thread_time_ns() - start
        for per_client in (outputs or {}).values():
            for one in per_client.outputs:
                if one.finish_reason is not None:
                    del self._made[one.request_id]
                    self._arrive(is_batch=self._is_batch.pop(one.request_id))

    def _sampled(self, output: Any) -> Any:  # noqa: ANN401
        names = list(output.num_scheduled_tokens)
        tokens = []
        for name in names:
            request = self.scheduler.requests[name]
            is_due = request.num_computed_tokens >= request.num_prompt_tokens + self._made[name]
            self._made[name] += is_due
            tokens.append([11] if is_due else [])
        return importlib.import_module("vllm.v1.outputs").ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=tokens,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def _arrive(self, *, is_batch: bool) -> None:
        request = self._request(f"r{next(self._names)}", is_batch=is_batch)
        self._made[request.request_id] = 0
        self._is_batch[request.request_id] = is_batch
        start = time.thread_time_ns()
        self.scheduler.add_request(request)
        self._spent_ns += time.thread_time_ns() - start

    def _request(self, name: str, *, is_batch: bool) -> Any:  # noqa: ANN401
        prompt = [self._draw.randint(10, 900) for _ in range(self._draw.randint(16, 64))]
        asked = {"setpoint.class": "batch"} if is_batch else {}
        return made_request(name, prompt, self._draw.randint(256, 768), at=self._now, asked=asked)


def costs(running: int, depth: int, steps: int, args: argparse.Namespace) -> dict[str, list[Step]]:
    """Return what each step cost, by contender."""
    crowds = {name: Crowd(name, running, depth, args) for name in CONTENDERS}
    spent: dict[str, list[Step]] = {name: [] for name in crowds}
    for i in range(WARM_UP_STEPS + steps):
        for name, crowd in crowds.items():
            step = crowd.step()
            if i >= WARM_UP_STEPS:
                spent[name].append(step)
    computed = ", ".join(f"{name} {crowd.computed}" for name, crowd in crowds.items())
    say(f"{running} sequences, {depth} in flight; in the last step {computed}")
    return spent


def row(running: int, depth: int, spent: dict[str, list[Step]]) -> dict[str, object]:
    """Return what the steps at one size cost."""
    whole = {name: median(step.whole_us for step in steps) for name, steps in spent.items()}
    found: dict[str, object] = {"running": running, "in flight": depth, "stock us": whole.pop("stock")}
    for name, whole_us in whole.items():
        over = [step.over_us for step in spent[name]]
        found[f"{name} over stock, median us"] = median(over)
        found[f"{name} over stock, mean us"] = mean(over)
        found[f"{name} less stock us"] = whole_us - float(str(found["stock us"]))
    return found


def profile(args: argparse.Namespace) -> None:
    """Print where the steps at the largest size are spent."""
    crowd = Crowd("slack", SIZES[-1], 2, args)
    for _ in range(WARM_UP_STEPS):
        crowd.step()
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(300):
        crowd.step()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats("setpoint", 40)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", action="store_true", help="print where the plug-in's steps are spent, no more")


def main() -> None:
    """Measure every size with one and with two steps in flight, and report."""
    args = arguments(__doc__ or "", _options)
    if args.model is None:
        raise SystemExit("--model: name the folder of a model that vLLM can read")
    if args.profile:
        profile(args)
        return
    Own.watch()
    rows = []
    for running, depth in itertools.product(SIZES, (1, 2)):
        rows.append(row(running, depth, costs(running, depth, 100 if args.quick else 400, args)))
    sync, ahead = rows[-2], rows[-1]
    over = float(str(ahead["slack over stock, median us"]))
    ratios = {
        "scheduler_us_256": over,
        "scheduler_us_256_sync": float(str(sync["slack over stock, median us"])),
        "of_stock_256": 1.0 + over / float(str(ahead["stock us"])),
    }
    report("vllm_scheduler_cost", ratios, rows, args)


if __name__ == "__main__":
    main()
