from msgspec.structs import replace
from tests.sim.worlds import CAPACITY, WORLD, arrivals

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.model import AnyCommand, AnyEvent, Binding, RunStep, ServiceClass, Slo
from setpoint.sim.explain import read_story, tell
from setpoint.sim.replica import ReplicaSimulator
from setpoint.units import Seconds
from setpoint.workload import PlannedRequest

CHAT = ServiceClass(name="chat", slo=Slo(ttft_s=Seconds(0.1), tpot_s=Seconds(0.03)))
LOAN = Binding("loan", 0)


def journal_of(prompts: list[int], output: int = 5) -> list[tuple[AnyEvent, list[AnyCommand]]]:
    lines: list[tuple[AnyEvent, list[AnyCommand]]] = []
    machine = ReplicaMachine(make_strategy("continuous", token_budget=32), {"chat": CHAT}, CAPACITY, WORLD)
    simulator = ReplicaSimulator(machine, WORLD, journal=lambda event, commands: lines.append((event, list(commands))))
    requests = [
        PlannedRequest(id=2 * i, at_s=0.001 * i, prompt_tokens=p, output_tokens=output, class_name="chat")
        for i, p in enumerate(prompts)
    ]
    list(simulator.run(arrivals(requests)))
    return lines


def test_a_late_request_names_those_whose_prompts_it_waited_behind() -> None:
    story = read_story(journal_of([100, 80, 10]), 4)
    assert story is not None
    assert story.outcome == "stop"
    assert story.ahead == 2
    assert set(story.spells[0].others) == {0, 2}
    words = tell(story, {"chat": CHAT})
    assert "ms late" in words[1]
    assert any("beside prompts of 0 (" in sentence for sentence in words)
    assert any("the token budget was spent" in sentence for sentence in words)


def test_a_loan_names_nobody_as_the_one_who_was_waited_for() -> None:
    lines = [
        (event, [replace(c, plan=replace(c.plan, bound_by=LOAN)) if isinstance(c, RunStep) else c for c in commands])
        for event, commands in journal_of([100, 80, 10])
    ]
    story = read_story(lines, 4)
    assert story is not None
    assert not story.spells[0].blockers
    assert any(sentence.endswith("which had time to catch up") for sentence in tell(story, {"chat": CHAT}))


def test_the_phases_of_a_request_add_up_to_its_life() -> None:
    story = read_story(journal_of([100, 80, 10]), 2)
    assert story is not None
    assert story.ended_at is not None
    whole = sum(spell.seconds for spell in story.spells)
    assert abs(whole - (story.ended_at - story.request.arrived_at)) < 1e-9
    assert story.output_tokens == 5
    assert sum(spell.own_tokens for spell in story.spells) == 80


def test_a_request_that_never_came_has_no_story() -> None:
    assert read_story(journal_of([10]), 99) is None
