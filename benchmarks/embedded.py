"""The embedded engine as the benchmarks drive it: by the clock, in one thread, without HTTP.

`Bench.run` is the embedded engine without its threads and its HTTP: the replica machine of the core over the real
executor, in one loop that reads the clock. Requests arrive at their planned instants, also while a step runs (the
machine is then told before the step's end, as the engine's own driver does). Output lengths are planned, and the end
of text is ignored, so that each strategy does the same work. The policy never sees these lengths.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import msgspec
from reporting import say

from setpoint import seeds
from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.engines.api import Generation, Sampling
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.native import open_native
from setpoint.engines.llamacpp.quantize import quantized_model
from setpoint.engines.llamacpp.starter import resolve_model
from setpoint.metrics import RequestRecord
from setpoint.model import (
    Admit,
    AnyCommand,
    AnyEvent,
    Arrived,
    Capacity,
    Finish,
    Preempt,
    Reject,
    Request,
    RunStep,
    ServiceClass,
    StepFinished,
    StepPlan,
)
from setpoint.planner.profile import Profiler
from setpoint.sim.replica import Arrival
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import StepTimeModel
from setpoint.units import Instant, Seconds, Tokens
from setpoint.workload import PlannedRequest

VOCABULARY = range(100, 8000)
BACKLOG = 64
"""Batch requests that are kept waiting or running where a backlog is meant to have no end."""
BACKLOG_FIRST_ID = 1_000_000

Options = Mapping[str, float | bool | str]
Journal = Callable[[AnyEvent, list[AnyCommand]], None]


@dataclass
class Run:
    """What one run of the engine came to; instants from its start."""

    records: list[RequestRecord]
    seconds: float
    steps: int = 0
    busy_s: float = 0.0
    output_tokens: dict[str, int] = field(default_factory=dict)
    prompt_tokens: dict[str, int] = field(default_factory=dict)
    preemptions: int = 0
    model_error: float = 0.0

    def tokens_per_s(self, class_name: str) -> float:
        """Return prompt and output tokens computed for the class per second."""
        return (self.output_tokens.get(class_name, 0) + self.prompt_tokens.get(class_name, 0)) / self.seconds


class Bench:
    """The embedded engine, profiled and ready; use it in a `with` statement."""

    def __init__(
        self, args: argparse.Namespace, *, slots: int = 32, kv_tokens: int = 32768, step_tokens_max: int = 512
    ) -> None:
        """Load the model of `args`, quantized as it says."""
        native = open_native(args.provider)
        path = resolve_model(args.model)
        if args.quantize != "none":
            path = quantized_model(path, args.quantize)
        self.provider = native.provider
        self.model = Model(path, native=native)
        self.executor = LlamaExecutor(
            self.model, slots=slots, kv_tokens=kv_tokens, step_tokens_max=step_tokens_max, prefixes=0, prefix_tokens=0
        )
        self.step_time: StepTimeModel | None = None
        self._chance = seeds.stream(args.seed, "prompts")
        self._next_id = 0

    def __enter__(self) -> Self:
        """Return the bench itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Free the engine."""
        self.executor.close()
        self.model.close()

    def profile(self, budget_s: float, seed: int = 1) -> StepTimeModel:
        """Profile the engine for about `budget_s` seconds and keep the fitted step-time model."""
        say(f"profiling the engine ({self.provider}) for about {budget_s:.0f} s")
        profiler = Profiler(self.executor, time.perf_counter, seeds.stream(seed, "profile"), key=self.provider)
        self.step_time = profiler.run(budget_s).model
        return self.step_time

    def prompt(self, tokens: int) -> tuple[int, ...]:
        """Return a prompt of random tokens; no two share a prefix worth keeping."""
        return tuple(self._chance.choices(VOCABULARY, k=tokens))

    def run(  # noqa: PLR0913 - the axes of an experiment
        self,
        strategy: str,
        options: Options,
        classes: Mapping[str, ServiceClass],
        arrivals: Iterable[Arrival],
        *,
        until_s: float | None = None,
        backlog: Sequence[Arrival] = (),
        slots: int | None = None,
        journal: Journal | None = None,
    ) -> Run:
        """Serve `arrivals` (instants from the start) under a strategy; stop at `until_s` or when all have ended.

        `slots` bounds the sequences that run at once. With a `backlog`, `BACKLOG` requests made after those in it,
        again and again, are always there. `journal` is given each event with the commands that answered it.
        """
        assert self.step_time is not None, "profile first"
        step_time = LearnedStepTime(self.step_time)
        capacity = with_slots(self.executor.capacity, slots)
        machine = ReplicaMachine(make_strategy(strategy, **options), classes, capacity, step_time)
        loop = _Loop(self, machine, arrivals, backlog, journal)
        run = loop.run(until_s)
        run.model_error = step_time.mape
        return run

    def run_one_by_one(self, classes: Mapping[str, ServiceClass], arrivals: Sequence[Arrival]) -> list[RequestRecord]:
        """Serve each of `arrivals` alone on an idle engine, whatever its instant; return the records."""
        records = []
        for arrival in arrivals:
            request = msgspec.structs.replace(arrival.request, arrived_at=Instant(0.0))
            records += self.run("continuous", {}, classes, [Arrival(request, arrival.output_tokens)]).records
        return records


def with_slots(capacity: Capacity, slots: int | None) -> Capacity:
    """Return `capacity` with its slots limited to `slots`, or as it is."""
    return capacity if slots is None else msgspec.structs.replace(capacity, slots=min(slots, capacity.slots))


class _Loop:
    """One run: the machine, the executor, and the clock between them."""

    def __init__(
        self,
        bench: Bench,
        machine: ReplicaMachine,
        arrivals: Iterable[Arrival],
        backlog: Sequence[Arrival],
        journal: Journal | None,
    ) -> None:
        self._bench = bench
        self._journal = journal
        self._executor = bench.executor
        self._machine = machine
        self._arrivals = iter(arrivals)
        self._next = next(self._arrivals, None)
        self._backlog = backlog
        self._backlog_made = 0
        self._backlog_alive: set[int] = set()
        self._goal: dict[int, int] = {}
        self._alive: dict[int, RequestRecord] = {}
        self._result = Run([], 0.0)
        self._plan: StepPlan | None = None
        self._start = time.perf_counter()

    def run(self, until_s: float | None) -> Run:
        result = self._result
        self._top_up(0.0)
        while until_s is None or self._now() < until_s:
            self._take_in(self._now())
            if self._plan is not None:
                self._step(self._plan)
            elif self._next is None and not self._alive:
                break
            elif self._next is not None:
                time.sleep(max(0.0, min(0.001, self._next.request.arrived_at - self._now())))
        for request_id in list(self._alive):
            self._executor.release(request_id)
        result.seconds = self._now()
        result.records += self._alive.values()
        return result

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _take_in(self, now: float) -> None:
        while self._next is not None and self._next.request.arrived_at <= now:
            self._arrive(self._next, self._next.request.arrived_at)
            self._next = next(self._arrivals, None)

    def _top_up(self, now: float) -> None:
        while self._backlog and len(self._backlog_alive) < BACKLOG:
            model = self._backlog[self._backlog_made % len(self._backlog)]
            request_id = BACKLOG_FIRST_ID + self._backlog_made
            request = msgspec.structs.replace(model.request, id=request_id, arrived_at=Instant(now))
            self._backlog_made += 1
            self._backlog_alive.add(request_id)
            self._arrive(Arrival(request, model.output_tokens), now)

    def _arrive(self, arrival: Arrival, at: float) -> None:
        request = arrival.request
        record = RequestRecord(
            id=request.id,
            class_name=request.class_name,
            scheduled_at=request.arrived_at,
            prompt_tokens=request.prompt_tokens,
            token_source="plan",  # noqa: S106 - tokens of text
        )
        self._alive[request.id] = record
        self._goal[request.id] = arrival.output_tokens
        generation = Generation(
            prompt=self._bench.prompt(request.prompt_tokens),
            class_name=request.class_name,
            output_tokens_max=request.output_tokens_max,
            sampling=Sampling(temperature=0.0, is_eos_ignored=True),
        )
        self._executor.prepare(request.id, generation)
        self._tell(Arrived(at=Instant(max(at, self._machine.state.now)), request=request))

    def _step(self, plan: StepPlan) -> None:
        started = self._now()
        output = self._executor.run(plan.decodes, plan.prefills)
        now = self._now()
        stopped = []
        for sampled in output.tokens:
            record = self._alive[sampled.request_id]
            record.output_tokens += 1
            if record.first_token_at is None:
                record.first_token_at = now
            self._count(self._result.output_tokens, record.class_name, 1)
            if record.output_tokens >= self._goal[sampled.request_id]:
                stopped.append(sampled.request_id)
        for request_id, tokens in plan.prefills:
            self._count(self._result.prompt_tokens, self._alive[request_id].class_name, tokens)
        self._result.steps += 1
        self._result.busy_s += now - started
        self._plan = None
        self._take_in(now)
        at = max(self._now(), self._machine.state.now)
        seconds = (Seconds(max(at - started, 1e-6)),)
        self._tell(StepFinished(at=Instant(at), step_id=plan.step_id, step_seconds=seconds, stopped=tuple(stopped)))
        self._top_up(max(self._now(), at))

    def _count(self, counts: dict[str, int], class_name: str, tokens: int) -> None:
        counts[class_name] = counts.get(class_name, 0) + tokens

    def _tell(self, event: AnyEvent) -> None:
        commands = self._machine.handle(event)
        if self._journal is not None:
            self._journal(event, commands)
        for command in commands:
            self._carry_out(command)

    def _carry_out(self, command: AnyCommand) -> None:
        if isinstance(command, Admit):
            self._executor.admit(command.request_id, command.slot)
        elif isinstance(command, Preempt):
            self._executor.preempt(command.request_id)
            self._result.preemptions += 1
        elif isinstance(command, RunStep):
            self._plan = command.plan
        elif isinstance(command, Finish | Reject):
            self._executor.release(command.request_id)
            self._backlog_alive.discard(command.request_id)
            record = self._alive.pop(command.request_id)
            record.ended_at = self._now()
            if isinstance(command, Reject):
                record.error = "expired" if command.reason == "expired" else "rejected"
            self._result.records.append(record)


def arrivals_of(plan: Iterable[PlannedRequest], output_tokens_max: int) -> list[Arrival]:
    """Return planned requests as arrivals; what a policy is told of an output is the upper limit alone."""
    return [
        Arrival(
            Request(
                id=one.id,
                class_name=one.class_name,
                arrived_at=Instant(one.at_s),
                prompt_tokens=Tokens(one.prompt_tokens),
                output_tokens_max=Tokens(output_tokens_max),
            ),
            min(one.output_tokens, output_tokens_max),
        )
        for one in plan
    ]
