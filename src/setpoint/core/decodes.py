"""The sequences in decode, which advance together: one token each in a step, those apart that a step leaves out.

So that a step touches only those for which it changes something, the others' tokens are counted in `rounds`, and what
is asked at each step is kept as a sum or found in an index: the context of all, the step at which the first has its
longest output, whose blocks are full, and whose next token is due first. Blocks fill up every `block_tokens` steps, so
that who is in the same place of its block now will always be: sequences are filed by that place. With each step, the
deadlines of all with the same TPOT target move by the same, so that their order stays: they are filed by it.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator

from setpoint.core.sequence import Rounds, Sequence


class Decodes:
    """All of them, by id in `members`; `block_tokens` as the capacity says."""

    def __init__(self, block_tokens: int) -> None:
        """Begin with nobody."""
        self.members: dict[int, Sequence] = {}
        self.rounds = Rounds()
        self._base_context = 0
        self._ends_at: int | None = None
        self._block_tokens = block_tokens
        self._places: dict[int, dict[int, Sequence]] = {}
        self._due: dict[tuple[str, float], list[tuple[float, int]]] = {}
        """By class and TPOT target: (what the deadline of the next token is beside the rounds, id), sorted."""

    def join(self, sequence: Sequence) -> None:
        """Let a sequence advance with the others."""
        sequence.advance_with(self.rounds)
        self.members[sequence.id] = sequence
        self._enter(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Let a sequence stand still from now on."""
        self._withdraw(sequence)
        del self.members[sequence.id]
        sequence.advance_with(None)

    def move(self, sequence: Sequence, tokens: int) -> None:
        """Give one of them `tokens` more than the others, or less."""
        self._withdraw(sequence)
        sequence.base_computed += tokens
        sequence.base_output += tokens
        self._enter(sequence)

    def advance(self, steps: int, left_out: Iterable[Sequence]) -> list[Sequence]:
        """Give each but those `left_out` a token a step; return whose blocks may have been full before the last."""
        before = self.rounds.count
        self.rounds.count += steps
        for sequence in left_out:
            if sequence.id in self.members:
                self.move(sequence, -steps)
        if steps >= min(self._block_tokens, len(self.members)):
            return [*self.members.values()]
        return [s for at in range(before, before + steps) for s in self._in_place(at).values()]

    def ended(self, stopped: Collection[int]) -> list[Sequence]:
        """Return those that are among `stopped` or have their longest output, by id."""
        members, count = self.members, self.rounds.count
        if not members or (not stopped and self.steps_left() > 0):
            return []
        ids = {i for i, s in members.items() if s.output_tokens_max - s.base_output <= count}
        return [members[i] for i in sorted(ids.union(stopped)) if i in members]

    def steps_left(self) -> int:
        """Return in how many steps the first has its longest output; there is one."""
        if self._ends_at is None:
            self._ends_at = min([s.output_tokens_max - s.base_output for s in self.members.values()])
        return self._ends_at - self.rounds.count

    def context(self, members: Collection[Sequence]) -> int:
        """Return the tokens that a decode of each of `members` reads."""
        if len(members) == len(self.members):
            return self._base_context + len(members) * self.rounds.count
        return sum([s.base_computed for s in members]) + len(members) * self.rounds.count

    def full(self, members: Collection[Sequence]) -> list[Sequence]:
        """Return those of `members` whose next token needs one more block."""
        full = [s for s in self._in_place(self.rounds.count).values() if self._is_full(s)]
        if full and len(members) < len(self.members):
            wanted = {*members}
            full = [s for s in full if s in wanted]
        return full

    def by_deadline(self) -> Iterator[tuple[str, float, Iterator[Sequence]]]:
        """Yield (class, TPOT target, the protected that have them in the order in which their next tokens are due).

        Those that have missed their SLO with the first token are not among them.
        """
        members = self.members
        for (name, tpot_s), due in self._due.items():
            yield name, tpot_s, (members[request_id] for _, request_id in due)

    def file(self, block_tokens: int) -> None:
        """File all anew, for blocks of another size."""
        self._block_tokens = block_tokens
        self._places.clear()
        for sequence in self.members.values():
            self._places.setdefault(self._place(sequence), {})[sequence.id] = sequence

    def _enter(self, sequence: Sequence) -> None:
        self._base_context += sequence.base_computed
        ends_at = sequence.output_tokens_max - sequence.base_output
        if self._ends_at is not None and ends_at < self._ends_at:
            self._ends_at = ends_at
        self._places.setdefault(self._place(sequence), {})[sequence.id] = sequence
        filed = _filed(sequence)
        if filed is not None:
            insort(self._due.setdefault(filed[0], []), filed[1])

    def _withdraw(self, sequence: Sequence) -> None:
        self._base_context -= sequence.base_computed
        if self._ends_at == sequence.output_tokens_max - sequence.base_output:
            self._ends_at = None
        del self._places[self._place(sequence)][sequence.id]
        filed = _filed(sequence)
        if filed is not None:
            group = self._due[filed[0]]
            del group[bisect_left(group, filed[1])]
            if not group:
                del self._due[filed[0]]

    def _place(self, sequence: Sequence) -> int:
        """Return the rounds, up to whole blocks, at which a block of the sequence is full."""
        return (sequence.cached_tokens - sequence.base_computed) % self._block_tokens

    def _in_place(self, rounds: int) -> dict[int, Sequence]:
        return self._places.get(rounds % self._block_tokens, {})

    def _is_full(self, sequence: Sequence) -> bool:
        return sequence.computed_tokens - sequence.cached_tokens >= sequence.blocks * self._block_tokens


def _filed(sequence: Sequence) -> tuple[tuple[str, float], tuple[float, int]] | None:
    """Return the group of a decode in the index of deadlines and its place there; `None` when it has none."""
    tpot_s = sequence.slo.tpot_s
    if tpot_s is None or sequence.is_harvest or sequence.is_missed:
        return None
    return (sequence.service_class.name, tpot_s), (sequence.anchor + sequence.base_output * tpot_s, sequence.id)
