"""The result of tuning: everything that was asked, measured and decided, as one versioned value.

`encode` gives the JSON of `result.json` and of `--json`; whatever the report shows stands in it.
"""

from collections.abc import Mapping

import msgspec

from setpoint.errors import ConfigError
from setpoint.planner.decide import Choice
from setpoint.planner.point import Bill, OperatingPoint
from setpoint.planner.shortfall import Shortfall
from setpoint.planner.trial import Trial

FORMAT = 1


class StepTimeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the profile gave: errors are relative, on shapes that the fit did not see."""

    key: str
    samples: int
    rounds: int
    seconds: float
    mape: float
    p95_error: float
    tail_ratio: float
    decode_s: dict[str, float]
    prefill_s: dict[str, float]
    file: str | None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy: its options, its trials, the highest load that held, and what the simulator had expected."""

    strategy: str
    options: Mapping[str, float | bool | str]
    trials: tuple[Trial, ...]
    predicted_rps: float | None
    held_rps: float | None
    held_trial: int | None
    best_trial: int | None
    low_rps: float | None
    high_rps: float | None
    is_supported: bool


class ClassTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What a class was promised in this run, and its share and lengths."""

    class_name: str
    share: float
    percentile: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    prompt: str
    output: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    processor: str
    cores: int
    memory_bytes: int | None
    system: str
    python: str
    engine: str
    load_before: float | None


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Which model was measured."""

    name: str
    file: str
    description: str
    parameters: int
    weight_bytes: int
    context_tokens: int


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """One run of `setpoint tune`. `notes`: what a reader must know before believing the figures."""

    version: str
    commit: str | None
    command: str
    started_at: str
    seconds: float
    seed: int
    is_quick: bool
    is_cut: bool
    machine: Machine
    model: Subject
    target: str
    targets: tuple[ClassTarget, ...]
    bound_rps: float | None
    step_time: StepTimeSummary
    strategies: tuple[Measured, ...]
    choice: Choice | None
    point: OperatingPoint | None
    bill: Bill | None
    shortfall: Shortfall | None
    notes: tuple[str, ...]
    format: int = FORMAT

    @property
    def chosen_trial(self) -> Trial | None:
        """The trial at the chosen point."""
        if self.choice is None:
            return None
        chosen = self.choice
        measured = next(one for one in self.strategies if one.strategy == chosen.strategy)
        return measured.trials[chosen.holding.trial]


def encode(result: Tuning) -> bytes:
    """Return the result as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(result), indent=1)


def decode(data: bytes) -> Tuning:
    """Read a result back; raises ConfigError when the data are none, or of another format."""
    try:
        result = msgspec.json.decode(data, type=Tuning)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"not a result of tuning: {error}", hint="write it anew with `setpoint tune`") from error
    if result.format != FORMAT:
        raise ConfigError(
            f"a result of format {result.format}, not {FORMAT}", hint="write it anew with `setpoint tune`"
        )
    return result
