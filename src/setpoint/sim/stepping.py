"""One replica as the simulator sees it: the machine of `setpoint.core` unchanged, and passes that take virtual time.

A step plan may be run many times over within its horizon. Its passes are laid out ahead (`setpoint.sim.passes`) up to a
hint, the next instant at which something might come; extended when nothing did; and cut at the first end of a pass at
or after whatever comes earlier: a plan is never run beyond an event that the machine has not seen.

The truth about step time (`world`) and the machine's belief (its own `step_time`) are separate, so that prediction
error can be studied.
"""

from collections.abc import Callable

import msgspec

from setpoint.core.replica import ReplicaMachine
from setpoint.metrics.timeline import RequestRecord
from setpoint.model import (
    AnyCommand,
    AnyEvent,
    Arrived,
    Finish,
    LinearStepTime,
    Preempt,
    Reject,
    Request,
    RunStep,
    StepFinished,
    StepPlan,
    StepShape,
    StepTime,
    Tick,
    WakeAt,
)
from setpoint.sim.lives import Lives
from setpoint.sim.passes import Passes, World
from setpoint.units import NEVER, Instant

Journal = Callable[[AnyEvent, list[AnyCommand]], None]


class Arrival(msgspec.Struct, frozen=True):
    """A request as the simulator knows it: with the number of tokens that it will really produce."""

    request: Request
    output_tokens: int


class Watch:
    """Sees what a replica does, as it happens; a subclass says what to make of it. All hooks do nothing here."""

    def began(self, replica: int, plan: StepPlan, shape: StepShape, at: float) -> None:
        """Note that the passes of `plan` began."""

    def ended(self, replica: int, plan: StepPlan, shape: StepShape, ends: tuple[float, float], passes: int) -> None:
        """Note that `passes` passes of `plan` were run between the two instants `ends`."""

    def commanded(self, replica: int, command: AnyCommand, at: float) -> None:
        """Note any other command of the machine."""


