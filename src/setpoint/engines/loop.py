"""The engine loop: one thread that owns a replica machine and an executor, and lets each see only what it needs.

A turn takes in what has arrived (`Opened`, `Left`, `Drain`), hands it to the machine as events, and carries out the
commands that come back in their order. A `RunStep` ends the turn: the executor runs the plan, what came in meanwhile is
handed over first, so that the next plan knows it, and then `StepFinished`. The duration told to the machine runs from
the event that brought the plan to the event that ends it: forward pass, sampling, text and this loop's own work, since
that whole time is what a deadline feels; in a busy engine the durations add up to the wall clock.

When the executor fails, every open request gets an `EngineError`, the machine is told that their clients left and that
the step is over, and serving goes on; after `FAILURES_MAX` failures in a row the engine is given up. An exception from
the machine itself is a bug and gives it up at once. The clock is read here and nowhere else, and never runs backwards.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from setpoint.engines.api import StepOutput
from setpoint.engines.book import Book
from setpoint.engines.journal import Recorder
from setpoint.engines.observe import StepRecord
from setpoint.engines.parts import Inbox, Left, MachineError, Message, Opened, Parts
from setpoint.engines.ticket import Ticket
from setpoint.errors import EngineError, UserError
from setpoint.model import (
    Admit,
    AnyEvent,
    Arrived,
    Cancelled,
    Finish,
    Preempt,
    Reject,
    Relegate,
    RunStep,
    StepFinished,
    StepPlan,
    Tick,
    WakeAt,
)
from setpoint.units import Instant, Seconds

FAILURES_MAX = 3
STEP_S_MIN = 1e-6
"""A step that failed at once still took some time: a step-time model learns from ratios."""

log = logging.getLogger(__name__)


class EngineLoop:
    """The state of the loop; every method runs on the engine thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._executor = parts.executor
        self._journal = Recorder(parts.journal_sink)
        self._book = Book(parts.executor.capacity)
        self._plan: StepPlan | None = None
        self._planned_at = Instant(0.0)
        self._now = Instant(0.0)
        self._failures = 0
        self._carriers: Mapping[type, Callable[[Any], None]] = {
            Admit: self._admit,
            Reject: self._reject,
            Preempt: self._preempt,
            Relegate: self._relegate,
            Finish: self._finish,
        }
        self.wake_at: Instant | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a step waits to be run."""
        return self._plan is not None

    def turn(self, inbox: Inbox) -> None:
        """Take in what `inbox()` yields, run the step that is planned, if any, and deliver; never raises."""
        try:
            self._take_in(inbox())
            if self._plan is None:
                self._tick()
            self.flush()
            if self._plan is not None:
                self._step(self._plan, inbox)
        except MachineError as error:
            log.exception("the scheduler failed")
            self._give_up(f"the scheduler failed: {error.__cause__!r}")
        except Exception as error:
            # whatever an engine throws must end in an answer to those who wait
            log.exception("the engine failed")
            self._recover(error)
        self.flush()

    def flush(self) -> None:
        """Deliver what has gathered since the last time, if anything."""
        self._parts.deliver(*self._book.hand_over(is_stepping=self.is_busy))

    # -------------------------------------------------------------------------------------------- events

    def _tell(self, event: AnyEvent) -> None:
        """Hand one event to the machine and carry out what it commands."""
        self._journal.begin(event)
        try:
            commands = self._parts.handle(event)
        except Exception as error:
            self._journal.close()
            raise MachineError from error
        self._journal.end(commands)
        self.wake_at = None
        for command in commands:
            # noted before any command can fail: the machine waits for the end of every plan that it made
            if isinstance(command, RunStep):
                self._plan, self._planned_at = command.plan, event.at
            elif isinstance(command, WakeAt):
                self.wake_at = command.at
        for command in commands:
            carry_out = self._carriers.get(type(command))
            if carry_out is not None:
                carry_out(command)

    def _read_clock(self) -> Instant:
        self._now = Instant(max(self._now, self._parts.clock()))
        return self._now

    def _tick(self) -> None:
        if self.wake_at is not None and self._read_clock() >= self.wake_at:
            self._tell(Tick(at=self._now))

    def _take_in(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._read_clock()
            if isinstance(message, Opened):
                self._opened(message.ticket)
            elif isinstance(message, Left):
                self._left(message.request_id)
            else:
                self._drain(is_final=message.is_final)

    def _opened(self, ticket: Ticket) -> None:
        book = self._book
        book.open(ticket)
        if book.failure is not None:
            book.close(ticket, EngineError(book.failure), "error", self._now)
        elif book.is_draining:
            book.close(ticket, ticket.refused("draining"), "draining", self._now)
        elif self._prepare(ticket):
            self._tell(Arrived(at=self._now, request=ticket.request()))

    def _prepare(self, ticket: Ticket) -> bool:
        """Let the executor take the request in; a fault of either side ends this request alone."""
        try:
            ticket.cached_tokens = self._executor.prepare(ticket.id, ticket.generation)
        except UserError as error:
            self._book.close(ticket, error, "error", self._now)
            return False
        except Exception as error:
            log.exception("the engine could not take a request in")
            fault = EngineError(f"the engine could not take the request in: {error}")
            self._book.close(ticket, fault, "error", self._now)
            return False
        return True

    def _left(self, request_id: int) -> None:
        if self._book.get(request_id) is not None:
            self._tell(Cancelled(at=self._now, request_id=request_id))

    def _drain(self, *, is_final: bool) -> None:
        self._book.is_draining = True
        for ticket in self._book:
            if is_final or ticket.admitted_at is None:
                self._release(ticket)
                self._book.close(ticket, ticket.refused("draining"), "draining", self._now)
                self._tell(Cancelled(at=self._now, request_id=ticket.id))

    # ------------------------------------------------------------------------------------------ commands

    def _admit(self, command: Admit) -> None:
        ticket = self._book.get(command.request_id)
        if ticket is not None:
            self._executor.admit(ticket.id, command.slot)
            self._book.admit(ticket, self._now)

    def _reject(self, command: Reject) -> None:
        ticket = self._book.get(command.request_id)
        if ticket is not None:
            self._release(ticket)
            refused = ticket.refused(command.reason, command.retry_after_s)
            self._book.close(ticket, refused, command.reason, self._now)

    def _preempt(self, command: Preempt) -> None:
        ticket = self._book.get(command.request_id)
        if ticket is not None:
            self._executor.preempt(ticket.id)
            self._book.preempt(ticket)

    def _relegate(self, command: Relegate) -> None:
        ticket = self._book.get(command.request_id)
        if ticket is not None and command.is_relegated:
            self._book.seen.relegated.append(ticket.class_name)

    def _finish(self, command: Finish) -> None:
        ticket = self._book.get(command.request_id)
        if ticket is None:
            return
        self._release(ticket)
        rest = ticket.rest()
        if rest is not None:
            self._book.deliver(ticket, rest)
        self._book.close(ticket, ticket.finished(command.reason, self._now), command.reason, self._now)

    def _release(self, ticket: Ticket) -> None:
        """Free what the executor holds for the request; a fault there is logged, since nobody can mend it."""
        try:
            self._executor.release(ticket.id)
        except Exception:
            log.exception("the engine could not release request %d", ticket.id)

    # ---------------------------------------------------------------------------------------------- step

    def _step(self, plan: StepPlan, inbox: Inbox) -> None:
        output = self._executor.run(plan.decodes, plan.prefills)
        self._failures = 0
        self._book.note_computed(plan)
        stopped = self._take_tokens(output, self._read_clock())
        self._take_in(inbox())
        self._end_step(plan, stopped, output)

    def _take_tokens(self, output: StepOutput, at: Instant) -> list[int]:
        """Turn the tokens of a step into text; return the ids of the sequences that ended themselves."""
        stopped = []
        for sampled in output.tokens:
            ticket = self._book.get(sampled.request_id)
            if ticket is None:
                continue
            last_token_at = ticket.last_token_at
            piece, is_stopped = ticket.take(sampled, at)
            self._book.note_token(ticket, at, last_token_at)
            if piece is not None:
                self._book.deliver(ticket, piece)
            if is_stopped:
                stopped.append(ticket.id)
        return stopped

    def _end_step(self, plan: StepPlan, stopped: Sequence[int], output: StepOutput | None) -> None:
        """Tell the machine that the plan was run; `output` is `None` when it failed."""
        at = self._read_clock()
        step_s = Seconds(max(at - self._planned_at, STEP_S_MIN))
        self._plan = None
        if output is not None:
            record = StepRecord(
                step_s=step_s,
                forward_s=output.forward_s,
                sampling_s=output.sampling_s,
                predicted_s=plan.predicted_s,
                prefill_tokens=plan.tokens - len(plan.decodes),
                decode_tokens=len(plan.decodes),
                bound_by=plan.bound_by.kind,
            )
            self._book.note_step(record)
        still_open = tuple(request_id for request_id in stopped if self._book.get(request_id) is not None)
        self._tell(StepFinished(at=at, step_id=plan.step_id, step_seconds=(step_s,), stopped=still_open))

    # ------------------------------------------------------------------------------------------ failures

    def _recover(self, error: Exception) -> None:
        """Answer everyone with the error and bring the machine to rest; give the engine up after too many in a row."""
        self._failures += 1
        if self._failures >= FAILURES_MAX:
            self._give_up(f"the engine failed {self._failures} times in a row, last with: {error}")
            return
        try:
            for ticket in self._fail_all(f"the engine failed: {error}"):
                self._tell(Cancelled(at=self._read_clock(), request_id=ticket.id))
            if self._plan is not None:
                self._end_step(self._plan, (), None)
        except MachineError as fault:
            log.exception("the scheduler failed after the engine")
            self._give_up(f"the scheduler failed: {fault.__cause__!r}")

    def _give_up(self, reason: str) -> None:
        self._book.failure = reason
        self._plan = None
        self.wake_at = None
        self._fail_all(reason)

    def _fail_all(self, reason: str) -> list[Ticket]:
        failed = list(self._book)
        for ticket in failed:
            self._release(ticket)
            self._book.close(ticket, EngineError(reason), "error", self._now)
        return failed
