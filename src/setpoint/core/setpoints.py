"""The values that `slack` holds: one pair of controlled margins a class, and what follows from them.

`pace` is the share of a decode's slack that a step may take; it is moved by the TPOT misses of the class. `arrival` is
the share of the TTFT target that a step may last while a request of the class may come at any moment; it is moved by
the TTFT misses. Each is allowed its part of the misses that the percentile of the class leaves, so that together they
do not exceed it. A request that was given up teaches nothing: its miss was a decision, not an error.
"""

from setpoint.core.controller import Margin
from setpoint.core.ledger import Sequence

_LEAST_ALLOWED = 0.002


class ClassSetpoints:
    """The two margins of one class, its tightest TTFT target and when it was last seen."""

    __slots__ = ("arrival", "pace", "seen_at", "ttft_s")

    def __init__(self, sequence: Sequence, *, pace: float, arrival: float) -> None:
        """Start from the shares `pace` and `arrival`."""
        slo = sequence.slo
        objectives = (slo.ttft_s is not None) + (slo.tpot_s is not None) + (slo.e2e_s is not None)
        allowed = max(_LEAST_ALLOWED, (1.0 - slo.percentile) / max(1, objectives))
        self.pace = Margin(pace, low=0.4, high=1.0, allowed=allowed)
        self.arrival = Margin(arrival, low=0.02, high=0.5, allowed=allowed)
        self.ttft_s: float | None = None
        self.seen_at: float = sequence.arrived_at


class Setpoints:
    """The margins of all classes that were seen."""

    def __init__(self, *, pace: float, arrival: float, idle_step_s: float, memory_s: float, is_moving: bool) -> None:
        """Start every class from the same shares; with `is_moving` false they stay there."""
        self._pace = pace
        self._arrival = arrival
        self._idle_step_s = idle_step_s
        self._memory_s = memory_s
        self._is_moving = is_moving
        self._classes: dict[str, ClassSetpoints] = {}

    def saw_arrival(self, sequence: Sequence, now: float) -> None:
        """Note the target of a protected request, and that its class is awake."""
        name = sequence.service_class.name
        held = self._classes.get(name)
        if held is None:
            held = self._classes[name] = ClassSetpoints(sequence, pace=self._pace, arrival=self._arrival)
        held.seen_at = now
        target = sequence.slo.ttft_target(sequence.request.prompt_tokens)
        if target is not None and (held.ttft_s is None or target < held.ttft_s):
            held.ttft_s = target

    def saw_finish(self, sequence: Sequence, now: float) -> None:
        """Move the margins of the class by how the request fared."""
        held = self._classes.get(sequence.service_class.name)
        if held is None or not self._is_moving or sequence.is_late or sequence.first_token_at is None:
            return
        if sequence.ttft_deadline is not None:
            held.arrival.update(is_missed=sequence.first_token_at > sequence.ttft_deadline)
        if sequence.slo.tpot_s is not None and sequence.output_tokens > 1:
            due = sequence.token_deadline()
            assert due is not None
            held.pace.update(is_missed=now > due - sequence.slo.tpot_s)

    def pace(self, sequence: Sequence) -> float:
        """Return the share of its slack that a step may take from `sequence`."""
        held = self._classes.get(sequence.service_class.name)
        return self._pace if held is None else held.pace.value

    def longest_step_s(self, now: float) -> float:
        """Return how long a step may last with regard to who might arrive meanwhile."""
        caps = [
            held.arrival.value * held.ttft_s
            for held in self._classes.values()
            if held.ttft_s is not None and now - held.seen_at < self._memory_s
        ]
        return min(caps, default=self._idle_step_s)

    def quiet_at(self, now: float) -> float | None:
        """Return when the next class will have been silent for so long that it is no longer reckoned with."""
        ends = [held.seen_at + self._memory_s for held in self._classes.values()]
        return min((end for end in ends if end > now), default=None)

    def is_quiet(self, now: float) -> bool:
        """Return whether no protected class was seen lately."""
        return all(now - held.seen_at >= self._memory_s for held in self._classes.values())

    def report(self) -> dict[str, dict[str, float]]:
        """Return the margins by class, for people and metrics."""
        return {n: {"pace": c.pace.value, "arrival": c.arrival.value} for n, c in sorted(self._classes.items())}
