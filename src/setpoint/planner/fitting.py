"""Fitting a step-time model to what a profile measured, with what the fit has not seen as its judge.

Every fifth of the shuffled samples is held out for the error; single steps against the model give the tail, since the
samples are medians, which hide it.
"""

from collections.abc import Iterable, Sequence

import msgspec

from setpoint.chance import Chance, shuffled
from setpoint.metrics import rank_quantile
from setpoint.steptime.model import Sample, StepTimeModel, fit

TINY_S = 1e-6
"""The least that a step is taken to last."""


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """The model of all samples, the samples in the order of the fit, and the P95 of the error on those held out."""

    model: StepTimeModel
    samples: tuple[Sample, ...]
    p95_error: float


def fit_held_out(samples: Sequence[Sample], steps: Iterable[Sample], chance: Chance, *, key: str) -> Fitted:
    """Fit to `samples`, and judge by a fit without every fifth; the tail is not below that of the single `steps`.

    Raises `ConfigError` when there are too few samples.
    """
    mixed = shuffled(samples, chance)
    model = fit(mixed, key=key)
    blind = fit([sample for i, sample in enumerate(mixed) if i % 5], key=key)
    errors = sorted(abs(blind.predict(shape) / seconds - 1.0) for shape, seconds in mixed[::5])
    ratios = sorted(seconds / max(model.predict(shape), TINY_S) for shape, seconds in steps)
    tail = max(model.tail_ratio, rank_quantile(ratios, 0.95)) if ratios else model.tail_ratio
    return Fitted(
        model=msgspec.structs.replace(model, tail_ratio=tail),
        samples=tuple(mixed),
        p95_error=rank_quantile(errors, 0.95),
    )
