"""The replica machine inside an engine that owns its loop and runs ahead of its results.

Such an engine asks for a plan (`StepAsked`) while steps are under way whose tokens nobody has seen, begins what it can
of it, and says what that is (`StepBegun`); `StepFinished` follows for each step in order. So three things differ from
the machine that drives an engine:

- it plans when it is asked, and only then;
- a plan takes effect when the engine has begun it, as far as it has: what the engine could not let in keeps waiting;
- what has begun counts as done at once: its tokens as computed, one token yielded by each decode, none as the last but
  where the limit of the request says so. `StepFinished` puts the instants right and ends those that have ended.

A plan is made for the instant at which the engine will be free, which is when the steps under way are predicted to end.
The ids of `StepPlan` count the answers to `StepAsked`; those of `StepBegun` are the engine's.
"""

from collections import deque
from collections.abc import Collection, Mapping
from operator import attrgetter
from typing import NamedTuple

from setpoint.core.filling import Draft
from setpoint.core.ledger import Sequence
from setpoint.core.replica import ReplicaMachine
from setpoint.core.state import Strategy
from setpoint.model import (
    AnyCommand,
    AnyEvent,
    Capacity,
    RunStep,
    ServiceClass,
    StepAsked,
    StepBegun,
    StepFinished,
    StepPlan,
    StepShape,
    StepTime,
    chunk_work,
)
from setpoint.units import Instant, Seconds

_ID = attrgetter("id")


class Underway(NamedTuple):
    """A step that has begun: what it computes, whose tokens it yields, and which of these are first ones."""

    step_id: int
    shape: StepShape
    predicted_s: float
    yields: tuple[int, ...]
    firsts: tuple[int, ...]
    batch_s: float


