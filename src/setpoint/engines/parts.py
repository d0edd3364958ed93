"""What an engine loop is made of, and the messages that reach it."""

from collections.abc import Callable, Iterable

import msgspec

from setpoint.engines.api import Executor
from setpoint.engines.journal import JournalSink
from setpoint.engines.observe import Observation
from setpoint.engines.ticket import Delivery, Ticket
from setpoint.model import AnyCommand, AnyEvent

Handle = Callable[[AnyEvent], list[AnyCommand]]
Deliver = Callable[[list[tuple[Ticket, Delivery]], Observation], None]


class Opened(msgspec.Struct, frozen=True):
    """A client asks for a generation."""

    ticket: Ticket


class Left(msgspec.Struct, frozen=True):
    """The client of a request left."""

    request_id: int


class Drain(msgspec.Struct, frozen=True):
    """Refuse what was never admitted (with `is_final`, everything), and take nothing more."""

    is_final: bool = False


Message = Opened | Left | Drain
Inbox = Callable[[], Iterable[Message]]


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a loop is made of.

    `handle` is the door of the machine; `deliver` takes what was produced, at most once a step; `journal_sink` is
    told every event before it is handled, and the commands that answered it.
    """

    handle: Handle
    executor: Executor
    clock: Callable[[], float]
    deliver: Deliver
    journal_sink: JournalSink | None = None


class MachineError(Exception):
    """The machine itself raised: its state can no longer be trusted."""
