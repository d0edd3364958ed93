"""Margins that are controlled, not tuned: each class names its percentile, and the observed miss rate is held there.

After each request of the class, with `missed` 0 or 1:

    log margin += gain x (allowed - missed)

which is stochastic approximation of the margin at which misses come at the rate `allowed` (Robbins and Monro, 1951).
Until the first miss, and again after so many requests in time that at the allowed rate three of them should have been
late, the steps are `lead` times as long, since the margin is then far from where it should be: else a start that is far
too careful would take hundreds of requests to make up for.
Where margins are bounded and the update is skipped while the class is overloaded, no wind-up can build up.
"""

from math import exp, log

from setpoint.units import NEVER

_FAR = 3.0


class Margin:
    """One controlled factor between `low` and `high`; larger means bolder."""

    __slots__ = ("_allowed", "_gain", "_high", "_lead", "_log", "_low", "_row", "value")

    def __init__(
        self, start: float, *, low: float, high: float, allowed: float, gain: float = 0.2, lead: float = 1.0
    ) -> None:
        """Begin at `start`; `allowed` is the miss rate to settle at, 0..1."""
        self._low = log(low)
        self._high = log(high)
        self._log = log(start)
        self._allowed = allowed
        self._gain = gain
        self._lead = lead
        self._row = NEVER
        """How many were in time since the last that was not."""
        self.value = start

    def update(self, *, is_missed: bool) -> None:
        """Learn from one request: a little bolder when it met its target, much more careful when it did not."""
        self._row = 0.0 if is_missed else self._row + 1.0
        lead = self._lead if self._row * self._allowed > _FAR else 1.0
        moved = self._log + lead * self._gain * (self._allowed - is_missed)
        self._log = min(self._high, max(self._low, moved))
        self.value = exp(self._log)
