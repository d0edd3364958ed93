"""Batch work under `slack`: it takes what the protected classes leave, and gives back what they need.

A batch sequence is *spare* while its completion window is far off: twice the work left of it, at what a decode and a
prompt token cost now, must still fit. From then on it is protected like any other.
"""

from collections.abc import Collection, Iterable
from itertools import takewhile
from typing import NamedTuple, Self

from setpoint.core.decodes import Decodes, Group
from setpoint.core.filling import Draft
from setpoint.core.ledger import Key, Sequence
from setpoint.core.setpoints import Setpoints
from setpoint.core.state import State
from setpoint.core.strategies.batching import decode_or_preempt
from setpoint.core.strategies.options import SlackOptions
from setpoint.model import Binding, StepShape

HOPEFUL, LATE, HARVEST = 0.0, 1.0, 2.0
"""The parts of the waiting queue, in their order: first elements of the keys."""
_PREEMPTIONS_MAX = 2
_BURST_MAX = 4


class Urgency(NamedTuple):
    """What a decode step and a prompt token cost now, in seconds; taken once a plan, for all sequences alike."""

    now: float
    step_s: float
    token_s: float

    @classmethod
    def of(cls, state: State, steps: int = 0) -> Self:
        """Return the costs as they will be `steps` steps of pure decoding from now."""
        decoding = state.ledger.decoding
        context = state.ledger.decodes.context(decoding.values()) + steps * len(decoding)
        return cls(
            state.now, state.step_time.seconds(max(1, len(decoding)), context), state.seconds_per_prefill_token()
        )

    def begins_at(self, sequence: Sequence) -> float:
        """Return when twice the work left of a batch sequence reaches its completion window."""
        left = sequence.output_tokens_max - sequence.output_tokens
        return self._begins_at(sequence.due_at, sequence.remaining_tokens, left)

    def is_spare(self, sequence: Sequence) -> bool:
        """Return whether a sequence is batch work with time left: it yields to the protected."""
        return sequence.is_harvest and self.now < self.begins_at(sequence)

    def is_all_spare(self, harvest: Group) -> bool:
        """Return whether all of a group of batch work is spare for sure, without a look at each."""
        return not harvest or self.now < self._begins_at(*harvest.extremes())

    def _begins_at(self, due_at: float, prompt_tokens: int, output_tokens: int) -> float:
        return due_at - 2.0 * (prompt_tokens * self.token_s + output_tokens * self.step_s)


def parted(decodes: Decodes, urgency: Urgency | None) -> tuple[Collection[Sequence], Collection[Sequence]]:
    """Return those in decode that are protected, and the spare ones, each in the order in which they joined.

    Without `urgency` there is no batch work.
    """
    if urgency is None or urgency.is_all_spare(decodes.harvest):
        return decodes.protected, decodes.harvest
    spare = [s for s in decodes.harvest if urgency.is_spare(s)]
    yielding = {*spare}
    return [s for s in decodes.members.values() if s not in yielding], spare


