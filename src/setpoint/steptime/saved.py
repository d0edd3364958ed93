"""Step times as JSON, and back: what a journal keeps of the model that its machine began with.

A fit is written as it is (`setpoint.steptime.model`); a roofline as its set-up and efficiencies, and a correction with
what it corrects, each under a name of its own. Kernel tables have no such form, and none is asked of them: a scheduler
is given a fit to them.
"""

import msgspec

from setpoint.errors import ConfigError
from setpoint.model import StepTime
from setpoint.steptime.correction import CorrectedStepTime, Correction
from setpoint.steptime.efficiency import Efficiency
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.learner import restored as restored_fit
from setpoint.steptime.model import encode
from setpoint.steptime.roofline import Roofline
from setpoint.steptime.setup import Setup


class _Roofline(msgspec.Struct, frozen=True, tag="roofline", tag_field="step_time"):
    setup: Setup
    efficiency: Efficiency
    is_streamed: bool
    tail_ratio: float


class _Corrected(msgspec.Struct, frozen=True, tag="corrected", tag_field="step_time"):
    base: msgspec.Raw
    correction: Correction


def saved(step_time: StepTime) -> bytes:
    """Return the JSON from which `restored` makes the step time again, or `null` where there is no such form."""
    if isinstance(step_time, FixedStepTime):
        return encode(step_time.model)
    if isinstance(step_time, Roofline):
        r = step_time
        return msgspec.json.encode(_Roofline(r.setup, r.efficiency, r.is_streamed, r.tail_ratio))
    if isinstance(step_time, CorrectedStepTime):
        return msgspec.json.encode(_Corrected(msgspec.Raw(saved(step_time.base)), step_time.correction))
    return b"null"


def restored(data: bytes, is_learning: bool) -> StepTime:  # noqa: FBT001 - the two facts that a journal keeps
    """Return the step time that `saved` wrote; raises `ConfigError` for anything else."""
    if b'"step_time"' not in data:
        return restored_fit(data, is_learning)
    try:
        found = msgspec.json.decode(data, type=_Roofline | _Corrected)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"not a step-time model: {error}", hint="it was written by another version") from error
    if isinstance(found, _Corrected):
        return CorrectedStepTime(restored(bytes(found.base), is_learning=False), found.correction)
    return Roofline(found.setup, found.efficiency, is_streamed=found.is_streamed, tail_ratio=found.tail_ratio)
