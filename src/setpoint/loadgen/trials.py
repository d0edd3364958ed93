"""Trials of a search on a real endpoint: carried out, cut short when they have shown enough, and judged.

A trial ends before its time when the load is plainly too much (the violations exceed what is allowed, by a sequential
test, or half of the requests are outside), when a confirmation-free trial is plainly within (the same test, over the
requests up to the first that has not ended: the slow ones must not be the ones left out), or when its backlog does not
drain. The likelihood of what was seen does not depend on the rule that stopped it, so the fit takes such trials as they
are.
"""

import math
from collections.abc import Callable, Sequence

from setpoint.loadgen.experiment import Setup, open_plan, run_closed, run_plan
from setpoint.loadgen.process import OnProgress, Snapshot
from setpoint.loadgen.run import Run
from setpoint.loadgen.search import Answer, Kind, SearchSettings, Trial, TrialResult, next_step
from setpoint.metrics import Judged, Objective, RequestRecord, Summary, judge, tightest_s, violations
from setpoint.metrics.sequential import look
from setpoint.workload import PlannedRequest

LOOK_EVERY_S = 1.0
EARLY_REQUESTS = 50
GONE_REQUESTS = 20
GONE_SHARE = 0.5
DRAIN_MIN_S = 10.0
DRAIN_OF_E2E = 6.0
DRAINS_MAX = 5.0
WINDOW_OF_E2E: dict[Kind, float] = {"open": 30.0, "confirm": 60.0}
"""A window is at least so many times as long as a request takes: a queue needs time to come to what it will be."""
FEW_LEFT, FEW_LEFT_SHARE = 2, 0.02
RUNG_OF_E2E = 4.0


