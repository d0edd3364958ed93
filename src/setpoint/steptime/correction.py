"""Corrects a step time of any source by few numbers, fitted to what was measured of an engine of one version.

    seconds' = scale x seconds + step_s + decodes x sequence_s + prompt tokens x token_s

A roofline, kernel tables and a fit miss in the same ways: a factor throughout (kernels of another version), the host's
work a step and a sequence, a prompt token that costs more. Every number is at least 0, so that what was monotone stays
so. The fit minimises |ln(predicted / measured)| by Gauss-Newton steps within these bounds, with a prior at "no
correction" whose width follows from the source itself: few values move it little, where they do not speak against it.
"""

from collections.abc import Callable, Sequence

import msgspec

from setpoint.model import LinearStepTime, StepShape, StepTime
from setpoint.steptime.model import solve
from setpoint.steptime.steady import StepSeconds
from setpoint.units import Seconds

FIELDS = ("scale", "step_s", "sequence_s", "token_s", "request_s")
ROUNDS = 8
_SWEEPS = 400
_NUDGE = 0.1
_FLOOR = 0.05
_NOISE = 0.1
_SCALE_SPREAD = 0.5
_SHARE = 1.0
_PROBE_CONTEXT, _PROBE_DECODES, _PROBE_TOKENS = 512, 32, 512
_REQUEST_SPREAD_S = 0.02
_ABSENT = 3.0


class Correction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of the correction; `request_s`: what a request spends outside of steps before its first token."""

    scale: float = 1.0
    step_s: float = 0.0
    sequence_s: float = 0.0
    token_s: float = 0.0
    request_s: float = 0.0

    @property
    def values(self) -> tuple[float, ...]:
        """The numbers in the order of `FIELDS`."""
        return tuple(getattr(self, name) for name in FIELDS)

    def corrected_s(self, base_s: float, decodes: float, prefill_tokens: float) -> float:
        """Return the seconds of a step that is not empty and takes `base_s` by the source."""
        return self.scale * base_s + (self.step_s + decodes * self.sequence_s + prefill_tokens * self.token_s)


class CorrectedStepTime:
    """A `StepTime` that corrects another, which never learns."""

    is_fixed = True

    def __init__(self, base: StepTime, correction: Correction) -> None:
        """Correct `base`."""
        self.base = base
        self.correction = correction
        self.tail_ratio = base.tail_ratio
        self._base_line = base.decode_line if isinstance(base, LinearStepTime) else None

    def seconds(
        self,
        decodes: int,
        context_tokens: int,
        prefill_tokens: int = 0,
        prefill_work: float = 0.0,
        prefills: int = 0,
        /,
    ) -> float:
        """Return the expected seconds of a step of this shape, zero for an empty one."""
        if not prefill_tokens:
            line = self.decode_line(decodes, context_tokens)
            if line is not None:
                return line[0] + context_tokens * line[1]
            if not decodes:
                return 0.0
        base_s = self.base.seconds(decodes, context_tokens, prefill_tokens, prefill_work, prefills)
        return self.correction.corrected_s(base_s, decodes, prefill_tokens)

    def decode_line(self, decodes: int, context_tokens: int) -> tuple[float, float] | None:
        """Return (base, slope) of the time of pure decoding over the context, where the source has such a line."""
        line = None if self._base_line is None or not decodes else self._base_line(decodes, context_tokens)
        if line is None:
            return None
        return self.correction.corrected_s(line[0], decodes, 0.0), self.correction.scale * line[1]

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn nothing."""


class CorrectedSteadyStep:
    """The same for fractions of sequences, as the solvers of `setpoint.steptime.steady` ask."""

    def __init__(self, base: StepSeconds, correction: Correction) -> None:
        """Correct `base`."""
        self._base = base
        self._correction = correction

    def seconds_of(
        self, decodes: float, context: float, prefill_tokens: float = 0.0, work: float = 0.0, prefills: float = 0.0
    ) -> float:
        """Return the expected seconds, zero for an empty step."""
        if decodes + prefill_tokens <= 0.0:
            return 0.0
        base_s = self._base.seconds_of(decodes, context, prefill_tokens, work, prefills)
        return self._correction.corrected_s(base_s, decodes, prefill_tokens)


Residuals = Callable[[Correction], Sequence[float | None]]
"""ln(predicted / measured) of every value under a correction; `None` where nothing is predicted."""