class SimulatedReplica:
    """One machine and its passes on a virtual clock; whoever owns the clock asks `next_at` and calls `tick`."""

    def __init__(
        self,
        machine: ReplicaMachine,
        world: StepTime,
        *,
        id: int = 0,  # noqa: A002 - the name of the concept
        journal: Journal | None = None,
        watch: Watch | None = None,
        is_skipping: bool = True,
    ) -> None:
        """Drive `machine` with true step seconds from `world`; `is_skipping`: many passes at a time."""
        self.id = id
        self.machine = machine
        self.world = World(world)
        self.next_at = NEVER
        self.steps = 0
        self.busy_s = 0.0
        self.preemptions = 0
        self.lives = Lives()
        self.ended: list[RequestRecord] = []
        self.begun: list[RequestRecord] = []
        """Those whose first token came since this list was last cleared; kept only when `is_begin_told`."""
        self.is_begin_told = False
        self._timed: set[str] = {
            name for name, c in machine.state.classes.items() if c.slo.judged_by == "pace" and c.slo.tpot_s is not None
        }
        self._journal = journal
        self._watch = watch
        self._is_skipping = is_skipping
        self._is_truth_known = machine.state.step_time is world and isinstance(world, LinearStepTime) and world.is_fixed
        """Whether what the machine predicts of a step is how long it takes."""
        self._passes: Passes | None = None

    @property
    def passes_end_at(self) -> float:
        """When the passes laid out so far end."""
        return NEVER if self._passes is None else self._passes.at

    def arrive(self, arrival: Arrival, record: RequestRecord, at: float, hint: float = NEVER) -> None:
        """Take a request in at the instant `at`."""
        self.lives.add(arrival.request.id, record, arrival.output_tokens)
        self.deliver(Arrived(at=Instant(at), request=arrival.request), hint)

    def deliver(self, event: AnyEvent, hint: float = NEVER) -> None:
        """Hand any event from outside to the machine; passes under way are cut there."""
        if self._passes is not None:
            self._passes.cut(event.at)
        self._handle(event, hint)

    def tick(self, hint: float = NEVER) -> None:
        """Do what is due at `next_at`: end or extend the passes, else wake the machine; `hint`: see the module."""
        passes = self._passes
        if passes is None:
            self._handle(Tick(at=Instant(self.next_at)), hint)
            return
        if passes.may_go_on:
            passes.lay_out(self.world, hint)
            if passes.at > self.next_at:
                self.next_at = passes.at
                return
        self._passes = None
        self._handle(self._end(passes), hint)

    def drop(self, request_id: int) -> RequestRecord:
        """Forget a request (its client left, or the replica died) and return its record."""
        return self.lives.pop(request_id)

    def stretch(self, factor: float, at: float) -> None:
        """Let every pass that begins after `at` take `factor` times as long as the world says."""
        if self._passes is not None:
            self._passes.cut(at)
            self.next_at = self._passes.at
        self.world.factor = factor

    def _handle(self, event: AnyEvent, hint: float) -> None:
        at = event.at
        commands = self.machine.handle(event)
        if self._journal is not None:
            self._journal(event, commands)
        wake_at = NEVER
        for command in commands:
            kind = type(command)
            if kind is RunStep:
                self._begin(command.plan, at, hint)  # type: ignore[union-attr]  # its type was just compared
            elif kind is Finish:
                self._finish(self.lives.pop(command.request_id), at)  # type: ignore[union-attr]
            elif kind is WakeAt:
                wake_at = command.at  # type: ignore[union-attr]
            elif kind is Reject:
                self._reject(command, at)  # type: ignore[arg-type]
            elif kind is Preempt:
                self.preemptions += 1
                self.lives.rest(command.request_id)  # type: ignore[union-attr]
            if self._watch is not None and kind is not RunStep:
                self._watch.commanded(self.id, command, at)
        # the machine asks to be woken only while no step is in flight
        self.next_at = wake_at if self._passes is None else self._passes.at

    def _finish(self, record: RequestRecord, at: float) -> None:
        record.ended_at = at
        self.ended.append(record)

    def _reject(self, command: Reject, at: float) -> None:
        record = self.lives.pop(command.request_id)
        record.error = "expired" if command.reason == "expired" else "rejected"
        record.detail = command.reason
        self._finish(record, at)

    def _begin(self, plan: StepPlan, at: float, hint: float) -> None:
        most = plan.horizon.steps
        if most > 1:
            most = min(most, self.lives.passes_to_stop()) if self._is_skipping else 1
        shape = self.machine.shape
        if self._watch is not None:
            self._watch.began(self.id, plan, shape, at)
        world = self.world
        first_s = plan.predicted_s if self._is_truth_known else world.seconds(*shape)
        passes = self._passes = Passes(plan, shape, at, first_s * world.factor, most)
        passes.left_out = self.lives.left_out(plan.decodes)
        if most > 1:
            passes.lay_out(world, hint)

    def _end(self, passes: Passes) -> StepFinished:
        plan, at = passes.plan, passes.at
        repeats = len(passes.ends)
        stopped = self.lives.yield_each(repeats, passes.left_out)
        if plan.prefills:
            self._end_prefills(plan, at, stopped)
        if self._timed:
            self._note_tokens(passes)
        self.steps += repeats
        self.busy_s += at - passes.start
        if self._watch is not None:
            self._watch.ended(self.id, plan, passes.shape, (passes.start, at), repeats)
        return StepFinished(
            at=Instant(at),
            step_id=plan.step_id,
            step_seconds=tuple(passes.durations),  # type: ignore[arg-type]  # Seconds are floats
            stopped=tuple(stopped),
        )

    def _end_prefills(self, plan: StepPlan, at: float, stopped: list[int]) -> None:
        for request_id, tokens in plan.prefills:
            record = self.lives.find(request_id)
            if record is None or tokens < self.machine.ledger.sequences[request_id].remaining_tokens:
                continue
            if record.first_token_at is None:
                record.first_token_at = at
                if self.is_begin_told:
                    self.begun.append(record)
            if self.lives.yield_one(request_id):
                stopped.append(request_id)

    def _note_tokens(self, passes: Passes) -> None:
        """Keep the instant of each token of the classes that are judged by their pace."""
        plan = passes.plan
        for request_id in (*plan.decodes, *(request_id for request_id, _ in plan.prefills)):
            record = self.lives.find(request_id)
            if record is not None and record.class_name in self._timed:
                record.event_at += passes.ends[: record.output_tokens - len(record.event_at)]


def new_record(request: Request, scheduled_at: float) -> RequestRecord:
    """Return the record of a request that was sent when it was due."""
    return RequestRecord(
        id=request.id,
        class_name=request.class_name,
        scheduled_at=scheduled_at,
        sent_at=scheduled_at,
        prompt_tokens=request.prompt_tokens,
        cached_tokens=request.cached_tokens,
        token_source="plan",  # noqa: S106 - tokens of text
    )
