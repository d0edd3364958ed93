"""How a step plan is put to vLLM's `schedule()`: an order, a budget and a cap, and who stays out of sight.

`schedule()` goes through `running` in its order and then through the waiting queue, and gives each request what it
still lacks, up to a cap that is the same for all and to what is left of the budget. A plan is therefore reached exactly
when its only incomplete chunk comes last, or is the largest, and by less otherwise: the chunks that `schedule()` would
make too large are left out of this step, for the plan is an upper bound on what a step may cost.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from setpoint.core.ledger import Sequence
from setpoint.model import StepPlan


class Arrangement(NamedTuple):
    """What `schedule()` is to see: ids in order, the token budget, and the cap on a chunk (0: none).

    The first `decodes` of `running` decode.
    """

    running: tuple[int, ...]
    admitted: tuple[int, ...]
    budget: int
    chunk_max: int
    decodes: int = 0


class _Chunk(NamedTuple):
    id: int
    tokens: int
    is_whole: bool
    is_running: bool


def arrange(plan: StepPlan | None, sequence: Callable[[int], Sequence]) -> Arrangement:
    """Return how to put `plan` (`None`: compute nothing) to vLLM."""
    if plan is None:
        return Arrangement((), (), 0, 0)
    if not plan.prefills:
        return Arrangement(plan.decodes, (), len(plan.decodes), 0, len(plan.decodes))
    chunks, chunk_max = _reachable([_chunk(sequence(i), tokens) for i, tokens in plan.prefills])
    return Arrangement(
        plan.decodes + _ids(c for c in chunks if c.is_running),
        _ids(c for c in chunks if not c.is_running),
        len(plan.decodes) + sum(c.tokens for c in chunks),
        chunk_max,
        len(plan.decodes),
    )


def _chunk(sequence: Sequence, tokens: int) -> _Chunk:
    return _Chunk(sequence.id, tokens, tokens == sequence.remaining_tokens, sequence.slot is not None)


def _reachable(chunks: list[_Chunk]) -> tuple[list[_Chunk], int]:
    """Return the chunks that `schedule()` will make as planned, in its order, and the cap that this takes."""
    ordered = sorted(chunks, key=lambda c: (not c.is_running, not c.is_whole))
    partial = [c for c in ordered if not c.is_whole]
    if not partial or (len(partial) == 1 and partial[0] is ordered[-1]):
        return ordered, 0
    largest = max(c.tokens for c in chunks)
    if all(c.tokens == largest for c in partial):
        return ordered, largest
    whole = [c for c in ordered if c.is_whole]
    last = next((c for c in partial if not c.is_running), None)
    if last is None and all(c.is_running for c in whole):
        last = partial[0]
    return (whole if last is None else [*whole, last]), 0


def _ids(chunks: Iterable[_Chunk]) -> tuple[int, ...]:
    return tuple(c.id for c in chunks)
