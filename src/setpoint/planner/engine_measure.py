"""One evaluation of a setting on a running server: the busiest load first, then the load generator's own SLO search.

The busiest load is a closed loop of more users than the server is meant for. It finds at once what crashes or hangs,
and what the server carries at most: a setting that carries less than another one holds is not worth a search. After it
come one user alone, and open-loop trials where the crossing most likely lies (`setpoint.loadgen.search`), whose ladder
these two rungs are. A longer evaluation of the same setting goes on with the trials that there are.
"""

import math
import time
from collections.abc import Callable, Sequence

import msgspec

from setpoint.errors import EngineError
from setpoint.loadgen.crossing import Crossing, least
from setpoint.loadgen.experiment import Setup, run_closed
from setpoint.loadgen.process import Snapshot
from setpoint.loadgen.run import Run
from setpoint.loadgen.search import (
    CONFIRMING,
    TRIAL_SHARE,
    Answer,
    SearchSettings,
    Trial,
    TrialResult,
    bounds,
    crossings_of,
    next_step,
)
from setpoint.loadgen.trials import result_of, run_trial
from setpoint.metrics import Objective, RequestRecord, tightest_s
from setpoint.metrics.objective import Limit, Metric
from setpoint.model import ServiceClass
from setpoint.planner.engine_search import How

USED_SHARE = 1.0 - CONFIRMING - TRIAL_SHARE / 2.0
"""Of a budget of the search, what goes to trials where no confirmation is asked for."""
BURST_SHARE, BURST_MIN_S, BURST_MAX_S = 0.2, 5.0, 90.0
"""The burst ends when enough of its requests have; what gives no token for the longest of these hangs."""
ENDED_MIN, FLOOR_REQUESTS, FLOOR_TRIES = 4, 8, 3
OUTRUN_AT = 1.1
"""A burst is short: its throughput must lie below what another holds by this factor before it counts as outrun."""
RAMP = 0.25
FAR = 0.1
"""What a single user that misses the targets is worth, beside a rate that holds: enough to tell bad from worse."""
CLIENT_SHARE, LATE_MIN_S = 0.1, 0.01
E2ES_OF_EVALUATION = 15.0


class Bench(msgspec.Struct, kw_only=True):
    """What is the same for all evaluations. `users`: of the busiest load. `output_mean`: tokens of an answer."""

    objectives: tuple[Objective, ...]
    users: int
    output_mean: float
    seed: int
    tick: Callable[[], None]
    runs: int = 0

    def settings(self, budget_s: float, *, seed: int, is_confirmed: bool) -> SearchSettings:
        """Return how the search is to go on until `budget_s` have been spent in all."""
        return SearchSettings(
            objectives=self.objectives,
            users_max=self.users,
            seed=seed,
            is_confirmed=is_confirmed,
            budget_s=budget_s,
            screen=4.0,
            edge=10.0,
            confirm=20.0,
        )


class Outcome(msgspec.Struct, kw_only=True):
    """What an evaluation came to: all trials of the setting, and what they show together (terms: `Evaluation`)."""

    trials: list[TrialResult]
    how: How
    score_rps: float = 0.0
    low_rps: float | None = None
    high_rps: float | None = None
    words: str = ""


def objectives_of(classes: Sequence[ServiceClass]) -> tuple[Objective, ...]:
    """Return the targets of the classes as objectives, batch work left out: all of a class at its percentile."""
    found = []
    for one in classes:
        limits: list[tuple[Metric, float | None]] = [
            ("ttft", one.slo.ttft_s),
            ("tpot", one.slo.tpot_s),
            ("e2e", one.slo.e2e_s),
        ]
        parts = tuple(Limit(metric, limit) for metric, limit in limits if limit is not None)
        share = one.slo.percentile
        if one.is_harvest or not parts:
            continue
        if len(parts) > 1:
            found.append(Objective(class_name=one.name, metric="joint", quantile=share, parts=parts))
        else:
            only = parts[0]
            found.append(Objective(class_name=one.name, metric=only.metric, quantile=share, limit_s=only.limit_s))
    return tuple(found)


def evaluate(bench: Bench, setup: Setup, trials: Sequence[TrialResult], *, seconds: float, rival_rps: float) -> Outcome:
    """Go on with a setting that has `trials` for about `seconds`; `rival_rps` is what the best so far surely holds.

    Raises KeyboardInterrupt when Ctrl-C ended a run, with nothing of that run kept.
    """
    found = list(trials)
    if not any(one.trial.kind == "closed" for one in found):
        burst = _burst(bench, setup, max(BURST_MIN_S, BURST_SHARE * seconds))
        if burst is None:
            return Outcome(trials=found, how="hung", words="no token under the busiest load")
        if burst.completed_rps * OUTRUN_AT < rival_rps:
            words = f"carries {burst.completed_rps:.2f}/s at most"
            return Outcome(trials=[burst], how="outrun", score_rps=burst.completed_rps, words=words)
        floor = _floor(bench, setup)
        if not floor.is_valid:
            return Outcome(trials=[burst], how="unfit", words="; ".join(floor.faults))
        found = [floor, burst]
    setup.e2e_s = found[0].mean_e2e_s or setup.e2e_s
    spent = sum(one.spent_s for one in found if one.is_valid)
    budget_s = (spent + max(seconds, E2ES_OF_EVALUATION * setup.e2e_s)) / USED_SHARE
    return search(bench, setup, found, bench.settings(budget_s, seed=bench.seed, is_confirmed=False))[0]


def search(
    bench: Bench, setup: Setup, trials: Sequence[TrialResult], settings: SearchSettings
) -> tuple[Outcome, Answer]:
    """Carry out trials until the search has its answer."""
    found = list(trials)
    while True:
        step = next_step(found, settings)
        if isinstance(step, Answer):
            return outcome_of(found, step), step
        found.append(_carry(bench, setup, step))


