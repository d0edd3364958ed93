"""Loans of time under `slack`: a step longer than the slack of the decodes, where it saves more than it costs.

TPOT is judged over the whole answer, so that a decode may fall behind its deadlines and catch up. Whether there is
time for that depends on two things that were seen of its class lately: by how much each token gained on its deadline,
and how many of the answers that came as far ended within so many tokens more. The sum of these shares over all decodes
that would be behind is what a loan is expected to cost, in misses. It is granted for at most half of a miss, to a
prompt that would miss its TTFT target without: the first in line when not all in time could wait for one more step of
nothing but decodes, or else one that is given up, where those in time have that much to spare. A loan takes in a whole
prompt at once, for each step costs its fixed part.

Where decodes gain nothing on their deadlines, TPOT is what binds: what is lent would never be paid back, the expected
cost is that of all of them, and there are no loans.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from setpoint.core.admission import Job, nobody
from setpoint.core.decodes import Group
from setpoint.core.filling import Draft
from setpoint.core.sequence import Sequence
from setpoint.core.state import State
from setpoint.units import NEVER

_COST_MAX = 0.5
"""Misses that a loan may be expected to cost, to save one; 0.3 and 0.8 hold 1 % more or less, by the load."""
_CANDIDATES = 3
"""Of those given up, how many are looked at in one step: the ones with least work."""
_REMEMBERED = 200
_LEAST_KNOWN = 20
_MEMORY = 0.05


class Loan(NamedTuple):
    """The prompt that is taken in, and the seconds of the step that does so."""

    sequence: Sequence
    seconds: float


class Answers:
    """The answers of one class that ended lately: how long they were, and how fast their tokens came."""

    def __init__(self) -> None:
        """Begin without any."""
        self.tpot_s = NEVER
        """Mean of late."""
        self._lengths: list[int] = []
        self._order: deque[int] = deque()

    def add(self, tokens: int, tpot_s: float) -> None:
        """Note an answer of `tokens`, two at least, and its TPOT."""
        self.tpot_s = tpot_s if self.tpot_s == NEVER else self.tpot_s + _MEMORY * (tpot_s - self.tpot_s)
        self._order.append(tokens)
        insort(self._lengths, tokens)
        if len(self._order) > _REMEMBERED:
            del self._lengths[bisect_left(self._lengths, self._order.popleft())]

    @property
    def are_known(self) -> bool:
        """Whether there are enough to go by."""
        return len(self._lengths) >= _LEAST_KNOWN

    def ended_within(self, tokens: int, more: float) -> float:
        """Return the share of the answers longer than `tokens` that ended within `more` of them; 1 where there is none.

        This is what the empirical distribution says of an answer that has come as far.
        """
        lengths = self._lengths
        first = bisect_right(lengths, tokens)
        longer = len(lengths) - first
        return (bisect_right(lengths, tokens + more) - first) / longer if longer else 1.0


class Lender:
    """Grants loans, and learns from the answers that end what they cost."""

    def __init__(self) -> None:
        """Begin without knowledge of any class, and therefore without loans."""
        self._answers: dict[str, Answers] = {}
        self._granted_at = -NEVER

    def saw_finish(self, sequence: Sequence, now: float) -> None:
        """Learn from an answer that has ended."""
        if sequence.slo.tpot_s is not None and sequence.output_tokens > 1:
            answers = self._answers.setdefault(sequence.service_class.name, Answers())
            answers.add(sequence.output_tokens, (now - sequence.anchor) / (sequence.output_tokens - 1))

    def has_lent(self, sequence: Sequence) -> bool:
        """Return whether there was a loan since the first token of `sequence`."""
        return sequence.first_token_at is not None and self._granted_at >= sequence.first_token_at

    def grant(
        self,
        draft: Draft,
        cap_s: float,
        kept: list[Sequence],
        given_up: list[Sequence],
        spare_s: float | None,
        state: State,
    ) -> Loan | None:
        """Return a loan for one of those `kept` or `given_up`, or `None`.

        `draft` holds the protected decodes alone; the step may last `cap_s` without a loan, and all that are kept have
        `spare_s` left.
        """
        own_s = draft.seconds
        if kept and draft.seconds_with(kept[0], kept[0].remaining_tokens) > cap_s:
            bare_s = state.bare_prefill_s()
            jobs = [Job(s.id, s.due_at, s.remaining_tokens * bare_s) for s in kept]
            least_s = nobody(jobs, state.now + own_s).spare_s
            if least_s is not None and least_s < own_s:
                loan = self._granted(draft, kept[0], state, kept[0].due_at)
                if loan is not None:
                    return loan
        latest = NEVER if spare_s is None else state.now + own_s + spare_s
        loans = (self._granted(draft, s, state, min(s.due_at, latest)) for s in islice(given_up, _CANDIDATES))
        return next((loan for loan in loans if loan is not None), None)

    def _granted(self, draft: Draft, sequence: Sequence, state: State, latest: float) -> Loan | None:
        """Return the loan for a prompt, if the step ends by `latest` and is expected to cost little enough."""
        own_s, seconds = draft.seconds, draft.seconds_with(sequence, sequence.remaining_tokens)
        if state.now + seconds > latest or not draft.has_room(sequence):
            return None
        left = _COST_MAX * sequence.service_class.weight
        for cost in self._costs(state.ledger.decodes.protected, own_s, seconds, state.now):
            left -= cost
            if left < 0.0:
                return None
        self._granted_at = state.now
        return Loan(sequence, seconds)

    def _costs(self, decodes: Group, own_s: float, seconds: float, now: float) -> Iterator[float]:
        """Yield the expected misses of each that a step of `seconds` would put behind, beside those without it."""
        for name, tpot_s, sequences in decodes.by_deadline():
            answers = self._answers.get(name)
            gain_s = 0.0
            if answers is not None and answers.are_known:
                gain_s = tpot_s - max(own_s, answers.tpot_s)
            for sequence in sequences:
                tokens = sequence.output_tokens
                slack = sequence.anchor + tokens * tpot_s - now
                if not sequence.catches_up(slack, own_s):
                    continue
                if seconds <= slack:
                    break
                risk = 1.0
                if answers is not None and gain_s > 0.0:
                    behind = max(0.0, own_s - slack) / gain_s
                    more = (seconds - slack) / gain_s
                    if tokens + more <= sequence.output_tokens_max:
                        risk = answers.ended_within(tokens, more)
                    risk -= answers.ended_within(tokens, behind) if behind > 0.0 else 0.0
                yield sequence.service_class.weight * risk
