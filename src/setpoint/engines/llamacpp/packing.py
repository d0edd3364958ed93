"""Which stretch of cells each sequence lies in, so that those computed together lie side by side.

llama.cpp computes in one go only sequences whose stretches are neighbours; each gap among them costs a further pass
over the weights. To move a sequence into another stretch costs about one pass, once. So, where the decodes of a step
have gaps, the longest run of them grows by one: a decode from elsewhere is moved to its edge, and whoever lies there
and is left out of the step moves away first. Prompts begin at the far end, away from the decodes.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple


class Move(NamedTuple):
    """All cells of `source` are to lie in `target`, which nobody holds."""

    source: int
    target: int


class Packing:
    """The stretches 0 to `count` - 1: which are free, and which moves bring those computed together closer."""

    def __init__(self, count: int) -> None:
        """Begin with all free."""
        self._count = count
        self.free = set(range(count))

    def take(self) -> int:
        """Return a free stretch, which is then held; there is one."""
        stretch = max(self.free)
        self.free.remove(stretch)
        return stretch

    def give_back(self, stretch: int) -> None:
        """Make a stretch free."""
        assert stretch not in self.free, f"stretch {stretch} is free already"
        self.free.add(stretch)

    def moves(self, together: Sequence[int]) -> list[Move]:
        """Return the moves, at most two, that lengthen the longest run of `together`, as made; none where all adjoin.

        `together` are held stretches, in rising order. Nothing is moved where no stretch is free.
        """
        if not self.free or len(together) < 2 or together[-1] - together[0] == len(together) - 1:  # noqa: PLR2004
            return []
        runs = list(_runs(together))
        longest = max(runs, key=len)
        others = [run for run in runs if run is not longest]
        edges = [edge for edge in (longest[-1] + 1, longest[0] - 1) if 0 <= edge < self._count]
        source = min(others, key=len)[-1]
        staying = {*together} - {source}
        # best is a free edge that joins two runs, then any free one, then the occupied one above
        edge = min(edges, key=lambda e: (e not in self.free, not {e - 1, e + 1} <= staying))
        made = [] if edge in self.free else [Move(edge, max(self.free))]
        made.append(Move(source, edge))
        for move in made:
            self.free.remove(move.target)
            self.free.add(move.source)
        return made


def _runs(stretches: Sequence[int]) -> Iterable[list[int]]:
    run = [stretches[0]]
    for before, stretch in pairwise(stretches):
        if stretch != before + 1:
            yield run
            run = []
        run.append(stretch)
    yield run