def outcome_of(trials: list[TrialResult], answer: Answer) -> Outcome:
    """Return what the answer of a search says of the setting."""
    if answer.estimate is not None:
        outcome = Outcome(trials=trials, how="measured", score_rps=answer.estimate)
        outcome.low_rps, outcome.high_rps = answer.low, answer.high
        return outcome
    floor = next((one for one in trials if one.trial.users == 1 and one.is_valid), None)
    if floor is None or answer.binding is None:
        return Outcome(trials=trials, how="unfit", words=answer.reason)
    missed = max(one.share for one in floor.judged)
    score = FAR * floor.completed_rps * max(0.05, 1.0 - missed)
    return Outcome(trials=trials, how="measured", score_rps=score, words=answer.reason)


def held_of(trials: Sequence[TrialResult], settings: SearchSettings) -> Crossing | None:
    """Return the distribution of the rate at which the targets are just met, or `None` without open-loop trials."""
    valid = [one for one in trials if one.is_valid]
    closed = [one for one in valid if one.trial.kind == "closed"]
    tried = [one for one in valid if one.trial.kind != "closed"]
    if not closed or not tried:
        return None
    return least(list(crossings_of(tried, settings, *bounds(closed, settings)).values()))


def _carry(bench: Bench, setup: Setup, trial: Trial) -> TrialResult:
    begun_at = time.monotonic()
    setup.runs = bench.runs
    run = run_trial(setup, trial, bench.objectives, lambda _: bench.tick())
    bench.runs += 1
    if run.is_partial:
        raise KeyboardInterrupt
    result = result_of(trial, run, bench.objectives, spent_s=time.monotonic() - begun_at)
    faults = _client_faults(run, bench.objectives)
    return msgspec.structs.replace(result, is_valid=not faults, faults=faults)


def _client_faults(run: Run, objectives: Sequence[Objective]) -> tuple[str, ...]:
    """Return what makes the client unfit on a machine that it shares with the engine: the rule of `setpoint tune`."""
    limit = tightest_s(objectives) or 0.2
    health = run.health(ttft_limit_s=limit)
    allowed = max(LATE_MIN_S, CLIENT_SHARE * limit)
    checks = (
        (health.dispatch_lag_p99_s > allowed, f"sends were {health.dispatch_lag_p99_s * 1e3:.0f} ms late at P99"),
        (health.stalled_s > 0.0, f"the client stood still for {health.stalled_s:.1f} s"),
    )
    return tuple(words for is_broken, words in checks if is_broken)


def _floor(bench: Bench, setup: Setup) -> TrialResult:
    """Return what one user alone sees, asked again when the client was not fit to tell."""
    trial = Trial(kind="closed", users=1, requests=FLOOR_REQUESTS, seed=bench.seed)
    for _ in range(FLOOR_TRIES - 1):
        result = _carry(bench, setup, trial)
        if result.is_valid:
            return result
    return _carry(bench, setup, trial)


def _burst(bench: Bench, setup: Setup, seconds: float) -> TrialResult | None:
    """Return what the busiest load gave, by the tokens that came: few requests may end in so short a time."""
    begun_at = time.monotonic()
    setup.runs = bench.runs

    enough = max(ENDED_MIN, bench.users // 2)

    def watch(snapshot: Snapshot) -> str | None:
        bench.tick()
        is_enough = snapshot.elapsed_s > seconds and snapshot.ended >= enough
        return "time" if is_enough or snapshot.elapsed_s > max(BURST_MAX_S, seconds) else None

    run = run_closed(setup, bench.users, 50 * bench.users, bench.seed, watch)
    bench.runs += 1
    if run.is_partial:
        raise KeyboardInterrupt
    events = [at for one in run.records for at in one.event_at]
    if not events:
        return None
    first, end = min(events), max(events)
    start = first + RAMP * (end - first)
    tokens = sum(_tokens_within(one, start, end) for one in run.records)
    if tokens <= 0.0:
        return None
    trial = Trial(kind="closed", users=bench.users, requests=len(run.records), seed=bench.seed)
    result = result_of(trial, run, bench.objectives, spent_s=time.monotonic() - begun_at)
    rate = tokens / (end - start) / bench.output_mean
    return msgspec.structs.replace(result, completed_rps=rate, is_valid=True, faults=(), mean_e2e_s=None)


def _tokens_within(record: RequestRecord, start: float, end: float) -> float:
    """Return the tokens that came within the window; those of a request that was cut off count one an event."""
    an_event = 1.0 if record.is_failed else record.output_tokens / max(1, len(record.event_at))
    return an_event * sum(start <= at < end for at in record.event_at)


def gain(tuned: Crossing, before: Crossing) -> tuple[float, float, float]:
    """Return the ratio of two held rates: its median and its 90% interval, from all pairs of both distributions."""
    pairs = sorted(
        (math.log(a / b), p * q)
        for a, p in zip(tuned.rates, tuned.masses, strict=True)
        if p > 1e-6  # noqa: PLR2004 - what does not count
        for b, q in zip(before.rates, before.masses, strict=True)
        if q > 1e-6  # noqa: PLR2004 - as above
    )
    if not pairs:
        raise EngineError("nothing was measured that could be compared")
    whole = sum(mass for _, mass in pairs)
    found, reached, wanted = [], 0.0, [0.05, 0.5, 0.95]
    for ratio, mass in pairs:
        reached += mass / whole
        while wanted and reached >= wanted[0] - 1e-9:
            found.append(math.exp(ratio))
            wanted.pop(0)
    found += [math.exp(pairs[-1][0])] * len(wanted)
    return found[1], found[0], found[2]
