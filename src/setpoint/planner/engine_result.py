"""The result of tuning somebody else's engine, as one versioned value, and its verdict in words."""

from collections.abc import Sequence

import msgspec

from setpoint.planner.engine_search import Evaluation
from setpoint.planner.knobs import DEFAULTS, Setting

FORMAT = 1
BEATS_AT = 1.0


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What one setting holds on prompts and seeds that the search never saw, and what it costs then.

    `rate_rps`: where the targets are just met, in the median, with the 90% interval [`low_rps`, `high_rps`];
    `confirmed_rps`: the highest rate at which a longer trial met them. Costs are at the median.
    """

    rate_rps: float
    low_rps: float
    high_rps: float
    confirmed_rps: float | None
    per_thousand_requests: float | None
    per_million_output_tokens: float | None
    trials: int
    requests: int


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """The held rate of the pick over that of the defaults: median and 90% interval."""

    ratio: float
    low: float
    high: float


class EngineTuning(msgspec.Struct, frozen=True, kw_only=True):
    """One run of `setpoint tune --engine`. `dropped`: settings that were never started, by the reason."""

    version: str
    command: str
    started_at: str
    seconds: float
    seed: int
    is_cut: bool
    engine: str
    build: str
    machine: str
    model: str
    objectives: tuple[str, ...]
    workload: str
    users: int
    price_per_hour: float
    space: int
    evaluations: tuple[Evaluation, ...]
    dropped: dict[str, int]
    pick: Setting
    defaults_held: Held | None
    pick_held: Held | None
    gain: Gain | None
    launch: str
    launch_defaults: str
    is_grid: bool = False
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def is_better(self) -> bool:
        """Whether the pick was shown to beat the defaults."""
        if self.pick == DEFAULTS:
            return False
        if self.gain is not None:
            return self.gain.low > BEATS_AT
        return self.defaults_held is None and self.pick_held is not None and self.pick_held.confirmed_rps is not None

    @property
    def is_recommended(self) -> bool:
        """Whether the pick is what to launch: it beats the defaults, or there was no check to say otherwise."""
        return self.is_better or ((self.is_cut or self.is_grid) and self.pick_held is None)


def words_of(setting: Setting) -> str:
    """Return a setting as a person reads it."""
    return ", ".join(f"{name} {value}" for name, value in setting) or "the defaults"


def verdict(result: EngineTuning) -> str:  # noqa: PLR0911 - a sentence for each outcome
    """Return the outcome in a sentence or two."""
    name = words_of(result.pick)
    if (result.is_cut or result.is_grid) and result.pick_held is None:
        best = [one for one in result.evaluations if one.setting == result.pick and one.how == "measured"]
        rate = f" ({best[-1].score_rps:.2f} requests/s in its search trials)" if best else ""
        start = "Interrupted. The best so far" if result.is_cut else "Every setting was measured. The best"
        return f"{start} is {name}{rate}; it was not checked against the defaults."
    if result.pick == DEFAULTS:
        others = sum(one.setting != DEFAULTS and one.how != "unfit" for one in result.evaluations)
        if not others:
            return "No other setting could be measured in the time, so nothing is known to beat the defaults."
        return f"Nothing beats the defaults: none of {others} other evaluations did better in the search."
    if result.pick_held is None:
        return "Nothing beats the defaults: no setting was shown to hold any load within the targets."
    if result.gain is not None:
        gain = result.gain
        by = f"{gain.ratio:.2f} times the load of the defaults (90% interval {gain.low:.2f} to {gain.high:.2f})"
        if result.is_better:
            return f"{name}: holds {by}, on prompts and seeds that the search never saw."
        return f"Nothing was shown to beat the defaults. The best candidate, {name}, holds {by}."
    if result.is_better:
        return f"The defaults hold no load within the targets; {name} holds {result.pick_held.rate_rps:.2f} requests/s."
    return f"The defaults hold no load within the targets, and {name} was not confirmed to hold any either."


def tokens_cost(price_per_hour: float, rate_rps: float, output_mean: float) -> tuple[float | None, float | None]:
    """Return what a thousand requests and a million output tokens cost at a held rate."""
    if rate_rps <= 0.0:
        return None, None
    hourly = rate_rps * 3600.0
    return price_per_hour / hourly * 1e3, price_per_hour / (hourly * output_mean) * 1e6


def encode(result: EngineTuning) -> bytes:
    """Return the result as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1)


def best_first(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the last evaluation of each setting: what was measured by its score, then what failed."""
    last = {one.setting: one for one in evaluations}.values()
    return sorted(last, key=lambda one: (one.how != "measured", one.is_failed, -one.score_rps))
