"""A guess at what settings hold that were not tried: a Gaussian process over the knobs, small enough for plain Python.

Two settings do alike as far as their knobs agree: the covariance is a sum over knobs (each knob has an effect of its
own, of the size that its `spread` names) and a small product (knobs together). Neighbouring values of an ordered knob
do alike, other values are unrelated. Values are logarithms of the held rate, each with the noise of its measurement, so
that a short evaluation counts for less, and the best of many noisy ones is not believed more than it should be.
Source: Rasmussen and Williams (2006), algorithm 2.1; expected improvement: Jones et al. (1998).
"""

import math
from collections.abc import Sequence

import msgspec

from setpoint.planner.knobs import Engine, Setting

TOGETHER = 0.1
NEIGHBOUR = 0.7
"""The correlation of neighbouring values of an ordered knob."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A setting was measured to have `value`, give or take `noise` (a standard deviation)."""

    setting: Setting
    value: float
    noise: float


class Guess(msgspec.Struct, frozen=True):
    """What is expected of a setting: a mean and a standard deviation."""

    mean: float
    sd: float

    def improvement(self, best: float) -> float:
        """Return by how much the setting is expected to exceed `best`, where it does."""
        if self.sd <= 0.0:
            return max(0.0, self.mean - best)
        z = (self.mean - best) / self.sd
        density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        return (self.mean - best) * 0.5 * math.erfc(-z / math.sqrt(2.0)) + self.sd * density


class Surrogate:
    """The process given what was seen; the first of `seen` sets the level to which everything unknown falls back."""

    def __init__(self, engine: Engine, seen: Sequence[Seen]) -> None:
        self._knobs = [
            (k.name, k.default, {label: i for i, label in enumerate(k.labels)}, k.ordered, 0.5 * math.log(k.spread))
            for k in engine.knobs
        ]
        self._points = [self._coded(one.setting) for one in seen]
        self._level = seen[0].value if seen else 0.0
        rows = [
            [self._covariance(a, b) + (one.noise**2 if a is b else 0.0) for b in self._points]
            for a, one in zip(self._points, seen, strict=True)
        ]
        self._lower = cholesky(rows)
        self._weights = _back(self._lower, _forth(self._lower, [one.value - self._level for one in seen]))

    def guess(self, setting: Setting) -> Guess:
        """Return what is expected of `setting`."""
        point = self._coded(setting)
        row = [self._covariance(point, other) for other in self._points]
        mean = self._level + sum(a * b for a, b in zip(row, self._weights, strict=True))
        half = _forth(self._lower, row)
        return Guess(mean, math.sqrt(max(0.0, self._covariance(point, point) - sum(v * v for v in half))))

    def _coded(self, setting: Setting) -> tuple[int, ...]:
        chosen = dict(setting)
        return tuple(places[chosen.get(name, default)] for name, default, places, _, _ in self._knobs)

    def _covariance(self, a: tuple[int, ...], b: tuple[int, ...]) -> float:
        total, whole = 0.0, 1.0
        for x, y, (_, _, _, is_ordered, sd) in zip(a, b, self._knobs, strict=True):
            alike = NEIGHBOUR ** abs(x - y) if is_ordered else float(x == y)
            total += sd * sd * alike
            whole *= 0.5 + 0.5 * alike
        return total + TOGETHER * TOGETHER * whole


def cholesky(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the lower triangle L with L L' = `rows`, which must be symmetric and positive definite."""
    lower: list[list[float]] = []
    for i, row in enumerate(rows):
        mine: list[float] = []
        for j in range(i):
            mine.append((row[j] - sum(mine[k] * lower[j][k] for k in range(j))) / lower[j][j])
        mine.append(math.sqrt(max(1e-12, row[i] - sum(value * value for value in mine))))
        lower.append(mine)
    return lower


def _forth(lower: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    found: list[float] = []
    for row, value in zip(lower, values, strict=True):
        found.append((value - sum(a * b for a, b in zip(row, found, strict=False))) / row[-1])
    return found


def _back(lower: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    found = [0.0] * len(values)
    for i in range(len(values) - 1, -1, -1):
        found[i] = (values[i] - sum(lower[j][i] * found[j] for j in range(i + 1, len(values)))) / lower[i][i]
    return found
