"""Where to measure next, and for how long: the trials of one strategy within a time that is given.

The first rate comes from the simulator. Then the load rises until the targets fail, or falls until they hold. From then
on each next rate is a quantile of the posterior of the limit, a little below its median more often than above it: what
is to be recommended must have been measured, and must hold. All trials count in the end (`holding`), so that an unlucky
one misleads the search for a step and not the answer. The search ends with the time, not with a certainty: how sure the
answer is stands beside it (`setpoint bench` searches until it is sure).
"""

from collections.abc import Sequence

import msgspec

from setpoint.planner.holding import holds, limit_of, usable
from setpoint.planner.trial import Trial

FIRST_OF_GUESS = 0.8
UP, DOWN = 1.6, 0.6
LOOK_AT = (0.5, 0.3, 0.4)
TRIALS_MAX = 12
LOW_MIN = 1.0 / 24.0


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """How the seconds of a whole run are spent.

    `profile_s` on steps; `trials` for each strategy that may win (`trials_naive` for one that is only a baseline), each
    over a window of at least `window_s`; `forecast_requests` in each simulation.
    """

    total_s: float
    profile_s: float
    trials: int
    trials_naive: int
    window_min_s: float
    forecast_requests: int


QUICK = Time(total_s=150.0, profile_s=14.0, trials=4, trials_naive=2, window_min_s=5.0, forecast_requests=120)
FULL = Time(total_s=840.0, profile_s=60.0, trials=6, trials_naive=3, window_min_s=10.0, forecast_requests=400)
WINDOW_LEAST_S, WINDOW_FLOOR_S = 3.0, 20.0
REQUESTS_LEAST = 8.0
REQUESTS_MIN = 20.0
"""What a trial should see at least, where time allows."""
START_S = 6.0
"""What the start and the end of a server take, about."""
TAIL_RATIO = 0.35
"""How long the last requests of a window take to end, relative to the window, about."""


def with_total(time: Time, total_s: float) -> Time:
    """Return the same division of another number of seconds."""
    share = total_s / time.total_s
    return msgspec.structs.replace(
        time,
        total_s=total_s,
        profile_s=time.profile_s * share,
        window_min_s=max(WINDOW_LEAST_S, min(time.window_min_s, time.window_min_s * share)),
        forecast_requests=max(30, min(time.forecast_requests, round(time.forecast_requests * share))),
    )


def window_s(left_s: float, trials_left: int, servers_left: int) -> float:
    """Return how long the next window may be when `left_s` seconds are left for that many trials and server starts."""
    return max(0.0, left_s - START_S * servers_left) / max(1, trials_left) / (1.0 + TAIL_RATIO)


def stretched(window: float, rate_rps: float, trials_left: int) -> float:
    """Return the window made longer for a low rate, at the expense of the other trials of the same strategy."""
    return min(max(window, REQUESTS_MIN / rate_rps), window * max(1, trials_left))


def floor_s(window_min_s: float, rate_rps: float) -> float:
    """Return how long even the only trial must be, time or not: to see a few requests, within reason."""
    return max(window_min_s, min(WINDOW_FLOOR_S, REQUESTS_LEAST / rate_rps))


def next_rate(trials: Sequence[Trial], guess_rps: float) -> float | None:
    """Return the rate to measure next, or `None` when nothing more is worth measuring."""
    order = usable(trials)
    if len(trials) >= TRIALS_MAX or (not order and len(trials) > 1):
        return None
    if not order:
        return guess_rps * FIRST_OF_GUESS
    rates = [trials[index].rate_rps for index in order]
    is_held = [holds(trials[index]) for index in order]
    if not any(is_held):
        lower = rates[0] * DOWN
        return lower if lower >= guess_rps * LOW_MIN else None
    if all(is_held):
        return rates[-1] * UP
    limits = limit_of(trials, around_rps=guess_rps)
    assert limits is not None
    return limits.at(LOOK_AT[len(trials) % len(LOOK_AT)])


def naive_rates(guess_rps: float, trials: int) -> list[float]:
    """Return the rates for a baseline that is measured for the curve alone: around the guess, so that batches fill."""
    if trials == 1:
        return [guess_rps]
    return [guess_rps * (0.6 + 0.8 * index / (trials - 1)) for index in range(trials)]
