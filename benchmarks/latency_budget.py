"""A baseline of `harvest.py` after HyGen (arXiv 2501.14808): batch work fills each step up to a fixed latency budget.

Online work comes first, in a fixed token budget, as in `priority`. Batch decodes and then batch prefills are put in as
long as the predicted step stays within the budget, the same at all times, which HyGen finds by an offline search: here
it is swept. A share of KV stays free of batch work, and online work that is short of KV or slots takes them back from
the batch work that came last.
"""

from setpoint.core.filling import Draft
from setpoint.core.ledger import Sequence
from setpoint.core.state import State
from setpoint.core.strategies.batching import Continuous, by_band, decode_or_preempt

RESERVE = 0.1
_CHUNK_MIN = 16


class LatencyBudget(Continuous):
    """`priority` whose batch work is limited by the seconds of the step instead of by tokens."""

    def __init__(self, *, budget_s: float, token_budget: int = 512) -> None:
        """Let steps with batch work last `budget_s` at most, as predicted."""
        super().__init__("latency-budget", by_band, token_budget=token_budget)
        self._budget_s = budget_s
        self._online_tokens = token_budget

    def plan(self, draft: Draft, state: State) -> None:
        """Put in online work, then batch decodes, then batch prefills within the budget."""
        spare = [s for s in [*state.ledger.decoding.values(), *draft.prefilling()] if s.is_harvest]
        spare.sort(key=lambda s: (s.arrived_at, s.id))
        self._online(draft, state, spare)
        for sequence in (s for s in spare if s.id in state.ledger.decoding):
            if draft.add_decode(sequence, None if draft.is_empty else self._budget_s) is not None:
                break
        waiting = (s for s in state.ledger.waiting_from() if s.is_harvest and not draft.preempted)
        reserve = int(RESERVE * state.ledger.capacity.kv_blocks)
        for group in ([s for s in spare if s.id in state.ledger.prefilling], waiting):
            for sequence in group:
                if draft.add_prefill(sequence, self._budget_s, chunk_min=_CHUNK_MIN, reserve=reserve) is not None:
                    return

    def _online(self, draft: Draft, state: State, spare: list[Sequence]) -> None:
        """Put in the online decodes and prefills; those of `spare` that had to make room leave it."""
        ledger = state.ledger
        decoding = [s for s in ledger.decoding.values() if not s.is_harvest]
        while spare and draft.blocks_short(decoding) > 0:
            draft.preempt(spare.pop())
        decode_or_preempt(draft, decoding, by_band)
        beyond = max(0, draft.tokens_left - max(0, self._online_tokens - len(draft.decodes)))
        draft.tokens_left -= beyond
        for sequence in [*draft.prefilling(), *ledger.waiting_from()]:
            if sequence.is_harvest:
                continue
            blocker = draft.add_prefill(sequence)
            while blocker in {"kv", "slots"} and spare:
                draft.preempt(spare.pop())
                blocker = draft.add_prefill(sequence)
            if blocker is not None:
                break
        draft.tokens_left += beyond
