"""One replica as the simulator sees it: the machine of `setpoint.core` unchanged, and passes that take virtual time.

A step plan may be run many times over within its horizon. The passes under way are held as a list of durations that is
added up pass by pass, so that instants are the same floats as in a run that asks at each step. They are laid out ahead
up to a hint (the next instant at which something might come), extended when nothing did, and cut at the first end of a
pass at or after whatever comes earlier: a plan is never run beyond an event that the machine has not seen.

The truth about step time (`world`) and the machine's belief (its own `step_time`) are separate, so that prediction
error can be studied. `factor` stretches the truth: a slow replica.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate

import msgspec

from setpoint.core.replica import ReplicaMachine
from setpoint.metrics.timeline import RequestRecord
from setpoint.model import (
    AnyCommand,
    AnyEvent,
    Arrived,
    Finish,
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
from setpoint.units import Instant

NEVER = float("inf")

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


class _Life:
    """What the simulator tracks of an unfinished request."""

    __slots__ = ("output_tokens", "record")

    def __init__(self, record: RequestRecord, output_tokens: int) -> None:
        self.output_tokens = output_tokens
        self.record = record


class _Passes:
    """The passes of the plan in flight, laid out from `start` to `at`."""

    __slots__ = ("at", "context_tokens", "durations", "is_closed", "most", "plan", "shape", "start", "until_at")

    def __init__(self, plan: StepPlan, shape: StepShape, start: float, most: int) -> None:
        self.plan = plan
        self.shape = shape
        self.start = start
        self.most = most
        self.context_tokens = shape.context_tokens
        self.durations: list[float] = []
        self.at = start
        self.is_closed = most < 2  # noqa: PLR2004 - a single pass is never extended
        until_at = plan.horizon.until_at
        self.until_at = NEVER if until_at is None else until_at

    @property
    def may_go_on(self) -> bool:
        """Whether one more pass may begin at `at`."""
        if self.is_closed or len(self.durations) >= self.most or self.at >= self.until_at:
            return False
        pace_s = self.plan.horizon.pace_s
        return pace_s is None or self.at <= self.start + len(self.durations) * pace_s

    def cut(self, at: float) -> None:
        """Begin no pass at or after `at`; what was laid out beyond is taken back."""
        self.is_closed = True
        if len(self.durations) < 2:  # noqa: PLR2004 - the first pass has begun and ends
            return
        ends = list(accumulate([self.start, *self.durations]))[1:]
        kept = min(len(ends), bisect_left(ends, at) + 1)
        del self.durations[kept:]
        self.at = ends[kept - 1]


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
        self.world = world
        self.factor = 1.0
        self.next_at = NEVER
        self.steps = 0
        self.busy_s = 0.0
        self.preemptions = 0
        self.lives: dict[int, _Life] = {}
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
        self._passes: _Passes | None = None
        self._wake_at = NEVER

    @property
    def passes_end_at(self) -> float:
        """When the passes laid out so far end."""
        return NEVER if self._passes is None else self._passes.at

    def arrive(self, arrival: Arrival, record: RequestRecord, at: float, hint: float = NEVER) -> None:
        """Take a request in at the instant `at`."""
        self.lives[arrival.request.id] = _Life(record, arrival.output_tokens)
        self.deliver(Arrived(at=Instant(at), request=arrival.request), hint)

    def deliver(self, event: AnyEvent, hint: float = NEVER) -> None:
        """Hand any event from outside to the machine; passes under way are cut there."""
        passes = self._passes
        if passes is not None:
            passes.cut(event.at)
        self._handle(event, hint)

    def tick(self, hint: float = NEVER) -> None:
        """Do what is due at `next_at`: end or extend the passes, else wake the machine; `hint`: see the module."""
        passes = self._passes
        if passes is None or self._wake_at < passes.at:
            at = self._wake_at
            if passes is not None:
                passes.cut(at)
            self._handle(Tick(at=Instant(at)), hint)
            return
        if passes.may_go_on:
            self._lay_out(passes, hint)
            if passes.at > self.next_at:
                self._schedule()
                return
        self._passes = None
        self._handle(self._end(passes), hint)

    def drop(self, request_id: int) -> RequestRecord:
        """Forget a request (its client left, or the replica died) and return its record."""
        return self.lives.pop(request_id).record

    def stretch(self, factor: float, at: float) -> None:
        """Let every pass that begins after `at` take `factor` times as long as the world says."""
        if self._passes is not None:
            self._passes.cut(at)
        self.factor = factor
        self._schedule()

    def _handle(self, event: AnyEvent, hint: float) -> None:
        at = event.at
        commands = self.machine.handle(event)
        if self._journal is not None:
            self._journal(event, commands)
        self._wake_at = NEVER
        for command in commands:
            kind = type(command)
            if kind is RunStep:
                self._begin(command.plan, at, hint)  # type: ignore[union-attr]  # its type was just compared
            elif kind is Finish:
                self._finish(self.lives.pop(command.request_id).record, at)  # type: ignore[union-attr]
            elif kind is WakeAt:
                self._wake_at = command.at  # type: ignore[union-attr]
            elif kind is Reject:
                self._reject(command, at)  # type: ignore[arg-type]
            elif kind is Preempt:
                self.preemptions += 1
            if self._watch is not None and kind is not RunStep:
                self._watch.commanded(self.id, command, at)
        self._schedule()

    def _schedule(self) -> None:
        passes = self._passes
        self.next_at = self._wake_at if passes is None else min(self._wake_at, passes.at)

    def _finish(self, record: RequestRecord, at: float) -> None:
        record.ended_at = at
        self.ended.append(record)

    def _reject(self, command: Reject, at: float) -> None:
        record = self.lives.pop(command.request_id).record
        record.error = "expired" if command.reason == "expired" else "rejected"
        record.detail = command.reason
        self._finish(record, at)

    def _begin(self, plan: StepPlan, at: float, hint: float) -> None:
        most = plan.horizon.steps
        if most > 1:
            most = self._steps_to_first_stop(plan) if self._is_skipping else 1
        passes = self._passes = _Passes(plan, self.machine.shape, at, most)
        if self._watch is not None:
            self._watch.began(self.id, plan, passes.shape, at)
        shape = passes.shape
        seconds = self.world.seconds(*shape) * self.factor
        passes.durations.append(seconds)
        passes.at = at + seconds
        if not passes.is_closed:
            self._lay_out(passes, min(hint, self._wake_at))

    def _lay_out(self, passes: _Passes, hint: float) -> None:
        """Lay out further passes, as long as they begin before `hint` and within the horizon."""
        durations = passes.durations
        decodes = passes.shape.decodes
        context = passes.context_tokens
        at, start = passes.at, passes.start
        until_at = min(hint, passes.until_at)
        pace_s = passes.plan.horizon.pace_s
        base_s, slope_s = self._line(decodes)
        factor = self.factor
        count, most = len(durations), passes.most
        while count < most and at < until_at and (pace_s is None or at <= start + count * pace_s):
            context += decodes
            seconds = (self.world.seconds(decodes, context) if slope_s is None else base_s + context * slope_s) * factor
            at += seconds
            durations.append(seconds)
            count += 1
        passes.at = at
        passes.context_tokens = context

    def _line(self, decodes: int) -> tuple[float, float | None]:
        """Return (base, slope) where the world's decode time is exactly base + context x slope, else no slope."""
        line = getattr(self.world, "decode_line", None)
        return (0.0, None) if line is None else line(decodes)

    def _steps_to_first_stop(self, plan: StepPlan) -> int:
        lives = self.lives
        most = plan.horizon.steps
        for request_id in plan.decodes:
            life = lives.get(request_id)
            if life is not None:
                left = life.output_tokens - life.record.output_tokens
                most = min(left, most)
        return most

    def _end(self, passes: _Passes) -> StepFinished:
        plan, at = passes.plan, passes.at
        repeats = len(passes.durations)
        stopped: list[int] = []
        lives = self.lives
        for request_id in plan.decodes:
            life = lives.get(request_id)
            if life is None:
                continue
            record = life.record
            record.output_tokens += repeats
            if record.output_tokens >= life.output_tokens:
                stopped.append(request_id)
        if plan.prefills:
            self._end_prefills(plan, at, stopped)
        if self._timed:
            self._note_tokens(plan, passes)
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
            life = self.lives.get(request_id)
            if life is None or tokens < self.machine.ledger.sequences[request_id].remaining_tokens:
                continue
            record = life.record
            if record.first_token_at is None:
                record.first_token_at = at
                if self.is_begin_told:
                    self.begun.append(record)
            record.output_tokens += 1
            if record.output_tokens >= life.output_tokens:
                stopped.append(request_id)

    def _note_tokens(self, plan: StepPlan, passes: _Passes) -> None:
        """Keep the instant of each token of the classes that are judged by their pace."""
        ends = list(accumulate([passes.start, *passes.durations]))[1:]
        for request_id in plan.decodes:
            self._note(request_id, ends)
        for request_id, _ in plan.prefills:
            life = self.lives.get(request_id)
            if life is not None and len(life.record.event_at) < life.record.output_tokens:
                self._note(request_id, ends)

    def _note(self, request_id: int, ends: Iterable[float]) -> None:
        life = self.lives.get(request_id)
        if life is not None and life.record.class_name in self._timed:
            life.record.event_at.extend(ends)


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
