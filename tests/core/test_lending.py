"""Loans of time: who is taken in beyond the slack of the decodes, and at what expected cost."""

from bisect import bisect_right

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.core.conftest import MakeScheduler
from tests.core.scheduler import CHAT, SMALL, Scheduler

from setpoint.core.strategies.lending import Answers
from setpoint.core.strategies.slack import Slack
from setpoint.model import Capacity
from setpoint.units import Tokens

WIDE = replace(SMALL, step_tokens_max=Tokens(1000))
LONG = 100
LONG_S = 0.055
"""What a step with a prompt of `LONG` tokens and one decode takes."""


@given(
    lengths=st.lists(st.integers(2, 60), max_size=250),
    tokens=st.integers(1, 60),
    more=st.floats(0.0, 30.0),
)
@example(lengths=[*range(2, 60)] * 4, tokens=10, more=5.0)
def test_the_share_that_ended_is_that_of_the_last_two_hundred_that_came_as_far(
    lengths: list[int], tokens: int, more: float
) -> None:
    answers = Answers()
    for length in lengths:
        answers.add(length, 0.01)
    recent = lengths[-200:]
    longer = sorted(n for n in recent if n > tokens)
    assert answers.are_known is (len(recent) >= 20)
    if not longer:
        assert answers.ended_within(tokens, more) == 1.0
    else:
        assert answers.ended_within(tokens, more) == bisect_right(longer, tokens + more) / len(longer)


def after_answers(
    scheduler: MakeScheduler, *, output: int = 10, answers: int = 25, capacity: Capacity = WIDE, **options: bool
) -> Scheduler:
    """Return a scheduler that has seen so many answers, each of `output` tokens and given alone."""
    it = scheduler("slack", capacity=capacity, classes=(CHAT,), **options)
    for _ in range(answers):
        it.arrives(output=output)
        it.runs_dry()
    return it


def young_decode(it: Scheduler, *, output: int = 20, tpot_s: float = 0.02) -> None:
    """Bring a request to its first token."""
    it.arrives(output=output, tpot_s=tpot_s)
    it.step()


def taken_in(it: Scheduler, *, ttft_s: float = 0.065) -> bool:
    """Let a long prompt arrive during a step; return whether the next step takes all of it in."""
    it.arrives(prompt=LONG, ttft_s=ttft_s)
    it.step()
    return sum(tokens for _, tokens in it.plan.prefills) == LONG


def test_a_prompt_that_cannot_wait_is_taken_in_beyond_the_slack_of_a_decode(scheduler: MakeScheduler) -> None:
    it = after_answers(scheduler)
    young_decode(it)
    assert taken_in(it)
    assert it.plan.predicted_s == pytest.approx(LONG_S)
    assert it.plan.cap_s == it.plan.predicted_s
    assert len(it.plan.decodes) == 1
    assert (it.plan.bound_by.kind, it.plan.bound_by.request_id) == ("loan", it.plan.prefills[0][0])


def test_one_that_can_wait_is_not(scheduler: MakeScheduler) -> None:
    it = after_answers(scheduler)
    young_decode(it)
    assert not taken_in(it, ttft_s=0.2)


@pytest.mark.parametrize("answers", [0, 19])
def test_nothing_is_lent_before_answers_are_known(scheduler: MakeScheduler, answers: int) -> None:
    it = after_answers(scheduler, answers=answers)
    young_decode(it)
    assert not taken_in(it)


def test_nothing_is_lent_where_the_strategy_is_told_not_to(scheduler: MakeScheduler) -> None:
    it = after_answers(scheduler, is_lending=False)
    young_decode(it)
    assert not taken_in(it)


def test_nothing_is_lent_of_answers_that_end_before_they_have_caught_up(scheduler: MakeScheduler) -> None:
    it = after_answers(scheduler, output=3)
    young_decode(it)
    assert not taken_in(it)


def test_nor_of_one_that_may_not_be_longer(scheduler: MakeScheduler) -> None:
    it = after_answers(scheduler)
    young_decode(it, output=3)
    assert not taken_in(it)


def test_nor_where_tokens_gain_nothing_on_their_deadlines(scheduler: MakeScheduler) -> None:
    it = after_answers(scheduler)
    young_decode(it, tpot_s=0.0049)
    assert not taken_in(it)


def test_what_a_loan_may_cost_is_by_weight(scheduler: MakeScheduler) -> None:
    def is_lent(weight: float) -> bool:
        worthy = replace(CHAT, name="worthy", weight=weight)
        it = scheduler("slack", capacity=WIDE, classes=(CHAT, worthy))
        for output in (3, 9, 9, 9, 9, 9, 9) * 5:
            it.arrives("worthy", output=output)
            it.runs_dry()
        it.arrives("worthy", output=20, tpot_s=0.02)
        it.step()
        return taken_in(it)

    assert is_lent(1.0)
    assert not is_lent(4.0)


def test_one_given_up_gets_a_loan_where_the_others_can_spare_the_time(scheduler: MakeScheduler) -> None:
    def is_lent(other_ttft_s: float) -> bool:
        it = after_answers(scheduler)
        young_decode(it)
        it.arrives(prompt=LONG, ttft_s=0.062)
        it.arrives(prompt=60, ttft_s=other_ttft_s)
        it.step()
        return dict(it.plan.prefills).get(26) == LONG

    assert is_lent(0.2)
    assert not is_lent(0.068)


def test_no_loan_without_slots(scheduler: MakeScheduler) -> None:
    it = after_answers(scheduler, capacity=replace(WIDE, slots=1))
    young_decode(it)
    assert not taken_in(it)


@pytest.mark.parametrize("is_lending", [True, False])
def test_a_late_answer_that_has_lent_says_nothing_of_the_pace(scheduler: MakeScheduler, *, is_lending: bool) -> None:
    it = after_answers(scheduler, is_lending=is_lending)
    strategy = it.machine.strategy
    assert isinstance(strategy, Slack)
    young_decode(it)
    assert taken_in(it) is is_lending
    before = strategy.setpoints.pace("chat")
    it.passes(0.1)
    it.step(stopped=(25,))
    after = strategy.setpoints.pace("chat")
    assert after == before if is_lending else after < before
