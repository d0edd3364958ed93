"""What a strategy may look at, and the contract that it keeps."""

from abc import ABC, abstractmethod

from setpoint.core.filling import Draft
from setpoint.core.ledger import Key, Ledger, Sequence
from setpoint.model import Horizon, ServiceClass, StepTime
from setpoint.units import Seconds

_PROBE_TOKENS = 128


class State:
    """The view that the replica machine gives to its strategy; strategies read it and change nothing in it.

    `prefill_s` is the step time that a prefill token was really given
    lately, decodes of the same step included (exponentially weighted over tokens); `None` before the first. `batch_s`
    is what batch work has added to all steps so far, as predicted.
    """

    __slots__ = ("_bare_prefill_s", "batch_s", "classes", "ledger", "now", "prefill_s", "step_time")

    def __init__(self, ledger: Ledger, classes: dict[str, ServiceClass], step_time: StepTime) -> None:
        """Look at these; the clock stands at 0."""
        self.ledger = ledger
        self.classes = classes
        self.step_time = step_time
        self.now = 0.0
        self.prefill_s: float | None = None
        self.batch_s = 0.0
        self._bare_prefill_s: float | None = None

    def batch_seconds_since(self, sequence: Sequence) -> float:
        """Return what batch work has added to all steps since `sequence` arrived."""
        return self.batch_s - sequence.batch_before_s

    def seconds_per_prefill_token(self) -> float:
        """Return the step seconds that a prompt token costs: as lately achieved, else as the model says."""
        return self.bare_prefill_s() if self.prefill_s is None else self.prefill_s

    def bare_prefill_s(self) -> float:
        """Return the step seconds that a prompt token costs by the model, in a step of nothing else."""
        if self._bare_prefill_s is None or not self.step_time.is_fixed:
            self._bare_prefill_s = self.step_time.seconds(0, 0, _PROBE_TOKENS, _PROBE_TOKENS**2 / 2, 1) / _PROBE_TOKENS
        return self._bare_prefill_s


class Strategy(ABC):
    """Decides who computes what in the next step; a subclass says `name`, `key` and `plan`, the rest has defaults."""

    name: str

    @abstractmethod
    def key(self, sequence: Sequence, state: State) -> Key:
        """Return the place of `sequence` in the waiting queue; smaller is sooner."""

    @abstractmethod
    def plan(self, draft: Draft, state: State) -> None:
        """Fill `draft` with the next step."""

    def horizon(self, draft: Draft, state: State) -> Horizon:
        """Return until when the step in `draft` would be decided again; asking at each step is always right."""
        return Horizon(1)

    def wake_at(self, state: State) -> float | None:
        """Return when to ask again although nothing has happened, or `None`."""
        return None

    def saw_arrival(self, sequence: Sequence, state: State) -> None:  # noqa: B027 - a strategy may learn nothing
        """Learn that a request came in."""

    def saw_finish(self, sequence: Sequence, state: State) -> None:  # noqa: B027 - a strategy may learn nothing
        """Learn that a request ended by itself at `state.now`."""

    def saw_refusal(self, sequence: Sequence, state: State) -> None:  # noqa: B027 - a strategy may learn nothing
        """Learn that a request that had been queued was refused: it could not be in time, or had waited too long."""

    def retry_after(self, sequence: Sequence, state: State) -> Seconds:
        """Predict after how many seconds a refused request would be taken: when all ahead of it is prefilled."""
        ahead = sum(s.remaining_tokens for s in state.ledger.prefilling.values())
        waiting = state.ledger.waiting_tokens
        ahead += waiting[False] + (waiting[True] if sequence.is_harvest else 0)
        target = sequence.slo.ttft_target(sequence.request.prompt_tokens) or 0.0
        return Seconds(max(1.0, ahead * state.seconds_per_prefill_token() - target))
