"""Fits the efficiencies to measured values, by damped Gauss-Newton steps on ln(predicted / measured).

Every parameter is a logarithm: of a base value, or of a factor of an engine, a generation or a precision. Each has a
prior (its starting value, with a standard deviation), which keeps a factor near 1 until data speak against it. The
residuals are reweighted so that their absolute values are minimised: published points hold outliers (another kernel, a
misread column), and the median error is what is promised.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp, log

import msgspec

from setpoint.steptime.efficiency import FIELDS, SHARES, Calibration, Efficiency, ExpectedError

Key = tuple[str, str, str]
"""(table, name, field): `("base", "", "mfu")`, `("engines", "vllm", "step_s")`."""

_STEP = 0.02
_FLOOR = 0.1
_MOVE_MAX = 0.7

START = Efficiency(
    mfu=0.6,
    mbu=0.75,
    kv_mbu=0.7,
    attention_mfu=0.4,
    expert_mfu=0.6,
    hop_s=8e-6,
    link_share=0.7,
    layer_s=3e-5,
    step_s=1e-3,
    sequence_s=1e-5,
    request_s=1e-2,
    stream_s=1e-5,
)
"""Where the fit starts, and the prior of the base: from kernel tables (mfu 0.49-0.69, mbu 0.53-0.73) and BLIS."""

_FACTORS: dict[str, tuple[str, ...]] = {
    "engines": ("step_s", "sequence_s", "layer_s", "request_s", "stream_s", "mfu", "mbu", "attention_mfu"),
    "generations": ("mfu", "mbu", "kv_mbu"),
    "precisions": ("mfu", "mbu"),
}
"""Which fields each table may scale."""


class Case(msgspec.Struct, frozen=True):
    """One measurement: ln of predicted over measured for each of its values (`None`: no prediction).

    `weights`: how much each value counts. `engine`, `generation`, `precision`: the factors that it depends on.
    """

    residuals: Callable[[Calibration], Sequence[float | None]]
    weights: tuple[float, ...]
    engine: str
    generation: str
    precision: str


class Spread(msgspec.Struct, frozen=True):
    """Standard deviations of the priors, in units of the logarithm."""

    share: float = 0.3
    overhead: float = 1.0
    factor_share: float = 0.25
    factor_overhead: float = 1.0
    stream: float = 0.3
    factor_stream: float = 3.0

    def of(self, key: Key) -> float:
        """Return that of one parameter.

        What streaming costs a step depends on the engine: much where one process does both, little elsewhere.
        """
        table, _, field = key
        if field == "stream_s":
            return self.stream if table == "base" else self.factor_stream
        if table == "base":
            return self.share if field in SHARES else self.overhead
        return self.factor_share if field in SHARES else self.factor_overhead


def parameters(cases: Sequence[Case]) -> list[Key]:
    """Return every parameter that some case depends on, the base first."""
    keys: list[Key] = [("base", "", field) for field in FIELDS]
    for table, fields in _FACTORS.items():
        names = sorted({getattr(case, table[:-1]) for case in cases})
        keys += [(table, name, field) for name in names for field in fields if name != "bf16"]
    return keys


def calibration(values: Mapping[Key, float], fitted_on: str, expected_error: ExpectedError) -> Calibration:
    """Return the calibration with these logarithms: of `START` for the base, of 1 for factors."""
    tables: dict[str, dict[str, dict[str, float]]] = {"engines": {}, "generations": {}, "precisions": {}}
    base = {field: float(getattr(START, field)) for field in FIELDS}
    for (table, name, field), value in values.items():
        if table == "base":
            base[field] *= exp(value)
        else:
            tables[table].setdefault(name, {})[field] = exp(value)
    return Calibration(base=Efficiency(**base), fitted_on=fitted_on, expected_error=expected_error, **tables)


def fit_efficiencies(
    cases: Sequence[Case], *, start: Mapping[Key, float] | None = None, rounds: int = 8, spread: Spread | None = None
) -> dict[Key, float]:
    """Return the logarithms of all parameters that fit the cases best."""
    prior = spread or Spread()
    keys = parameters(cases)
    values = {key: (start or {}).get(key, 0.0) for key in keys}
    for _ in range(rounds):
        values = _improve(cases, keys, values, prior)
    return values


def _improve(
    cases: Sequence[Case], keys: Sequence[Key], values: Mapping[Key, float], prior: Spread
) -> dict[Key, float]:
    """Take one Gauss-Newton step: solve (J'WJ + P) move = -(J'W r + P value)."""
    now = _calibrated(values)
    size = len(keys)
    matrix = [[0.0] * size for _ in range(size)]
    right = [0.0] * size
    for i, key in enumerate(keys):
        precision = prior.of(key) ** -2
        matrix[i][i] = precision
        right[i] = -precision * values[key]
    nudged = [_calibrated({**values, key: values[key] + _STEP}) for key in keys]
    for case in cases:
        _add(case, keys, now, nudged, matrix, right)
    moves = _solve(matrix, right)
    return {key: values[key] + max(-_MOVE_MAX, min(_MOVE_MAX, move)) for key, move in zip(keys, moves, strict=True)}


def _add(
    case: Case,
    keys: Sequence[Key],
    now: Calibration,
    nudged: Sequence[Calibration],
    matrix: list[list[float]],
    right: list[float],
) -> None:
    """Add one case to the normal equations."""
    at = case.residuals(now)
    touched = [i for i, key in enumerate(keys) if _touches(case, key)]
    moved = [case.residuals(nudged[i]) for i in touched]
    for value, here in enumerate(at):
        if here is None:
            continue
        slopes = []
        for i, there in zip(touched, moved, strict=True):
            after = there[value] if there else None
            slopes.append((i, 0.0 if after is None else (after - here) / _STEP))
        weight = case.weights[value] / max(abs(here), _FLOOR)
        for i, slope in slopes:
            right[i] -= weight * slope * here
            for j, other in slopes:
                matrix[i][j] += weight * slope * other


def _touches(case: Case, key: Key) -> bool:
    table, name, _ = key
    return table == "base" or name == getattr(case, table[:-1])


def _calibrated(values: Mapping[Key, float]) -> Calibration:
    return calibration(values, "", ExpectedError(throughput=0.0, tpot=0.0, ttft=0.0, values=0))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Return x of `matrix` x = `right` for a symmetric positive definite matrix (Cholesky)."""
    size = len(right)
    low = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - sum(low[i][k] * low[j][k] for k in range(j))
            low[i][j] = rest**0.5 if i == j else rest / low[j][j]
    x = list(right)
    for i in range(size):
        x[i] = (x[i] - sum(low[i][k] * x[k] for k in range(i))) / low[i][i]
    for i in reversed(range(size)):
        x[i] = (x[i] - sum(low[k][i] * x[k] for k in range(i + 1, size))) / low[i][i]
    return x


def log_ratio(predicted: float | None, measured: float) -> float | None:
    """Return ln(predicted / measured), or `None` without a prediction."""
    return log(predicted / measured) if predicted and predicted > 0.0 else None
