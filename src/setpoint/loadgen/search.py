"""The highest rate that meets the objectives: trial results in, the next trial out. Pure: it runs on a simulator too.

1. *Floor*: one user, closed loop. Where even that misses an objective no rate meets it, and the search ends there.
2. *Bracket*: closed loop, four times the users each rung, until the throughput hardly grows or the objectives are far
   gone: an upper bound on the rate (a closed loop cannot overload, so a rung says something even beyond capacity).
3. *Trials*: open loop; each next rate is where the posterior of the crossing is widest. The first ones share their
   arrivals and prompts (common random numbers: they differ by the rate alone); the later ones, at the edge, draw their
   own, since the same unlucky sequence, asked again, would confirm itself. Overloaded trials are cut short.
4. *Confirmation*: a longer trial on a fresh seed, at a rate that the posterior holds for safe. It stands when it met
   every objective itself, in a window that was stationary, and all trials together put the crossing above it, with 90%
   probability.

A budget of time is shared out: a quarter at most for the bracket, what follows for trials that are each an eighth of
it, and three tenths kept for the confirmation. Too small a budget makes the interval wider, never the answer bolder.
Trials in which the client was not fit to measure do not count, neither as evidence nor against the budget.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from setpoint.loadgen.crossing import Crossing, Observation, crossing, least
from setpoint.metrics import Judged, Objective

Kind = Literal["closed", "open", "confirm"]

RUNG = 4
GAIN_MIN = 1.15
GONE = 0.5
HEADROOM = 1.05
FIRST_OF_BOUND = 0.65
FLOOR_OF_ONE_USER, FLOOR_OF_RUNG = 0.25, 0.15
OVERLOAD_SHARE = 3.0
OVERLOAD_VIOLATIONS = 3.0
LOOK_AT = (0.5, 0.7, 0.35)
SAFE_AT, SAFE_OF_MEDIAN = 0.05, 0.6
CONFIDENCE = 0.9
SCREENED, EXPLORED_MIN = 3, 8
FRESH = 1000
CLIMBING, RUNG_SHARE, TRIAL_SHARE, CONFIRMING = 0.25, 0.06, 0.12, 0.3
"""Shares of a budget: for the bracket, for a rung of it, for an open trial, for the confirmation."""
INVALID_MAX, STALLED_MAX = 3, 12
AGAIN_SHARE = 0.15
CONFIRMED_LATE = 2
"""A second confirmation is tried even when the time is up: without it there would be no rate to name."""


class SearchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How far to search.

    `tolerance`: half the width of the 90% interval of the crossing, relative. Trials have `screen`, `edge` and
    `confirm` violations' worth of requests: that number over the allowed share of the strictest objective.
    `budget_s`: about how long it may take (a confirmation that fails near its end may add a sixth); `None` for as long
    as it takes.
    """

    objectives: tuple[Objective, ...]
    tolerance: float = 0.05
    trials_max: int = 14
    confirmations_max: int = 4
    users_max: int = 1024
    screen: float = 10.0
    edge: float = 40.0
    confirm: float = 80.0
    seed: int = 0
    is_confirmed: bool = True
    budget_s: float | None = None


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What to run: `users` in a closed loop, or `rate` in an open one, until `requests` were due in the window.

    `seconds_max`: how long it may take in all, where time is scarce.
    """

    kind: Kind
    requests: int
    seed: int
    users: int | None = None
    rate: float | None = None
    seconds_max: float | None = None


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a trial. `requests` were due in its window, out of `sent` in all; it took `spent_s` in all.

    `is_stalled`: the client stood still meanwhile, so that the trial is invalid by no fault of its load.
    `is_stationary`: the window kept Little's law. `stopped_by`: the rule that ended it early.
    """

    trial: Trial
    completed_rps: float
    judged: tuple[Judged, ...]
    is_overloaded: bool = False
    is_valid: bool = True
    requests: int = 0
    sent: int = 0
    duration_s: float = 0.0
    mean_ttft_s: float | None = None
    mean_e2e_s: float | None = None
    faults: tuple[str, ...] = ()
    spent_s: float = 0.0
    is_stalled: bool = False
    is_stationary: bool = True
    stopped_by: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a search.

    `rate`: the highest rate that was confirmed (`None`: none was), with [`low`, `high`] the 90% interval of the
    crossing. `binding`: the objective that decides. `reason`: why there is no rate, or why it is not confirmed.
    """

    rate: float | None
    estimate: float | None
    low: float | None
    high: float | None
    binding: Objective | None
    is_confirmed: bool
    reason: str = ""


Step = Trial | Answer


def next_step(history: Sequence[TrialResult], settings: SearchSettings) -> Step:
    """Return the next trial, or the answer; depends on the results so far and on nothing else."""
    results = [result for result in history if result.is_valid]
    stalled = sum(not result.is_valid and result.is_stalled for result in history)
    if len(history) - len(results) - stalled > INVALID_MAX or stalled > STALLED_MAX:
        return _none("the measuring client was at its own limits: " + "; ".join(history[-1].faults))
    left_s = None if settings.budget_s is None else settings.budget_s - sum(result.spent_s for result in results)
    closed = [result for result in results if result.trial.kind == "closed"]
    ladder = _climb(closed, settings, left_s)
    if ladder is not None:
        return ladder
    low, high = bounds(closed, settings)
    tried = [result for result in results if result.trial.kind != "closed"]
    found = crossings_of(tried, settings, low, high)
    worst = least(list(found.values()))
    return _open_step(tried, settings, found, worst, left_s)


def _climb(closed: Sequence[TrialResult], settings: SearchSettings, left_s: float | None) -> Step | None:
    """Return the next rung of the ladder, an answer when there is nothing to search, or `None` when it is done."""
    if not closed:
        return _rung(1, settings)
    floor = [one for one in closed[0].judged if one.verdict == "missed" and one.share > one.objective.allowed]
    if floor:
        worst = min(floor, key=lambda one: one.margin)
        return _none(
            f"one user alone misses {worst.objective.text}: {worst.share:.0%} of its requests are outside",
            worst.objective,
        )
    users = (closed[-1].trial.users or 1) * RUNG
    is_late = left_s is not None and left_s < (1.0 - CLIMBING) * (settings.budget_s or 0.0)
    if _is_saturated(closed) or is_late or users > settings.users_max:
        return None
    return _rung(users, settings)


def _is_saturated(closed: Sequence[TrialResult]) -> bool:
    """Tell whether more users would hardly add throughput, or the objectives are far gone."""
    is_gone = any(one.share > GONE for one in closed[-1].judged)
    return is_gone or (len(closed) > 1 and closed[-1].completed_rps < GAIN_MIN * closed[-2].completed_rps)


def _rung(users: int, settings: SearchSettings) -> Trial:
    return Trial(
        kind="closed",
        users=users,
        requests=max(30, 3 * users),
        seed=settings.seed,
        seconds_max=_of_budget(RUNG_SHARE, settings),
    )


def _of_budget(share: float, settings: SearchSettings) -> float | None:
    return None if settings.budget_s is None else share * settings.budget_s


def bounds(closed: Sequence[TrialResult], settings: SearchSettings) -> tuple[float, float]:
    """Return rates that enclose the crossing, from the ladder; wide above when it was left before its top.

    The last rung may have been cut short: its rate is then also told from the time that its answers took (Little).
    """
    last = closed[-1]
    by_time = (last.trial.users or 1) / last.mean_e2e_s if last.mean_e2e_s and last.stopped_by else 0.0
    is_told = by_time > 0.0 or (_is_saturated(closed) and last.stopped_by is None)
    reach = HEADROOM if is_told or (last.trial.users or 1) * RUNG > settings.users_max else float(RUNG)
    high = reach * max(by_time, *(result.completed_rps for result in closed))
    within = [result.completed_rps for result in closed[1:] if all(_is_within(one) for one in result.judged)]
    low = max(FLOOR_OF_ONE_USER * closed[0].completed_rps, FLOOR_OF_RUNG * max(within, default=0.0))
    return min(low, high / RUNG), high


def _is_within(judged: Judged) -> bool:
    return judged.share <= judged.objective.allowed


def crossings_of(
    tried: Sequence[TrialResult], settings: SearchSettings, low: float, high: float
) -> dict[Objective, Crossing]:
    """Return the posterior of the crossing of each objective."""
    return {
        objective: crossing([_observed(result, objective) for result in tried], objective.allowed, low, high)
        for objective in settings.objectives
    }


def _observed(result: TrialResult, objective: Objective) -> Observation:
    judged = next(one for one in result.judged if one.objective == objective)
    rate = result.trial.rate or 0.0
    if result.is_overloaded:
        share = min(0.9, OVERLOAD_SHARE * objective.allowed)
        return Observation(rate=rate, share=share, n=max(judged.share * judged.n_test, OVERLOAD_VIOLATIONS) / share)
    return Observation(rate=rate, share=judged.share, n=judged.n_test, requests=judged.requests)


def _open_step(
    tried: Sequence[TrialResult],
    settings: SearchSettings,
    found: dict[Objective, Crossing],
    worst: Crossing,
    left_s: float | None,
) -> Step:
    confirmed = [result for result in tried if result.trial.kind == "confirm"]
    if confirmed and is_held(confirmed[-1], worst):
        return _answer(settings, found, worst, confirmed[-1])
    explored = [result for result in tried if result.trial.kind == "open"]
    if not tried:
        return _trial(FIRST_OF_BOUND * worst.rates[-1], settings.screen, 0, settings)
    budget_s = settings.budget_s or 0.0
    is_late = left_s is not None and left_s < (CONFIRMING + TRIAL_SHARE / 2.0) * budget_s
    width = (worst.at(0.95) - worst.at(0.05)) / (2.0 * worst.at(0.5))
    is_open = width > settings.tolerance or len(explored) < EXPLORED_MIN
    if not is_late and is_open and len(explored) < settings.trials_max:
        rate = worst.at(LOOK_AT[len(explored) % len(LOOK_AT)])
        share = settings.screen if len(explored) < SCREENED else settings.edge
        return _trial(rate, share, len(explored), settings)
    has_time = left_s is None or len(confirmed) < CONFIRMED_LATE or left_s > 0.0
    if settings.is_confirmed and has_time and len(confirmed) < settings.confirmations_max:
        trial = _trial(max(worst.at(SAFE_AT), SAFE_OF_MEDIAN * worst.at(0.5)), settings.confirm, 0, settings)
        seconds_max = None if left_s is None else max(left_s, AGAIN_SHARE * budget_s)
        seed = settings.seed + FRESH + len(confirmed)
        return msgspec.structs.replace(trial, kind="confirm", seed=seed, seconds_max=seconds_max)
    return _answer(settings, found, worst, None)


def is_held(result: TrialResult, worst: Crossing) -> bool:
    """Tell whether a confirmation stands: it met every objective, and all trials together put the crossing above it."""
    is_met = all(one.verdict != "missed" and _is_within(one) for one in result.judged)
    is_steady = result.is_stationary and not result.is_overloaded
    return is_met and is_steady and worst.below(result.trial.rate or 0.0) <= 1.0 - CONFIDENCE


def _trial(rate: float, violations: float, number: int, settings: SearchSettings) -> Trial:
    strictest = min(objective.allowed for objective in settings.objectives)
    seed = settings.seed + max(0, number - SCREENED + 1)
    return Trial(
        kind="open",
        rate=rate,
        requests=math.ceil(violations / strictest),
        seed=seed,
        seconds_max=_of_budget(TRIAL_SHARE, settings),
    )


def _answer(
    settings: SearchSettings, found: dict[Objective, Crossing], worst: Crossing, confirmed: TrialResult | None
) -> Answer:
    binding = min(found, key=lambda objective: found[objective].at(0.5))
    reason = ""
    if confirmed is None:
        reason = (
            "no confirmation was asked for" if not settings.is_confirmed else "no confirmation run met every objective"
        )
    return Answer(
        rate=confirmed.trial.rate if confirmed is not None else None,
        estimate=worst.at(0.5),
        low=worst.at(0.05),
        high=worst.at(0.95),
        binding=binding,
        is_confirmed=confirmed is not None,
        reason=reason,
    )


def _none(reason: str, binding: Objective | None = None) -> Answer:
    return Answer(rate=None, estimate=None, low=None, high=None, binding=binding, is_confirmed=False, reason=reason)
