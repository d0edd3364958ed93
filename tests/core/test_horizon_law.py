"""A plan with a horizon is the plan that would have been made again: running it many times over changes nothing."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.worlds import STRATEGIES, World, worlds

from setpoint.core.invariants import violations
from setpoint.model import AnyCommand, AnyEvent, RunStep, StepFinished, StepPlan
from setpoint.sim.replica import Arrival, ReplicaSimulator


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
