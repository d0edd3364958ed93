"""Trials against a real endpoint: from a rate or a number of users to a run, and from a run to what it shows.

`find_max_rate` and `sweep` ask a `carry_out` function for results, so that a simulator can stand in for the endpoint.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import msgspec

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.process import OnProgress, Snapshot, measure_in_process
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.ray_run import measure_on_ray
from setpoint.loadgen.run import Run
from setpoint.loadgen.search import Answer, SearchSettings, Trial, TrialResult, next_step
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import Judged, Objective, RequestRecord, judge, overload
from setpoint.metrics.sequential import look
from setpoint.seeds import stream
from setpoint.workload import PlannedRequest, Steady, Traffic, at_rate, plan_traffic

TAIL_S = 60.0
WARMUP_OF_E2E = 3.0
WARMUP_MIN_S, WARMUP_MAX_S = 1.0, 60.0
DRAIN_S = 30.0
LOOK_EVERY_S = 1.0
EARLY_REQUESTS = 100


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


class Setup(msgspec.Struct, kw_only=True):
    """An endpoint with a workload. `e2e_s`: a mean end-to-end time seen so far, which sets the warm-up."""

    target: EndpointTarget
    source: Source
    lexicon: Lexicon
    workers: int = 1
    is_on_ray: bool = False
    e2e_s: float = 1.0
    trial_s_max: float = 120.0
    trial_s_min: float = 8.0

    @property
    def warmup_s(self) -> float:
        """Three times as long as a request takes."""
        return min(WARMUP_MAX_S, max(WARMUP_MIN_S, WARMUP_OF_E2E * self.e2e_s))


def measure_for(
    setup: Setup,
    plan: Sequence[PlannedRequest],
    options: RunOptions,
    on_progress: OnProgress | None = None,
    *,
    warmup_s: float | None = None,
) -> Run:
    """Carry out a plan where the setup says: in processes of this machine, or on a Ray cluster."""
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
    )


def run_open(
    setup: Setup, rps: float, seconds: float, seed: int, on_progress: OnProgress | None = None, *, warmup_s: float
) -> Run:
    """Offer `rps` requests a second; a window of `seconds` follows the warm-up, and load goes on until it drained."""
    window_s = warmup_s + seconds
    plan = setup.source.plan(rps, seed, window_s + TAIL_S)
    options = RunOptions(window_s=window_s, seed=seed)
    return measure_for(setup, plan, options, on_progress, warmup_s=warmup_s)


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
    return measure_for(setup, plan, options, on_progress)


class StopRule:
    """Ends a trial that has shown enough: a growing backlog with the objectives missed, or one that never drains."""

    def __init__(self, objectives: Sequence[Objective], warmup_s: float, window_s: float) -> None:
        self._objectives, self._warmup_s, self._window_s = objectives, warmup_s, window_s
        self._records: list[RequestRecord] = []
        self._looked_s = 0.0

    def __call__(self, snapshot: Snapshot) -> str | None:
        """Return the rule that ends the run, or `None`."""
        self._records += snapshot.records
        if snapshot.elapsed_s > 2.0 * self._window_s + DRAIN_S:
            return "overload"
        if snapshot.elapsed_s < self._looked_s + LOOK_EVERY_S or len(self._records) < EARLY_REQUESTS:
            return None
        self._looked_s = snapshot.elapsed_s
        ordered = sorted(self._records, key=lambda record: record.scheduled_at)
        start = ordered[0].scheduled_at + self._warmup_s
        due = [record for record in ordered if record.scheduled_at >= start]
        if len(due) < EARLY_REQUESTS:
            return None
        if snapshot.elapsed_s < self._window_s and overload(ordered, start, due[-1].scheduled_at).is_overloaded:
            return "overload" if look(due, self._objectives) == "missed" else None
        return None


def carry_out(
    setup: Setup, trial: Trial, objectives: Sequence[Objective], on_progress: OnProgress | None = None
) -> TrialResult:
    """Run a trial on the endpoint and judge it; updates what `setup` knows of the end-to-end time."""
    if trial.users is not None:
        run = run_closed(setup, trial.users, trial.requests, trial.seed, on_progress)
    else:
        rate = trial.rate or 1.0
        seconds = min(setup.trial_s_max, max(setup.trial_s_min, trial.requests / rate))
        rule = StopRule(objectives, setup.warmup_s, setup.warmup_s + seconds)
        run = run_open(setup, rate, seconds, trial.seed, _both(rule, on_progress), warmup_s=setup.warmup_s)
    result = result_of(trial, run, objectives)
    if trial.kind == "closed" and trial.users == 1 and result.mean_e2e_s:
        setup.e2e_s = result.mean_e2e_s
    if run.is_partial:
        raise KeyboardInterrupt
    return result


def _both(rule: OnProgress, on_progress: OnProgress | None) -> OnProgress:
    def look_on(snapshot: Snapshot) -> str | None:
        asked = None if on_progress is None else on_progress(snapshot)
        return rule(snapshot) or asked

    return look_on


def result_of(trial: Trial, run: Run, objectives: Sequence[Objective]) -> TrialResult:
    """Return what a run shows about the objectives."""
    summary = run.summary()
    limit = min((one.limit_s for one in objectives if one.metric == "ttft"), default=None)
    health = run.health(ttft_limit_s=limit)
    window = run.window()
    due = sorted(
        (r for r in run.records if window is not None and window[0] <= r.scheduled_at < window[1]),
        key=lambda record: record.scheduled_at,
    )
    sent = sum(1 for record in run.records if record.sent_at is not None)
    is_open = trial.users is None
    is_overloaded = is_open and (run.stopped_by == "overload" or summary is None or summary.overload.is_overloaded)
    if summary is None:
        judged: tuple[Judged, ...] = tuple(_hopeless(objective) for objective in objectives)
        return TrialResult(
            trial=trial, completed_rps=0.0, judged=judged, is_overloaded=is_overloaded, sent=sent, faults=health.faults
        )
    return TrialResult(
        trial=trial,
        completed_rps=summary.completed_rps,
        judged=tuple(judge(due, objective) for objective in objectives),
        is_overloaded=is_overloaded,
        is_valid=health.is_valid,
        requests=summary.requests,
        sent=sent,
        duration_s=summary.window_s,
        mean_ttft_s=summary.overall.latencies["ttft"].mean_s,
        mean_e2e_s=summary.overall.latencies["e2e"].mean_s,
        faults=health.faults,
    )


def _hopeless(objective: Objective) -> Judged:
    return Judged(
        objective=objective, verdict="missed", requests=0, share=1.0, low=0.0, high=1.0, n_test=60.0, margin=-99.0
    )


def find_max_rate(
    carry: Callable[[Trial], TrialResult],
    settings: SearchSettings,
    on_result: Callable[[TrialResult], None] | None = None,
) -> tuple[Answer, list[TrialResult]]:
    """Search with `carry`, which carries out a trial on whatever is measured; returns the answer and all results."""
    history: list[TrialResult] = []
    while True:
        step = next_step(history, settings)
        if isinstance(step, Answer):
            return step, history
        history.append(carry(step))
        if on_result is not None:
            on_result(history[-1])
