"""Replay: the machine made again from the header, given the same events, must answer with the same bytes.

An event at the end that was never answered is told to the machine too: it should fail on it as it did then.
"""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from setpoint.core.replica import ReplicaMachine
from setpoint.core.steered import SteeredMachine
from setpoint.core.strategies import make_strategy
from setpoint.errors import JournalError
from setpoint.journal.format import (
    Header,
    MachineKind,
    encode_commands,
    is_cut,
    read_entries,
    read_header,
    read_unanswered,
)
from setpoint.model import RunStep, StepTime

MACHINES: dict[MachineKind, type[ReplicaMachine]] = {"replica": ReplicaMachine, "steered": SteeredMachine}

MakeStepTime = Callable[[bytes, bool], StepTime]
"""Makes the step-time model again: from what the header says of it, and whether it learns."""


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """The first line whose commands came out otherwise; `recorded` and `replayed` as JSON, or what went wrong."""

    line: int
    at: float
    event: str
    recorded: str
    replayed: str


class Unanswered(msgspec.Struct, frozen=True, kw_only=True):
    """The event at the end that was never answered; `error`: how the machine fails on it here, `None` if it answers."""

    line: int
    at: float
    event: str
    error: str | None


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay found. `is_cut`: the last line had no end and was left out. `span_s`: first to last event.

    `unanswered`: the event on which the machine failed, where the journal ends with one.
    """

    strategy: str
    engine: str
    made_by: str
    events: int
    commands: int
    steps: int
    span_s: float
    is_cut: bool
    divergence: Divergence | None = None
    unanswered: Unanswered | None = None

    @property
    def is_identical(self) -> bool:
        """Whether every command came out byte for byte as it was recorded."""
        return self.divergence is None


class _Watch:
    """Passes lines on, and remembers the last and its number."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.last = b"\n"
        self.number = 1

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.last = line
            self.number += 1
            yield line


def make_machine(header: Header, make_step_time: MakeStepTime) -> ReplicaMachine:
    """Return the machine that `header` describes, idle and empty; raises `ConfigError` for what is not known here."""
    strategy = make_strategy(header.strategy, **header.options)
    classes = {c.name: c for c in header.classes}
    step_time = make_step_time(bytes(header.step_time), header.is_learning)
    return MACHINES[header.machine](strategy, classes, header.capacity, step_time)


def replay(lines: Iterable[bytes], make_step_time: MakeStepTime) -> ReplayReport:
    """Run the core again over the lines of a journal, up to the first divergence.

    Raises `JournalError` for what is not a journal, and for a damaged line before any divergence.
    """
    source = iter(lines)
    header = read_header(next(source, b""))
    machine = make_machine(header, make_step_time)
    watch = _Watch(source)
    events = commands = steps = 0
    first_at = last_at = 0.0
    divergence = None
    for entry in read_entries(watch):
        event = entry.event
        first_at, last_at = (event.at, event.at) if events == 0 else (first_at, event.at)
        try:
            answer = machine.handle(event)
        except AssertionError as error:
            raise JournalError(
                f"line {entry.line} tells of something that cannot have happened: {error}",
                hint="a line before it is missing or was changed",
            ) from error
        events += 1
        commands += len(answer)
        steps += sum(isinstance(command, RunStep) for command in answer)
        replayed = encode_commands(answer)
        if replayed != entry.commands:
            divergence = Divergence(
                line=entry.line,
                at=event.at,
                event=type(event).__name__,
                recorded=entry.commands.decode(errors="replace"),
                replayed=replayed.decode(),
            )
            break
    unanswered = _unanswered(machine, watch)
    return ReplayReport(
        strategy=header.strategy,
        engine=header.engine,
        made_by=header.made_by,
        events=events,
        commands=commands,
        steps=steps,
        span_s=last_at - first_at,
        is_cut=is_cut(watch.last) and unanswered is None,
        divergence=divergence,
        unanswered=unanswered,
    )


def _unanswered(machine: ReplicaMachine, watch: _Watch) -> Unanswered | None:
    """Tell the machine the event at the end that it had not answered, if there is one."""
    event = read_unanswered(watch.last)
    if event is None:
        return None
    error = None
    try:
        machine.handle(event)
    except Exception as fault:  # noqa: BLE001 - whatever it was that the machine failed with
        error = repr(fault)
    return Unanswered(line=watch.number, at=event.at, event=type(event).__name__, error=error)
