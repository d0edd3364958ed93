"""Small random worlds for the laws of the simulator."""

import random

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.model import PRESETS, Capacity, Request, ServiceClass, Slo, StepShape
from setpoint.sim.replica import Arrival
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Blocks, Instant, Seconds, Tokens
from setpoint.workload import PlannedRequest

WORLD = FixedStepTime(linear(key="test", step_s=0.01, decode_s=0.001, context_s=2e-6, prefill_s=0.0005, work_s=1e-8))
SLOWER = FixedStepTime(linear(key="slower", step_s=0.013, decode_s=0.002, context_s=5e-6, prefill_s=0.0004))


class Curved:
    """A step time that is no line over the context, as the tables of kernels are."""

    is_fixed = True
    tail_ratio = 1.0

    def seconds(
        self, decodes: int, context: int, prefill_tokens: int = 0, work: float = 0.0, prefills: int = 0, /
    ) -> float:
        """Return the seconds of a step."""
        return WORLD.seconds(decodes, context, prefill_tokens, work, prefills) * (1.0 + 0.1 * (context // 64 % 3))

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn nothing."""


CURVED = Curved()
CAPACITY = Capacity(
    slots=6, kv_blocks=Blocks(60), block_tokens=Tokens(8), step_tokens_max=Tokens(64), context_tokens_max=Tokens(400)
)
CHAT = ServiceClass(name="chat", slo=Slo(ttft_s=Seconds(0.4), tpot_s=Seconds(0.03)), band=1, queue_max=30)
READER = ServiceClass(
    name="reader", slo=Slo(ttft_s=Seconds(0.5), tpot_s=Seconds(0.05), judged_by="pace"), wait_max_s=Seconds(3.0)
)
CLASSES = {"chat": CHAT, "reader": READER, "batch": PRESETS["batch"]}
STRATEGIES: dict[str, dict[str, float | bool | str]] = {
    "static": {"batch": 3, "wait_s": 0.2},
    "dynamic": {"batch": 4},
    "continuous": {"token_budget": 24},
    "priority": {"token_budget": 24},
    "edf": {"token_budget": 24},
    "srpf": {"token_budget": 24},
    "qoserve": {"tokens_min": 4, "low_kv_tokens": 64, "low_kv_budget": 16},
    "slack": {},
}


def plan(seed: int, count: int, rate: float) -> list[PlannedRequest]:
    """Return a random plan in order of time."""
    chance = random.Random(seed)
    at = 0.0
    found = []
    for number in range(count):
        at += chance.expovariate(rate)
        found.append(
            PlannedRequest(
                id=number,
                at_s=at,
                prompt_tokens=chance.randint(1, 120),
                output_tokens=chance.randint(1, 60),
                class_name=chance.choice(list(CLASSES)),
            )
        )
    return found


def arrivals(requests: list[PlannedRequest]) -> list[Arrival]:
    """Return the plan as the simulator takes it; every other request may go on longer than it does."""
    return [
        Arrival(
            Request(
                id=one.id,
                class_name=one.class_name,
                arrived_at=Instant(one.at_s),
                prompt_tokens=Tokens(one.prompt_tokens),
                output_tokens_max=Tokens(one.output_tokens + 5 * (one.id % 2)),
            ),
            one.output_tokens,
        )
        for one in requests
    ]


def machine(strategy: str) -> ReplicaMachine:
    """Return a fresh machine of the test world."""
    return ReplicaMachine(make_strategy(strategy, **STRATEGIES[strategy]), CLASSES, CAPACITY, WORLD)
