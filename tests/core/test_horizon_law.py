"""A plan with a horizon is the plan that would have been made again: running it many times over changes nothing."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.worlds import STRATEGIES, Ask, World, worlds

from setpoint.core.invariants import violations
from setpoint.model import (
    AnyCommand,
    AnyEvent,
    Capacity,
    Request,
    RunStep,
    ServiceClass,
    Slo,
    StepFinished,
    StepPlan,
)
from setpoint.sim.replica import Arrival, ReplicaSimulator
from setpoint.units import Blocks, Instant, Seconds, Tokens


class Trace:
    """What a simulation did, with every repeated plan written out."""

    def __init__(self, world: World, *, is_skipping: bool) -> None:
        self.commands: list[tuple[float, AnyCommand]] = []
        self.steps: list[tuple[float, Any, Any]] = []
        self.asked = 0
        self._began_at = 0.0
        self._plan = StepPlan(step_id=0)
        machine = world.machine()

        def note(event: AnyEvent, commands: list[AnyCommand]) -> None:
            self.asked += 1
            assert violations(machine) == []
            if isinstance(event, StepFinished):
                decodes, prefills = self._plan.decodes, self._plan.prefills
                at = self._began_at
                for seconds in event.step_seconds:
                    self.steps.append((at, decodes, prefills))
                    at += seconds
            for command in commands:
                if isinstance(command, RunStep):
                    self._began_at, self._plan = event.at, command.plan
                else:
                    self.commands.append((event.at, command))

        simulator = ReplicaSimulator(machine, world.step_time(), journal=note, is_skipping=is_skipping)
        arrivals = [Arrival(ask.request, ask.output_tokens) for ask in world.asks]
        self.records = [*simulator.run(arrivals)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=10)
@given(data=st.data())
def test_asking_at_each_step_gives_what_the_horizon_promised(strategy: str, data: st.DataObject) -> None:
    world = data.draw(worlds(strategy, is_faulty=False))
    patient, eager = Trace(world, is_skipping=True), Trace(world, is_skipping=False)
    assert patient.records == eager.records
    assert patient.commands == eager.commands
    assert patient.steps == eager.steps
    assert patient.asked <= eager.asked


def test_batch_work_that_is_urgent_for_one_step_is_not_promised_more() -> None:
    slos = {"chat": Slo(), "voice": Slo(tpot_s=Seconds(0.005)), "batch": Slo(e2e_s=Seconds(0.5))}
    classes = {
        name: ServiceClass(name=name, slo=slo, is_harvest=name == "batch", queue_max=1, late="wait")
        for name, slo in slos.items()
    }

    def ask(number: int, name: str, at: float, tokens: int, output: int) -> Ask:
        request = Request(
            id=number,
            class_name=name,
            arrived_at=Instant(at),
            prompt_tokens=Tokens(1),
            output_tokens_max=Tokens(tokens),
            ttft_s=Seconds(0.5) if name == "voice" else None,
        )
        return Ask(request, output)

    world = World(
        strategy="slack",
        classes=classes,
        capacity=Capacity(
            slots=8,
            kv_blocks=Blocks(130),
            block_tokens=Tokens(1),
            step_tokens_max=Tokens(16),
            context_tokens_max=Tokens(1000),
        ),
        step_s=0.0001,
        prefill_s=0.001,
        asks=[
            ask(0, "chat", 0.0, 20, 20),
            ask(1, "batch", 0.0, 20, 20),
            ask(2, "batch", 0.01, 60, 60),
            ask(3, "chat", 0.01, 20, 1),
            ask(4, "chat", 0.01, 20, 20),
            ask(5, "chat", 0.01, 20, 1),
            ask(6, "voice", 0.01, 20, 20),
        ],
    )
    patient, eager = Trace(world, is_skipping=True), Trace(world, is_skipping=False)
    assert patient.steps == eager.steps
    urgent = next(i for i, (_, decodes, _) in enumerate(eager.steps) if 2 in decodes)
    assert any(2 not in decodes for _, decodes, _ in eager.steps[urgent:]), "it had to wait again"