class StopRule:
    """Ends a trial that has shown enough; `plan` and `is_met_enough` let it end one that is plainly within, too.

    `window_s` holds the warm-up and what follows; `drain_s` is the time that its requests then have to end.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        plan: Sequence[PlannedRequest],
        *,
        warmup_s: float,
        window_s: float,
        drain_s: float,
        is_met_enough: bool = False,
    ) -> None:
        self._objectives, self._warmup_s = objectives, warmup_s
        self._window_s, self._drain_s = window_s, drain_s
        self._due_s = {one.id: one.at_s for one in plan}
        self._inside = {one.id for one in plan if one.at_s < window_s}
        self._order = [one.id for one in plan]
        self._is_met_enough = is_met_enough and all(one.session is None for one in plan)
        self._records: list[RequestRecord] = []
        self._ended: set[int] = set()
        self._complete = 0
        self._looked_s = 0.0

    def __call__(self, snapshot: Snapshot) -> str | None:
        """Return the rule that ends the run, or `None`."""
        self._records += snapshot.records
        self._ended.update(record.id for record in snapshot.records)
        if snapshot.elapsed_s > self._window_s + self._drain_s and self._is_left_behind(snapshot.elapsed_s):
            return "overload"
        if snapshot.elapsed_s < self._looked_s + LOOK_EVERY_S:
            return None
        self._looked_s = snapshot.elapsed_s
        due = sorted(
            (record for record in self._records if self._due_s.get(record.id, 0.0) >= self._warmup_s),
            key=lambda record: record.scheduled_at,
        )
        if self._is_gone(due):
            return "missed"
        if len(due) >= EARLY_REQUESTS and look(due, self._objectives) == "missed":
            return "missed"
        return "met" if self._is_met_enough and self._is_within(due) else None

    def _is_left_behind(self, elapsed_s: float) -> bool:
        """Tell whether a backlog does not drain; a few long answers are none, unless they take far longer."""
        left = len(self._inside - self._ended)
        is_long_past = elapsed_s > self._window_s + DRAINS_MAX * self._drain_s
        return is_long_past or left > max(FEW_LEFT, FEW_LEFT_SHARE * len(self._inside))

    def _is_gone(self, due: Sequence[RequestRecord]) -> bool:
        flags = [violations(due, objective) for objective in self._objectives]
        return any(len(one) >= GONE_REQUESTS and sum(one) > GONE_SHARE * len(one) for one in flags)

    def _is_within(self, due: Sequence[RequestRecord]) -> bool:
        while self._complete < len(self._order) and self._order[self._complete] in self._ended:
            self._complete += 1
        whole = set(self._order[: self._complete])
        kept = [record for record in due if record.id in whole]
        return len(kept) >= EARLY_REQUESTS and look(kept, self._objectives) == "met"


def run_trial(
    setup: Setup, trial: Trial, objectives: Sequence[Objective], on_progress: OnProgress | None = None
) -> Run:
    """Run a trial on the endpoint until its end, or until it has shown enough."""
    return (_open if trial.users is None else _rung)(setup, trial, objectives, on_progress)


def _open(setup: Setup, trial: Trial, objectives: Sequence[Objective], on_progress: OnProgress | None) -> Run:
    rate, warmup_s = trial.rate or 1.0, setup.warmup_s
    longest = setup.trial_s_max if trial.seconds_max is None else min(setup.trial_s_max, trial.seconds_max - warmup_s)
    settled_s = WINDOW_OF_E2E[trial.kind] * setup.e2e_s
    seconds = max(setup.trial_s_min, min(longest, max(settled_s, trial.requests / rate)))
    seconds, plan, options = open_plan(setup, rate, trial.seed, warmup_s=warmup_s, seconds=seconds)
    limit_s = max((one.limit_s for one in objectives), default=0.0)
    rule = StopRule(
        objectives,
        plan,
        warmup_s=warmup_s,
        window_s=warmup_s + seconds,
        drain_s=max(DRAIN_MIN_S, DRAIN_OF_E2E * setup.e2e_s, limit_s),
        is_met_enough=trial.kind != "confirm",
    )
    return run_plan(setup, plan, options, _both(rule, on_progress), warmup_s=warmup_s)


def _rung(setup: Setup, trial: Trial, objectives: Sequence[Objective], on_progress: OnProgress | None) -> Run:
    users = trial.users or 1
    seconds = None if trial.seconds_max is None else max(trial.seconds_max, RUNG_OF_E2E * setup.e2e_s)
    rule = StopRule(objectives, (), warmup_s=0.0, window_s=math.inf, drain_s=0.0)
    return run_closed(setup, users, trial.requests, trial.seed, _both(rule, on_progress), seconds=seconds)


def _both(rule: OnProgress, on_progress: OnProgress | None) -> OnProgress:
    def look_on(snapshot: Snapshot) -> str | None:
        asked = None if on_progress is None else on_progress(snapshot)
        return rule(snapshot) or asked

    return look_on


def result_of(
    trial: Trial,
    run: Run,
    objectives: Sequence[Objective],
    *,
    spent_s: float = 0.0,
    ceiling_eps: float | None = None,
) -> TrialResult:
    """Return what a run shows about the objectives."""
    summary = run.summary()
    health = run.health(ttft_limit_s=tightest_s(objectives), ceiling_eps=ceiling_eps)
    sent = sum(1 for record in run.records if record.sent_at is not None)
    is_open = trial.users is None
    latencies = {} if summary is None else summary.overall.latencies
    judged, mean_e2e_s = _shown(run, summary, objectives)
    drowned = run.stopped_by == "overload" or summary is None or summary.overload.is_overloaded
    return TrialResult(
        trial=trial,
        completed_rps=0.0 if summary is None else summary.completed_rps,
        judged=judged,
        is_overloaded=is_open and drowned,
        is_valid=health.is_valid,
        requests=0 if summary is None else summary.requests,
        sent=sent,
        duration_s=0.0 if summary is None else summary.window_s,
        mean_ttft_s=latencies["ttft"].mean_s if latencies else None,
        mean_e2e_s=mean_e2e_s,
        faults=health.faults,
        spent_s=spent_s,
        is_stalled=health.stalled_s > 0.0,
        is_stationary=summary is not None and summary.is_stationary,
        stopped_by=run.stopped_by,
    )


def _shown(
    run: Run, summary: Summary | None, objectives: Sequence[Objective]
) -> tuple[tuple[Judged, ...], float | None]:
    """Return the objectives held against the run, and the mean time of its answers."""
    seen = _answered(run) if run.stopped_by == "missed" else []
    if len(seen) > (0 if summary is None else summary.requests):
        return tuple(judge(seen, objective) for objective in objectives), _mean_e2e_s(seen)
    if summary is None:
        return tuple(_hopeless(objective) for objective in objectives), None
    return tuple(judge(run.due(), objective) for objective in objectives), summary.overall.latencies["e2e"].mean_s


def _answered(run: Run) -> list[RequestRecord]:
    """Return all that was due after the warm-up and has ended: more than a window that ends before the first cut.

    The slow ones are missing, so that they show too few violations: enough where even these were too many.
    """
    start = run.start_at + (run.warmup_s or 0.0)
    ended = [record for record in run.records if record.scheduled_at >= start and record.error != "cancelled"]
    return sorted(ended, key=lambda record: record.scheduled_at)


def _mean_e2e_s(records: Sequence[RequestRecord]) -> float | None:
    times = [record.e2e_s for record in records if record.e2e_s is not None]
    return sum(times) / len(times) if times else None


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
