"""The passes of one step plan, laid out ahead on the virtual clock.

Within its horizon a plan is run many times over. How many of its passes begin before an instant follows from a
quadratic, since each reads `decodes` tokens more than the one before; then their durations are written down and added
up one by one, so that every instant is the same float as in a run that asks at each step. Where the world's time is no
line (see `LinearStepTime`) each pass is asked for.
"""

from bisect import bisect_left
from itertools import accumulate
from math import sqrt

from setpoint.model import LinearStepTime, StepPlan, StepShape, StepTime
from setpoint.units import NEVER


class World:
    """The truth about step time; `factor` stretches it: a slow replica."""

    __slots__ = ("factor", "line", "seconds")

    def __init__(self, step_time: StepTime) -> None:
        """Take steps for as long as `step_time` says."""
        self.factor = 1.0
        self.seconds = step_time.seconds
        self.line = step_time.decode_line if isinstance(step_time, LinearStepTime) else None


class Passes:
    """The passes of the plan in flight, from `start` to `at`; `ends` are their ends.

    `most` bounds their number; `left_out` are the requests in decode that the plan does not decode.
    """

    __slots__ = ("at", "durations", "ends", "is_closed", "left_out", "most", "plan", "shape", "start", "until_at")

    def __init__(self, plan: StepPlan, shape: StepShape, start: float, first_s: float, most: int) -> None:
        """Lay the first pass out, which takes `first_s`."""
        self.plan = plan
        self.shape = shape
        self.start = start
        self.most = most
        self.at = start + first_s
        self.durations = [first_s]
        self.ends = [self.at]
        self.is_closed = most < 2  # noqa: PLR2004 - a single pass is never extended
        self.left_out: tuple[int, ...] = ()
        until_at = plan.horizon.until_at
        self.until_at: float = NEVER if until_at is None else until_at

    @property
    def may_go_on(self) -> bool:
        """Whether one more pass may begin at `at`."""
        return (
            not self.is_closed and len(self.ends) < self.most and self.at < self.until_at and self._is_in_pace(self.at)
        )

    def cut(self, at: float) -> None:
        """Begin no pass at or after `at`; what was laid out beyond is taken back."""
        self.is_closed = True
        kept = bisect_left(self.ends, at) + 1
        if kept < len(self.ends):
            del self.durations[kept:], self.ends[kept:]
            self.at = self.ends[-1]

    def lay_out(self, world: World, hint: float) -> None:
        """Lay further passes out, as long as they begin before `hint` and within the horizon; unless it is closed."""
        until_at = min(hint, self.until_at)
        if self.at >= until_at:
            return
        decodes = self.shape.decodes
        context = self.shape.context_tokens + len(self.ends) * decodes
        line = None if world.line is None else world.line(decodes, context)
        if line is None:
            self._ask(world, context, until_at)
            return
        (base_s, slope_s), factor = line, world.factor
        contexts = range(context, context + decodes * (self.most - len(self.ends)), decodes)
        if until_at < NEVER:
            first_s = (base_s + context * slope_s) * factor
            contexts = contexts[: _passes_within(until_at - self.at, first_s, decodes * slope_s * factor)]
        durations = [base_s + c * slope_s for c in contexts]
        self._add(durations if factor == 1.0 else [seconds * factor for seconds in durations], until_at)

    def _add(self, durations: list[float], until_at: float) -> None:
        """Add those passes that begin before `until_at` and in pace."""
        begins = list(accumulate(durations, initial=self.at))
        kept = bisect_left(begins, until_at, 0, len(durations))
        pace_s = self.plan.horizon.pace_s
        if pace_s is not None:
            done, start = len(self.ends), self.start
            kept = next((i for i in range(kept) if begins[i] > start + (done + i) * pace_s), kept)
        self.durations += durations[:kept]
        self.ends += begins[1 : kept + 1]
        self.at = begins[kept]

    def _ask(self, world: World, context: int, until_at: float) -> None:
        """Add the same one by one, asking the world for each."""
        decodes, factor = self.shape.decodes, world.factor
        at = self.at
        while at < until_at and len(self.ends) < self.most and self._is_in_pace(at):
            seconds = world.seconds(decodes, context) * factor
            at += seconds
            self.durations.append(seconds)
            self.ends.append(at)
            context += decodes
        self.at = at

    def _is_in_pace(self, begins_at: float) -> bool:
        """Return whether the next pass may begin at `begins_at` as far as pace goes."""
        pace_s = self.plan.horizon.pace_s
        return pace_s is None or begins_at <= self.start + len(self.ends) * pace_s


def _passes_within(span_s: float, first_s: float, growth_s: float) -> int | None:
    """Return how many passes begin within `span_s`, the first at 0, each `growth_s` longer; `None`: without bound.

    Rounding may make it one too many.
    """
    if span_s == NEVER:
        return None
    b = first_s - growth_s / 2
    divisor = b + sqrt(b * b + 2.0 * growth_s * span_s)
    return 2 + int(2.0 * span_s / divisor) if divisor > 0.0 else None
