"""The file that `setpoint profile` writes of an endpoint: its step times, and what it was seen to hold at once."""

from pathlib import Path

import msgspec

from setpoint.errors import ConfigError
from setpoint.sim.files import write_json
from setpoint.steptime.model import StepTimeModel, decode

SCHEMA = "setpoint.profile/1"
_MARK = b'"schema"'


class EndpointProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted model with the limits of the engine behind it.

    `request_s`: seconds of a request outside of steps before its first token. `slots`: sequences seen to decode at
    once. `step_tokens_max`: the largest prompt chunk seen. `kv_tokens`, `context_tokens`: as the user said.
    """

    schema: str = SCHEMA
    model: StepTimeModel
    request_s: float
    slots: int
    step_tokens_max: int
    kv_tokens: int | None = None
    context_tokens: int | None = None
    engine: str = ""
    served_model: str = ""
    made_at: str = ""
    made_by: str = ""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Step times that were measured, from a profile or from the file of `setpoint tune`, which says less."""

    model: StepTimeModel
    request_s: float = 0.0
    slots: int | None = None
    step_tokens_max: int | None = None
    kv_tokens: int | None = None
    context_tokens: int | None = None


def read_measured(path: Path) -> Measured:
    """Return what a file of `setpoint profile` or `setpoint tune` holds; raises `ConfigError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="is the path right?") from error
    if _MARK not in data:
        return Measured(model=decode(data))
    try:
        profile = msgspec.json.decode(data, type=EndpointProfile)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is not a profile: {error}", hint="write it anew with `setpoint profile`") from error
    if profile.schema != SCHEMA:
        raise ConfigError(f"{path} is a profile of another version", hint="write it anew with `setpoint profile`")
    return Measured(
        model=decode(msgspec.json.encode(profile.model)),
        request_s=profile.request_s,
        slots=profile.slots,
        step_tokens_max=profile.step_tokens_max,
        kv_tokens=profile.kv_tokens,
        context_tokens=profile.context_tokens,
    )


def write_profile(path: Path, profile: EndpointProfile) -> None:
    """Write a profile; raises `ConfigError` when that cannot be done."""
    write_json(path, profile, option="--out")
