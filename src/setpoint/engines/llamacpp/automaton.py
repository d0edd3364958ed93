"""A grammar as an automaton over bytes, whose states are found as they are needed and shared by all who use it.

Between two characters the output stands at one or several places of the grammar at once. Each place is a *stack*: a
position that awaits a character, and the positions to return to. A state is the set of the stacks, so two outputs that
may go on in the same ways are in the same state, whatever they said before: within a string of any length there is one.
Stacks are numbered and linked, so that those who share what they return to share it in memory, and what a set of stacks
leads to is computed once for all of them, so that an ambiguous grammar costs what it has stacks and not what it has
ways.

A character comes in UTF-8, byte by byte, and a token may end within it. So there are states inside of a character: its
target and the bytes left once the bytes so far settle where it leads, otherwise the state it began in and its bits so
far. Only well-formed UTF-8 (RFC 3629) is let through.

`row(state)` holds the next state for each of the 256 bytes. A row is computed when it is first asked for, in tens of
microseconds. State 0 is dead: its row leads to itself.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from setpoint.engines.llamacpp.rules import CODE_MAX, END, Rules, class_of, refusal

DEAD: Final = 0
STACKS_MAX: Final = 4096
EXPLORED: Final = 256
WORK_MAX: Final = 400_000
_COMPLETE: Final = 0
"""The stack of one who has come to the end of the grammar."""
_LEADS: Final = tuple(
    (byte, bits, left, {0xE0: 0xA0, 0xF0: 0x90}.get(byte, 0x80), {0xED: 0x9F, 0xF4: 0x8F}.get(byte, 0xBF))
    for first, last, mask, left in ((0xC2, 0xDF, 0x1F, 1), (0xE0, 0xEF, 0x0F, 2), (0xF0, 0xF4, 0x07, 3))
    for byte in range(first, last + 1)
    for bits in (byte & mask,)
)
"""Each byte that begins a longer character: its bits, how many bytes follow, and the bounds of the first of them."""


class _Between(NamedTuple):
    """Between two characters, at the places `stacks`, in order."""

    stacks: tuple[int, ...]


class _Settled(NamedTuple):
    """Inside a character that leads to `target` after `left` more bytes, the next of which has bounds."""

    target: int
    left: int
    low: int
    high: int


class _Open(NamedTuple):
    """Inside a character that began in `origin`; `bits` are those so far."""

    origin: int
    bits: int
    left: int
    low: int
    high: int


class _Pieces(NamedTuple):
    """Where the characters lead: those from `starts[i]` up to the next start lead to `targets[i]`."""

    starts: list[int]
    targets: list[int]


class Automaton:
    """The states of one grammar; used from one thread at a time."""

    def __init__(self, rules: Rules) -> None:
        """Find the start and the states about it; raise RequestError when they take too much work."""
        self._rules = rules
        self._stacks: list[tuple[int, int]] = [(END, 0)]
        self._stack_ids: dict[tuple[int, int], int] = {}
        self._states: list[_Between | _Settled | _Open] = [_Between(())]
        self._state_ids: dict[_Between | _Settled | _Open, int] = {self._states[0]: DEAD}
        self._targets: dict[tuple[int, ...], int] = {}
        self._pieces_of: dict[int, _Pieces] = {}
        self._leads_to: dict[int, npt.NDArray[np.int32]] = {}
        self._work = 0
        self.table: npt.NDArray[np.int32] = np.zeros((64, 256), dtype=np.int32)
        """The rows of the states that `is_known` says are computed; it is replaced as it grows."""
        self.is_known: npt.NDArray[np.bool_] = np.zeros(64, dtype=np.bool_)
        self.is_known[DEAD] = True
        self.start = self._target(tuple(self._push(at, _COMPLETE) for at in rules.starts[rules.root]))
        self._explore()

    def row(self, state: int) -> npt.NDArray[np.int32]:
        """Return the next state for each byte."""
        if not self.is_known[state]:
            self._compute(state)
        row: npt.NDArray[np.int32] = self.table[state]
        return row

    def after(self, state: int, text: bytes) -> int:
        """Return the state that `text` leads to, `DEAD` when the grammar does not allow it."""
        for byte in text:
            if not self.is_known[state]:
                self._compute(state)
            state = self.table.item(state, byte)
        return state

    def is_complete(self, state: int) -> bool:
        """Return whether the output may end here."""
        key = self._states[state]
        return isinstance(key, _Between) and key.stacks[:1] == (_COMPLETE,)

    def know(self, states: npt.NDArray[np.int32]) -> None:
        """Compute the rows of `states` that are missing."""
        missing = states[~self.is_known[states]]
        for state in set(missing.tolist()):
            self._compute(state)

    def _explore(self) -> None:
        """Compute the rows nearest to the start: what takes too much work here would delay a step later."""
        state = self.start
        while state < min(len(self._states), EXPLORED) and self._work < WORK_MAX:
            self.row(state)
            state += 1
        if self.start == DEAD or self._work >= WORK_MAX:
            raise refusal("it is too ambiguous: too many ways lead through it at once")

    def _compute(self, state: int) -> None:
        key = self._states[state]
        row = np.zeros(256, dtype=np.int32)
        if isinstance(key, _Between):
            self._fill(row, state, key)
        elif isinstance(key, _Settled):
            last = key.target if key.left == 1 else self._state(_Settled(key.target, key.left - 1, 0x80, 0xBF))
            row[key.low : key.high + 1] = last
        else:
            for byte in range(key.low, key.high + 1):
                row[byte] = self._inside(key.origin, key.bits << 6 | byte & 0x3F, key.left - 1, 0x80, 0xBF)
        self.table[state] = row
        self.is_known[state] = True

    def _fill(self, row: npt.NDArray[np.int32], state: int, key: _Between) -> None:
        pieces = self._pieces_of[state] = self._pieces(key.stacks)
        for start, end, target in zip(pieces.starts, [*pieces.starts[1:], CODE_MAX + 1], pieces.targets, strict=True):
            row[min(start, 128) : min(end, 128)] = target
        if pieces.starts[-1] <= 128:  # noqa: PLR2004 - the end of ASCII
            row[128:] = self._leads(pieces.targets[-1])
            return
        for byte, bits, left, low, high in _LEADS:
            row[byte] = self._inside(state, bits, left, low, high)

    def _leads(self, target: int) -> npt.NDArray[np.int32]:
        """Return the upper half of a row whose longer characters all lead to `target`."""
        row = self._leads_to.get(target)
        if row is None:
            row = self._leads_to[target] = np.zeros(128, dtype=np.int32)
            if target != DEAD:
                for byte, _, left, low, high in _LEADS:
                    row[byte - 128] = self._state(_Settled(target, left, low, high))
        return row

    def _inside(self, origin: int, bits: int, left: int, low: int, high: int) -> int:
        """Return the state inside a character of `origin`, with `left` bytes to come; the next has bounds."""
        pieces = self._pieces_of[origin]
        shift = 6 * max(left - 1, 0)
        first = (bits << 6 | low & 0x3F) << shift if left else bits
        last = ((bits << 6 | high & 0x3F) + 1 << shift) - 1 if left else bits
        index = bisect_right(pieces.starts, first) - 1
        if index < bisect_right(pieces.starts, last) - 1:
            return self._state(_Open(origin, bits, left, low, high))
        target = pieces.targets[index]
        return target if target == DEAD or not left else self._state(_Settled(target, left, low, high))

    def _pieces(self, stacks: Iterable[int]) -> _Pieces:
        rules = self._rules
        follow: dict[int, list[int]] = {}
        for stack in stacks:
            if stack != _COMPLETE:
                at, below = self._stacks[stack]
                follow.setdefault(class_of(rules.kinds[at]), []).append(self._push(at + 1, below))
        edges = {edge for number in follow for low, high in rules.classes[number] for edge in (low, high + 1)}
        bounds = sorted((edges | {0}) - {CODE_MAX + 1})
        led: list[list[int]] = [[] for _ in bounds]
        for number, others in follow.items():
            for low, high in rules.classes[number]:
                for index in range(bisect_left(bounds, low), bisect_left(bounds, high + 1)):
                    led[index] += others
                    self._work += len(others)
        pieces = _Pieces([], [])
        for bound, others in zip(bounds, led, strict=True):
            target = self._target(tuple(sorted(set(others))))
            if not pieces.targets or pieces.targets[-1] != target:
                pieces.starts.append(bound)
                pieces.targets.append(target)
        return pieces

    def _target(self, stacks: tuple[int, ...]) -> int:
        """Return the state at the characters that come next after `stacks`; `DEAD` when they are too many."""
        target = self._targets.get(stacks)
        if target is None:
            target = self._targets[stacks] = self._state(_Between(self._awaiting(stacks)))
        return target

    def _awaiting(self, stacks: tuple[int, ...]) -> tuple[int, ...]:
        kinds, starts = self._rules.kinds, self._rules.starts
        seen, todo, found = set(stacks), list(stacks), []
        while todo:
            stack = todo.pop()
            at, below = self._stacks[stack]
            if stack == _COMPLETE or kinds[at] < 0:
                found.append(stack)
                continue
            rest = self._push(at + 1, below)
            for start in starts[kinds[at]]:
                entered = self._push(start, rest)
                if entered not in seen:
                    seen.add(entered)
                    todo.append(entered)
            if len(seen) > STACKS_MAX:
                self._work = WORK_MAX
                return ()
        self._work += len(seen)
        return tuple(sorted(found))

    def _push(self, at: int, below: int) -> int:
        """Return the number of the stack with the position `at` on top of `below`."""
        if self._rules.kinds[at] == END:
            return below
        stack = (at, below)
        number = self._stack_ids.get(stack)
        if number is None:
            number = self._stack_ids[stack] = len(self._stacks)
            self._stacks.append(stack)
        return number

    def _state(self, key: _Between | _Settled | _Open) -> int:
        number = self._state_ids.get(key)
        if number is None:
            number = self._state_ids[key] = len(self._states)
            self._states.append(key)
            if number == len(self.table):
                self.table = np.concatenate([self.table, np.zeros_like(self.table)])
                self.is_known = np.concatenate([self.is_known, np.zeros_like(self.is_known)])
        return number
