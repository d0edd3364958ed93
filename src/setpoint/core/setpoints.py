"""The values that `slack` holds: two controlled margins a class, and what follows from them.

`pace` is the share of a decode's slack that a step may take for the prefills of others; TPOT misses move it.
`boldness` says how much of what is left batch work may take: of the slack of the decodes, of the spare seconds of the
waiting prefills, and of the TTFT target, for a step in flight stands in front of whoever arrives meanwhile. Every miss
of the class moves it, those of requests that were given up included, for batch work is what could have made room; it
stands still while there is no batch work. What is held back altogether counts as there: else it would get no other
chance beside a class that is always about. A request that was later than all that batch work took of its time would
have missed without any. Such misses count, too, as long as they are not many more than the class may miss: then it is
overloaded, and they say nothing of how bold batch work may be when that is over. `pace` learns nothing from a request
that was given up: its miss was a decision.
"""

from setpoint.core.controller import Margin
from setpoint.core.ledger import Sequence
from setpoint.units import NEVER

_LEAST_ALLOWED = 0.002
_AIM = 0.5
"""Batch work is held at this share of the misses that are allowed: who hovers at a promise breaks it half the time."""
_HARMLESS_TTFT = 0.05
"""Share of a TTFT target that a step of batch work may always last."""
_MEMORY, _OVERLOAD = 2.0, 3.0
"""In multiples of what a class may miss: the weight of the latest request in its share of misses that batch work has no
part in, and the share from which on it is overloaded."""


class ClassSetpoints:
    """The two margins of one class, its tightest TTFT target of late and when it was last seen."""

    __slots__ = ("_before_s", "_lately_s", "_may_miss", "_misses", "_turned_at", "boldness", "pace", "seen_at")

    def __init__(self, sequence: Sequence, *, pace: float, boldness: float) -> None:
        """Start from the shares `pace` and `boldness`."""
        allowed = max(_LEAST_ALLOWED, 1.0 - sequence.slo.percentile)
        self.pace = Margin(pace, low=0.4, high=1.0, allowed=allowed / 2)
        self._may_miss = allowed
        self._misses = 0.0
        """Share of late that missed whatever batch work did."""
        self.boldness = Margin(boldness, low=0.01, high=1.0, allowed=_AIM * allowed, gain=0.4, lead=5.0)
        self.seen_at: float = sequence.arrived_at
        self._turned_at: float = sequence.arrived_at
        self._before_s = self._lately_s = NEVER

    @property
    def ttft_s(self) -> float | None:
        """The tightest TTFT target that was seen for one memory at least, and for two at most."""
        least = min(self._before_s, self._lately_s)
        return None if least == NEVER else least

    def weigh(self, late_s: float, batch_s: float) -> None:
        """Move the boldness by a request that was late by `late_s`, of whose time batch work took `batch_s`."""
        is_beyond = late_s > max(0.0, batch_s)
        self._misses += min(1.0, _MEMORY * self._may_miss) * (is_beyond - self._misses)
        if not is_beyond or self._misses < _OVERLOAD * self._may_miss:
            self.boldness.update(is_missed=late_s > 0.0)

    def see(self, ttft_s: float | None, now: float, memory_s: float) -> None:
        """Note an arrival with this target."""
        self.seen_at = now
        if (gone_s := now - self._turned_at) >= memory_s:
            self._before_s = self._lately_s if gone_s < 2.0 * memory_s else NEVER
            self._turned_at, self._lately_s = now, NEVER
        if ttft_s is not None:
            self._lately_s = min(self._lately_s, ttft_s)


