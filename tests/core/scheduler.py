"""A scheduler to talk to: tell it what happens, read what it commands."""

from collections.abc import Iterable

from setpoint.core.invariants import violations
from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import Option, make_strategy
from setpoint.model import (
    AnyCommand,
    AnyEvent,
    Arrived,
    Cancelled,
    Capacity,
    CapacityChanged,
    Request,
    RunStep,
    ServiceClass,
    Slo,
    StepFinished,
    StepPlan,
    Tick,
    WakeAt,
)
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Blocks, Instant, Seconds, Tokens

CHAT = ServiceClass(name="chat", slo=Slo(ttft_s=Seconds(0.2), tpot_s=Seconds(0.05)), band=1)
BATCH = ServiceClass(name="batch", slo=Slo(e2e_s=Seconds(3600.0)), band=9, is_harvest=True, wait_max_s=None)
SMALL = Capacity(
    slots=4,
    kv_blocks=Blocks(64),
    block_tokens=Tokens(4),
    step_tokens_max=Tokens(64),
    context_tokens_max=Tokens(128),
)


def without_steps(commands: Iterable[AnyCommand]) -> list[AnyCommand]:
    """Return the commands that are not steps."""
    return [c for c in commands if not isinstance(c, RunStep)]


class Scheduler:
    """A machine in conversation: one event in, what it commands besides wake-ups out."""

    def __init__(self, strategy: str, capacity: Capacity, classes: tuple[ServiceClass, ...], **options: Option) -> None:
        step_time = FixedStepTime(linear(key="small", step_s=0.004, decode_s=0.001, prefill_s=0.0005))
        named = {c.name: c for c in classes}
        self.machine = ReplicaMachine(make_strategy(strategy, **options), named, capacity, step_time)
        self.now = 0.0
        self.wake_at: float | None = None
        self._requests = 0
        self._has_shrunk = False

    @property
    def plan(self) -> StepPlan:
        """The step in flight."""
        assert self.machine.step_in_flight is not None
        return self.machine.step_in_flight

    def arrives(
        self, class_name: str = "chat", *, prompt: int = 8, output: int = 4, cached: int = 0, **own: float
    ) -> list[AnyCommand]:
        """Tell that a request comes in; ids count from 0."""
        request = Request(
            id=self._requests,
            class_name=class_name,
            arrived_at=Instant(self.now),
            prompt_tokens=Tokens(prompt),
            output_tokens_max=Tokens(output),
            cached_tokens=Tokens(cached),
            **{name: Seconds(seconds) for name, seconds in own.items()},  # type: ignore[arg-type]
        )
        self._requests += 1
        return self._tell(Arrived(at=Instant(self.now), request=request))

    def step(
        self, *, stopped: tuple[int, ...] = (), times: int = 1, extra: tuple[tuple[int, int], ...] = ()
    ) -> list[AnyCommand]:
        """Tell that the step in flight ends after the seconds that were predicted; `extra` as in `StepFinished`."""
        seconds = self.plan.predicted_s
        self.now += seconds * times
        return self._tell(
            StepFinished(
                at=Instant(self.now),
                step_id=self.plan.step_id,
                step_seconds=(seconds,) * times,
                stopped=stopped,
                extra=extra,
            )
        )

    def leaves(self, request_id: int) -> list[AnyCommand]:
        """Tell that the client of a request leaves."""
        return self._tell(Cancelled(at=Instant(self.now), request_id=request_id))

    def becomes(self, capacity: Capacity) -> list[AnyCommand]:
        """Tell that the capacity changes."""
        self._has_shrunk = True
        return self._tell(CapacityChanged(at=Instant(self.now), capacity=capacity))

    def passes(self, seconds: float) -> list[AnyCommand]:
        """Let time pass."""
        self.now += seconds
        return self._tell(Tick(at=Instant(self.now)))

    def runs_dry(self) -> list[AnyCommand]:
        """Step until nothing is in flight; return all that was commanded meanwhile, steps apart."""
        said: list[AnyCommand] = []
        while self.machine.step_in_flight is not None:
            said += [c for c in self.step() if not isinstance(c, RunStep)]
        return said

    def check(self) -> None:
        """Assert every invariant."""
        assert violations(self.machine, has_shrunk=self._has_shrunk) == []

    def _tell(self, event: AnyEvent) -> list[AnyCommand]:
        commands = self.machine.handle(event)
        self.check()
        self.wake_at = next((c.at for c in commands if isinstance(c, WakeAt)), None)
        return [c for c in commands if not isinstance(c, WakeAt)]
