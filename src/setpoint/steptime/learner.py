"""Step time learned online: the fitted model goes on learning from every step, and forgets slowly.

Observations are added to the normal equations, which are first multiplied by the forgetting factor; the profile's own
equations stay in at a small constant weight (a still smaller one, where they were guessed), so that what the present
load never exercises (no prefill for an hour, say) is not forgotten; they are scaled by the drift of the machine as a
whole. Every few steps the weights are moved by a few exact coordinate steps. The ratios of measured to predicted
seconds of the last steps give the tail and the error that are reported.
"""

from bisect import bisect_left, insort
from collections import deque
from operator import mul

from setpoint.model import StepShape
from setpoint.steptime.model import FEATURES, StepTimeModel, decode, features, solve
from setpoint.units import Seconds

_WINDOW = 256
_REFIT_EVERY = 8
_SWEEPS = 4
_ANCHOR_ROWS = 64.0
_GUESSED = 0.05
_OUTLIER = 8.0


class FixedStepTime:
    """A step-time model that does not learn: for simulation, and for replay of what was simulated."""

    is_fixed = True

    def __init__(self, model: StepTimeModel) -> None:
        """Predict by `model` for ever."""
        self.model = model
        self.tail_ratio = model.tail_ratio
        self._weights = model.weights
        self._knee = model.knee

    def seconds(
        self,
        decodes: int,
        context_tokens: int,
        prefill_tokens: int = 0,
        prefill_work: float = 0.0,
        prefills: int = 0,
        /,
    ) -> float:
        """Return the median seconds of a step of this shape."""
        w = self._weights
        tokens = decodes + prefill_tokens
        knee = self._knee
        low = min(tokens, knee)
        base_s = w[0] + w[1] * decodes + w[3] * low + w[4] * (tokens - low) + w[5] * prefill_work + w[6] * prefills
        return base_s + context_tokens * w[2]

    def decode_line(self, decodes: int, context_tokens: int) -> tuple[float, float] | None:
        """Return (base, slope) of the time of pure decoding, whatever the context."""
        del context_tokens
        return self.seconds(decodes, 0), self._weights[2]

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn nothing."""


class LearnedStepTime(FixedStepTime):
    """A step-time model that learns from each step.

    `forgetting` is the weight that an observation keeps after one more: 0.998 looks back over some 500 steps.
    """

    is_fixed = False

    def __init__(self, model: StepTimeModel, *, forgetting: float = 0.998) -> None:
        """Start from `model`, fitted or assumed."""
        super().__init__(model)
        anchor = _ANCHOR_ROWS / max(model.samples, _ANCHOR_ROWS) if model.samples else _GUESSED
        self._drift = 1.0
        self._anchor_gram = [[anchor * x for x in line] for line in model.gram]
        self._anchor_moment = [anchor * x for x in model.moment]
        self._gram = [[0.0] * FEATURES for _ in range(FEATURES)]
        self._moment = [0.0] * FEATURES
        self._forgetting = forgetting
        self._fading = [forgetting**age for age in reversed(range(_REFIT_EVERY))]
        self._rows: list[list[float]] = []
        """What was observed since the last refit: features over seconds, whose goal is 1."""
        self._ratios: deque[float] = deque(maxlen=_WINDOW)
        self._sorted: list[float] = []
        self._covered: deque[bool] = deque(maxlen=_WINDOW)

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn from a step that took `seconds`; one that took far longer than the model and its peers is a stall.

        Its peers are the last steps: where most of them take many times what the model says, it is the model that errs.
        """
        ratio = seconds / max(self.seconds(*shape), 1e-9)
        self._track(ratio)
        if ratio > _OUTLIER * max(1.0, self._sorted[len(self._sorted) // 2]):
            return
        forgetting = self._forgetting
        profiled = max(self.model.predict(shape), 1e-9)
        self._drift += (1.0 - forgetting) * (seconds / profiled - self._drift)
        self._rows.append([x / seconds for x in features(shape, self._knee)])
        if len(self._rows) == _REFIT_EVERY:
            self._absorb()
            self._refit()

    @property
    def mape(self) -> float:
        """Mean absolute relative error over the last steps (that of the fit before any)."""
        if not self._ratios:
            return self.model.mape
        return sum(abs(1.0 / r - 1.0) for r in self._ratios) / len(self._ratios)

    @property
    def coverage(self) -> float:
        """Share of the last steps that kept within `tail_ratio` as it stood before each of them; 0.95 is right."""
        if not self._covered:
            return 0.95
        return sum(self._covered) / len(self._covered)

    def _track(self, ratio: float) -> None:
        self._covered.append(ratio <= self.tail_ratio)
        if len(self._ratios) == _WINDOW:
            self._sorted.pop(bisect_left(self._sorted, self._ratios[0]))
        self._ratios.append(ratio)
        insort(self._sorted, ratio)
        enough = 32
        if len(self._sorted) >= enough:
            self.tail_ratio = max(1.0, self._sorted[int(0.95 * (len(self._sorted) - 1))])

    def _absorb(self) -> None:
        """Add the observed rows to the normal equations, each as faded as it is old: a column at a time, for speed."""
        keep = self._forgetting ** len(self._rows)
        columns = list(zip(*self._rows, strict=True))
        self._rows = []
        for i, line in enumerate(self._gram):
            faded = list(map(mul, self._fading, columns[i]))
            self._moment[i] = keep * self._moment[i] + sum(faded)
            for j in range(i, FEATURES):
                line[j] = self._gram[j][i] = keep * line[j] + sum(map(mul, faded, columns[j]))

    def _refit(self) -> None:
        # the rows of the profile are features / seconds: a machine that is slower throughout has smaller ones
        scale = 1.0 / self._drift
        gram = [
            [a + scale * scale * b for a, b in zip(fresh, anchor, strict=True)]
            for fresh, anchor in zip(self._gram, self._anchor_gram, strict=True)
        ]
        moment = [a + scale * b for a, b in zip(self._moment, self._anchor_moment, strict=True)]
        self._weights = tuple(solve(gram, moment, self._weights, _SWEEPS))


def restored(data: bytes, is_learning: bool) -> FixedStepTime:  # noqa: FBT001 - the two facts that a journal keeps
    """Return the step time that began with the model in `data`; raises `ConfigError` when the data are none."""
    model = decode(data)
    return LearnedStepTime(model) if is_learning else FixedStepTime(model)
