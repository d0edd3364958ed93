"""Who holds what: the one owner of all mutable state of the requests on a replica.

A sequence is *waiting* (it holds nothing) or *running* (it holds a slot and KV blocks). A running one is in *prefill*
until every token known of it is in the KV cache, and in *decode* from then on. Preemption makes it wait again, with
all the tokens that it had produced to be computed anew.

The waiting stand in one list sorted by the key that the strategy gave each on entry, so that planning a step looks at
the head of the queue only, however long it is.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from heapq import heappop, heappush

from setpoint.core.decodes import Decodes
from setpoint.core.sequence import Key, Sequence
from setpoint.model import Capacity
from setpoint.units import Instant

__all__ = ["Key", "Ledger", "Sequence"]

_SPARE_EXPIRIES = 64


class Ledger:
    """Slots, KV blocks and queues of one replica."""

    def __init__(self, capacity: Capacity) -> None:
        """Start empty, with all of `capacity` free."""
        self.capacity = capacity
        self.sequences: dict[int, Sequence] = {}
        self.waiting: list[tuple[Key, int]] = []
        self.prefilling: dict[int, Sequence] = {}
        self.decodes = Decodes(capacity.block_tokens)
        self.decoding: dict[int, Sequence] = self.decodes.members
        self.ending: dict[int, Sequence] = {}
        """Those whose last token is under way in an engine that runs ahead: they still hold what they held."""
        self.harvests = 0
        """How many of `sequences` are of harvest classes."""
        self.waiting_by_class: dict[str, int] = {}
        self.waiting_tokens = {False: 0, True: 0}
        """Prompt tokens that the waiting have yet to compute; those of harvest classes under `True`."""
        self.running = 0
        """How many sequences hold a slot."""
        self.blocks_held = 0
        self.blocks_elsewhere = 0
        """KV blocks that the engine counts as taken beyond `blocks_held` (short of it, where a prefix is shared)."""
        self.vacant = list(range(capacity.slots))
        """The slots that nobody holds, as a heap."""
        self._expiries: list[tuple[float, int]] = []

    @property
    def free_slots(self) -> int:
        """How many more sequences may run; negative when the capacity shrank below what runs."""
        return self.capacity.slots - self.running

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds; negative when the capacity shrank below what is held."""
        return self.capacity.kv_blocks - self.blocks_held - self.blocks_elsewhere

    def blocks_for(self, sequence: Sequence, computed_tokens: int) -> int:
        """Return the KV blocks that the sequence needs with `computed_tokens`; a shared prefix is not its own."""
        return self.capacity.blocks(computed_tokens - sequence.cached_tokens)

    def wait(self, sequence: Sequence, key: Key) -> None:
        """Put a sequence into the waiting queue at the place of `key`."""
        if sequence.id not in self.sequences:
            self.sequences[sequence.id] = sequence
            self.harvests += sequence.is_harvest
        name = sequence.service_class.name
        self.waiting_by_class[name] = self.waiting_by_class.get(name, 0) + 1
        self.waiting_tokens[sequence.is_harvest] += sequence.remaining_tokens
        sequence.key = key
        insort(self.waiting, (key, sequence.id))
        if sequence.expires_at is not None:
            heappush(self._expiries, (sequence.expires_at, sequence.id))
            self._compact()

    def requeue(self, sequence: Sequence, key: Key) -> None:
        """Move a waiting sequence to the place of `key`."""
        self._unlink(sequence)
        sequence.key = key
        insort(self.waiting, (key, sequence.id))

    def waiting_from(self, start: Key = ()) -> Iterator[Sequence]:
        """Yield the waiting in order of their keys, from the first key that is at least `start`."""
        sequences = self.sequences
        for i in range(bisect_left(self.waiting, (start, -1)), len(self.waiting)):
            yield sequences[self.waiting[i][1]]

    def admit(self, sequence: Sequence) -> int:
        """Give a waiting sequence a slot (the lowest free one), and return it."""
        self._leave_queue(sequence)
        slot = heappop(self.vacant)
        sequence.slot = slot
        self.running += 1
        self.prefilling[sequence.id] = sequence
        return slot

    def decode(self, sequence: Sequence, at: Instant) -> None:
        """Count the token that the end of a prefill yields (the first, or a recomputed one), and let it decode."""
        if sequence.first_token_at is None:
            sequence.begin(at)
        sequence.output_tokens += 1
        del self.prefilling[sequence.id]
        self.decodes.join(sequence)

    def begin(self, sequence: Sequence, at: Instant) -> None:
        """Put right when the first token of a sequence came."""
        is_decoding = sequence.id in self.decoding
        if is_decoding:
            self.decodes.leave(sequence)
        sequence.begin(at)
        if is_decoding:
            self.decodes.join(sequence)

    def advance(self, steps: int, left_out: Collection[Sequence]) -> None:
        """Count a token in each of `steps` as computed and yielded, for all in decode but those `left_out`."""
        for sequence in self.decodes.advance(steps, left_out):
            self.hold(sequence, sequence.computed_tokens)

    def gain(self, sequence: Sequence, tokens: int) -> None:
        """Count `tokens` more of one in decode."""
        self.decodes.move(sequence, tokens)
        self.hold(sequence, sequence.computed_tokens)

    def end(self, sequence: Sequence) -> None:
        """Let a sequence in decode yield no more, and hold what it holds."""
        self.decodes.leave(sequence)
        self.ending[sequence.id] = sequence

    def hold(self, sequence: Sequence, computed_tokens: int) -> None:
        """Let a running sequence hold the blocks of `computed_tokens`; it never gives any back before its end."""
        block_tokens = self.capacity.block_tokens
        own_tokens = computed_tokens - sequence.cached_tokens
        if own_tokens > sequence.blocks * block_tokens:
            blocks = -(-own_tokens // block_tokens)
            self.blocks_held += blocks - sequence.blocks
            sequence.blocks = blocks

    def reconcile(self, free_blocks: int) -> None:
        """Take over the engine's own count of free blocks, less what the prefills begun will yet need of them."""
        promised = sum(s.blocks - self.blocks_for(s, s.computed_tokens) for s in self.prefilling.values())
        self.blocks_elsewhere = self.capacity.kv_blocks - free_blocks - (self.blocks_held - promised)

    def preempt(self, sequence: Sequence, key: Key) -> None:
        """Take slot and KV back; the sequence waits again, all its tokens to be recomputed."""
        self._vacate(sequence)
        sequence.preemptions += 1
        sequence.cached_tokens = 0
        sequence.computed_tokens = 0
        sequence.target_tokens = sequence.prompt_tokens + sequence.output_tokens
        self.wait(sequence, key)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is."""
        if sequence.slot is None:
            self._leave_queue(sequence)
        else:
            self._vacate(sequence)
        del self.sequences[sequence.id]
        self.harvests -= sequence.is_harvest

    def next_expiry(self) -> float | None:
        """Return the earliest instant at which one that has yielded no token will have waited too long."""
        heap = self._expiries
        while heap:
            if self._may_expire(*heap[0]):
                return heap[0][0]
            heappop(heap)
        return None

    def pop_expired(self, now: float) -> list[Sequence]:
        """Return the waiting sequences whose time is over, earliest first, and remove them."""
        expired: list[Sequence] = []
        heap = self._expiries
        while heap and heap[0][0] <= now:
            entry = heappop(heap)
            if self._may_expire(*entry):
                expired.append(self.sequences[entry[1]])
                self.remove(expired[-1])
        return expired

    def change_capacity(self, capacity: Capacity) -> None:
        """Take the new capacity over; what runs keeps its slot, and KV for the tokens that it has KV for."""
        running = [*self.prefilling.values(), *self.decoding.values(), *self.ending.values()]
        used = {s.slot for s in running}
        block_tokens = self.capacity.block_tokens
        self.capacity = capacity
        self.vacant = [slot for slot in range(capacity.slots) if slot not in used]
        for sequence in running:
            sequence.blocks = capacity.blocks(sequence.blocks * block_tokens)
        self.blocks_held = sum(s.blocks for s in running)
        self.decodes.file(capacity.block_tokens)

    def _compact(self) -> None:
        if len(self._expiries) > 2 * len(self.waiting) + _SPARE_EXPIRIES:
            self._expiries = sorted(e for e in self._expiries if self._may_expire(*e))

    def _may_expire(self, at: float, request_id: int) -> bool:
        sequence = self.sequences.get(request_id)
        return sequence is not None and sequence.slot is None and sequence.expires_at == at

    def _leave_queue(self, sequence: Sequence) -> None:
        self._unlink(sequence)
        self.waiting_by_class[sequence.service_class.name] -= 1
        self.waiting_tokens[sequence.is_harvest] -= sequence.remaining_tokens

    def _unlink(self, sequence: Sequence) -> None:
        del self.waiting[bisect_left(self.waiting, (sequence.key, sequence.id))]

    def _vacate(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        if sequence.slot < self.capacity.slots:
            heappush(self.vacant, sequence.slot)
        sequence.slot = None
        self.running -= 1
        self.blocks_held -= sequence.blocks
        sequence.blocks = 0
        if sequence.id in self.decoding:
            self.decodes.leave(sequence)
        self.prefilling.pop(sequence.id, None)
        self.ending.pop(sequence.id, None)