class Setpoints:
    """The margins of all classes that were seen."""

    def __init__(
        self, *, boldness: float, arrival: float, idle_step_s: float, memory_s: float, is_moving: bool
    ) -> None:
        """Start every class from the same shares; with `is_moving` false they stay there."""
        self._boldness = boldness
        self._arrival = arrival
        self._idle_step_s = idle_step_s
        self._memory_s = memory_s
        self._is_moving = is_moving
        self._classes: dict[str, ClassSetpoints] = {}

    def saw_arrival(self, sequence: Sequence, now: float, *, pace: float) -> None:
        """Note the target of a protected request, and that its class is awake; `pace` is where a new class starts."""
        name = sequence.service_class.name
        held = self._classes.get(name)
        if held is None:
            held = self._classes[name] = ClassSetpoints(sequence, pace=pace, boldness=self._boldness)
        held.see(sequence.slo.ttft_target(sequence.request.prompt_tokens), now, self._memory_s)

    def saw_finish(
        self, sequence: Sequence, now: float, *, batch_s: float, is_harvesting: bool, has_lent: bool = False
    ) -> None:
        """Move the margins of the class by how the request fared; `is_harvesting`: there was batch work meanwhile.

        `batch_s`: what batch work took of its time. `has_lent`: a step of its time was longer than its slack, so that a
        late answer says nothing of `pace`.
        """
        held = self._classes.get(sequence.service_class.name)
        if held is None or not self._is_moving or sequence.first_token_at is None:
            return
        deadline = sequence.ttft_deadline
        late_s = 0.0 if deadline is None else sequence.first_token_at - deadline
        if sequence.slo.tpot_s is not None and sequence.output_tokens > 1:
            due = sequence.token_deadline()
            assert due is not None
            slow_s = now - (due - sequence.slo.tpot_s)
            is_slow = slow_s > 0.0
            late_s = max(late_s, slow_s)
            if not sequence.is_late and not sequence.is_missed and not (is_slow and has_lent):
                held.pace.update(is_missed=is_slow)
        if is_harvesting:
            held.weigh(late_s, batch_s)

    def saw_refusal(self, sequence: Sequence, late_s: float, *, batch_s: float, is_harvesting: bool) -> None:
        """Count a refused request as one that missed by `late_s`, of whose time batch work took `batch_s`."""
        held = self._classes.get(sequence.service_class.name)
        if held is not None and self._is_moving and is_harvesting:
            held.weigh(late_s, batch_s)

    def pace(self, class_name: str) -> float:
        """Return the share of its slack that a step may take from a sequence of a protected class that was seen."""
        return self._classes[class_name].pace.value

    def boldness(self, now: float) -> float:
        """Return the share of what is left that batch work may take: that of the most careful class about."""
        return min((held.boldness.value for held in self._awake(now)), default=1.0)

    def longest_step_s(self, now: float) -> float:
        """Return how long a step of protected work may last with regard to who might arrive meanwhile."""
        ttft_s = self._tightest_ttft_s(now)
        return self._idle_step_s if ttft_s is None else self._arrival * ttft_s

    def longest_harvest_s(self, now: float, own_s: float) -> float:
        """Return the same of a step that holds batch work, and would last `own_s` without.

        Whoever arrives waits for a step in any case: batch work has its share of what is left beyond that.
        """
        caps = [
            own_s + held.boldness.value * max(0.0, self._arrival * held.ttft_s - own_s)
            for held in self._awake(now)
            if held.ttft_s is not None
        ]
        return min(caps, default=self._idle_step_s)

    def harmless_s(self, now: float) -> float:
        """Return what an arrival can always wait for: a small part of its TTFT target; 0 where nobody has one."""
        return _HARMLESS_TTFT * (self._tightest_ttft_s(now) or 0.0)

    def quiet_at(self, now: float) -> float | None:
        """Return when the next class will have been silent for so long that it is no longer reckoned with."""
        ends = [held.seen_at + self._memory_s for held in self._classes.values()]
        return min((end for end in ends if end > now), default=None)

    def is_quiet(self, now: float) -> bool:
        """Return whether no protected class was seen lately."""
        return not self._awake(now)

    def report(self) -> dict[str, dict[str, float]]:
        """Return the margins by class, for people and metrics."""
        return {n: {"pace": c.pace.value, "boldness": c.boldness.value} for n, c in sorted(self._classes.items())}

    def _tightest_ttft_s(self, now: float) -> float | None:
        return min([held.ttft_s for held in self._awake(now) if held.ttft_s is not None], default=None)

    def _awake(self, now: float) -> list[ClassSetpoints]:
        return [held for held in self._classes.values() if now - held.seen_at < self._memory_s]
