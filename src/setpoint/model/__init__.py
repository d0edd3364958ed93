"""Frozen values that cross every door: requests, service classes, capacity, events, commands."""

from setpoint.model.capacity import Capacity
from setpoint.model.commands import (
    Admit,
    AnyCommand,
    Finish,
    FinishReason,
    Preempt,
    Reject,
    RejectReason,
    Relegate,
    RunStep,
    WakeAt,
)
from setpoint.model.events import (
    AnyEvent,
    Arrived,
    Cancelled,
    CapacityChanged,
    StepAsked,
    StepBegun,
    StepFinished,
    Tick,
)
from setpoint.model.plan import Binding, Bound, Horizon, StepPlan
from setpoint.model.priority import decode_priority, encode_priority
from setpoint.model.request import Request
from setpoint.model.service import PRESETS, JudgedBy, ServiceClass, Slo, decode_deadline
from setpoint.model.shape import LinearStepTime, StepShape, StepTime, chunk_work

__all__ = [
    "PRESETS",
    "Admit",
    "AnyCommand",
    "AnyEvent",
    "Arrived",
    "Binding",
    "Bound",
    "Cancelled",
    "Capacity",
    "CapacityChanged",
    "Finish",
    "FinishReason",
    "Horizon",
    "JudgedBy",
    "LinearStepTime",
    "Preempt",
    "Reject",
    "RejectReason",
    "Relegate",
    "Request",
    "RunStep",
    "ServiceClass",
    "Slo",
    "StepAsked",
    "StepBegun",
    "StepFinished",
    "StepPlan",
    "StepShape",
    "StepTime",
    "Tick",
    "WakeAt",
    "chunk_work",
    "decode_deadline",
    "decode_priority",
    "encode_priority",
]
