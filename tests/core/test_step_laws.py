"""What holds for every step plan: it keeps its limits, leaves nothing that it could do, and says what bound it."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.worlds import STRATEGIES, Run, worlds

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies.batching import Continuous, Static
from setpoint.core.strategies.slack import Slack
from setpoint.model import AnyCommand, Preempt, RunStep, StepPlan

ROUNDING = 1 + 1e-9


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=20)
@given(data=st.data())
def test_every_step_keeps_every_law(strategy: str, data: st.DataObject) -> None:
    def watch(machine: ReplicaMachine, commands: list[AnyCommand]) -> None:
        nobody_waits_longer_than_the_class_says(machine)
        plan = next((c.plan for c in commands if isinstance(c, RunStep)), None)
        if plan is not None:
            for law in LAWS_OF_PLANS:
                law(machine, plan, commands)
        elif machine.step_in_flight is None:
            an_idle_engine_means_that_nobody_may_be_let_in(machine)

    Run(data.draw(worlds(strategy))).play(watch)


def nobody_waits_longer_than_the_class_says(machine: ReplicaMachine) -> None:
    for sequence in machine.ledger.waiting_from():
        has_begun = sequence.first_token_at is not None
        assert has_begun or sequence.expires_at is None or sequence.expires_at > machine.state.now


def an_idle_engine_means_that_nobody_may_be_let_in(machine: ReplicaMachine) -> None:
    ledger = machine.ledger
    assert ledger.running == 0
    if ledger.waiting:
        assert isinstance(machine.strategy, Static)
        assert len(ledger.waiting) < min(machine.strategy._batch, ledger.capacity.slots)


def a_step_never_exceeds_the_token_budget(machine: ReplicaMachine, plan: StepPlan, _: list[AnyCommand]) -> None:
    assert 0 < plan.tokens <= budget(machine)


def a_step_bound_by_work_leaves_nothing(machine: ReplicaMachine, plan: StepPlan, _: list[AnyCommand]) -> None:
    if plan.bound_by.kind != "work":
        return
    idle = left_out(machine, plan)
    if not isinstance(machine.strategy, Static):
        idle += [request_id for _, request_id in machine.ledger.waiting]
    if isinstance(machine.strategy, Slack) and not machine.strategy._options.is_harvesting:
        idle = [i for i in idle if not machine.ledger.sequences[i].is_harvest]
    assert idle == []


def a_step_bound_by_tokens_spends_them(machine: ReplicaMachine, plan: StepPlan, _: list[AnyCommand]) -> None:
    if plan.bound_by.kind == "tokens" and isinstance(machine.strategy, Continuous | Static):
        assert plan.tokens == budget(machine)


def continuous_batching_lets_in_all_who_fit(
    machine: ReplicaMachine, plan: StepPlan, commands: list[AnyCommand]
) -> None:
    is_free = plan.tokens < budget(machine) and not any(isinstance(c, Preempt) for c in commands)
    if not isinstance(machine.strategy, Continuous) or not is_free:
        return
    assert left_out(machine, plan) == []
    ledger = machine.ledger
    head = next(ledger.waiting_from(), None)
    if head is not None and ledger.free_slots > 0:
        assert ledger.blocks_for(head, head.target_tokens) > ledger.free_blocks


def a_step_keeps_within_its_cap_unless_it_is_the_least_that_can_be_done(
    machine: ReplicaMachine, plan: StepPlan, _: list[AnyCommand]
) -> None:
    if plan.cap_s is None or plan.predicted_s <= plan.cap_s * ROUNDING:
        return
    least = 1
    if isinstance(machine.strategy, Slack) and plan.prefills:
        options, first = machine.strategy._options, machine.ledger.sequences[plan.prefills[0][0]]
        least = options.batch_chunk_min if first.is_harvest else options.chunk_min
    is_least_chunk = not plan.decodes and len(plan.prefills) == 1 and plan.tokens <= least
    assert not plan.prefills or is_least_chunk


LAWS_OF_PLANS: tuple[Callable[[ReplicaMachine, StepPlan, list[AnyCommand]], None], ...] = (
    a_step_never_exceeds_the_token_budget,
    a_step_bound_by_work_leaves_nothing,
    a_step_bound_by_tokens_spends_them,
    continuous_batching_lets_in_all_who_fit,
    a_step_keeps_within_its_cap_unless_it_is_the_least_that_can_be_done,
)


def left_out(machine: ReplicaMachine, plan: StepPlan) -> list[int]:
    """Return the running that the plan leaves out, in whole or in part."""
    ledger, prefills = machine.ledger, dict(plan.prefills)
    idle = [i for i in ledger.decoding if i not in plan.decodes]
    return idle + [i for i, s in ledger.prefilling.items() if prefills.get(i) != s.remaining_tokens]


def budget(machine: ReplicaMachine) -> int:
    """Return the most tokens that a step may have."""
    limit: int = machine.ledger.capacity.step_tokens_max
    return min(limit, machine.strategy._token_budget) if isinstance(machine.strategy, Continuous) else limit
