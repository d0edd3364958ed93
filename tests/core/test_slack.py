"""How the machine answers under `slack`."""

import pytest
from msgspec.structs import replace
from tests.core.conftest import MakeScheduler
from tests.core.scheduler import BATCH, CHAT, SMALL, without_steps

from setpoint.core.strategies.slack import Slack
from setpoint.model import Admit, Finish, Preempt, Reject, Relegate, Slo
from setpoint.units import Blocks, Seconds, Tokens


def test_the_largest_is_given_up_for_the_others(scheduler: MakeScheduler) -> None:
    it = scheduler("slack", classes=(replace(CHAT, slo=replace(CHAT.slo, ttft_s=Seconds(0.05))),))
    it.arrives(prompt=16)
    it.arrives(prompt=90)
    it.arrives(prompt=16)
    assert Relegate(request_id=1) in it.step()


def test_or_refused_at_once_where_the_class_says_so(scheduler: MakeScheduler) -> None:
    strict = replace(CHAT, slo=replace(CHAT.slo, ttft_s=Seconds(0.05)), late="refuse")
    it = scheduler("slack", classes=(strict,))
    it.arrives(prompt=16)
    it.arrives(prompt=90)
    it.arrives(prompt=16)
    refused = next(c for c in it.step() if isinstance(c, Reject))
    assert (refused.request_id, refused.reason) == (1, "late")


def test_who_has_begun_and_is_given_up_is_refused_when_its_time_is_over(scheduler: MakeScheduler) -> None:
    brief = replace(CHAT, slo=replace(CHAT.slo, ttft_s=Seconds(0.05)), wait_max_s=Seconds(0.3))
    it = scheduler("slack", classes=(brief,), capacity=replace(SMALL, step_tokens_max=Tokens(16)))
    answered = [*it.arrives(prompt=120)]
    for _ in range(40):
        answered += it.step()
        it.arrives(prompt=16, output=1)
    assert Admit(request_id=0, slot=0) in answered
    assert Preempt(request_id=0) in answered
    refused = next(c for c in answered if isinstance(c, Reject) and c.request_id == 0)
    assert refused.reason == "expired"


def test_a_step_says_whose_slack_bound_it(scheduler: MakeScheduler) -> None:
    it = scheduler("slack", capacity=replace(SMALL, step_tokens_max=Tokens(1000)))
    it.arrives(tpot_s=0.02)
    it.step()
    it.arrives(prompt=120, ttft_s=10.0)
    it.step()
    assert (it.plan.bound_by.kind, it.plan.bound_by.request_id) == ("slack", 0)


def test_a_step_smaller_than_the_least_chunk_still_goes_on(scheduler: MakeScheduler) -> None:
    it = scheduler("slack", capacity=replace(SMALL, step_tokens_max=Tokens(5)))
    it.arrives(prompt=24)
    assert it.plan.prefills == ((0, 5),)


def test_batch_work_that_fits_beside_no_reserve_has_the_idle_machine(scheduler: MakeScheduler) -> None:
    it = scheduler("slack", capacity=replace(SMALL, kv_blocks=Blocks(10)))
    it.arrives("chat", output=1)
    it.step()
    assert without_steps(it.arrives("batch", prompt=36)) == [Admit(request_id=1, slot=0)]


def test_batch_work_whose_window_draws_near_is_protected_and_stands_in_the_step_once(
    scheduler: MakeScheduler,
) -> None:
    urgent = replace(BATCH, slo=replace(BATCH.slo, e2e_s=Seconds(0.05)))
    it = scheduler("slack", classes=(CHAT, urgent))
    it.arrives("chat")
    it.arrives("batch", prompt=12)
    it.step()
    assert it.plan.prefills == ((1, 12),)


def test_batch_work_without_a_window_is_never_urgent(scheduler: MakeScheduler) -> None:
    it = scheduler("slack", classes=(CHAT, replace(BATCH, slo=Slo())))
    assert without_steps(it.arrives("batch")) == [Admit(request_id=0, slot=0)]
    assert it.passes(1e6) == []
    assert it.runs_dry() == [Finish(request_id=0, reason="length")]


