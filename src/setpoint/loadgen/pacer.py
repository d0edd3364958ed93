"""When the next request leaves: time in, decision out. No clock, no I/O.

*Open loop*: a request is due at its planned instant, whatever became of the others. *Closed loop*: a request is due
when one of `concurrency` slots is free, and counts from that instant; the first ones are staggered so that they do
not march in step. A turn of a conversation is due its think time after the turn before ended.

With a window the run goes on, load still on, until all that was due in the window has ended: stopping the load with the
window would let its last requests run on an emptying machine.
"""

import heapq
from collections import deque
from collections.abc import Sequence

from setpoint.workload import PlannedRequest

Due = tuple[PlannedRequest, float]
"""A request and the instant that its latency counts from, in seconds since the start."""


class Pacer:
    """Decides what is due; `concurrency` makes it a closed loop. Instants are seconds since the start of the run."""

    def __init__(
        self,
        plan: Sequence[PlannedRequest],
        *,
        concurrency: int | None = None,
        stagger_s: float = 0.0,
        window_s: float | None = None,
    ) -> None:
        first = [one for one in plan if one.turn == 0]
        self._open = deque(first if concurrency is None else ())
        self._backlog = deque(first if concurrency is not None else ())
        self._follow = {(one.session, one.turn): one for one in plan if one.turn > 0}
        self._timed: list[tuple[float, int, PlannedRequest]] = []
        slots = min(concurrency or 0, len(self._backlog))
        self._slots = [stagger_s * index / slots for index in range(slots)]
        self._window_s = window_s
        self._in_flight = 0
        self._inside = 0
        self._is_stopped = False

    @property
    def in_flight(self) -> int:
        """Requests given out and not ended."""
        return self._in_flight

    def next_at(self) -> float | None:
        """Return when something is due next, or `None` when only the end of a request can change that."""
        if self._is_stopped:
            return None
        times = [self._open[0].at_s] if self._open else []
        if self._timed:
            times.append(self._timed[0][0])
        if self._slots and self._backlog:
            times.append(self._slots[0])
        return min(times) if times else None

    def due(self, now: float) -> list[Due]:
        """Return what is due at `now`, each with the instant that it was due at; it is in flight from here on."""
        found: list[Due] = []
        if self._is_stopped:
            return found
        while self._open and self._open[0].at_s <= now:
            one = self._open.popleft()
            found.append((one, one.at_s))
        while self._timed and self._timed[0][0] <= now:
            at, _, one = heapq.heappop(self._timed)
            found.append((one, at))
        while self._slots and self._backlog and self._slots[0] <= now:
            found.append((self._backlog.popleft(), heapq.heappop(self._slots)))
        self._in_flight += len(found)
        self._inside += sum(1 for _, at in found if self._is_inside(at))
        return found

    def ended(self, one: PlannedRequest, scheduled_at: float, now: float) -> None:
        """Note that a request given out has ended, well or badly."""
        self._in_flight -= 1
        self._inside -= self._is_inside(scheduled_at)
        following = self._follow.pop((one.session, one.turn + 1), None)
        if following is not None:
            at = max(following.at_s, now + following.think_s)
            heapq.heappush(self._timed, (at, following.id, following))
        elif self._backlog:
            heapq.heappush(self._slots, now)

    def stop(self) -> None:
        """Give nothing out any more."""
        self._is_stopped = True

    def is_done(self, now: float) -> bool:
        """Tell whether the run is over: all has ended, or all that was due in the window has."""
        if self._window_s is not None and now >= self._window_s and self._inside == 0:
            return True
        return self._in_flight == 0 and self.next_at() is None

    def unsent(self, until_s: float) -> list[Due]:
        """Return what was due before `until_s` and was never given out."""
        late = [(one, one.at_s) for one in self._open if one.at_s < until_s]
        return late + [(one, at) for at, _, one in self._timed if at < until_s]

    def _is_inside(self, at: float) -> bool:
        return self._window_s is not None and at < self._window_s
