"""Worlds for the laws: random requests, capacities and faults, small enough that every corner is met."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from setpoint.core.invariants import violations
from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.model import (
    AnyCommand,
    AnyEvent,
    Arrived,
    Cancelled,
    Capacity,
    CapacityChanged,
    Finish,
    Reject,
    Request,
    RunStep,
    ServiceClass,
    Slo,
    StepFinished,
    StepPlan,
    StepTime,
    Tick,
    WakeAt,
)
from setpoint.steptime.learner import FixedStepTime, LearnedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Blocks, Instant, Seconds, Tokens

STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {"batch": 3}),
    "static, impatient": ("static", {"batch": 3, "wait_s": 0.2}),
    "dynamic": ("dynamic", {"batch": 4}),
    "continuous": ("continuous", {}),
    "continuous, small budget": ("continuous", {"token_budget": 7}),
    "priority": ("priority", {"token_budget": 32}),
    "edf": ("edf", {"token_budget": 32}),
    "srpf": ("srpf", {"token_budget": 32}),
    "qoserve": ("qoserve", {}),
    "qoserve, tight": ("qoserve", {"tokens_min": 4, "low_kv_tokens": 64, "low_kv_budget": 8}),
    "slack": ("slack", {}),
    "slack, short memory": ("slack", {"memory_s": 0.3, "chunk_min": 4, "idle_step_s": 0.05}),
    "slack, own deadline": ("slack", {"relegation": "own-deadline", "chunk_min": 8}),
    "slack, nobody given up": ("slack", {"relegation": "none", "chunk_min": 8}),
    "slack, not controlled": ("slack", {"is_controlled": False, "chunk_min": 8}),
    "slack, not sized": ("slack", {"is_sized": False}),
    "slack, not harvesting": ("slack", {"is_harvesting": False}),
    "slack, not preempting": ("slack", {"is_preempting": False}),
}
"""The strategies under the laws: name and options."""

NEVER = float("inf")


@dataclass
class Ask:
    """A request with the tokens that it will really produce and, perhaps, the instant at which its client leaves."""

    request: Request
    output_tokens: int
    leaves_at: float = NEVER


@dataclass
class World:
    """Everything that a run depends on."""

    strategy: str
    classes: dict[str, ServiceClass]
    capacity: Capacity
    step_s: float
    prefill_s: float
    asks: list[Ask]
    changes: list[tuple[float, Capacity]] = field(default_factory=list)
    seed: int = 0
    is_learning: bool = False

    def step_time(self) -> StepTime:
        """Return a new step-time model."""
        model = linear(
            key="world", step_s=self.step_s, decode_s=2e-4, context_s=1e-6, prefill_s=self.prefill_s, work_s=1e-8
        )
        return LearnedStepTime(model) if self.is_learning else FixedStepTime(model)

    def machine(self) -> ReplicaMachine:
        """Return a new machine."""
        name, options = STRATEGIES[self.strategy]
        return ReplicaMachine(make_strategy(name, **options), self.classes, self.capacity, self.step_time())


class Run:
    """A world played to its end by a shell that obeys the machine; `journal` is what went in and out."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.machine = world.machine()
        self.now = 0.0
        self.journal: list[tuple[AnyEvent, list[AnyCommand]]] = []
        self.tokens: dict[int, int] = {}
        self.outputs: dict[int, int] = {}
        self.flight: tuple[float, StepPlan] | None = None
        self.wake_at = NEVER
        self.has_shrunk = False
        self.ended: list[tuple[int, AnyCommand]] = []
        self._noise = random.Random(world.seed)
        self._truth = world.step_time()

    def play(self, watch: Callable[[ReplicaMachine, list[AnyCommand]], None] | None = None) -> "Run":
        """Run until nothing is left to do, with every invariant checked after every event; `watch` sees each reply."""
        for event in self._events():
            commands = self.machine.handle(event)
            self.journal.append((event, commands))
            self._obey(commands)
            assert violations(self.machine, has_shrunk=self.has_shrunk) == []
            if watch is not None:
                watch(self.machine, commands)
            assert len(self.journal) < 20_000, "the machine does not come to rest"
        return self

    def _events(self) -> Iterator[AnyEvent]:
        script = self._script()
        while True:
            flight_at = NEVER if self.flight is None else self.flight[0]
            script_at = script[0].at if script else NEVER
            at = min(flight_at, script_at, self.wake_at)
            if at == NEVER:
                return
            self.now = at
            if at == flight_at:
                yield self._step_finished()
            elif at == script_at:
                event = script.pop(0)
                self.has_shrunk |= isinstance(event, CapacityChanged)
                yield event
            else:
                yield Tick(at=Instant(at))

    def _script(self) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for ask in self.world.asks:
            self.outputs[ask.request.id] = ask.output_tokens
            events.append(Arrived(at=ask.request.arrived_at, request=ask.request))
            if ask.leaves_at < NEVER:
                events.append(Cancelled(at=Instant(ask.leaves_at), request_id=ask.request.id))
        events += [CapacityChanged(at=Instant(at), capacity=capacity) for at, capacity in self.world.changes]
        return sorted(events, key=lambda e: e.at)

    def _step_finished(self) -> StepFinished:
        assert self.flight is not None
        at, plan = self.flight
        self.flight = None
        ledger = self.machine.ledger
        yielding = [i for i in plan.decodes if i in ledger.decoding]
        yielding += [
            i for i, n in plan.prefills if i in ledger.prefilling and ledger.prefilling[i].remaining_tokens == n
        ]
        stopped = []
        for request_id in yielding:
            self.tokens[request_id] = self.tokens.get(request_id, 0) + 1
            if self.tokens[request_id] == self.outputs[request_id]:
                stopped.append(request_id)
        seconds = Seconds(at - self._began_at)
        return StepFinished(at=Instant(at), step_id=plan.step_id, step_seconds=(seconds,), stopped=tuple(stopped))

    def _obey(self, commands: list[AnyCommand]) -> None:
        self.wake_at = NEVER
        for command in commands:
            if isinstance(command, RunStep):
                assert self.flight is None
                self._began_at = self.now
                seconds = self._truth.seconds(*self.machine.shape) * self._noise.uniform(0.8, 1.2)
                self.flight = (self.now + seconds, command.plan)
            elif isinstance(command, WakeAt):
                assert command.at > self.now
                self.wake_at = command.at
            elif isinstance(command, Finish | Reject):
                self.ended.append((command.request_id, command))


