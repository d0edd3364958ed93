"""Which load holds: the highest offered rate at which the targets are met, out of noisy trials.

Attainment falls as load rises, but one measured trial may contradict another. The trials of a strategy are therefore
made monotone first: pool-adjacent-violators on the scale of the targets (its logarithm), weighted by the requests of
each trial, the least-squares fit that never falls as the rate rises (Ayer et al., 1955). The same fit on the two ends
of the intervals says between which rates the truth lies.
"""

import math
from collections.abc import Sequence

import msgspec

from setpoint.metrics import sample_size_min
from setpoint.planner.trial import SCALE_MAX, Trial, scale_of

KEPT_UP_RATIO = 0.9
"""An overloaded trial in which fewer of the offered requests were completed than this did not keep up."""


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """The highest load that held, for targets multiplied by `factor`.

    `rate_rps` is the rate of the trial `trial` (an index into those given). `low_rps`: held even at the unfavourable
    end of the interval; `high_rps`: the lowest rate that failed even at the favourable end; `None` where no trial shows
    it. `crossing_rps` estimates where the targets would just be met. `is_supported`: the sample bears the percentile.
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
    values, lows, highs, weights = [], [], [], []
    for index in order:
        value, low, high = _scales(trials[index])
        values.append(_log(value))
        lows.append(_log(low))
        highs.append(_log(high))
        weights.append(float(trials[index].requests))
    limit = math.log(factor) + 1e-9
    fitted = monotone(values, weights)
    held = [place for place, value in enumerate(fitted) if value <= limit]
    if not held:
        return None
    last = held[-1]
    rates = [trials[index].rate_rps for index in order]
    sure = [rate for rate, value in zip(rates, monotone(highs, weights), strict=True) if value <= limit]
    lost = [rate for rate, value in zip(rates, monotone(lows, weights), strict=True) if value > limit]
    return Holding(
        factor=factor,
        trial=order[last],
        rate_rps=rates[last],
        low_rps=max(sure, default=None),
        high_rps=min(lost, default=None),
        crossing_rps=_crossing(rates, fitted, last, limit),
        is_supported=is_supported(trials[order[last]]),
    )


def holds(trial: Trial) -> bool:
    """Tell whether the targets were met in this trial, taken alone."""
    return trial.is_valid and _scales(trial)[0] <= 1.0 + 1e-9


def is_supported(trial: Trial) -> bool:
    """Tell whether each judged class has the requests that its percentile needs for a two-sided interval."""
    judged = [one for one in trial.classes.values() if one.scale is not None]
    return all(one.scale is not None and one.requests >= sample_size_min(one.scale.q) for one in judged)


def least_scale(trials: Sequence[Trial]) -> tuple[int, float] | None:
    """Return (index, scale) of the trial whose targets need the least loosening, by the monotone fit; or `None`."""
    order = usable(trials)
    if not order:
        return None
    fitted = monotone([_log(_scales(trials[i])[0]) for i in order], [float(trials[i].requests) for i in order])
    if fitted[0] >= _log(SCALE_MAX):
        return None
    block = [place for place, value in enumerate(fitted) if value == fitted[0]]
    return order[block[-1]], math.exp(fitted[0])


def _scales(trial: Trial) -> tuple[float, float, float]:
    """Return (value, low, high) of the scale of the worst class; a trial that did not keep up holds at no scale."""
    if trial.is_overloaded and trial.completed_rps < KEPT_UP_RATIO * trial.offered_rps:
        return SCALE_MAX, SCALE_MAX, SCALE_MAX
    worst = trial.worst()
    if worst is None or worst.scale is None:
        return 1.0, 1.0, 1.0
    value = scale_of(worst)
    low = worst.scale.low if worst.scale.low is not None else 0.0
    high = worst.scale.high if worst.scale.high is not None else math.inf
    return value, min(low, value), max(high, value)


def _log(scale: float) -> float:
    return math.log(min(max(scale, 1.0 / SCALE_MAX), SCALE_MAX))


def _crossing(rates: Sequence[float], fitted: Sequence[float], last: int, limit: float) -> float | None:
    """Return the rate at which the fitted scale passes the limit, between the last that held and the next."""
    if last + 1 >= len(rates):
        return None
    low, high = fitted[last], fitted[last + 1]
    if high >= _log(SCALE_MAX) or high <= low:
        return None
    share = max(0.0, min(1.0, (limit - low) / (high - low)))
    return rates[last] + share * (rates[last + 1] - rates[last])
