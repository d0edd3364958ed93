"""The replica machine: one door in, commands out.

    handle(event) -> list[Command]

A synchronous state machine without I/O. It reads no clock (each event carries its instant), draws no random number and
knows no engine. At most one step is in flight; whenever none is, every event ends with an attempt to plan the next, so
that an idle engine never stands beside work that its strategy would let in. What the shell must know:

- `RunStep` is answered with `StepFinished`, before which no further `RunStep` comes;
- commands are carried out in the order given; `Admit`, `Preempt` and `Finish` of one reply come before its `RunStep`;
- `WakeAt` asks for a `Tick` at an instant unless another event comes first; each reply withdraws the earlier ones;
- ids are unique among the requests that are not yet finished or rejected.
"""

from collections.abc import Mapping

from setpoint.core.filling import Draft
from setpoint.core.ledger import Ledger, Sequence
from setpoint.core.state import State, Strategy
from setpoint.model import (
    Admit,
    AnyCommand,
    AnyEvent,
    Arrived,
    Cancelled,
    Capacity,
    CapacityChanged,
    Finish,
    FinishReason,
    Horizon,
    Preempt,
    Reject,
    RejectReason,
    Relegate,
    Request,
    RunStep,
    ServiceClass,
    StepFinished,
    StepPlan,
    StepShape,
    StepTime,
    WakeAt,
)
from setpoint.units import Instant, Seconds

_RATE_TOKENS = 2048.0