class SteeredMachine(ReplicaMachine):
    """Decides inside an engine that asks; see `ReplicaMachine` for the door and the commands."""

    def __init__(
        self, strategy: Strategy, classes: Mapping[str, ServiceClass], capacity: Capacity, step_time: StepTime
    ) -> None:
        """Start idle and empty."""
        super().__init__(strategy, classes, capacity, step_time)
        self.underway: deque[Underway] = deque()
        """The steps that have begun and not finished, oldest first."""
        self._busy_since = 0.0
        self._heard_at = 0.0
        self._everyone: tuple[int, ...] | None = None
        """The decodes of the latest plan, if these are all that decode, until a step begins."""

    def handle(self, event: AnyEvent) -> list[AnyCommand]:
        """Take in what has happened; return what is to be done, in order."""
        assert event.at >= self._heard_at, "events come in the order of their instants"
        self._heard_at = self.state.now = event.at
        out = self._out = []
        if isinstance(event, StepFinished):
            self._finished(event)
        elif isinstance(event, StepBegun):
            self._begun(event)
        else:
            self._take_in(event)
        self._expire()
        if isinstance(event, StepAsked):
            self._asked(event)
        return out

    def free_at(self, now: float) -> float:
        """Return when the engine will have done all that is under way, as predicted."""
        free_at = self._busy_since
        for step in self.underway:
            free_at = max(now, free_at + step.predicted_s)
        return max(now, free_at)

    def _asked(self, event: StepAsked) -> None:
        state = self.state
        if event.free_blocks is not None:
            self.ledger.reconcile(event.free_blocks)
        state.now = self.free_at(event.at)
        draft = self._drafted()
        while draft.is_empty and draft.preempted:
            draft = self._drafted()
        if not draft.is_empty:
            self._out.append(RunStep(plan=self._planned(draft)))
        state.now = event.at

    def _planned(self, draft: Draft) -> StepPlan:
        self._steps += 1
        self._batch_s = draft.batch_s
        if len(draft.decodes) == len(self.ledger.decoding):
            decodes = self._everyone = self.ledger.decodes.ids()
        else:
            decodes, self._everyone = tuple(map(_ID, draft.decodes)), None
        return StepPlan(
            step_id=self._steps,
            decodes=decodes,
            prefills=tuple([(s.id, tokens) for s, tokens in draft.chunks.items()]),
            predicted_s=Seconds(draft.seconds),
            cap_s=None if draft.cap_s is None else Seconds(draft.cap_s),
            bound_by=draft.binding,
        )

    def _begun(self, event: StepBegun) -> None:
        """Put the step under way, and count it as done when it is predicted to end; one of nothing takes no time."""
        ledger = self.ledger
        for request_id in event.preempted:
            sequence = ledger.sequences.get(request_id)
            if sequence is not None and sequence.slot is not None:
                ledger.preempt(sequence, self.strategy.key(sequence, self.state))
        for request_id, cached_tokens, known_tokens in event.admitted:
            sequence = ledger.sequences.get(request_id)
            if sequence is not None and sequence.slot is None:
                self._admit(sequence, cached_tokens, known_tokens)
        if not event.decodes and not event.prefills:
            return
        decoding, left_out = self._decoding(event.decodes)
        shape = self._shape_of(event, decoding)
        predicted_s = self.state.step_time.seconds(*shape)
        if not self.underway:
            self._busy_since = event.at
        ends_at = Instant(self.free_at(event.at) + predicted_s)
        yields = event.decodes if len(decoding) == len(event.decodes) else tuple([s.id for s in decoding])
        ledger.advance(1, left_out)
        begun = [(s, n) for i, n in event.prefills if (s := ledger.prefilling.get(i)) is not None]
        prefilled = [s for s, tokens in begun if self._has_prefilled(s, tokens)]
        firsts = tuple([s.id for s in prefilled if s.first_token_at is None])
        for sequence in prefilled:
            ledger.decode(sequence, ends_at)
        for sequence in ledger.decodes.ended(()):
            ledger.end(sequence)
        yields += tuple([s.id for s in prefilled])
        self.underway.append(Underway(event.step_id, shape, predicted_s, yields, firsts, self._batch_s))

    def _admit(self, sequence: Sequence, cached_tokens: int, known_tokens: int) -> None:
        """Let a sequence in with what the engine found in its cache."""
        assert 0 <= cached_tokens < known_tokens, "something is left to compute"
        self.ledger.admit(sequence)
        sequence.cached_tokens = sequence.computed_tokens = cached_tokens
        sequence.target_tokens = known_tokens
        sequence.output_tokens = known_tokens - sequence.prompt_tokens
        self.ledger.hold(sequence, known_tokens)

    def _decoding(self, request_ids: tuple[int, ...]) -> tuple[Collection[Sequence], list[Sequence]]:
        """Return those in decode that are among `request_ids`, and those that are not.

        Only where a step begins does anyone join: as many as all were in the plan are all of them still.
        """
        members = self.ledger.decoding
        everyone, self._everyone = self._everyone, None
        if request_ids == everyone and len(members) == len(request_ids):
            return members.values(), []
        decoded = {*request_ids}
        if members.keys() == decoded:
            return members.values(), []
        decoding = [s for i, s in members.items() if i in decoded]
        return decoding, [s for i, s in members.items() if i not in decoded]

    def _shape_of(self, event: StepBegun, decoding: Collection[Sequence]) -> StepShape:
        ledger = self.ledger
        chunks = [(s.computed_tokens, n) for i, n in event.prefills if (s := ledger.prefilling.get(i)) is not None]
        work = sum(chunk_work(computed, tokens) for computed, tokens in chunks)
        context = ledger.decodes.context(decoding)
        return StepShape(len(decoding), context, sum(tokens for _, tokens in chunks), work, len(chunks))

    def _has_prefilled(self, sequence: Sequence, tokens: int) -> bool:
        """Count a chunk as computed; return whether the prompt is complete."""
        assert 0 < tokens <= sequence.remaining_tokens, "no more is computed than is known"
        sequence.computed_tokens += tokens
        return sequence.remaining_tokens == 0

    def _finished(self, event: StepFinished) -> None:
        """Learn from the oldest step under way, and put right what was presumed of it."""
        step = self.underway.popleft()
        assert event.step_id == step.step_id, "steps finish in the order in which they began"
        self._busy_since = event.at
        self.shape = step.shape
        self.state.batch_s += step.batch_s
        self._learn(event.step_seconds)
        sequences = self.ledger.sequences
        for request_id in step.firsts:
            sequence = sequences.get(request_id)
            if sequence is not None:
                self.ledger.begin(sequence, Instant(event.at))
        for request_id in event.stopped:
            sequence = sequences.get(request_id)
            if sequence is None:
                continue
            if request_id in self.ledger.decoding:
                self.ledger.end(sequence)
            sequence.output_tokens -= sum(request_id in later.yields for later in self.underway)
            self.strategy.saw_finish(sequence, self.state)
            is_full = sequence.output_tokens >= sequence.output_tokens_max
            self._finish(sequence, "length" if is_full else "stop")
