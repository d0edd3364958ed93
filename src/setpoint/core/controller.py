"""Margins that are controlled, not tuned: each class names its percentile, and the observed miss rate is held there.

After each request of the class, with `missed` 0 or 1:

    log margin += gain x (allowed - missed)

which is stochastic approximation of the margin at which misses come at the rate `allowed` (Robbins and Monro, 1951).
Until the first miss the steps are `first_gain` times as long, since nothing is known of where that margin lies: else a
start that is far too careful would take as many requests to leave as a few misses take to make up for.
Where margins are bounded and the update is skipped while the class is overloaded, no wind-up can build up.
"""

from math import exp, log


class Margin:
    """One controlled factor between `low` and `high`; larger means bolder."""

    __slots__ = ("_allowed", "_gain", "_high", "_lead", "_log", "_low", "value")

    def __init__(
        self, start: float, *, low: float, high: float, allowed: float, gain: float = 0.2, first_gain: float = 1.0
    ) -> None:
        """Begin at `start`; `allowed` is the miss rate to settle at, 0..1."""
        self._low = log(low)
        self._high = log(high)
        self._log = log(start)
        self._allowed = allowed
        self._gain = gain
        self._lead = first_gain
        self.value = start

    def update(self, *, is_missed: bool) -> None:
        """Learn from one request: a little bolder when it met its target, much more careful when it did not."""
        if is_missed:
            self._lead = 1.0
        moved = self._log + self._lead * self._gain * (self._allowed - is_missed)
        self._log = min(self._high, max(self._low, moved))
        self.value = exp(self._log)
