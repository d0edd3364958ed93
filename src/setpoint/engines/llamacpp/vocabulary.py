"""The tokens of a model as a tree of bytes, walked with a grammar's automaton to find the tokens that may come next.

A node stands for some first bytes of tokens. Nodes are numbered level by level and within a level by parent, so the
children of a node are neighbours. The walk goes down all levels at once in numpy, along the nodes that the automaton
does not end in: what it costs grows with the tokens that are allowed, to about a millisecond where nearly all are.
Where much of a level is alive, the whole next level is looked at, which spares counting children.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from setpoint.engines.llamacpp.automaton import Automaton
from setpoint.engines.llamacpp.model import Model

Ids = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]
_CROWDED: Final = 4


class Vocabulary:
    """The tokens of one model by their bytes. Control tokens stand for none and are never allowed."""

    def __init__(self, model: Model) -> None:
        """Read the whole vocabulary once."""
        self.ends: Ids = np.fromiter(sorted(model.end_tokens), dtype=np.intp)
        pieces = [model.piece(token) for token in range(model.info.vocabulary)]
        lengths = np.fromiter(map(len, pieces), dtype=np.intp, count=len(pieces))
        lengths[self.ends] = 0
        text = np.frombuffer(b"".join(pieces), dtype=np.uint8)
        offsets = np.cumsum([0, *map(len, pieces[:-1])])
        levels = [np.zeros(1, dtype=np.intp)]
        node_of = np.zeros(len(pieces), dtype=np.intp)
        alive, count = np.flatnonzero(lengths), 1
        while len(alive):
            keys, index = np.unique(node_of[alive] << 8 | text[offsets[alive] + len(levels) - 1], return_inverse=True)
            node_of[alive] = count + index
            count += len(keys)
            levels.append(keys)
            alive = alive[lengths[alive] >= len(levels)]
        keys = np.concatenate(levels)
        self._node_of = node_of
        self._bounds = [0, *np.cumsum([len(level) for level in levels]).tolist()]
        self._parent, self._byte = keys >> 8, keys & 255
        self._children = np.bincount(self._parent[1:], minlength=count)
        self._first = 1 + np.cumsum(self._children) - self._children

    def allowed(self, automaton: Automaton, state: int) -> Bools:
        """Return, for each token, whether `automaton` lets it come in `state`."""
        is_reached = np.zeros(len(self._byte), dtype=np.bool_)
        nodes, states = np.zeros(1, dtype=np.intp), np.full(1, state, dtype=np.int32)
        for start, end, next_end in zip(self._bounds, self._bounds[1:], self._bounds[2:], strict=False):
            automaton.know(states)
            if _CROWDED * len(nodes) > end - start:
                level = np.zeros(end - start, dtype=np.intp)
                level[nodes - start] = states
                nodes = np.arange(end, next_end)
                before = level[self._parent[end:next_end] - start]
            else:
                children = self._children[nodes]
                ends = np.cumsum(children)
                nodes = np.repeat(self._first[nodes] + children - ends, children) + np.arange(ends[-1])
                before = np.repeat(states, children)
            after = automaton.table.ravel().take(before * 256 + self._byte[nodes])
            alive = np.flatnonzero(after)
            if not len(alive):
                break
            nodes, states = nodes[alive], after[alive]
            is_reached[nodes] = True
        allowed: Bools = is_reached[self._node_of]
        allowed[self.ends] = automaton.is_complete(state)
        return allowed
