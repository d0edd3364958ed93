"""What has happened: everything that a machine ever learns enters as one of these, in the past tense."""

import msgspec

from setpoint.model.capacity import Capacity
from setpoint.model.request import Request
from setpoint.units import Instant, Seconds


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Something that happened at the instant `at`."""

    at: Instant


class Arrived(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A request came in."""

    request: Request


class Cancelled(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The client of a request left."""

    request_id: int


class StepFinished(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The plan `step_id` was run `len(step_seconds)` times (once, unless its horizon allowed more).

    `step_seconds`: the measured duration of each pass, oldest first; `at` is when the last one ended. Each decode
    yielded one token a pass, and each prefill whose prompt is now complete its first. `stopped`: ids of the sequences
    that ended themselves with the last of those tokens (end of text, stop string). `extra`: (id, tokens) of sequences
    that yielded more than one token in the pass (speculative decoding).
    """

    step_id: int
    step_seconds: tuple[Seconds, ...]
    stopped: tuple[int, ...] = ()
    extra: tuple[tuple[int, int], ...] = ()


class CapacityChanged(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The engine can hold or compute more or less than before."""

    capacity: Capacity


class Tick(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Time has passed; a `WakeAt` asked for it."""


AnyEvent = Arrived | Cancelled | StepFinished | CapacityChanged | Tick
