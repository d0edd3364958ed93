"""What holds for every step plan: it keeps its limits, and says truly what bound it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.worlds import STRATEGIES, Run, worlds

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies.slack import Slack
from setpoint.model import AnyCommand, Preempt, RunStep, StepPlan

ROUNDING = 1 + 1e-9

everyone = pytest.mark.parametrize("strategy", STRATEGIES)
in_order = pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s.startswith(("cont", "prio", "edf", "srpf"))])
capped = pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s.startswith(("slack", "qoserve"))])


def plan_of(commands: list[AnyCommand]) -> StepPlan | None:
    return next((c.plan for c in commands if isinstance(c, RunStep)), None)


def left_out(machine: ReplicaMachine, plan: StepPlan) -> list[int]:
    """Return the running that the plan leaves out, in whole or in part."""
    ledger, prefills = machine.ledger, dict(plan.prefills)
    idle = [i for i in ledger.decoding if i not in plan.decodes]
    return idle + [i for i, s in ledger.prefilling.items() if prefills.get(i) != s.remaining_tokens]


def budget(machine: ReplicaMachine) -> int:
    limit: int = machine.ledger.capacity.step_tokens_max
    fixed = getattr(machine.strategy, "_token_budget", limit)
    return min(limit, fixed)


@everyone
@settings(max_examples=15)
@given(data=st.data())
def test_a_step_never_exceeds_the_token_budget(strategy: str, data: st.DataObject) -> None:
    def watch(machine: ReplicaMachine, commands: list[AnyCommand]) -> None:
        plan = plan_of(commands)
        assert plan is None or 0 < plan.tokens <= budget(machine)

    Run(data.draw(worlds(strategy))).play(watch)


@everyone
@settings(max_examples=15)
@given(data=st.data())
def test_a_step_bound_by_work_leaves_nothing_and_one_bound_by_tokens_spends_them(
    strategy: str, data: st.DataObject
) -> None:
    def watch(machine: ReplicaMachine, commands: list[AnyCommand]) -> None:
        plan = plan_of(commands)
        if plan is None:
            return
        if plan.bound_by.kind == "work":
            is_gated = strategy.startswith(("static", "dynamic"))
            is_protected_only = "not harvesting" in strategy
            sequences = machine.ledger.sequences
            idle = left_out(machine, plan) + ([] if is_gated else [i for _, i in machine.ledger.waiting])
            assert [i for i in idle if not (is_protected_only and sequences[i].is_harvest)] == []
        if plan.bound_by.kind == "tokens" and not strategy.startswith("qoserve"):
            assert plan.tokens == budget(machine) or "not sized" in strategy

    Run(data.draw(worlds(strategy))).play(watch)


@in_order
@settings(max_examples=15)
@given(data=st.data())
def test_continuous_batching_spends_its_budget_or_lets_everyone_in_who_fits(strategy: str, data: st.DataObject) -> None:
    def watch(machine: ReplicaMachine, commands: list[AnyCommand]) -> None:
        plan = plan_of(commands)
        ledger = machine.ledger
        if plan is None:
            assert machine.step_in_flight is not None or not ledger.waiting
        elif plan.tokens < budget(machine) and not any(isinstance(c, Preempt) for c in commands):
            assert left_out(machine, plan) == []
            head = next(ledger.waiting_from(), None)
            assert (
                head is None
                or ledger.free_slots < 1
                or ledger.blocks_for(head, head.target_tokens) > ledger.free_blocks
            )

    Run(data.draw(worlds(strategy, is_faulty=False))).play(watch)


@everyone
@settings(max_examples=15)
@given(data=st.data())
def test_an_idle_engine_means_that_nobody_may_be_let_in(strategy: str, data: st.DataObject) -> None:
    def watch(machine: ReplicaMachine, _: list[AnyCommand]) -> None:
        if machine.step_in_flight is not None:
            return
        assert machine.ledger.running == 0
        if machine.ledger.waiting:
            assert strategy.startswith(("static", "dynamic"))
            assert len(machine.ledger.waiting) < min(machine.strategy._batch, machine.ledger.capacity.slots)  # type: ignore[attr-defined]

    Run(data.draw(worlds(strategy))).play(watch)


@everyone
@settings(max_examples=15)
@given(data=st.data())
def test_nobody_waits_longer_than_the_class_says_and_the_step_in_flight(strategy: str, data: st.DataObject) -> None:
    def watch(machine: ReplicaMachine, _: list[AnyCommand]) -> None:
        now = machine.state.now
        for sequence in machine.ledger.waiting_from():
            assert sequence.preemptions or sequence.expires_at is None or sequence.expires_at > now

    Run(data.draw(worlds(strategy))).play(watch)


@capped
@settings(max_examples=15)
@given(data=st.data())
def test_a_step_keeps_within_its_cap_unless_it_is_the_least_that_can_be_done(
    strategy: str, data: st.DataObject
) -> None:
    def watch(machine: ReplicaMachine, commands: list[AnyCommand]) -> None:
        plan = plan_of(commands)
        if plan is None or plan.cap_s is None or plan.predicted_s <= plan.cap_s * ROUNDING:
            return
        chunk_min = machine.strategy._options.chunk_min if isinstance(machine.strategy, Slack) else 1
        is_decode_only = not plan.prefills
        is_least_chunk = not plan.decodes and len(plan.prefills) == 1 and plan.tokens <= chunk_min
        assert is_decode_only or is_least_chunk

    Run(data.draw(worlds(strategy))).play(watch)
