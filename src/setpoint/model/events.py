"""What has happened: everything that a machine ever learns enters as one of these, in the past tense."""

import msgspec

from setpoint.model.capacity import Capacity
from setpoint.model.request import Request
from setpoint.units import Blocks, Instant, Seconds


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


class StepAsked(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An engine that owns its loop is about to begin a step, perhaps while others are under way, and asks for a plan.

    `free_blocks`: the KV blocks that nobody holds, by the engine's own count (`None`: as the ledger counts).
    """

    free_blocks: Blocks | None = None


class StepBegun(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Such an engine has begun a step, and this is what it really computes, whatever was planned.

    `step_id` rises from step to step; `StepFinished` follows for each in the same order. `preempted`: ids that the
    engine took slot and KV back from, before the step. `admitted`: (id, cached tokens, known tokens) of those that it
    let in: that many tokens of prompt and output are known, and the first of them were found in its cache. `decodes`
    and `prefills` as in a plan; where both are empty, nothing was begun and nothing will finish.
    """

    step_id: int
    decodes: tuple[int, ...] = ()
    prefills: tuple[tuple[int, int], ...] = ()
    admitted: tuple[tuple[int, int, int], ...] = ()
    preempted: tuple[int, ...] = ()


AnyEvent = Arrived | Cancelled | StepFinished | CapacityChanged | Tick | StepAsked | StepBegun
