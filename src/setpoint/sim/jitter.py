"""A world whose steps vary as measured ones do: the model's seconds times a log-normal factor with median 1.

The width comes from the model's own tail: one in twenty steps of the profile took `tail_ratio` times as long as
expected, or longer, and the 95th percentile of a log-normal lies 1.645 standard deviations above its median.
"""

from math import log

from setpoint.chance import Chance
from setpoint.model import StepShape
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import StepTimeModel
from setpoint.units import Seconds

_P95_DEVIATIONS = 1.645


class JitteredStepTime:
    """The truth about an engine that was profiled; each call is one step, drawn anew from `chance`."""

    is_fixed = True

    def __init__(self, model: StepTimeModel, chance: Chance) -> None:
        """Vary around `model` as widely as its tail says."""
        self._median = FixedStepTime(model)
        self._chance = chance
        self._width = log(max(1.0, model.tail_ratio)) / _P95_DEVIATIONS
        self.tail_ratio = model.tail_ratio

    def seconds(
        self,
        decodes: int,
        context_tokens: int,
        prefill_tokens: int = 0,
        prefill_work: float = 0.0,
        prefills: int = 0,
        /,
    ) -> float:
        """Return the seconds of one step of this shape."""
        median = self._median.seconds(decodes, context_tokens, prefill_tokens, prefill_work, prefills)
        return median * (self._chance.lognormvariate(0.0, self._width) if self._width > 0.0 else 1.0)

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn nothing: the truth does not."""
