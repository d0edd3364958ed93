"""Runs against a real endpoint: from a workload and a rate, or a number of users, to what came back."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.process import OnProgress, measure_in_process
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.ray_run import measure_on_ray
from setpoint.loadgen.run import Run
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import RequestRecord
from setpoint.seeds import stream
from setpoint.workload import PlannedRequest, Steady, Traffic, at_rate, plan_traffic

TAIL_S = 60.0
SECONDS_MAX = 86_400.0
MARGIN_S = 0.5
SAMPLE_REQUESTS = 200.0
WARMUP_OF_E2E = 3.0
WARMUP_MIN_S, WARMUP_MAX_S = 1.0, 60.0
WORDS_APART = 1_000_003


class Source(Protocol):
    """Makes plans of one workload at any rate."""

    def plan(self, rps: float, seed: int, duration_s: float) -> list[PlannedRequest]:
        """Return what is due within `duration_s` at a mean rate of `rps`; the same seed gives the same requests."""
        ...


class MixSource(msgspec.Struct, frozen=True):
    """Made-up traffic."""

    mix: tuple[Traffic, ...]

    def plan(self, rps: float, seed: int, duration_s: float) -> list[PlannedRequest]:
        """Return the arrivals of the mix at a steady rate."""
        return plan_traffic(self.mix, Steady(rps), partial(stream, seed), duration_s=duration_s)


class TraceSource(msgspec.Struct, frozen=True):
    """A recorded workload, stretched to the rate; begun at a place that the seed draws, and run round in a circle."""

    trace: tuple[PlannedRequest, ...]

    def plan(self, rps: float, seed: int, duration_s: float) -> list[PlannedRequest]:
        """Return `duration_s` of the trace at a mean rate of `rps`."""
        scaled = at_rate(self.trace, rps)
        span = scaled[-1].at_s + 1.0 / rps
        first = stream(seed, "trace").randrange(len(scaled)) if seed else 0
        begun = scaled[first].at_s
        plan: list[PlannedRequest] = []
        while True:
            index = first + len(plan)
            one = scaled[index % len(scaled)]
            at_s = one.at_s + span * (index // len(scaled)) - begun
            if at_s >= duration_s:
                return plan
            plan.append(msgspec.structs.replace(one, id=len(plan), at_s=at_s))


def expected_e2e_s(source: Source, first: RequestRecord) -> float:
    """Return about how long a request of the workload takes when it is alone, told from a `first` one with few tokens.

    A prompt that is longer than the first one's is not allowed for: reading takes far less than writing.
    """
    plan = source.plan(1.0, 0, SAMPLE_REQUESTS)
    tokens = sum(one.output_tokens for one in plan) / max(1, len(plan))
    further_s = (tokens - first.output_tokens) * (first.tpot_s or 0.0)
    return (first.e2e_s or 1.0) + max(0.0, further_s)


class Carry(Protocol):
    """Carries out a plan in a way of its own: on a simulator, say."""

    def __call__(
        self,
        plan: Sequence[PlannedRequest],
        options: RunOptions,
        on_progress: OnProgress | None,
        *,
        warmup_s: float | None,
    ) -> Run:
        """Return the run; `on_progress` may end it."""
        ...


class Setup(msgspec.Struct, kw_only=True):
    """An endpoint with a workload. `e2e_s`: a mean end-to-end time seen so far, which sets the warm-up.

    `runs` counts those that were begun: each draws words of its own even where arrivals and lengths are the same, since
    a prefix cache would answer the same prompts faster the second time. `raw`: where records are kept as they come,
    a folder for each run. `carry`: what stands in for the endpoint, when something does.
    """

    target: EndpointTarget
    source: Source
    lexicon: Lexicon
    workers: int = 1
    is_on_ray: bool = False
    e2e_s: float = 1.0
    trial_s_max: float = 120.0
    trial_s_min: float = 8.0
    runs: int = 0
    raw: Path | None = None
    carry: Carry | None = None

    @property
    def warmup_s(self) -> float:
        """Three times as long as a request takes."""
        return min(WARMUP_MAX_S, max(WARMUP_MIN_S, WARMUP_OF_E2E * self.e2e_s))

    @property
    def directory(self) -> Path | None:
        """Where the next run keeps its records."""
        return None if self.raw is None else self.raw / f"{self.runs:03d}"


def run_plan(
    setup: Setup,
    plan: Sequence[PlannedRequest],
    options: RunOptions,
    on_progress: OnProgress | None = None,
    *,
    warmup_s: float | None = None,
) -> Run:
    """Carry out a plan where the setup says: in processes of this machine, or on a Ray cluster."""
    directory = setup.directory
    options = msgspec.structs.replace(options, seed=options.seed + WORDS_APART * setup.runs)
    setup.runs += 1
    if setup.carry is not None:
        return setup.carry(plan, options, on_progress, warmup_s=warmup_s)
    if setup.is_on_ray:
        return measure_on_ray(
            setup.target, plan, options, lexicon=setup.lexicon, warmup_s=warmup_s, workers=setup.workers
        )
    return measure_in_process(
        setup.target,
        plan,
        options,
        lexicon=setup.lexicon,
        warmup_s=warmup_s,
        workers=setup.workers,
        on_progress=on_progress,
        directory=directory,
    )


def open_plan(
    setup: Setup, rps: float, seed: int, *, warmup_s: float, seconds: float
) -> tuple[float, list[PlannedRequest], RunOptions]:
    """Return what is due at `rps` requests a second in a window of `seconds` after a warm-up, and how to carry it out.

    The load goes on after the window. A window in which nothing is due is made as much longer as it takes; the seconds
    that it has come first.
    """
    plan = setup.source.plan(rps, seed, warmup_s + seconds + TAIL_S)
    if not due_between(plan, warmup_s, warmup_s + seconds):
        seconds = filled_s(partial(setup.source.plan, rps, seed), warmup_s=warmup_s, seconds=seconds)
        plan = setup.source.plan(rps, seed, warmup_s + seconds + TAIL_S)
    return seconds, plan, RunOptions(window_s=warmup_s + seconds, seed=seed)


def due_between(plan: Sequence[PlannedRequest], start_s: float, end_s: float) -> list[float]:
    """Return the instants from `start_s` to `end_s` at which something is due, as far as known beforehand.

    Later turns of a conversation are due when the turn before has ended: they are left out.
    """
    return sorted(one.at_s for one in plan if not one.turn and start_s <= one.at_s < end_s)


def filled_s(
    plan_until: Callable[[float], Sequence[PlannedRequest]], *, warmup_s: float, seconds: float, count: int = 1
) -> float:
    """Return `seconds`, or as many more as it takes until `count` requests are due after the warm-up; a day at most.

    A recorded workload pauses: slowed down to a tenth of its rate, ten times as long. `plan_until` plans so far.
    """
    horizon_s = seconds
    while horizon_s < SECONDS_MAX:
        horizon_s = min(SECONDS_MAX, 2.0 * horizon_s)
        due = due_between(plan_until(warmup_s + horizon_s), warmup_s, warmup_s + horizon_s)
        if len(due) >= count:
            return max(seconds, math.ceil(due[count - 1] - warmup_s + MARGIN_S))
    return seconds


def run_closed(
    setup: Setup,
    users: int,
    requests: int,
    seed: int,
    on_progress: OnProgress | None = None,
    *,
    seconds: float | None = None,
) -> Run:
    """Keep `users` requests in flight until `requests` have been sent beside a warm-up, or for `seconds` when given."""
    plan = setup.source.plan(1.0, seed, float(requests + 2 * users) * 1.5 + 10.0)[: requests + 2 * users]
    stagger_s = min(5.0, setup.e2e_s)
    options = RunOptions(concurrency=users, stagger_s=stagger_s, seed=seed, window_s=seconds)
    return run_plan(setup, plan, options, on_progress)
