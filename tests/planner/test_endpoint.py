"""Profiling an endpoint over its tokens alone, tried on engines whose step times are known: simulated ones."""

import random
from collections.abc import Sequence

import msgspec
import pytest

from setpoint.errors import EngineError
from setpoint.metrics import RequestRecord
from setpoint.model import Capacity, ServiceClass, Slo, StepShape, chunk_work
from setpoint.planner.endpoint import Carry, Limits, Load, Outcome, loads_of, profile
from setpoint.sim.scenario import Scenario, simulate
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Blocks, Seconds, Tokens

TRUTH = linear(key="truth", step_s=0.008, decode_s=0.0009, context_s=2e-6, prefill_s=0.0004, work_s=1e-8)
OUTSIDE_S = 0.012
PACED = ServiceClass(name="standard", slo=Slo(ttft_s=Seconds(1.0), tpot_s=Seconds(0.1), judged_by="pace"))
"""The simulator dates every token of a class that is judged by its pace."""


def engine(slots: int, *, strategy: str = "continuous", budget: int = 256) -> Carry:
    """Return what carries out a load on a simulated engine that a client sees over a network with its own delay."""
    capacity = Capacity(
        slots=slots,
        kv_blocks=Blocks(4096),
        block_tokens=Tokens(16),
        step_tokens_max=Tokens(budget),
        context_tokens_max=Tokens(4096),
    )
    options = {"token_budget": budget} if strategy == "continuous" else {}
    scenario = Scenario(
        world=FixedStepTime(TRUTH),
        capacity=capacity,
        classes={"standard": PACED},
        strategy=strategy,
        options=options,
        request_s=OUTSIDE_S,
    )

    def carry(load: Load, _seed: int) -> Sequence[RequestRecord]:
        plan, last = [], load.streams - 1
        for i, one in enumerate(load.plan):
            user = min(i, last)
            # the next is sent when the client has seen the one before it end
            turn = max(0, i - last)
            plan.append(msgspec.structs.replace(one, session=user, turn=turn, think_s=OUTSIDE_S if turn else 0.0))
        records = simulate(scenario, plan).records
        return [msgspec.structs.replace(record, sent_at=record.scheduled_at) for record in records]

    return carry


def profiled(carry: Carry, slots: int) -> Outcome:
    limits = Limits(slots=slots, prompt_max=512, context_tokens=2048)
    return profile(limits, carry, random.Random(1), key="test", is_over=lambda: True)


@pytest.mark.parametrize("strategy", ["continuous", "slack"])
def test_the_steps_of_an_engine_are_read_off_its_tokens(strategy: str) -> None:
    found = profiled(engine(8, strategy=strategy), 8)
    shapes = [StepShape(n, n * context) for n in (1, 3, 8) for context in (50, 500)]
    shapes += [StepShape(n, 200 * n, p, chunk_work(0, p), 1) for n in (0, 2, 6) for p in (32, 200)]
    for shape in shapes:
        assert found.model.predict(shape) == pytest.approx(TRUTH.predict(shape), rel=0.15), shape
    assert found.seen.decodes_max == 8
    assert found.outside_s == pytest.approx(OUTSIDE_S, abs=0.01)


def test_the_largest_chunk_that_the_engine_makes_is_seen() -> None:
    assert profiled(engine(4, budget=128), 4).seen.chunk_max <= 128
    assert profiled(engine(4, budget=1024), 4).seen.chunk_max == 512


def test_an_engine_of_one_sequence_is_profiled_by_lone_prompts() -> None:
    found = profiled(engine(1), 1)
    shape = StepShape(1, 300)
    assert found.model.predict(shape) == pytest.approx(TRUTH.predict(shape), rel=0.15)


def test_a_round_covers_the_slots_and_no_request_is_too_long() -> None:
    limits = Limits(slots=6, prompt_max=300, context_tokens=512)
    loads = loads_of(limits, random.Random(0))
    assert {load.streams for load in loads if load.kind == "together"} == {1, 2, 4, 6}
    assert max(load.streams for load in loads) == 6
    assert all(one.prompt_tokens + one.output_tokens <= 512 for load in loads for one in load.plan)
    assert all(one.prompt_tokens <= 300 for load in loads for one in load.plan)


def test_an_endpoint_that_refuses_is_no_profile() -> None:
    def refuse(load: Load, _seed: int) -> Sequence[RequestRecord]:
        return [
            RequestRecord(id=one.id, class_name="x", scheduled_at=0.0, error="rate_limited", detail="busy")
            for one in load.plan
        ]

    with pytest.raises(EngineError, match=r"rate_limited.*busy") as caught:
        profiled(refuse, 4)
    assert "--slots" in str(caught.value.hint)


def test_a_server_that_does_not_stream_is_no_profile() -> None:
    whole = engine(4)

    def carry(load: Load, seed: int) -> Sequence[RequestRecord]:
        return [msgspec.structs.replace(record, event_at=[]) for record in whole(load, seed)]

    with pytest.raises(EngineError, match="steps could be read off"):
        profiled(carry, 4)
