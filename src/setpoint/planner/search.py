"""Where to measure next, and for how long: the trials of one strategy within a time that is given.

The first rate comes from the simulator. Then the load rises until the targets fail, or falls until they hold, and the
bracket is halved (geometrically) until it is narrow. All trials count in the end (`holding`), so that one unlucky trial
misleads the search for a step and not the answer. Once the bracket is narrow, what time is left goes to the rate that
is to be recommended, with fresh draws.
"""

from collections.abc import Sequence

import msgspec

from setpoint.planner.holding import highest, usable
from setpoint.planner.trial import Trial

FIRST_OF_GUESS = 0.8
UP, DOWN = 1.35, 0.55
BRACKET_MIN = 1.12
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


QUICK = Time(total_s=155.0, profile_s=14.0, trials=4, trials_naive=2, window_min_s=5.0, forecast_requests=120)
FULL = Time(total_s=840.0, profile_s=60.0, trials=6, trials_naive=3, window_min_s=10.0, forecast_requests=400)
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
        window_min_s=min(time.window_min_s, time.window_min_s * share),
        forecast_requests=max(30, min(time.forecast_requests, round(time.forecast_requests * share))),
    )


def window_s(left_s: float, trials_left: int, servers_left: int) -> float:
    """Return how long the next window may be when `left_s` seconds are left for that many trials and server starts."""
    return max(0.0, left_s - START_S * servers_left) / max(1, trials_left) / (1.0 + TAIL_RATIO)


def next_rate(trials: Sequence[Trial], guess_rps: float) -> float | None:
    """Return the rate to measure next, or `None` when nothing more is worth measuring."""
    order = usable(trials)
    if len(trials) >= TRIALS_MAX:
        return None
    if not order:
        return guess_rps * FIRST_OF_GUESS if len(trials) < 2 else None  # noqa: PLR2004 - two invalid ones suffice
    rates = [trials[index].rate_rps for index in order]
    held = highest(trials)
    if held is None:
        lower = rates[0] * DOWN
        return lower if lower >= guess_rps * LOW_MIN else None
    above = [rate for rate in rates if rate > held.rate_rps]
    if not above:
        return held.rate_rps * UP
    if above[0] / held.rate_rps > BRACKET_MIN:
        return float((above[0] * held.rate_rps) ** 0.5)
    return held.rate_rps


def naive_rates(guess_rps: float, trials: int) -> list[float]:
    """Return the rates for a baseline that is measured for the curve alone: from a third of the guess to all of it."""
    if trials == 1:
        return [guess_rps * 0.6]
    return [guess_rps * (0.35 + 0.65 * index / (trials - 1)) for index in range(trials)]