def a_class(draw: st.DrawFn, name: str, *, is_harvest: bool) -> ServiceClass:
    """Draw a class with any mix of objectives, patience and limits."""

    def seconds(*choices: float | None) -> Seconds | None:
        chosen = draw(st.sampled_from(choices))
        return None if chosen is None else Seconds(chosen)

    slo = Slo(
        percentile=draw(st.sampled_from([0.5, 0.95, 0.99])),
        ttft_s=None if is_harvest else seconds(None, 0.02, 0.2, 2.0),
        ttft_per_prompt_token_s=Seconds(draw(st.sampled_from([0.0, 1e-4]))),
        tpot_s=None if is_harvest else seconds(None, 0.005, 0.05),
        e2e_s=seconds(0.5, 5.0, 500.0) if is_harvest else seconds(None, None, 1.0),
        judged_by=draw(st.sampled_from(["tpot", "pace"])),
    )
    return ServiceClass(
        name=name,
        slo=slo,
        band=draw(st.integers(0, 3)),
        weight=draw(st.sampled_from([1.0, 1.0, 3.0])),
        is_harvest=is_harvest,
        late=draw(st.sampled_from(["wait", "refuse"])),
        queue_max=draw(st.sampled_from([1, 3, 100])),
        wait_max_s=None if is_harvest else seconds(0.3, 3.0, 60.0),
    )


def a_capacity(draw: st.DrawFn, *, is_crowded: bool) -> Capacity:
    """Draw a capacity: few slots or, for a crowd, few blocks; small steps."""
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    kv_tokens = 130 if is_crowded else draw(st.sampled_from([130, 160, 400, 40]))
    return Capacity(
        slots=8 if is_crowded else draw(st.sampled_from([3, 8, 2, 1])),
        kv_blocks=Blocks(-(-kv_tokens // block_tokens)),
        block_tokens=Tokens(block_tokens),
        step_tokens_max=Tokens(draw(st.sampled_from([16, 64, 512, 3, 1]))),
        context_tokens_max=Tokens(draw(st.sampled_from([1000, 1000, 100]))),
    )


@st.composite
def worlds(draw: st.DrawFn, strategy: str, *, is_faulty: bool = True, requests_max: int = 14) -> World:
    """Draw a world for `strategy`; without `is_faulty` nobody leaves and the capacity stays."""
    classes = {
        "chat": a_class(draw, "chat", is_harvest=False),
        "voice": a_class(draw, "voice", is_harvest=False),
        "batch": a_class(draw, "batch", is_harvest=True),
    }
    is_crowded = draw(st.booleans())
    capacity = a_capacity(draw, is_crowded=is_crowded)
    world = World(
        strategy=strategy,
        classes=classes,
        capacity=capacity,
        step_s=draw(st.sampled_from([1e-4, 0.004])),
        prefill_s=draw(st.sampled_from([1e-5, 1e-3])),
        asks=[],
        seed=draw(st.integers(0, 999)),
        is_learning=is_faulty and draw(st.booleans()),
    )
    at = 0.0
    for request_id in range(draw(st.integers(4, requests_max) | st.integers(1, 3))):
        at += draw(st.sampled_from([0.0, 0.001, 0.01] if is_crowded else [0.0, 0.001, 0.01, 0.3, 2.0]))
        prompt = draw(st.sampled_from([1, 7, 16, 17, 30] if is_crowded else [1, 7, 16, 17, 40, 80, 95]))
        longest = draw(st.sampled_from([20, 60, 100] if is_crowded else [1, 2, 9, 35]))
        request = Request(
            id=request_id,
            class_name=draw(st.sampled_from(["chat", "chat", "voice", "batch", "batch"])),
            arrived_at=Instant(at),
            prompt_tokens=Tokens(prompt),
            output_tokens_max=Tokens(longest),
            cached_tokens=Tokens(draw(st.sampled_from([0, 0, prompt // 2, prompt - 1]))),
            ttft_s=draw(st.sampled_from([None, None, None, Seconds(0.5)])),
        )
        stays_s = draw(st.sampled_from([NEVER, NEVER, NEVER, NEVER, 0.0, 0.02])) if is_faulty else NEVER
        output_tokens = longest if draw(st.booleans()) else draw(st.integers(1, longest))
        world.asks.append(Ask(request, output_tokens, at + stays_s))
    if is_faulty:
        instants = draw(st.lists(st.sampled_from([0.002, 0.02, 0.1, 0.4, 0.0]), max_size=2))
        for instant in sorted(instants):
            world.changes.append((instant, a_capacity(draw, is_crowded=is_crowded and draw(st.booleans()))))
    return world
