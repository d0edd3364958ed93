"""The rules of a grammar, flat, and what makes them safe to run.

A *position* is an index into `Rules.kinds`. There stands the number of a rule to go into (0 and more), `END` of an
alternative, or a class of characters (`class_of`).

What could never end is left out: an alternative that needs a rule without a finite text. What would never begin, a rule
that comes to itself before any character, is refused. Both are found in linear time; llama.cpp's own search for left
recursion takes a time that doubles with each layer of alternatives that share rules.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from setpoint.errors import RequestError

END: Final = -1
CODE_MAX: Final = 0x10FFFF

Intervals = tuple[tuple[int, int], ...]
Option = list[int]


class Rules(NamedTuple):
    """`kinds` of each position, `starts` are the positions of each rule's alternatives."""

    kinds: list[int]
    starts: list[list[int]]
    classes: list[Intervals]
    root: int


def class_of(kind: int) -> int:
    """Return the number of the class that `kind`, neither a rule nor `END`, stands for (and the other way round)."""
    return -2 - kind


def flat_rules(options: list[list[Option]], root: int, classes: list[Intervals]) -> Rules:
    """Return the rules whose alternatives are `options`; raise RequestError when `root` has no text or none begins."""
    ending = _settled(options, are_terminals=True)
    if root not in ending:
        raise refusal("it describes no finite text")
    options = [[option for option in of if all(item < 0 or item in ending for item in option)] for of in options]
    _check_left_recursion(options, _settled(options, are_terminals=False))
    kinds: list[int] = []
    starts: list[list[int]] = []
    for of in options:
        starts.append([])
        for option in of:
            starts[-1].append(len(kinds))
            kinds += [*option, END]
    return Rules(kinds, starts, classes, root)


def _settled(options: list[list[Option]], *, are_terminals: bool) -> set[int]:
    """Return the rules with an alternative of settled rules only, and of classes if these count.

    With classes these are the rules that have a finite text, without them those that may be empty.
    """
    users: defaultdict[int, list[int]] = defaultdict(list)
    owners: list[int] = []
    missing: list[int] = []
    ready: list[int] = []
    settled: set[int] = set()
    for rule, of in enumerate(options):
        for option in of:
            references = [item for item in option if item >= 0]
            if len(references) < len(option) and not are_terminals:
                continue
            for reference in references:
                users[reference].append(len(owners))
            owners.append(rule)
            missing.append(len(references))
            if not references:
                ready.append(rule)
    while ready:
        rule = ready.pop()
        if rule in settled:
            continue
        settled.add(rule)
        for user in users[rule]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(owners[user])
    return settled


def _check_left_recursion(options: list[list[Option]], empty: set[int]) -> None:
    """Refuse a rule that comes to itself before any character: a depth-first search that keeps its own stack."""
    is_left: dict[int, bool] = {}
    for rule in range(len(options)):
        path = [] if rule in is_left else [(rule, _leftmost(options[rule], empty))]
        is_left.setdefault(rule, False)
        while path:
            top, others = path[-1]
            other = next(others, None)
            if other is None:
                is_left[top] = True
                path.pop()
            elif other not in is_left:
                is_left[other] = False
                path.append((other, _leftmost(options[other], empty)))
            elif not is_left[other]:
                raise refusal("left recursion: a rule comes to itself, or repeats what may be empty")


def _leftmost(of: list[Option], empty: set[int]) -> Iterator[int]:
    for option in of:
        for item in option:
            if item >= 0:
                yield item
            if item not in empty:
                break


def refusal(why: str) -> RequestError:
    """Return the error that a grammar cannot be compiled, and `why`."""
    return RequestError(
        f"the grammar cannot be compiled: {why}", hint="llama.cpp's grammars/README.md explains GBNF", param="grammar"
    )
