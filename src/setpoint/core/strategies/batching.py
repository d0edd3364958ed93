"""The classical strategies: fixed batches, and continuous batching in some fixed order.

`static` and `dynamic` form a batch and run it to its last token before the next (Triton's dynamic batcher adds the
delay). `continuous` decides afresh each step, under a fixed token budget, decodes first (Orca, OSDI 2022; chunked
prefill of Sarathi-Serve, OSDI 2024; vLLM's default). `priority`, `edf` and `srpf` are `continuous` with another order.
"""

from collections.abc import Callable, Collection, Iterable
from itertools import islice

from setpoint.core.filling import Draft
from setpoint.core.ledger import Key, Sequence
from setpoint.core.state import State, Strategy
from setpoint.model import Binding, Horizon
from setpoint.units import NEVER, Instant


def first_come(sequence: Sequence) -> Key:
    """Take who came first."""
    return (sequence.arrived_at,)


def by_band(sequence: Sequence) -> Key:
    """Take the most urgent class first, within it first come, first served (vLLM's `--scheduling-policy priority`)."""
    return (sequence.service_class.band, sequence.arrived_at)


def by_deadline(sequence: Sequence) -> Key:
    """Earliest deadline first; what has none comes last."""
    return (NEVER if (due := prefill_deadline(sequence)) is None else due, sequence.arrived_at)


def by_work(sequence: Sequence) -> Key:
    """Shortest remaining prefill first."""
    return (sequence.remaining_tokens, sequence.arrived_at)


def prefill_deadline(sequence: Sequence) -> float | None:
    """Return when the first token is due; an end-to-end target leaves it no later than the target itself."""
    if sequence.ttft_deadline is not None:
        return sequence.ttft_deadline
    return None if sequence.slo.e2e_s is None else sequence.arrived_at + sequence.slo.e2e_s


class Continuous(Strategy):
    """Per-step admission under a fixed token budget: decodes, then prefills begun, then the waiting, in order."""

    def __init__(
        self, name: str = "continuous", order: Callable[[Sequence], Key] = first_come, *, token_budget: int = 512
    ) -> None:
        """Take sequences in `order`, with at most `token_budget` tokens a step."""
        self.name = name
        self._order = order
        self._token_budget = token_budget

    def key(self, sequence: Sequence, state: State) -> Key:
        """Return the place by the order that this strategy was made with."""
        return self._order(sequence)

    def plan(self, draft: Draft, state: State) -> None:
        """Put in decodes in order of admission, then prefills by the order, until tokens, slots or KV are spent."""
        draft.tokens_left = min(draft.tokens_left, self._token_budget)
        ledger = state.ledger
        decode_or_preempt(draft, ledger.decoding.values(), self._order)
        running = sorted(draft.prefilling(), key=lambda s: (self._order(s), s.id))
        for group in (running, () if draft.preempted else ledger.waiting_from()):
            if not prefill_in_order(draft, group):
                return

    def horizon(self, draft: Draft, state: State) -> Horizon:
        """Return for how many steps pure decoding goes on: nothing else may become possible meanwhile."""
        return decode_horizon(draft, state)


class Static(Strategy):
    """Wait for `batch` requests, or `wait_s` after the oldest came, and run them together to the last token."""

    def __init__(self, name: str = "static", *, batch: int = 16, wait_s: float | None = None) -> None:
        """Form batches of `batch`; without `wait_s`, however long it takes."""
        self.name = name
        self._batch = batch
        self._wait_s = wait_s
        self._coming = 0
        """How many of the batch that runs are yet to be let in: those whose prompts had no room in a step so far."""

    def key(self, sequence: Sequence, state: State) -> Key:
        """First come, first served."""
        return first_come(sequence)

    def plan(self, draft: Draft, state: State) -> None:
        """Run the batch; when it has ended and the next is complete, begin that."""
        ledger = state.ledger
        decode_or_preempt(draft, ledger.decoding.values(), first_come)
        is_complete = len(ledger.waiting) >= min(self._batch, ledger.capacity.slots)
        if not ledger.running:
            self._coming = min(self._batch, len(ledger.waiting)) if is_complete or self._is_due(state) else 0
        if not prefill_in_order(draft, draft.prefilling()) or draft.preempted:
            return
        for sequence in islice(ledger.waiting_from(), self._coming):
            is_whole = prefill_in_order(draft, (sequence,))
            self._coming -= sequence in draft.chunks
            if not is_whole:
                if draft.binding.kind != "tokens":
                    self._coming = 0
                return

    def horizon(self, draft: Draft, state: State) -> Horizon:
        """Return for how many steps the batch only decodes."""
        return decode_horizon(draft, state, is_gated=True)

    def wake_at(self, state: State) -> float | None:
        """Return when the oldest has waited long enough; one that was preempted has waited before."""
        oldest = next(state.ledger.waiting_from(), None)
        if state.ledger.running or oldest is None:
            return None
        if oldest.preemptions:
            return state.now
        return None if self._wait_s is None else oldest.arrived_at + self._wait_s

    def _is_due(self, state: State) -> bool:
        due = self.wake_at(state)
        return due is not None and due <= state.now


def prefill_in_order(draft: Draft, sequences: Iterable[Sequence]) -> bool:
    """Put in the prefills of `sequences` in turn; at the first that does not fit whole, stop and return false."""
    for sequence in sequences:
        blocker = draft.add_prefill(sequence)
        if blocker is not None:
            draft.binding = Binding(blocker)
            return False
    return True


def decode_or_preempt(draft: Draft, decoding: Collection[Sequence], order: Callable[[Sequence], Key]) -> None:
    """Put in every decode; while KV is short, take back the running sequence that comes last in `order`.

    The last sequence that runs is taken back only if it lacks KV even so: the capacity shrank below what it needs.
    """
    if draft.add_all_decodes(decoding):
        return
    wanted = dict.fromkeys(decoding)
    if draft.blocks_short(wanted) > 0:
        candidates = sorted([*wanted, *draft.prefilling()], key=lambda s: (order(s), s.id))
        while draft.blocks_short(wanted) > 0 and len(candidates) > (draft.running > 1):
            victim = candidates.pop()
            draft.preempt(victim)
            wanted.pop(victim, None)
    if draft.add_decodes(wanted):
        draft.binding = Binding("tokens" if draft.tokens_left < 1 else "kv")


def decode_horizon(draft: Draft, state: State, *, is_gated: bool = False) -> Horizon:
    """Return for how many steps a plan of nothing but all decodes stays the same.

    That is until a sequence reaches its longest output, KV could run out, or (unless the queue is gated) a waiting
    sequence could be let in: those wait for a slot, which only an end frees.
    """
    ledger = state.ledger
    decoding = ledger.decoding
    if draft.chunks or draft.preempted or ledger.prefilling or len(draft.decodes) < len(decoding) or not decoding:
        return Horizon(1)
    if ledger.waiting and not is_gated and draft.free_slots > 0:
        return Horizon(1)
    expiry = ledger.next_expiry() if ledger.waiting else None
    affordable = 1 + draft.free_blocks // len(decoding) * ledger.capacity.block_tokens
    steps = max(1, min(ledger.decodes.steps_left(), affordable))
    return Horizon(steps, until_at=None if expiry is None else Instant(expiry))