class ReplicaMachine:
    """Decides inside an engine, step by step, by the rules of one strategy."""

    def __init__(
        self, strategy: Strategy, classes: Mapping[str, ServiceClass], capacity: Capacity, step_time: StepTime
    ) -> None:
        """Start idle and empty."""
        self.strategy = strategy
        self.ledger = Ledger(capacity)
        self.state = State(self.ledger, dict(classes), step_time)
        self.step_in_flight: StepPlan | None = None
        self.shape = StepShape()
        self._steps = 0
        self._left_out: list[Sequence] = []
        """Those in decode that the step in flight does not decode."""
        self._batch_s = 0.0
        """What batch work adds to each step of the latest plan."""
        self._out: list[AnyCommand] = []

    def handle(self, event: AnyEvent) -> list[AnyCommand]:
        """Take in what has happened; return what is to be done, in order."""
        assert event.at >= self.state.now, "events come in the order of their instants"
        self.state.now = event.at
        out = self._out = []
        if isinstance(event, StepFinished):
            self._step_finished(event)
        else:
            self._take_in(event)
        self._expire()
        if self.step_in_flight is None:
            self._plan()
        return out

    def _take_in(self, event: AnyEvent) -> None:
        """Take in what concerns requests and capacity; the events of steps are for each machine itself."""
        if isinstance(event, Arrived):
            self._arrived(event.request)
        elif isinstance(event, Cancelled):
            self._cancelled(event.request_id)
        elif isinstance(event, CapacityChanged):
            self._capacity_changed(event.capacity)

    def _arrived(self, request: Request) -> None:
        assert request.id not in self.ledger.sequences, "a request arrives once"
        service_class = self.state.classes.get(request.class_name)
        if service_class is None:
            self._out.append(Reject(request_id=request.id, reason="unknown_class"))
            return
        sequence = Sequence(request, service_class)
        sequence.batch_before_s = self.state.batch_s
        reason = self._refusal(sequence)
        if reason is not None:
            retry_after_s = self.strategy.retry_after(sequence, self.state) if reason == "queue_full" else None
            self._out.append(Reject(request_id=request.id, reason=reason, retry_after_s=retry_after_s))
            return
        self.strategy.saw_arrival(sequence, self.state)
        self.ledger.wait(sequence, self.strategy.key(sequence, self.state))

    def _refusal(self, sequence: Sequence) -> RejectReason | None:
        """Return why a request is not even queued, or `None`."""
        if self._is_too_long(sequence):
            return "too_long"
        service_class = sequence.service_class
        if self.ledger.waiting_by_class.get(service_class.name, 0) >= service_class.queue_max:
            return "queue_full"
        return None

    def _cancelled(self, request_id: int) -> None:
        sequence = self.ledger.sequences.get(request_id)
        if sequence is not None:
            self._finish(sequence, "cancelled")

    def _capacity_changed(self, capacity: Capacity) -> None:
        self.ledger.change_capacity(capacity)
        for sequence in [*self.ledger.waiting_from()]:
            self._drop_if_too_long(sequence)

    def _drop_if_too_long(self, sequence: Sequence) -> None:
        """Refuse a waiting sequence that the replica can no longer hold to its end."""
        if self._is_too_long(sequence):
            self.ledger.remove(sequence)
            self._out.append(Reject(request_id=sequence.id, reason="too_long"))

    def _is_too_long(self, sequence: Sequence) -> bool:
        capacity = self.ledger.capacity
        longest = sequence.prompt_tokens + sequence.output_tokens_max
        return longest > capacity.context_tokens_max or capacity.blocks(longest) > capacity.kv_blocks

    def _step_finished(self, event: StepFinished) -> None:
        plan = self.step_in_flight
        assert plan is not None, "a step finishes once"
        assert event.step_id == plan.step_id, "the step in flight finishes"
        assert 1 <= len(event.step_seconds) <= plan.horizon.steps, "a plan runs within its horizon"
        self.step_in_flight = None
        self._learn(event.step_seconds)
        self.state.batch_s += len(event.step_seconds) * self._batch_s
        ledger, stopped = self.ledger, event.stopped
        ledger.advance(len(event.step_seconds), self._left_out)
        for request_id, tokens in event.extra:
            if request_id in ledger.decoding:
                ledger.gain(ledger.decoding[request_id], tokens - 1)
        for sequence in ledger.decodes.ended(stopped):
            self._ended(sequence, is_stopped=sequence.id in stopped)
        for request_id, tokens in plan.prefills:
            begun = ledger.prefilling.get(request_id)
            if begun is not None:
                begun.computed_tokens += tokens
                if begun.remaining_tokens == 0:
                    self._first_token(begun, is_stopped=request_id in stopped)

    def _learn(self, step_seconds: tuple[Seconds, ...]) -> None:
        state = self.state
        shape = self.shape
        if state.step_time.is_fixed and not shape.prefill_tokens:
            return
        # what may be run many times over is nothing but decodes, under a model that does not learn
        (seconds,) = step_seconds
        state.step_time.observe(shape, seconds)
        if shape.prefill_tokens:
            share = min(1.0, shape.prefill_tokens / _RATE_TOKENS)
            old = state.seconds_per_prefill_token()
            state.prefill_s = old + share * (seconds / shape.prefill_tokens - old)

    def _first_token(self, sequence: Sequence, *, is_stopped: bool) -> None:
        """Note the token that the end of a prefill yields (the first, unless it is a recomputed one)."""
        self.ledger.decode(sequence, Instant(self.state.now))
        if is_stopped or sequence.output_tokens >= sequence.output_tokens_max:
            self._ended(sequence, is_stopped=is_stopped)

    def _ended(self, sequence: Sequence, *, is_stopped: bool) -> None:
        self.strategy.saw_finish(sequence, self.state)
        self._finish(sequence, "stop" if is_stopped else "length")

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.ledger.remove(sequence)
        self._out.append(Finish(request_id=sequence.id, reason=reason))

    def _expire(self) -> None:
        for sequence in self.ledger.pop_expired(self.state.now):
            retry_after_s = self.strategy.retry_after(sequence, self.state)
            self.strategy.saw_refusal(sequence, self.state)
            self._out.append(Reject(request_id=sequence.id, reason="expired", retry_after_s=retry_after_s))

    def _plan(self) -> None:
        """Plan the next step; anew when all that it did was to take back, so that what was freed finds its use."""
        draft = self._drafted()
        while draft.preempted and draft.is_empty:
            draft = self._drafted()
        if draft.is_empty:
            self._sleep()
        else:
            self._run(draft)

    def _drafted(self) -> Draft:
        """Let the strategy fill a draft, and carry out what it gave up, took back and refused."""
        state = self.state
        draft = Draft(self.ledger, state.step_time)
        self.strategy.plan(draft, state)
        for sequence in draft.refused:
            retry_after_s = self.strategy.retry_after(sequence, state)
            self.ledger.remove(sequence)
            self.strategy.saw_refusal(sequence, state)
            self._out.append(Reject(request_id=sequence.id, reason="late", retry_after_s=retry_after_s))
        for sequence, is_late in draft.relegated:
            self._relegate(sequence, is_late=is_late)
        for sequence in draft.preempted:
            self.ledger.preempt(sequence, self.strategy.key(sequence, state))
            self._out.append(Preempt(request_id=sequence.id))
            self._drop_if_too_long(sequence)
        if draft.preempted:
            self._expire()
        return draft

    def _relegate(self, sequence: Sequence, *, is_late: bool) -> None:
        if sequence.is_late != is_late:
            sequence.is_late = is_late
            self._out.append(Relegate(request_id=sequence.id, is_relegated=is_late))
        if sequence.slot is None:
            self.ledger.requeue(sequence, self.strategy.key(sequence, self.state))

    def _run(self, draft: Draft) -> None:
        horizon = self.strategy.horizon(draft, self.state) if self.state.step_time.is_fixed else Horizon(1)
        for sequence, tokens in draft.chunks.items():
            if sequence.slot is None:
                slot = self.ledger.admit(sequence)
                self.ledger.hold(sequence, sequence.target_tokens)
                self._out.append(Admit(request_id=sequence.id, slot=slot))
            assert 0 < tokens <= sequence.remaining_tokens
        for sequence in draft.growing:
            self.ledger.hold(sequence, sequence.computed_tokens + 1)
        self._left_out = draft.left_out()
        self._batch_s = draft.batch_s
        self.shape = draft.shape
        self._steps += 1
        self.step_in_flight = StepPlan(
            step_id=self._steps,
            decodes=tuple(sorted([s.id for s in draft.decodes] if self._left_out else self.ledger.decoding)),
            prefills=tuple([(s.id, tokens) for s, tokens in draft.chunks.items()]),
            predicted_s=Seconds(draft.seconds),
            cap_s=None if draft.cap_s is None else Seconds(draft.cap_s),
            bound_by=draft.binding,
            horizon=horizon,
        )
        self._out.append(RunStep(plan=self.step_in_flight))

    def _sleep(self) -> None:
        assert self.ledger.running == 0, "an engine with running sequences always has a step"
        instants = [t for t in (self.strategy.wake_at(self.state), self.ledger.next_expiry()) if t is not None]
        if instants:
            self._out.append(WakeAt(at=Instant(min(instants))))