class Prior(msgspec.Struct, frozen=True, kw_only=True):
    """Where each number stands before anything was measured, and how far it may be from there."""

    center: Correction
    spread: Correction


def prior_of(base: StepTime, *, request_s: float = 0.0) -> Prior:
    """Return the prior for a source: no correction, give or take what a step of each kind takes by it."""
    step_s = base.seconds(1, _PROBE_CONTEXT)
    many_s = base.seconds(_PROBE_DECODES, _PROBE_DECODES * _PROBE_CONTEXT)
    prompt_s = base.seconds(0, 0, _PROBE_TOKENS, 0.5 * _PROBE_TOKENS**2, 1)
    spread = Correction(
        scale=_SCALE_SPREAD,
        step_s=_SHARE * step_s,
        sequence_s=_SHARE * many_s / _PROBE_DECODES,
        token_s=_SHARE * prompt_s / _PROBE_TOKENS,
        request_s=max(_REQUEST_SPREAD_S, request_s),
    )
    return Prior(center=Correction(request_s=request_s), spread=spread)


def fit_correction(
    residuals: Residuals, weights: Sequence[float], prior: Prior, *, rounds: int = ROUNDS
) -> tuple[Correction, float]:
    """Return the correction that fits best, and its loss: weighted sum of |residual| / 0.1 and half the squared moves.

    A value is taken to be off by 10 % or so by itself (Laplace), a number of the correction by its spread (Gauss).

    Of the corrections passed through, the one with the least loss is returned, so that it is never worse than none.
    """
    center, spread = prior.center.values, prior.spread.values
    now = list(center)
    here = residuals(prior.center)
    best, least = prior.center, _loss(here, weights, now, center, spread)
    for _ in range(rounds):
        gram, moment = _normal(residuals, weights, now, here, center, spread)
        units = solve(gram, moment, [x / s for x, s in zip(now, spread, strict=True)], _SWEEPS)
        now = [max(0.0, unit * s) for unit, s in zip(units, spread, strict=True)]
        now[0] = max(now[0], 0.2 * prior.center.scale)
        tried = _named(now)
        here = residuals(tried)
        loss = _loss(here, weights, now, center, spread)
        if loss < least:
            best, least = tried, loss
    return best, least


def _normal(
    residuals: Residuals,
    weights: Sequence[float],
    now: Sequence[float],
    here: Sequence[float | None],
    center: Sequence[float],
    spread: Sequence[float],
) -> tuple[list[list[float]], list[float]]:
    """Return gram and moment of the next step, in units of the spreads: J'WJ + 1, and J'W(J x - r) + the center."""
    size = len(now)
    columns = []
    for j in range(size):
        moved = residuals(_named([x + _NUDGE * spread[j] * (i == j) for i, x in enumerate(now)]))
        columns.append([_slope(after, at) for after, at in zip(moved, here, strict=True)])
    gram = [[float(i == j) for j in range(size)] for i in range(size)]
    moment = [c / s for c, s in zip(center, spread, strict=True)]
    units = [x / s for x, s in zip(now, spread, strict=True)]
    for row, at in enumerate(here):
        if at is None:
            continue
        slopes = [column[row] for column in columns]
        weight = weights[row] / _NOISE / max(abs(at), _FLOOR)
        goal = sum(slope * unit for slope, unit in zip(slopes, units, strict=True)) - at
        for i, slope in enumerate(slopes):
            moment[i] += weight * slope * goal
            for j, other in enumerate(slopes):
                gram[i][j] += weight * slope * other
    return gram, moment


def _slope(after: float | None, at: float | None) -> float:
    return 0.0 if after is None or at is None else (after - at) / _NUDGE


def _named(values: Sequence[float]) -> Correction:
    return Correction(**dict(zip(FIELDS, values, strict=True)))


def _loss(
    found: Sequence[float | None],
    weights: Sequence[float],
    now: Sequence[float],
    center: Sequence[float],
    spread: Sequence[float],
) -> float:
    missed = sum(w * (_ABSENT if r is None else abs(r)) for r, w in zip(found, weights, strict=True))
    moved = sum(((x - c) / s) ** 2 for x, c, s in zip(now, center, spread, strict=True))
    return missed / _NOISE + 0.5 * moved
