"""The decision: for each strategy the highest load that holds, which strategy to take, and how sure that is.

When no load holds for any strategy, the same question is asked for looser targets: all of them times the least factor
with which some trial held, so that there is always a best point and its promise is stated.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from setpoint.planner.holding import Holding, highest, least_scale
from setpoint.planner.trial import Trial

SAME_RATIO = 1.03
"""Rates nearer than this are taken as the same load; the one with more room in its latencies wins."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The strategy taken, at the load `holding`; `factor` above 1 means that only looser targets hold.

    `headroom_ratio`: by how much the load may still rise until the targets would just be met (`None`: not reached in
    the measurement). `latency_room_ratio`: by how much latency may still rise at this load. `rivals`: strategies whose
    highest load the measurement cannot tell from that of the winner.
    """

    strategy: str
    holding: Holding
    factor: float
    headroom_ratio: float | None
    latency_room_ratio: float
    rivals: tuple[str, ...]

    @property
    def is_met(self) -> bool:
        """Whether the targets hold as they were asked for."""
        return self.factor <= 1.0


def choose(measured: Mapping[str, Sequence[Trial]]) -> Choice | None:
    """Return the choice among strategies, or `None` when nothing usable was measured."""
    found = _held(measured, 1.0)
    factor = 1.0
    if not found:
        scales = [least[1] for trials in measured.values() if (least := least_scale(trials)) is not None]
        if not scales:
            return None
        factor = round_up(min(scales))
        found = _held(measured, factor)
    most = max(holding.rate_rps for holding in found.values())
    near = {name: holding for name, holding in found.items() if holding.rate_rps * SAME_RATIO >= most}
    strategy = min(near, key=lambda name: (measured[name][near[name].trial].scale, name))
    holding = found[strategy]
    scale = measured[strategy][holding.trial].scale / factor
    crossing = holding.crossing_rps
    return Choice(
        strategy=strategy,
        holding=holding,
        factor=factor,
        headroom_ratio=None if crossing is None else max(0.0, crossing / holding.rate_rps - 1.0),
        latency_room_ratio=max(0.0, 1.0 - scale),
        rivals=tuple(sorted(name for name, other in found.items() if name != strategy and _overlap(holding, other))),
    )


def _held(measured: Mapping[str, Sequence[Trial]], factor: float) -> dict[str, Holding]:
    found = {name: highest(trials, factor=factor) for name, trials in measured.items()}
    return {name: holding for name, holding in found.items() if holding is not None}


def _overlap(winner: Holding, other: Holding) -> bool:
    """Tell whether `other` might hold what the winner surely holds."""
    reach = math.inf if other.high_rps is None else other.high_rps
    return reach > (winner.low_rps or 0.0)


def round_up(factor: float) -> float:
    """Return `factor` rounded up to two significant digits, and at least 1."""
    if factor <= 1.0:
        return 1.0
    step = 10.0 ** (math.floor(math.log10(factor)) - 1)
    return round(math.ceil(factor / step - 1e-9) * step, 6)