def test_a_miss_beside_batch_work_makes_it_more_careful(scheduler: MakeScheduler) -> None:
    it = scheduler("slack")
    strategy = it.machine.strategy
    assert isinstance(strategy, Slack)
    it.arrives("batch", output=60)
    it.arrives("chat", ttft_s=0.001)
    before = strategy.setpoints.report()["chat"]["boldness"]
    it.runs_dry()
    assert strategy.setpoints.report()["chat"]["boldness"] < before


def test_batch_work_that_expires_makes_nobody_more_careful(scheduler: MakeScheduler) -> None:
    brief = replace(BATCH, slo=replace(BATCH.slo, e2e_s=Seconds(1.0)))
    it = scheduler("slack", classes=(CHAT, brief), capacity=replace(SMALL, slots=1))
    it.arrives("chat", output=9)
    it.arrives("batch")
    it.now += 2.0
    assert any(isinstance(c, Reject) and c.reason == "expired" for c in it.step())
    strategy = it.machine.strategy
    assert isinstance(strategy, Slack)
    assert strategy.setpoints.report()["chat"]["boldness"] == 0.25


def test_batch_work_that_is_held_back_altogether_gets_another_chance(scheduler: MakeScheduler) -> None:
    it = scheduler("slack")
    strategy = it.machine.strategy
    assert isinstance(strategy, Slack)
    for _ in range(9):
        it.arrives("batch", output=2)
        it.arrives("chat", ttft_s=0.001)
        it.runs_dry()
    it.arrives("chat", output=100)
    it.arrives("batch")
    seen = []
    for request_id in (20, 21):
        it.arrives("chat", ttft_s=10.0)
        while request_id in it.machine.ledger.sequences:
            it.step()
        seen.append(strategy.setpoints.report()["chat"]["boldness"])
    assert [s.id for s in it.machine.ledger.waiting_from()] == [19]
    assert seen[0] < seen[1] < 0.25


def test_batch_work_has_a_share_of_what_the_step_leaves_not_of_the_step(scheduler: MakeScheduler) -> None:
    def decodes_beside(boldness: float, tpot_s: float) -> int:
        it = scheduler("slack", boldness=boldness, is_controlled=False)
        it.arrives("batch", prompt=4, output=50)
        it.arrives("batch", prompt=4, output=50)
        for _ in range(4):
            it.step()
        it.arrives("chat", prompt=4, output=50, ttft_s=10.0, tpot_s=tpot_s)
        it.step()
        it.step()
        return len(it.plan.decodes)

    assert decodes_beside(1.0, 0.012) == 3
    assert decodes_beside(0.5, 0.012) == 2, "half of what a step of 5 ms leaves of 8 ms; a decode takes one"
    assert decodes_beside(0.01, 0.012) == 1


@pytest.mark.parametrize("times", [1, 3])
def test_what_batch_work_adds_to_the_steps_is_known_of_each_request(scheduler: MakeScheduler, times: int) -> None:
    it = scheduler("slack", boldness=1.0)
    it.arrives("batch", output=30)
    it.step()
    assert it.machine.state.batch_s == pytest.approx(0.004 + 8 * 0.0005)
    it.arrives("chat", output=30)
    it.step()
    it.step()
    before = it.machine.state.batch_s
    assert before > it.machine.ledger.sequences[1].batch_before_s > 0.0
    assert len(it.plan.decodes) == 2
    it.step(times=min(times, it.plan.horizon.steps))
    assert it.machine.state.batch_s - before == pytest.approx(0.001 * min(times, it.plan.horizon.steps))


@pytest.mark.parametrize(("tpot_s", "ttft_s", "is_in"), [(9.0, 90.0, True), (0.019, 90.0, False), (9.0, 0.09, False)])
def test_a_step_that_takes_a_small_part_of_all_targets_may_always_hold_batch_work(
    scheduler: MakeScheduler, tpot_s: float, ttft_s: float, *, is_in: bool
) -> None:
    it = scheduler("slack", boldness=0.0101, is_controlled=False)
    it.arrives("chat", output=30, tpot_s=tpot_s, ttft_s=ttft_s)
    it.step()
    it.arrives("batch", prompt=64, output=30)
    it.step()
    assert bool(it.plan.prefills) is is_in
