"""Which load holds: the highest offered rate at which the targets are met, out of noisy trials.

Attainment falls as load rises, but one measured trial may contradict another. The trials of a strategy are therefore
made monotone first: pool-adjacent-violators on the scale of the targets (its logarithm), weighted by the requests of
each trial, the least-squares fit that never falls as the rate rises (Ayer et al., 1955). How far the true limit may lie
from the highest rate that held is read off the posterior of all trials at once (`setpoint.loadgen.crossing`).
"""

import math
from collections.abc import Sequence

import msgspec

from setpoint.loadgen.crossing import Crossing, Observation, crossing
from setpoint.metrics import sample_size_min
from setpoint.planner.trial import SCALE_MAX, ClassTrial, Trial

KEPT_UP_RATIO = 0.9
"""An overloaded trial in which fewer of the offered requests were completed than this did not keep up."""
OVERLOAD_REQUESTS_MIN = 20
"""Fewer requests than this show no trend: a handful that straddles the end of the window looks like a backlog."""
FLOODED_SHARE, FLOODED_N = 0.3, 40.0
"""A growing backlog counts as this share of misses at least, in so many requests."""
REACH = 3.0


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """The highest load that held, for targets multiplied by `factor`.

    `rate_rps` is the rate of the trial `trial` (an index into those given). `crossing_rps` estimates where the targets
    would just be met, and [`low_rps`, `high_rps`] holds that rate with 90 % probability; what no trial has failed at is
    `None`, and so is everything for looser targets. `is_supported`: the sample bears the percentile.
    """

    factor: float
    trial: int
    rate_rps: float
    low_rps: float | None
    high_rps: float | None
    crossing_rps: float | None
    is_supported: bool


def monotone(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the non-decreasing sequence nearest to `values` in weighted least squares."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            before = blocks.pop()
            whole = before[1] + block[1]
            block = ((before[0] * before[1] + block[0] * block[1]) / whole, whole, before[2] + block[2])
        blocks.append(block)
    return [value for value, _, count in blocks for _ in range(count)]


def usable(trials: Sequence[Trial]) -> list[int]:
    """Return the indices of the trials that say something about the engine, by rising rate."""
    kept = [index for index, one in enumerate(trials) if one.is_valid and one.requests > 0]
    return sorted(kept, key=lambda index: (trials[index].rate_rps, index))


def highest(trials: Sequence[Trial], *, factor: float = 1.0) -> Holding | None:
    """Return the highest load of one strategy that held for targets times `factor`, or `None` when none did."""
    order = usable(trials)
    fitted = monotone([_log(_scale(trials[i])) for i in order], [float(trials[i].requests) for i in order])
    limit = math.log(factor) + 1e-9
    held = [place for place, value in enumerate(fitted) if value <= limit]
    if not held:
        return None
    last = held[-1]
    rate = trials[order[last]].rate_rps
    limits = limit_of(trials) if factor <= 1.0 else None
    has_failed = any(value > limit for value in fitted)
    return Holding(
        factor=factor,
        trial=order[last],
        rate_rps=rate,
        low_rps=None if limits is None else min(rate, limits.at(0.05)),
        high_rps=None if limits is None or not has_failed else max(rate, limits.at(0.95)),
        crossing_rps=None if limits is None or not has_failed else max(rate, limits.at(0.5)),
        is_supported=is_supported(trials[order[last]]),
    )


def limit_of(trials: Sequence[Trial], *, around_rps: float | None = None) -> Crossing | None:
    """Return the distribution of the rate at which the targets would just be met, or `None` without any trial.

    Nothing is known beforehand but that it lies within a factor of `REACH` of the rates tried (and of `around_rps`).
    """
    order = usable(trials)
    judged = [(trials[i], worst) for i in order if (worst := trials[i].worst()) is not None]
    rates = [trial.rate_rps for trial, _ in judged] + ([] if around_rps is None else [around_rps])
    if not rates:
        return None
    allowed = [1.0 - worst.scale.q for _, worst in judged if worst.scale is not None]
    seen = [one for trial, worst in judged if (one := _observed(trial, worst)) is not None]
    return crossing(seen, min(allowed, default=0.05), min(rates) / REACH, max(rates) * REACH)


def _observed(trial: Trial, worst: ClassTrial) -> Observation | None:
    share = worst.attainment
    if share is None:
        return None
    missed = 1.0 - share.value
    if is_flooded(trial):
        return Observation(rate=trial.rate_rps, share=max(missed, FLOODED_SHARE), n=max(share.n_eff, FLOODED_N))
    return Observation(rate=trial.rate_rps, share=missed, n=share.n_eff)


def holds(trial: Trial) -> bool:
    """Tell whether the targets were met in this trial, taken alone."""
    return trial.is_valid and _scale(trial) <= 1.0 + 1e-9


def is_flooded(trial: Trial) -> bool:
    """Tell whether a backlog grew for as long as the trial went on."""
    is_behind = trial.completed_rps < KEPT_UP_RATIO * trial.offered_rps
    return trial.is_overloaded and is_behind and trial.requests >= OVERLOAD_REQUESTS_MIN


def is_supported(trial: Trial) -> bool:
    """Tell whether each judged class has the requests that its percentile needs for a two-sided interval."""
    judged = [one for one in trial.classes.values() if one.scale is not None]
    return all(one.scale is not None and one.requests >= sample_size_min(one.scale.q) for one in judged)


def least_scale(trials: Sequence[Trial]) -> tuple[int, float] | None:
    """Return (index, scale) of the trial whose targets need the least loosening, by the monotone fit; or `None`."""
    order = usable(trials)
    if not order:
        return None
    fitted = monotone([_log(_scale(trials[i])) for i in order], [float(trials[i].requests) for i in order])
    if fitted[0] >= _log(SCALE_MAX):
        return None
    block = [place for place, value in enumerate(fitted) if value == fitted[0]]
    return order[block[-1]], math.exp(fitted[0])


def _scale(trial: Trial) -> float:
    """Return the scale of the worst class; a trial with a growing backlog holds at no scale."""
    return SCALE_MAX if is_flooded(trial) else trial.scale


def _log(scale: float) -> float:
    return math.log(min(max(scale, 1.0 / SCALE_MAX), SCALE_MAX))
