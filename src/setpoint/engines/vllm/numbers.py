"""What the plug-in counts, and how the counts cross from the engine's process to the one that serves `/metrics`.

vLLM sends a `SchedulerStats` with each step's outputs; of it, only a table of whole numbers by name has room for more
entries. So every number travels as an integer under a name with a prefix of ours, and is taken out again on the other
side before vLLM's own loggers see it (`setpoint.engines.vllm.stat_logger`). Durations are sent in microseconds.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from setpoint.core.ledger import Sequence
from setpoint.model import StepPlan

PREFIX = "setpoint/"
GAUGES = {
    "last_predicted_s": "Predicted duration of the last step",
    "last_measured_s": "Measured duration of the last step",
    "last_cap_s": "Time limit of the last planned step; 0 when it had none",
    "budget_tokens": "Token budget of the last planned step",
    "parked": "Sequences that held KV and were left out of the last step",
    "waiting": "Requests that the policy holds back or queues",
    "last_plan_s": "Time spent on planning the last step",
}
COUNTERS = {
    "steps": "Steps begun, by what kept them from being larger",
    "fallbacks": "Steps left to vLLM's own scheduling, by reason",
    "preempted": "Sequences preempted, by who decided it",
    "relegated": "Requests given up for the time being, by class",
    "refused": "Requests refused, by reason",
    "finished": "Requests finished, by class",
    "missed": "Objectives missed, by class and objective",
    "planning_s": "Sum of the time that the policy has spent beside vLLM's own scheduling",
    "predicted_s": "Sum of the predicted step durations",
    "measured_s": "Sum of the measured step durations",
    "error_s": "Sum of the absolute differences between predicted and measured step durations",
}
_MICRO = 1e6
_SENT_EVERY_S = 0.05


class Numbers:
    """The counts since the start (name and label to number), and the latest value of each gauge."""

    def __init__(self) -> None:
        """Start from nothing."""
        self.counts = Counter[tuple[str, str]]()
        self.gauges: dict[str, float] = {}
        self._due_at = 0.0

    def add(self, name: str, label: str = "", amount: float = 1) -> None:
        """Count `amount` more under `name` and `label`."""
        assert name in COUNTERS
        self.counts[name, label] += amount  # type: ignore[assignment] # a Counter adds floats as well

    def set(self, name: str, value: float) -> None:
        """Note the latest value of a gauge."""
        assert name in GAUGES
        self.gauges[name] = value

    def planned(self, plan: StepPlan | None, *, tokens: int, waiting: int) -> None:
        """Note what was planned (`None`: nothing), and how many requests wait."""
        self.set("budget_tokens", tokens)
        self.set("waiting", waiting)
        if plan is not None:
            self.add("steps", plan.bound_by.kind)
            self.set("last_cap_s", plan.cap_s or 0.0)

    def spent(self, seconds: float) -> None:
        """Note what planning a step took."""
        self.set("last_plan_s", seconds)
        self.add("planning_s", amount=seconds)

    def measured(self, *, predicted_s: float, measured_s: float) -> None:
        """Note what a step was predicted to take, and took."""
        self.set("last_predicted_s", predicted_s)
        self.set("last_measured_s", measured_s)
        self.add("predicted_s", amount=predicted_s)
        self.add("measured_s", amount=measured_s)
        self.add("error_s", amount=abs(measured_s - predicted_s))

    def judge(self, sequence: Sequence, *, first_at: float | None, at: float, tokens: int) -> None:
        """Count a request that ended at `at` after `tokens` output tokens, and the objectives that it missed."""
        name = sequence.service_class.name
        self.add("finished", name)
        if first_at is None:
            return
        if sequence.ttft_deadline is not None and first_at > sequence.ttft_deadline:
            self.add("missed", f"{name}/ttft")
        tpot_s = sequence.slo.tpot_s
        if tpot_s is not None and tokens > 1 and at - first_at > (tokens - 1) * tpot_s:
            self.add("missed", f"{name}/tpot")

    def due(self, now: float, *, is_last: bool) -> dict[str, int]:
        """Return what is to travel now: nothing where steps are short and the last numbers are but just sent.

        `is_last`: there may be no step for long after this one, so that they go whenever the others went.
        """
        if now < self._due_at and not is_last:
            return {}
        self._due_at = now + _SENT_EVERY_S
        return self.packed()

    def packed(self) -> dict[str, int]:
        """Return all numbers as they travel."""
        packed = {}
        for numbers in (self.gauges, self.counts):
            for key, value in numbers.items():
                name, unit = _packing(key)
                packed[name] = round(value * unit)
        return packed


class Number(NamedTuple):
    """One number on the other side."""

    name: str
    label: str
    value: float


def unpack(table: Mapping[str, int]) -> list[Number]:
    """Return the numbers of ours in `table`; unknown ones (from another version) are left out."""
    numbers = []
    for key, value in table.items():
        if not key.startswith(PREFIX):
            continue
        name, _, label = key.removeprefix(PREFIX).partition("/")
        if name in GAUGES or name in COUNTERS:
            numbers.append(Number(name, label, value / _MICRO if name.endswith("_s") else float(value)))
    return numbers


@cache
def _packing(key: str | tuple[str, str]) -> tuple[str, float]:
    """Return the name under which a gauge, or a count with its label, travels, and what a whole number of it is."""
    name = key if isinstance(key, str) else key[0]
    full = PREFIX + (key if isinstance(key, str) else "/".join(key))
    return full, _MICRO if name.endswith("_s") else 1