class Harvester:
    """Puts batch work into steps, and takes it back; at most one preemption for each protected arrival."""

    def __init__(self, options: SlackOptions, setpoints: Setpoints) -> None:
        """Keep to `options`, as boldly as `setpoints` say."""
        self._options = options
        self._setpoints = setpoints
        self._preemptions = 0
        self._was_there = False

    def allow_preemption(self) -> None:
        """Count a protected arrival."""
        self._preemptions = min(_BURST_MAX, self._preemptions + 1)

    def take_was_there(self) -> bool:
        """Return whether there was batch work, run or held back, in any plan since the last call."""
        was_there, self._was_there = self._was_there, False
        return was_there

    def make_room(self, draft: Draft, urgency: Urgency) -> bool:
        """Take slot and KV back from the batch sequence that is cheapest to recompute, if that may be."""
        if self._preemptions < 1 or not self._options.is_preempting:
            return False
        running = (*draft.decoding(), *draft.prefilling())
        victim = cheapest(draft, [s for s in running if urgency.is_spare(s)])
        if victim is None:
            return False
        self._preemptions -= 1
        draft.preempt(victim)
        return True

    def urgent(self, draft: Draft, state: State, urgency: Urgency) -> list[Sequence]:
        """Return the batch sequences, begun and waiting, whose completion window draws near."""
        begun = [s for s in draft.prefilling() if s.is_harvest and not urgency.is_spare(s)]
        queue = state.ledger.waiting_from((HARVEST,))
        return begun + list(takewhile(lambda s: not urgency.is_spare(s), queue))

    def fill(
        self, draft: Draft, decoding: Collection[Sequence], cap_s: float, spare_s: float | None, state: State
    ) -> None:
        """Fill what is left of the step with batch work."""
        own = draft.shape
        if spare_s is not None:
            cap_s = min(cap_s, draft.seconds + self._setpoints.boldness(state.now) * max(0.0, spare_s))
        if draft.preempted:
            decoding = [s for s in decoding if s not in draft.preempted]
        self._fill_decodes(draft, decoding, cap_s)
        self._fill_prefills(draft, cap_s, state)
        # the last ones in are those of batch work, if there are any
        self._was_there |= state.ledger.harvests > 0
        if draft.is_empty:
            decode_or_preempt(draft, draft.decoding(), batch_last)
        draft.batch_s = _bare_seconds(draft.shape, state) - _bare_seconds(own, state)

    def _fill_decodes(self, draft: Draft, decoding: Collection[Sequence], cap_s: float) -> None:
        """Put in the decodes, the oldest first where not all have room; in an empty step at least one.

        By age, so that one step leaves out the same as the last: an engine may pay for each change of who is together.
        """
        if len(decoding) <= draft.tokens_left and draft.blocks_short(decoding) <= 0:
            if draft.is_within(decoding, cap_s):
                draft.add_decodes(decoding)
                return
            by_age = sorted(decoding, key=_age)
            count = max(draft.decodes_within(by_age, cap_s), draft.is_empty)
            draft.add_decodes(by_age[:count])
            if count < len(by_age):
                draft.binding = Binding("harvest")
            return
        is_empty = draft.is_empty
        for sequence in sorted(decoding, key=_age):
            is_first = is_empty and not draft.decodes
            blocker = draft.add_decode(sequence, None if is_first else cap_s)
            if blocker is None:
                continue
            draft.binding = Binding("harvest" if blocker == "slack" else blocker)
            if blocker != "kv":
                return

    def _fill_prefills(self, draft: Draft, cap_s: float, state: State) -> None:
        ledger = state.ledger
        is_quiet = self._setpoints.is_quiet(state.now)
        reserve = 0 if is_quiet else int(self._options.reserve * ledger.capacity.kv_blocks)
        slots = 0 if is_quiet else int(self._options.reserve * ledger.capacity.slots)
        if not ledger.running and draft.is_empty:
            reserve = slots = 0
        begun = [s for s in draft.prefilling() if s.is_harvest]
        least = self._options.batch_chunk_min
        for group in (begun, ledger.waiting_from((HARVEST,))):
            for sequence in group:
                if sequence in draft.chunks:
                    continue
                if sequence.slot is None and draft.free_slots <= slots:
                    draft.binding = Binding("slots")
                    return
                blocker = draft.add_prefill(sequence, cap_s, chunk_min=least, reserve=reserve)
                if blocker is not None:
                    draft.binding = Binding("harvest" if blocker == "slack" else blocker)
                    return


def _bare_seconds(shape: StepShape, state: State) -> float:
    """Return the seconds of a step, those for the contexts that its decodes read apart; none for an empty one."""
    if not shape.decodes and not shape.prefills:
        return 0.0
    return state.step_time.seconds(shape.decodes, 0, shape.prefill_tokens, shape.prefill_work, shape.prefills)


def _age(sequence: Sequence) -> Key:
    return (sequence.arrived_at, sequence.id)


def batch_last(sequence: Sequence) -> Key:
    """Take the protected first, then batch work, each in the order of arrival."""
    return (sequence.is_harvest, sequence.arrived_at)


def cheapest(draft: Draft, sequences: Iterable[Sequence]) -> Sequence | None:
    """Return the sequence that is cheapest to recompute per block that it frees; twice preempted is protected."""
    candidates = [
        s for s in sequences if s.preemptions < _PREEMPTIONS_MAX and s not in draft.preempted and s not in draft.chunks
    ]
    return min(candidates, key=lambda s: (draft.recompute_seconds(s) / max(1, s.blocks), s.id), default=None)
