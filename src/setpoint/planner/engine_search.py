"""Which setting to measure next, and for how long: evaluations in, the next one out. Pure: it runs on any landscape.

The defaults come first, since everything is compared with them. Then half of the time goes to short evaluations of new
settings, each where a Gaussian process (`surrogate`) expects the greatest improvement. The best third of them is
measured twice as long, and the best two of those twice as long again (successive halving; Jamieson and Talwalkar,
2016): a setting goes on with the trials it has, so that no second is spent twice. Whatever is told apart by its
measurements is told apart by the process, which knows how noisy each was.

A setting that crashes or hangs is not tried again, and neither is a value that alone can have been the reason.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from setpoint.planner.knobs import DEFAULTS, Engine, Setting
from setpoint.planner.surrogate import Seen, Surrogate
from setpoint.seeds import stream

How = Literal["measured", "outrun", "crashed", "hung", "unfit"]
"""`outrun`: its busiest throughput is below what another holds. `unfit`: the measuring client could not be believed."""

SHARES = (0.5, 0.3, 0.2)
"""Of the search time: short evaluations, those twice as long, those four times as long."""
LENGTHS = (1.0, 1.7, 3.0)
"""What an evaluation is taken to last beside the first one, until one of its rung was seen."""
KEPT = 3
FINALISTS = 2
NOISE_MIN, NOISE_FAILED, NOISE_OUTRUN = 0.06, 0.5, 0.3
FAILED_LOSS, OUTRUN_LOSS = 0.7, 0.2
RATE_MIN = 1e-3
CANDIDATES = 300
TOO_LITTLE = 0.5
_90 = 3.29


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one evaluation of a setting, at `rung` 0, 1 or 2; it took `seconds` in all.

    `score_rps`: the rate at which the targets are just met, with its 90% interval [`low_rps`, `high_rps`]; for `outrun`
    what it carries at most; below any rate when even one user misses (see `engine_measure`).
    """

    setting: Setting
    rung: int
    seconds: float
    how: How
    score_rps: float = 0.0
    low_rps: float | None = None
    high_rps: float | None = None
    words: str = ""

    @property
    def is_failed(self) -> bool:
        """Whether the engine did not survive it."""
        return self.how in {"crashed", "hung"}


class Evaluate(msgspec.Struct, frozen=True, kw_only=True):
    """What to do next: evaluate the setting at that rung."""

    setting: Setting
    rung: int


def next_evaluation(
    history: Sequence[Evaluation],
    engine: Engine,
    *,
    search_s: float,
    seed: int,
    is_possible: Callable[[Setting], bool] = lambda _: True,
) -> Evaluate | None:
    """Return what to evaluate next, or `None` when the time is up or nothing is left to try."""
    spent = sum(one.seconds for one in history)
    if not history:
        return Evaluate(setting=DEFAULTS, rung=0)
    if _has_time(history, 0, SHARES[0] * search_s - spent):
        fresh = propose(history, engine, seed, is_possible)
        if fresh is not None:
            return Evaluate(setting=fresh, rung=0)
    until = 0.0
    for rung, share in enumerate(SHARES):
        until += share * search_s
        if rung == 0 or not _has_time(history, rung, until - spent):
            continue
        again = _promoted(history, engine, rung)
        if again is not None:
            return Evaluate(setting=again, rung=rung)
    return None


def _has_time(history: Sequence[Evaluation], rung: int, left_s: float) -> bool:
    """Tell whether the better part of an evaluation fits into what is left."""
    alike = [one.seconds for one in history if one.rung == rung and not one.is_failed and one.how != "outrun"]
    cost = sum(alike) / len(alike) if alike else history[0].seconds * LENGTHS[rung]
    return left_s >= TOO_LITTLE * cost


def _promoted(history: Sequence[Evaluation], engine: Engine, rung: int) -> Setting | None:
    """Return the best setting that has reached the rung below and not this one, within the number that may."""
    last = latest(history)
    order = [one for one, _ in ranking(history, engine) if one.rung >= rung - 1]
    tried = sum(1 for one in last.values() if not one.is_failed)
    most = max(FINALISTS, math.ceil(tried / KEPT)) if rung == 1 else FINALISTS
    return next((one.setting for one in order[:most] if one.rung < rung), None)


