"""What is to be done: every effect of a machine leaves as one of these, in the imperative."""

from typing import Literal

import msgspec

from setpoint.model.plan import StepPlan
from setpoint.units import Instant, Seconds

FinishReason = Literal["stop", "length", "cancelled"]
RejectReason = Literal["unknown_class", "too_long", "queue_full", "late", "expired"]


class Command(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Something that the shell must carry out, in the order given."""


class Admit(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Give the request the slot `slot`; its first chunk is in the plan that follows."""

    request_id: int
    slot: int


class Reject(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Refuse the request; `retry_after_s` predicts when it would be taken (`None`: never)."""

    request_id: int
    reason: RejectReason
    retry_after_s: Seconds | None = None


class Preempt(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Take the slot and the KV of the request back; it waits again and will be recomputed."""

    request_id: int


class Relegate(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Note that the request is given up for now (or, with `is_relegated` false, no longer)."""

    request_id: int
    is_relegated: bool = True


class Finish(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Release what the request holds: it is complete, or its client left."""

    request_id: int
    reason: FinishReason


class RunStep(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Run the plan and answer with `StepFinished`."""

    plan: StepPlan


class WakeAt(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Send a `Tick` at this instant, unless another event comes before it."""

    at: Instant


AnyCommand = Admit | Reject | Preempt | Relegate | Finish | RunStep | WakeAt
