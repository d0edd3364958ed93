"""What a driver saw, for those who count it: one `Observation` a step, made on the engine thread, read elsewhere.

Durations are measured by the engine's clock, from the arrival of the request at the driver.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from setpoint.engines.api import RefusalReason
from setpoint.model import FinishReason
from setpoint.units import Seconds

Outcome = FinishReason | RefusalReason | Literal["error"]


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `step_s` is all the time from its plan to the next decision; `forward_s` and `sampling_s` are in it."""

    step_s: Seconds
    forward_s: Seconds
    sampling_s: Seconds
    predicted_s: Seconds
    prefill_tokens: int
    decode_tokens: int
    bound_by: str


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request that is over, for whichever reason."""

    request_id: int
    class_name: str
    outcome: Outcome
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queue_s: Seconds
    ttft_s: Seconds | None
    e2e_s: Seconds
    preemptions: int


class DriverStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver holds: requests by class, and how much of the engine is in use.

    `failure` is set once the engine is given up, or while it does not end a step; `is_draining` once no further request
    is taken; `is_stepping` while a step runs or is about to.
    """

    running: Mapping[str, int] = {}
    waiting: Mapping[str, int] = {}
    slots: int = 0
    kv_blocks: int = 0
    kv_blocks_used: int = 0
    is_draining: bool = False
    is_stepping: bool = False
    failure: str | None = None


class Observation(msgspec.Struct, kw_only=True):
    """What happened since the observation before; the lists hold (class, seconds) or a class each."""

    status: DriverStatus = DriverStatus()
    step: StepRecord | None = None
    queued: list[tuple[str, Seconds]] = []
    first_tokens: list[tuple[str, Seconds]] = []
    gaps: list[tuple[str, Seconds]] = []
    preempted: list[str] = []
    relegated: list[str] = []
    ended: list[RequestRecord] = []


class Observer(Protocol):
    """Who counts; called on the event loop, never on the engine thread."""

    def observe(self, observation: Observation) -> None:
        """Take one observation in; must not raise."""
        ...