def latest(history: Iterable[Evaluation]) -> dict[Setting, Evaluation]:
    """Return the last evaluation of each setting: it knows all trials of those before."""
    return {one.setting: one for one in history}


def ranking(history: Sequence[Evaluation], engine: Engine) -> list[tuple[Evaluation, float]]:
    """Return what was measured with its expected score, the best first; the defaults go first among equals."""
    last = [one for one in latest(history).values() if one.how == "measured"]
    surrogate = Surrogate(engine, seen_of(history))
    scored = [(one, math.exp(surrogate.guess(one.setting).mean)) for one in last]
    return sorted(scored, key=lambda pair: (-pair[1], pair[0].setting != DEFAULTS, pair[0].setting))


def pick(history: Sequence[Evaluation], engine: Engine) -> Setting:
    """Return the setting to recommend: the best by all that was measured, of those measured longest."""
    ranked = ranking(history, engine)
    top = max((one.rung for one, _ in ranked), default=0)
    return next((one.setting for one, _ in ranked if one.rung == top), DEFAULTS)


def seen_of(history: Sequence[Evaluation]) -> list[Seen]:
    """Return what the process is told of each setting; a crash counts as far below the worst that was measured."""
    last = latest(history).values()
    values = [math.log(max(RATE_MIN, one.score_rps)) for one in last if one.how == "measured"]
    worst = min(values, default=0.0)
    return [_seen(one, worst) for one in last if one.how != "unfit"]


def _seen(one: Evaluation, worst: float) -> Seen:
    value = math.log(max(RATE_MIN, one.score_rps))
    if one.is_failed:
        return Seen(setting=one.setting, value=worst - FAILED_LOSS, noise=NOISE_FAILED)
    if one.how == "outrun":
        return Seen(setting=one.setting, value=value - OUTRUN_LOSS, noise=NOISE_OUTRUN)
    noise = NOISE_OUTRUN
    if one.low_rps and one.high_rps:
        noise = max(NOISE_MIN, math.log(one.high_rps / one.low_rps) / _90)
    return Seen(setting=one.setting, value=value, noise=noise)


def propose(
    history: Sequence[Evaluation], engine: Engine, seed: int, is_possible: Callable[[Setting], bool]
) -> Setting | None:
    """Return the setting not tried yet from which most improvement is expected, or `None` when none is left."""
    tried = {one.setting for one in history}
    bad = suspects(history)
    fresh = [
        one
        for one in dict.fromkeys(_candidates(history, engine, seed))
        if one not in tried and not bad & set(one) and is_possible(one)
    ]
    if not fresh:
        return None
    seen = seen_of(history)
    if not seen:
        return fresh[0]
    surrogate = Surrogate(engine, seen)
    best = max(surrogate.guess(one.setting).mean for one in seen)
    return max(fresh, key=lambda one: (surrogate.guess(one).improvement(best), one))


def suspects(history: Sequence[Evaluation]) -> set[tuple[str, str]]:
    """Return the values that alone can have been the reason of a crash: all others of that setting were seen to run."""
    runs = {pair for one in history if not one.is_failed for pair in one.setting}
    left = [[pair for pair in one.setting if pair not in runs] for one in history if one.is_failed]
    return {pairs[0] for pairs in left if len(pairs) == 1}


def _candidates(history: Sequence[Evaluation], engine: Engine, seed: int) -> list[Setting]:
    """Return all settings of a small space; of a large one a sample, and the neighbours of the best."""
    if engine.size <= CANDIDATES:
        return list(engine.settings())
    chance = stream(seed, "candidates", len(history))
    found: list[Setting] = []
    while len(found) < CANDIDATES:
        one = engine.setting({knob.name: chance.choice(knob.labels) for knob in engine.knobs})
        if engine.is_allowed(one):
            found.append(one)
    centres = [DEFAULTS, *(one.setting for one, _ in ranking(history, engine)[:2])]
    near = [
        engine.setting(engine.values_of(centre) | {knob.name: label})
        for centre in centres
        for knob in engine.knobs
        for label in knob.labels
    ]
    return [one for one in near if engine.is_allowed(one)] + found
