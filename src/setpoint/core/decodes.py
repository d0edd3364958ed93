"""The sequences in decode, in two groups: the protected, and batch work. Each group advances together.

In a step each of a group gains one token, those apart that the step leaves out. So that a step touches only those for
which it changes something, the others' tokens are counted in `rounds`, and what is asked at each step is kept as a sum
or found in an index: the context of all, the step at which the first has its longest output, whose blocks are full, and
whose next token is due first. Blocks fill up every `block_tokens` steps, so that who is in the same place of its block
now will always be: sequences are filed by that place. With each step, the deadlines of all with the same TPOT target
move by the same, so that their order stays: they are filed by it.

Batch work is a group of its own since a plan takes it, and leaves it out, as a whole where it can.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from typing import NamedTuple

from setpoint.core.sequence import Rounds, Sequence


class Extremes(NamedTuple):
    """What no member of a group goes beyond: none is due sooner, knows more tokens, or may yield more."""

    due_at: float
    target_tokens: int
    output_tokens_max: int


class Group(Collection[Sequence]):
    """Sequences that advance together, in the order in which they joined; `members` has them by id."""

    def __init__(self, block_tokens: int) -> None:
        """Begin with nobody; `block_tokens` as the capacity says."""
        self.members: dict[int, Sequence] = {}
        self.rounds = Rounds()
        self._base_context = 0
        self._ends: list[tuple[int, int]] = []
        """(the rounds at which it has its longest output, id), sorted."""
        self._block_tokens = block_tokens
        self._places: dict[int, dict[int, Sequence]] = {}
        self._due: dict[tuple[str, float], list[tuple[float, int]]] = {}
        """By class and TPOT target: (what the deadline of the next token is beside the rounds, id), sorted."""
        self._extremes: Extremes | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.members)

    def __iter__(self) -> Iterator[Sequence]:
        """Iterate in the order of joining."""
        return iter(self.members.values())

    def __contains__(self, sequence: object) -> bool:
        """Return whether it is one of them."""
        return isinstance(sequence, Sequence) and sequence.id in self.members

    def join(self, sequence: Sequence) -> None:
        """Let a sequence advance with the others."""
        sequence.advance_with(self.rounds)
        self.members[sequence.id] = sequence
        self._enter(sequence)
        self._extremes = None

    def leave(self, sequence: Sequence) -> None:
        """Let a sequence stand still from now on."""
        self._withdraw(sequence)
        del self.members[sequence.id]
        sequence.advance_with(None)
        self._extremes = None

    def move(self, sequence: Sequence, tokens: int) -> None:
        """Give one of them `tokens` more than the others, or less."""
        self._withdraw(sequence)
        sequence.base_computed += tokens
        sequence.base_output += tokens
        self._enter(sequence)

    def advance(self, steps: int, left_out: Collection[Sequence]) -> Collection[Sequence]:
        """Give each but those `left_out` a token a step; return whose blocks may have been full before the last."""
        if 2 * len(left_out) > len(self.members):
            still = {*left_out}
            going = [s for s in self if s not in still]
            for sequence in going:
                self.move(sequence, steps)
            return going
        before = self.rounds.count
        self.rounds.count += steps
        for sequence in left_out:
            self.move(sequence, -steps)
        if steps >= min(self._block_tokens, len(self.members)):
            return self
        return [s for at in range(before, before + steps) for s in self._in_place(at).values()]

    def ended(self) -> list[int]:
        """Return the ids of those that have their longest output."""
        ends, after = self._ends, self.rounds.count + 1
        if not ends or ends[0][0] >= after:
            return []
        return [request_id for _, request_id in ends[: bisect_left(ends, (after,))]]

    def steps_left(self) -> int | None:
        """Return in how many steps the first has its longest output; `None` when nobody is here."""
        return self._ends[0][0] - self.rounds.count if self._ends else None

    def context(self) -> int:
        """Return the tokens that a decode of each reads."""
        return self._base_context + len(self.members) * self.rounds.count

    def full(self) -> list[Sequence]:
        """Return those whose next token needs one more block."""
        size, count = self._block_tokens, self.rounds.count
        return [
            s for s in self._in_place(count).values() if s.base_computed + count - s.cached_tokens >= s.blocks * size
        ]

    def by_deadline(self) -> Iterator[tuple[str, float, Iterator[Sequence]]]:
        """Yield (class, TPOT target, those that have them in the order in which their next tokens are due).

        Batch work, and those that have missed their SLO with the first token, are not among them.
        """
        members = self.members
        for (name, tpot_s), due in self._due.items():
            yield name, tpot_s, (members[request_id] for _, request_id in due)

    def extremes(self) -> Extremes:
        """Return what no member goes beyond; there is one."""
        if self._extremes is None:
            self._extremes = Extremes(
                min([s.due_at for s in self]),
                max([s.target_tokens for s in self]),
                max([s.output_tokens_max for s in self]),
            )
        return self._extremes

    def file(self, block_tokens: int) -> None:
        """File all anew, for blocks of another size."""
        self._block_tokens = block_tokens
        self._places.clear()
        for sequence in self:
            self._places.setdefault(self._place(sequence), {})[sequence.id] = sequence

    def _enter(self, sequence: Sequence) -> None:
        self._base_context += sequence.base_computed
        insort(self._ends, (sequence.output_tokens_max - sequence.base_output, sequence.id))
        self._places.setdefault(self._place(sequence), {})[sequence.id] = sequence
        filed = _filed(sequence)
        if filed is not None:
            insort(self._due.setdefault(filed[0], []), filed[1])

    def _withdraw(self, sequence: Sequence) -> None:
        self._base_context -= sequence.base_computed
        del self._ends[bisect_left(self._ends, (sequence.output_tokens_max - sequence.base_output, sequence.id))]
        del self._places[self._place(sequence)][sequence.id]
        filed = _filed(sequence)
        if filed is not None:
            due = self._due[filed[0]]
            del due[bisect_left(due, filed[1])]
            if not due:
                del self._due[filed[0]]

    def _place(self, sequence: Sequence) -> int:
        """Return the rounds, up to whole blocks, at which a block of the sequence is full."""
        return (sequence.cached_tokens - sequence.base_computed) % self._block_tokens

    def _in_place(self, rounds: int) -> dict[int, Sequence]:
        return self._places.get(rounds % self._block_tokens, {})


class Decodes:
    """All that decode, by id in `members` in the order of joining, and in their groups."""

    def __init__(self, block_tokens: int) -> None:
        """Begin with nobody; `block_tokens` as the capacity says."""
        self.members: dict[int, Sequence] = {}
        self.protected = Group(block_tokens)
        self.harvest = Group(block_tokens)

    def join(self, sequence: Sequence) -> None:
        """Let a sequence advance with the others."""
        self.members[sequence.id] = sequence
        self._group(sequence).join(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Let a sequence stand still from now on."""
        self._group(sequence).leave(sequence)
        del self.members[sequence.id]

    def ids(self) -> tuple[int, ...]:
        """Return the ids of all, the protected first."""
        return (*self.protected.members, *self.harvest.members)

    def move(self, sequence: Sequence, tokens: int) -> None:
        """Give one of them `tokens` more than the others, or less."""
        self._group(sequence).move(sequence, tokens)

    def advance(self, steps: int, left_out: Collection[Sequence]) -> list[Sequence]:
        """Give each but those `left_out` a token a step; return whose blocks may have been full before the last."""
        protected: list[Sequence] = []
        harvest: list[Sequence] = []
        for sequence in left_out:
            if sequence.id in self.members:
                (harvest if sequence.is_harvest else protected).append(sequence)
        return [*self.protected.advance(steps, protected), *self.harvest.advance(steps, harvest)]

    def ended(self, stopped: Collection[int]) -> list[Sequence]:
        """Return those that are among `stopped` or have their longest output, by id."""
        ids = {*self.protected.ended(), *self.harvest.ended(), *stopped}
        return [self.members[request_id] for request_id in sorted(ids) if request_id in self.members]

    def steps_left(self) -> int:
        """Return in how many steps the first has its longest output; there is one."""
        return min([n for n in (self.protected.steps_left(), self.harvest.steps_left()) if n is not None])

    def context(self, sequences: Collection[Sequence]) -> int:
        """Return the tokens that a decode of each of `sequences`, some or a group of these, reads."""
        if isinstance(sequences, Group):
            return sequences.context()
        if len(sequences) == len(self.members):
            return self.protected.context() + self.harvest.context()
        return sum([s.base_computed + s.rounds.count for s in sequences])

    def full(self, sequences: Collection[Sequence]) -> list[Sequence]:
        """Return those of `sequences`, some or a group of these, whose next token needs one more block."""
        if isinstance(sequences, Group):
            return sequences.full()
        full = [*self.protected.full(), *self.harvest.full()]
        if full and len(sequences) < len(self.members):
            wanted = {*sequences}
            full = [s for s in full if s in wanted]
        return full

    def file(self, block_tokens: int) -> None:
        """File all anew, for blocks of another size."""
        self.protected.file(block_tokens)
        self.harvest.file(block_tokens)

    def _group(self, sequence: Sequence) -> Group:
        return self.harvest if sequence.is_harvest else self.protected


def _filed(sequence: Sequence) -> tuple[tuple[str, float], tuple[float, int]] | None:
    """Return the group of a decode in the index of deadlines and its place there; `None` when it has none."""
    tpot_s = sequence.slo.tpot_s
    if tpot_s is None or sequence.is_harvest or sequence.is_missed:
        return None
    return (sequence.service_class.name, tpot_s), (sequence.anchor + sequence.base_output * tpot_s, sequence.id)
