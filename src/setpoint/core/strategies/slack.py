"""`slack`: envelope-slack batching with closed-loop percentile setpoints, the flagship.

A step is built in this order, each part within a time limit:

1. every decode of the protected classes; their least slack, times a controlled margin, limits the step (deadlines are
   those that the class is judged by);
2. the prefills that can be in time, by deadline: Moore-Hodgson says which these are, afresh at each step, counting
   work at a rate between the bare cost and what was lately achieved;
3. the prefills given up, by least work: as long as they may wait, begun or not, or they are refused at once if the
   class says so;
4. harvest: decodes and prefills of batch work, as far as neither a slack nor the next arrival would feel it.

An arrival waits for the step in flight, so no step is longer than a controlled share of the tightest TTFT target seen
lately. Batch work whose completion window draws near is protected like the rest. KV and slots are taken back from
batch work only, when a protected request stands blocked, at most once per protected arrival, from the sequence that is
cheapest to recompute per block; twice preempted is protected until it ends.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable
from itertools import takewhile
from typing import NamedTuple

from setpoint.core.admission import RELEGATIONS, Job
from setpoint.core.filling import Draft
from setpoint.core.ledger import Key, Sequence
from setpoint.core.setpoints import Setpoints
from setpoint.core.state import State, Strategy
from setpoint.core.strategies.batching import decode_horizon, decode_or_preempt, first_come
from setpoint.core.strategies.harvest import HARVEST, HOPEFUL, LATE, Harvester, Urgency, cheapest, parted
from setpoint.core.strategies.lending import Lender
from setpoint.core.strategies.options import SlackOptions
from setpoint.model import Binding, Horizon, chunk_work
from setpoint.units import NEVER, Instant

_UNSIZED_TOKENS = 512
_HARMLESS_TPOT = 0.25
"""A step that lasts this share of a TPOT target leaves room for three more like it."""
_LATE_S = 1e-9
"""Who is refused has missed, due or not."""


class _Limits(NamedTuple):
    """Seconds that this step may last: for protected prefills (with the decode that limits it), and for harvest."""

    cap_s: float | None
    tightest: int | None
    harvest_s: float


class Slack(Strategy):
    """Slack-sized steps, relegation of the fewest, harvest, bounded preemption, controlled margins."""

    name = "slack"

    def __init__(self, options: SlackOptions | None = None) -> None:
        """Begin with the margins of `options`; they move as requests end."""
        o = options or SlackOptions()
        self._options = o
        self._triage = RELEGATIONS[o.relegation]
        self.setpoints = Setpoints(
            boldness=o.boldness,
            arrival=o.arrival,
            idle_step_s=o.idle_step_s,
            memory_s=o.memory_s,
            is_moving=o.is_controlled,
        )
        self._harvester = Harvester(o, self.setpoints)
        self._lender = Lender()

    def key(self, sequence: Sequence, state: State) -> Key:
        """Return the place: the hopeful by deadline, the hopeless by work, batch work by its completion window."""
        due = sequence.due_at
        if sequence.is_harvest:
            return (HARVEST, due)
        if sequence.is_late and state.now + sequence.remaining_tokens * state.bare_prefill_s() > due:
            return (LATE, sequence.remaining_tokens)
        return (HOPEFUL, due)

    def saw_arrival(self, sequence: Sequence, state: State) -> None:
        """Reckon with the class; a protected arrival allows one more preemption."""
        if not sequence.is_harvest:
            # one margin, not two: the tail of the step-time model is where the controlled share begins
            pace = min(self._options.pace, 1.0 / state.step_time.tail_ratio)
            self.setpoints.saw_arrival(sequence, state.now, pace=pace)
            self._harvester.allow_preemption()

    def saw_finish(self, sequence: Sequence, state: State) -> None:
        """Move the margins of the class."""
        if not sequence.is_harvest:
            self.setpoints.saw_finish(
                sequence,
                state.now,
                batch_s=state.batch_seconds_since(sequence),
                is_harvesting=self._harvester.take_was_there(),
                has_lent=self._lender.has_lent(sequence),
            )
            self._lender.saw_finish(sequence, state.now)

    def saw_refusal(self, sequence: Sequence, state: State) -> None:
        """Hold batch work back: what it took could have made room."""
        if not sequence.is_harvest:
            left_s = sequence.remaining_tokens * state.seconds_per_prefill_token()
            self.setpoints.saw_refusal(
                sequence,
                max(_LATE_S, state.now + left_s - sequence.due_at),
                batch_s=state.batch_seconds_since(sequence),
                is_harvesting=self._harvester.take_was_there(),
            )

    def plan(self, draft: Draft, state: State) -> None:
        """Build the step in the four parts that the module describes."""
        if not self._options.is_sized:
            draft.tokens_left = min(draft.tokens_left, _UNSIZED_TOKENS)
        ledger = state.ledger
        urgency = Urgency.of(state) if ledger.harvests else None
        protected, harvest = parted(ledger.decodes, urgency)
        self._decode(draft, protected, harvest)
        if len(draft.decodes) == len(ledger.sequences):
            return
        left_out = {*draft.left_out()} if len(draft.decodes) < len(protected) else ()
        limits = self._limits(draft, draft.seconds, state, left_out)
        draft.cap_s = limits.cap_s
        spare_s = self._prefill(draft, limits, state, urgency)
        if draft.is_empty or (ledger.harvests and self._options.is_harvesting):
            self._harvester.fill(draft, harvest, limits.harvest_s, spare_s, state)

    def horizon(self, draft: Draft, state: State) -> Horizon:
        """Return for how many steps pure decoding goes on; beside batch work, while it keeps up with the targets."""
        base = decode_horizon(draft, state, is_gated=draft.binding.kind in {"slots", "kv"})
        ledger = state.ledger
        if base.steps == 1 or not (ledger.waiting or ledger.harvests):
            return base
        head = next(ledger.waiting_from(), None)
        if head is not None and not head.is_harvest:
            return Horizon(1)
        protected, spare = parted(ledger.decodes, Urgency.of(state))
        if len(spare) < len(ledger.decodes.harvest):
            # urgent batch work is not while it runs: a step takes more from what is left than from its window
            return Horizon(1)
        own_s = state.step_time.seconds(len(protected), ledger.decodes.context(protected)) if protected else 0.0
        limits = self._limits(draft, own_s, state, ())
        cap_s = limits.harvest_s
        if limits.cap_s is not None and limits.tightest is not None:
            cap_s = min(cap_s, limits.cap_s)
        owed = [s for s in draft.decodes if not s.is_harvest and not s.is_missed]
        paces = [s.slo.tpot_s for s in owed if s.slo.tpot_s is not None]
        if any(due < state.now for s in owed if (due := s.token_deadline()) is not None):
            return Horizon(1)
        if not self._options.is_harvesting and any(s.is_harvest for s in draft.decodes):
            return Horizon(1)
        instants = [t for t in (base.until_at, self.setpoints.quiet_at(state.now)) if t is not None]
        if head is not None:
            instants.append(Urgency.of(state, base.steps).begins_at(head))
        # the first step was planned within the limit; each later one reads a longer context
        steps = 1 + bisect_right(range(1, base.steps), cap_s, key=draft.decode_seconds)
        return Horizon(steps, pace_s=min(paces, default=None), until_at=Instant(min(instants)) if instants else None)

    def _decode(self, draft: Draft, protected: Collection[Sequence], harvest: Collection[Sequence]) -> None:
        """Put in the decodes that are `protected`; where KV is short, those of `harvest` give it up first."""
        if draft.add_all_decodes(protected):
            return
        while draft.blocks_short(protected) > 0:
            spare = [*harvest, *(s for s in draft.ledger.prefilling.values() if s.is_harvest)]
            victim = cheapest(draft, spare)
            if victim is None:
                break
            draft.preempt(victim)
        decode_or_preempt(draft, protected, first_come)

    def _limits(self, draft: Draft, own_s: float, state: State, left_out: Collection[Sequence]) -> _Limits:
        """Return the limits; the protected decodes alone take `own_s`, but for `left_out`, which stand still."""
        arrival_s = self.setpoints.longest_step_s(state.now)
        cap_s, tightest = self._least_room(own_s, state, left_out) if self._options.is_sized else (None, None)
        harvest_s = arrival_s
        if state.ledger.harvests:
            harvest_s = self.setpoints.longest_harvest_s(state.now, max(own_s, state.step_time.seconds(1, 0)))
            if cap_s is not None:
                bold = self.setpoints.boldness(state.now)
                harvest_s = min(harvest_s, own_s + bold * max(0.0, cap_s - own_s))
            harmless_s = self._harmless_s(state)
            harvest_s = max(harvest_s, harmless_s if cap_s is None else min(cap_s, harmless_s))
        least = self._options.chunk_min
        work = chunk_work(state.ledger.capacity.context_tokens_max, least)
        floor_s = state.step_time.seconds(len(draft.decodes), draft.context_tokens, least, work, 1)
        longest_s = max(arrival_s, floor_s)
        if cap_s is None or longest_s < cap_s:
            return _Limits(longest_s, None, harvest_s)
        return _Limits(cap_s, tightest, harvest_s)

    def _harmless_s(self, state: State) -> float:
        """Return how long a step with batch work may last, however careful one is: a small part of all targets."""
        paces = [tpot_s for _, tpot_s, _ in state.ledger.decodes.protected.by_deadline()]
        return min(_HARMLESS_TPOT * min(paces, default=NEVER), self.setpoints.harmless_s(state.now))

    def _least_room(
        self, own_s: float, state: State, left_out: Collection[Sequence]
    ) -> tuple[float | None, int | None]:
        """Return the least share of its slack that a protected decode gives to others, and whose that is.

        Those that can no longer attain their SLO do not count, since to wait for them would only keep others out: those
        whose first token came too late, and those whose lateness steps of nothing but the decodes cannot make good by
        the longest output (a target that this engine cannot meet at all would otherwise let in one request after the
        other).
        """
        cap_s, tightest = None, None
        for name, tpot_s, sequences in state.ledger.decodes.protected.by_deadline():
            for sequence in sequences:
                slack = sequence.anchor + sequence.output_tokens * tpot_s - state.now
                if sequence in left_out or not sequence.catches_up(slack, own_s):
                    continue
                room = self.setpoints.pace(name) * slack
                if cap_s is None or room < cap_s:
                    cap_s, tightest = room, sequence.id
                break
        return cap_s, tightest

    def _prefill(self, draft: Draft, limits: _Limits, state: State, urgency: Urgency | None) -> float | None:
        """Put in protected prefills: those in time, urgent batch work, those given up; return the spare seconds."""
        ledger = state.ledger
        hopeful = [s for s in draft.prefilling() if not s.is_harvest]
        hopeful += takewhile(lambda s: s.key[0] == HOPEFUL, ledger.waiting_from())
        kept, late, spare_s = self._triaged(hopeful, draft, state) if hopeful else ([], [], None)
        loan = None
        if limits.tightest is not None and limits.cap_s is not None and self._options.is_lending:
            loan = self._lender.grant(draft, limits.cap_s, kept, late, spare_s, state)
            if loan is not None:
                draft.cap_s = loan.seconds
                limits = limits._replace(cap_s=loan.seconds)
                kept = [loan.sequence, *(s for s in kept if s is not loan.sequence)]
                late = [s for s in late if s is not loan.sequence]
        in_time = kept if urgency is None else [*kept, *self._harvester.urgent(draft, state, urgency)]
        if self._fill(draft, in_time, limits, urgency) and self._fill(draft, late, limits, None):
            # these may be a long queue, and none of them runs: one at a time, until one has no room
            waiting_late = takewhile(lambda s: s.key[0] == LATE, ledger.waiting_from((LATE,)))
            for sequence in waiting_late:
                if not self._fill(draft, (sequence,), limits, None) or sequence not in draft.chunks:
                    break
        if loan is not None and draft.binding.kind in {"work", "slack"}:
            draft.binding = Binding("loan", loan.sequence.id)
        return spare_s

    def _triaged(
        self, hopeful: list[Sequence], draft: Draft, state: State
    ) -> tuple[list[Sequence], list[Sequence], float | None]:
        """Return who can be in time, by deadline; who is given up, by least work; the spare seconds of the former."""
        hopeful.sort(key=lambda s: (s.due_at, s.id))
        bare_s = state.bare_prefill_s()
        token_s = bare_s + self._options.rate_blend * (state.seconds_per_prefill_token() - bare_s)
        jobs = [Job(s.id, s.due_at, s.remaining_tokens * token_s, s.service_class.weight) for s in hopeful]
        triage = self._triage(jobs, state.now + draft.seconds)
        sequences = state.ledger.sequences
        kept = [sequences[i] for i in triage.kept]
        given_up = self._give_up([sequences[i] for i in triage.given_up], draft, state)
        draft.relegated += [(s, False) for s in kept if s.is_late]
        return kept, sorted(given_up, key=lambda s: (s.remaining_tokens, s.id)), triage.spare_s

    def _give_up(self, fallen: list[Sequence], draft: Draft, state: State) -> list[Sequence]:
        """Relegate or refuse those that cannot be in time; return the relegated."""
        relegated = []
        for sequence in fallen:
            if sequence.service_class.late == "refuse" and sequence.slot is None and sequence.preemptions == 0:
                draft.refused.append(sequence)
                continue
            if sequence.slot is not None and sequence.expires_at is not None and sequence.expires_at <= state.now:
                # begun, then given up, and nobody waits for ever: it gives back what it holds, and is refused
                draft.preempt(sequence)
                continue
            relegated.append(sequence)
            if not sequence.is_late or (sequence.slot is None and self.key(sequence, state) != sequence.key):
                draft.relegated.append((sequence, True))
        return relegated

    def _fill(self, draft: Draft, sequences: Iterable[Sequence], limits: _Limits, urgency: Urgency | None) -> bool:
        """Put prefills in, in order; false when tokens or time are spent. With `urgency`, batch work makes room."""
        is_open = True
        for sequence in sequences:
            if sequence.slot is None and not is_open:
                continue
            blocker = draft.add_prefill(sequence, limits.cap_s, chunk_min=self._options.chunk_min)
            while blocker in {"slots", "kv"} and urgency is not None and self._harvester.make_room(draft, urgency):
                blocker = draft.add_prefill(sequence, limits.cap_s, chunk_min=self._options.chunk_min)
            if blocker is None:
                continue
            draft.binding = Binding(blocker, limits.tightest if blocker == "slack" else None)
            is_open = False
            if blocker not in {"slots", "kv"}:
                return False
        return True
