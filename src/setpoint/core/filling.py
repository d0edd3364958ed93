"""A step under construction: sequences are put in one by one, as long as tokens, KV, slots and time allow.

A draft answers each attempt with what stood in its way, or `None`. The time limit is given with each attempt, since
protected work and harvest have different ones; the largest chunk within it is found by bisection, which is exact
because the step-time model is monotone.
"""

from bisect import bisect_right
from collections.abc import Collection
from collections.abc import Sequence as Many
from itertools import accumulate

from setpoint.core.ledger import Ledger, Sequence
from setpoint.model import Binding, Bound, StepShape, StepTime, chunk_work

_ALL_WORK = Binding("work")


class Draft:
    """What the next step would compute, and what it would cost."""

    __slots__ = (
        "_step_time",
        "batch_s",
        "binding",
        "cap_s",
        "chunks",
        "context_tokens",
        "decodes",
        "free_blocks",
        "free_slots",
        "growing",
        "ledger",
        "preempted",
        "prefill_tokens",
        "prefill_work",
        "refused",
        "relegated",
        "seconds",
        "tokens_left",
    )

    def __init__(self, ledger: Ledger, step_time: StepTime, tokens_max: int | None = None) -> None:
        """Start empty; at most `tokens_max` tokens, and never more than the engine takes in one pass."""
        limit = ledger.capacity.step_tokens_max
        self.ledger = ledger
        self._step_time = step_time
        self.decodes: list[Sequence] = []
        self.growing: list[Sequence] = []
        """Those of `decodes` whose next token needs one more block."""
        self.chunks: dict[Sequence, int] = {}
        self.preempted: dict[Sequence, None] = {}
        self.relegated: list[tuple[Sequence, bool]] = []
        self.refused: list[Sequence] = []
        self.tokens_left: int = limit if tokens_max is None else min(limit, tokens_max)
        self.free_blocks: int = ledger.free_blocks
        self.free_slots: int = ledger.free_slots
        self.context_tokens = 0
        self.prefill_tokens = 0
        self.prefill_work = 0.0
        self.seconds = 0.0
        self.batch_s = 0.0
        """What batch work adds to the step, its context apart."""
        self.binding = _ALL_WORK
        self.cap_s: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be computed."""
        return not self.decodes and not self.chunks

    @property
    def running(self) -> int:
        """How many sequences hold a slot and keep it."""
        return self.ledger.running - len(self.preempted)

    def decoding(self) -> list[Sequence]:
        """Return the sequences in decode that are not preempted."""
        return [s for s in self.ledger.decoding.values() if s not in self.preempted]

    def prefilling(self) -> list[Sequence]:
        """Return the sequences in prefill that are not preempted."""
        return [s for s in self.ledger.prefilling.values() if s not in self.preempted]

    def left_out(self) -> list[Sequence]:
        """Return the sequences in decode that stay and are not decoded."""
        if len(self.decodes) == len(self.ledger.decoding):
            return []
        taken = {*self.decodes, *self.preempted}
        return [s for s in self.ledger.decoding.values() if s not in taken]

    @property
    def shape(self) -> StepShape:
        """The shape of the step as it stands."""
        return StepShape(
            len(self.decodes), self.context_tokens, self.prefill_tokens, self.prefill_work, len(self.chunks)
        )

    def price(self) -> float:
        """Return the predicted seconds of the step as it stands, 0 if it is empty, and keep them in `seconds`."""
        decodes, chunks = len(self.decodes), len(self.chunks)
        self.seconds = 0.0
        if decodes or chunks:
            self.seconds = self._step_time.seconds(
                decodes, self.context_tokens, self.prefill_tokens, self.prefill_work, chunks
            )
        return self.seconds

    def add_all_decodes(self, sequences: Collection[Sequence]) -> bool:
        """Put in a decode of each of `sequences`, without a time limit, if blocks and tokens are there for all."""
        growing = self.ledger.decodes.full(sequences)
        if len(sequences) > self.tokens_left or len(growing) > self.free_blocks:
            return False
        self.free_blocks -= len(growing)
        self.growing += growing
        self.tokens_left -= len(sequences)
        self.context_tokens += self.ledger.decodes.context(sequences)
        self.decodes += sequences
        self.price()
        return True

    def add_decodes(self, sequences: Collection[Sequence]) -> list[Sequence]:
        """Put in a decode of each of `sequences`, without a time limit; return those that no block or token is for."""
        if self.add_all_decodes(sequences):
            return []
        left_out = []
        block_tokens = self.ledger.capacity.block_tokens
        for sequence in sequences:
            own = sequence.computed_tokens - sequence.cached_tokens
            is_full = own >= sequence.blocks * block_tokens
            if self.tokens_left < 1 or (is_full and self.free_blocks < 1):
                left_out.append(sequence)
                continue
            if is_full:
                self.free_blocks -= 1
                self.growing.append(sequence)
            self.tokens_left -= 1
            self.context_tokens += sequence.computed_tokens
            self.decodes.append(sequence)
        self.price()
        return left_out

    def add_decode(self, sequence: Sequence, cap_s: float | None = None) -> Bound | None:
        """Put in a decode of `sequence` if the step stays within `cap_s`; return what stood in the way."""
        own = sequence.computed_tokens - sequence.cached_tokens
        is_full = own >= sequence.blocks * self.ledger.capacity.block_tokens
        if self.tokens_left < 1:
            return "tokens"
        if is_full and self.free_blocks < 1:
            return "kv"
        context = self.context_tokens + sequence.computed_tokens
        seconds = self._step_time.seconds(
            len(self.decodes) + 1, context, self.prefill_tokens, self.prefill_work, len(self.chunks)
        )
        if cap_s is not None and seconds > cap_s:
            return "slack"
        if is_full:
            self.free_blocks -= 1
            self.growing.append(sequence)
        self.tokens_left -= 1
        self.context_tokens = context
        self.seconds = seconds
        self.decodes.append(sequence)
        return None

    def add_prefill(
        self, sequence: Sequence, cap_s: float | None = None, *, chunk_min: int = 1, reserve: int = 0
    ) -> Bound | None:
        """Put in the largest chunk of `sequence` that fits; `None` means that all its remaining tokens are in.

        A chunk that does not end the prompt has at least `chunk_min` tokens; an empty step takes that whatever its
        time, so that work never stands still for want of a limit that can be kept. A sequence that does not run yet
        needs a slot, and KV for all its known tokens beside `reserve` blocks.
        """
        if sequence.slot is None:
            blocker = self._no_room(sequence, reserve)
            if blocker is not None:
                return blocker
        remaining = sequence.remaining_tokens
        if cap_s is not None and not self.decodes and not self.chunks:
            cap_s = max(cap_s, self.seconds_with(sequence, min(chunk_min, remaining)))
        tokens, seconds, bound = self._largest_chunk(sequence, remaining, cap_s)
        if bound == "slack" and tokens < (least := min(chunk_min, remaining)):
            tokens = min(least, self.tokens_left) if self.is_empty else 0
            seconds = self.seconds_with(sequence, tokens)
            bound = None if tokens == remaining else bound
        if tokens < 1:
            return bound
        if sequence.slot is None:
            self.free_slots -= 1
            self.free_blocks -= self.ledger.blocks_for(sequence, sequence.target_tokens)
        self.tokens_left -= tokens
        self.prefill_tokens += tokens
        self.prefill_work += chunk_work(sequence.computed_tokens, tokens)
        self.chunks[sequence] = tokens
        self.seconds = seconds
        return bound

    def seconds_with(self, sequence: Sequence, tokens: int) -> float:
        """Return the predicted seconds of the step with `tokens` of the prompt of `sequence` beside what is in."""
        return self._step_time.seconds(
            len(self.decodes),
            self.context_tokens,
            self.prefill_tokens + tokens,
            self.prefill_work + chunk_work(sequence.computed_tokens, tokens),
            len(self.chunks) + 1,
        )

    def has_room(self, sequence: Sequence) -> bool:
        """Return whether tokens, slots and KV are there for all that remains of the prompt of `sequence`."""
        is_placed = sequence.slot is not None or self._no_room(sequence, 0) is None
        return is_placed and sequence.remaining_tokens <= self.tokens_left

    def blocks_short(self, decoding: Collection[Sequence]) -> int:
        """Return how many KV blocks are missing for a decode of each of `decoding`; at most 0 when none is."""
        if len(decoding) <= self.free_blocks:
            return 0
        return len(self.ledger.decodes.full(decoding)) - self.free_blocks

    def is_within(self, sequences: Collection[Sequence], cap_s: float) -> bool:
        """Return whether all of `sequences` could decode beside what is in, within `cap_s`."""
        context = self.context_tokens + self.ledger.decodes.context(sequences)
        work = (self.prefill_tokens, self.prefill_work, len(self.chunks))
        return self._step_time.seconds(len(self.decodes) + len(sequences), context, *work) <= cap_s

    def decodes_within(self, sequences: Many[Sequence], cap_s: float) -> int:
        """Return how many of `sequences`, from the first on, could decode beside what is in, within `cap_s`."""
        seconds, decodes = self._step_time.seconds, len(self.decodes)
        work = (self.prefill_tokens, self.prefill_work, len(self.chunks))
        contexts = list(accumulate((s.computed_tokens for s in sequences), initial=self.context_tokens))
        return bisect_right(range(1, len(contexts)), cap_s, key=lambda n: seconds(decodes + n, contexts[n], *work))

    def decode_seconds(self, steps: int) -> float:
        """Return the predicted seconds of the same decodes `steps` steps later."""
        decodes = len(self.decodes)
        return self._step_time.seconds(decodes, self.context_tokens + steps * decodes)

    def recompute_seconds(self, sequence: Sequence) -> float:
        """Return the predicted seconds of a step that computes all that `sequence` holds."""
        tokens = max(1, sequence.computed_tokens)
        return self._step_time.seconds(0, 0, tokens, chunk_work(0, tokens), 1)

    def preempt(self, victim: Sequence) -> None:
        """Plan to take the slot and the KV of `victim`, which the step does not use, back."""
        self.binding = Binding("kv" if self.free_slots > 0 else "slots")
        self.preempted[victim] = None
        self.free_slots += 1
        self.free_blocks += victim.blocks

    def _no_room(self, sequence: Sequence, reserve: int) -> Bound | None:
        if self.free_slots < 1:
            return "slots"
        if self.ledger.blocks_for(sequence, sequence.target_tokens) > self.free_blocks - reserve:
            return "kv"
        return None

    def _largest_chunk(
        self, sequence: Sequence, remaining: int, cap_s: float | None
    ) -> tuple[int, float, Bound | None]:
        """Return the largest chunk within tokens and `cap_s`, the step's seconds with it, and why it is not larger."""
        high = min(remaining, self.tokens_left)
        seconds = self.seconds_with(sequence, high)
        if cap_s is None or seconds <= cap_s:
            return high, seconds, "tokens" if high < remaining else None
        low, low_s = 0, self.seconds
        while high - low > 1:
            middle = (low + high) // 2
            seconds = self.seconds_with(sequence, middle)
            if seconds <= cap_s:
                low, low_s = middle, seconds
            else:
                high = middle
        return low, low_s, "slack"
