"""`qoserve`: the strongest published baseline with public rules, ported.

QoServe (arXiv 2503.22562, ASPLOS 2026; its artifact on Sarathi-Serve): all decodes run in each step; prefills go in the
order `deadline + factor x remaining tokens`, a hybrid of earliest deadline and shortest first; the token budget is the
largest for which `margin x predicted time` stays within the least slack of the decodes; a request that has not begun
and would be late by its own work at the prefill rate lately achieved is relegated behind all that are not. Its
step-time predictor is replaced by Setpoint's: the published one is not monotone, so that its bisection errs.
"""

from collections.abc import Iterator

from setpoint.core.filling import Draft
from setpoint.core.ledger import Key, Sequence
from setpoint.core.state import State, Strategy
from setpoint.core.strategies.batching import decode_horizon, decode_or_preempt, first_come
from setpoint.model import Binding, Horizon
from setpoint.units import Instant

_NO_DEADLINE_S = 3600.0


class QoServe(Strategy):
    """Hybrid EDF/SRPF order, slack-sized steps with a constant margin, eager relegation."""

    name = "qoserve"

    def __init__(
        self,
        *,
        factor_s: float = 0.008,
        margin: float = 1.2,
        tokens_min: int = 128,
        low_kv_tokens: int = 32_000,
        low_kv_budget: int = 512,
        batch_tpot_s: float = 0.05,
    ) -> None:
        """Take the published constants: seconds of deadline per prompt token, margin, least budget, KV guard.

        `batch_tpot_s` is what a token of a request with an end-to-end target alone is taken to need.
        """
        self._factor_s = factor_s
        self._margin = margin
        self._tokens_min = tokens_min
        self._low_kv_tokens = low_kv_tokens
        self._low_kv_budget = low_kv_budget
        self._batch_tpot_s = batch_tpot_s

    def key(self, sequence: Sequence, state: State) -> Key:
        """Return (relegated, deadline + factor x remaining tokens)."""
        due = self._deadline(sequence)
        return (float(sequence.is_late), due + self._factor_s * sequence.remaining_tokens)

    def plan(self, draft: Draft, state: State) -> None:
        """All decodes, then prefills in the hybrid order within the least slack."""
        ledger = state.ledger
        decode_or_preempt(draft, ledger.decoding.values(), first_come)
        if draft.free_blocks * ledger.capacity.block_tokens < self._low_kv_tokens:
            draft.tokens_left = min(draft.tokens_left, self._low_kv_budget)
        draft.cap_s, tightest = self._cap(draft, state)
        running = sorted(draft.prefilling(), key=lambda s: (self.key(s, state), s.id))
        for group in (running, () if draft.preempted else self._waiting(draft, state)):
            for sequence in group:
                blocker = draft.add_prefill(sequence, draft.cap_s)
                if blocker is not None:
                    draft.binding = Binding(blocker, tightest if blocker == "slack" else None)
                    return

    def horizon(self, draft: Draft, state: State) -> Horizon:
        """Return for how many steps pure decoding goes on, and nobody who waits falls behind."""
        base = decode_horizon(draft, state)
        head = next(state.ledger.waiting_from(), None)
        if head is None or head.is_late:
            return base
        falls_at = self._deadline(head) - head.remaining_tokens * state.seconds_per_prefill_token()
        until_at = falls_at if base.until_at is None else min(falls_at, base.until_at)
        return Horizon(base.steps, until_at=Instant(until_at))

    def _deadline(self, sequence: Sequence) -> float:
        """Return when the first token is due; an end-to-end target leaves room for the longest output."""
        if sequence.ttft_deadline is not None:
            return sequence.ttft_deadline
        if sequence.slo.e2e_s is None:
            return sequence.arrived_at + _NO_DEADLINE_S
        return sequence.arrived_at + sequence.slo.e2e_s - sequence.output_tokens_max * self._batch_tpot_s

    def _cap(self, draft: Draft, state: State) -> tuple[float | None, int | None]:
        """Return the time limit of the step and the id of the decode that sets it."""
        deadlines = [(due, s.id) for s in draft.decodes if (due := s.token_deadline()) is not None]
        if not deadlines:
            return None, None
        due, tightest = min(deadlines)
        least = self._tokens_min
        floor_s = state.step_time.seconds(len(draft.decodes), draft.context_tokens, least, least * least / 2, 1)
        return max((due - state.now) / self._margin, floor_s), tightest

    def _waiting(self, draft: Draft, state: State) -> Iterator[Sequence]:
        """Yield the waiting in order; one that has become late by its own work alone comes after all others."""
        fallen = []
        for sequence in state.ledger.waiting_from():
            work_s = sequence.remaining_tokens * state.seconds_per_prefill_token()
            if sequence.is_late or state.now + work_s <= self._deadline(sequence):
                yield sequence
            else:
                draft.relegated.append((sequence, True))
                fallen.append(sequence)
        yield from fallen
