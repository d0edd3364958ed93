"""How the replica machine answers, event by event."""

import pytest
from msgspec.structs import replace
from tests.core.conftest import MakeScheduler
from tests.core.scheduler import CHAT, SMALL, without_steps

from setpoint.core.filling import Draft
from setpoint.core.ledger import Key, Sequence
from setpoint.core.state import State, Strategy
from setpoint.core.strategies import make_strategy
from setpoint.core.strategies.batching import prefill_in_order
from setpoint.errors import ConfigError
from setpoint.model import Admit, Finish, Preempt, Reject
from setpoint.units import Blocks, Seconds, Tokens


class TestTheLifeOfARequest:
    def test_it_is_admitted_prefilled_decoded_and_finished(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        assert without_steps(it.arrives(prompt=8, output=3)) == [Admit(request_id=0, slot=0)]
        assert it.plan.prefills == ((0, 8),)
        it.step()
        assert it.plan.decodes == (0,)
        it.step()
        assert it.step() == [Finish(request_id=0, reason="length")]

    def test_one_token_is_all_that_it_may_ask_for(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        it.arrives(output=1)
        assert it.step() == [Finish(request_id=0, reason="length")]

    def test_it_ends_itself_with_a_stop(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        it.arrives(output=9)
        it.step()
        assert it.step(stopped=(0,)) == [Finish(request_id=0, reason="stop")]

    def test_a_long_prompt_is_computed_in_chunks(self, scheduler: MakeScheduler) -> None:
        it = scheduler(token_budget=10)
        it.arrives(prompt=24)
        chunks = [it.plan.prefills]
        for _ in range(2):
            it.step()
            chunks.append(it.plan.prefills)
        assert chunks == [((0, 10),), ((0, 10),), ((0, 4),)]

    def test_what_a_shared_prefix_saves_is_not_computed(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        it.arrives(prompt=24, cached=16)
        assert it.plan.prefills == ((0, 8),)
        assert it.machine.ledger.blocks_held == 2

    def test_several_tokens_in_one_pass_all_count(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        it.arrives(output=6)
        it.step()
        it.step(extra=((0, 4),))
        assert it.step() == [Finish(request_id=0, reason="length")]

    def test_several_tokens_of_one_that_has_left_count_for_nobody(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        it.arrives(output=6)
        it.step()
        it.leaves(0)
        assert it.step(extra=((0, 4),)) == []

    def test_a_plan_that_was_run_several_times_yields_as_many_tokens(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        it.arrives(output=9)
        it.step()
        assert it.plan.horizon.steps == 8
        it.step(times=7)
        assert it.step() == [Finish(request_id=0, reason="length")]


class TestRefusal:
    def test_a_class_that_does_not_exist(self, scheduler: MakeScheduler) -> None:
        assert scheduler().arrives("gold") == [Reject(request_id=0, reason="unknown_class")]

    @pytest.mark.parametrize(("prompt", "output"), [(100, 29), (60, 10)])
    def test_what_never_fits(self, scheduler: MakeScheduler, prompt: int, output: int) -> None:
        it = scheduler(capacity=replace(SMALL, kv_blocks=Blocks(17)))
        assert it.arrives(prompt=prompt, output=output) == [Reject(request_id=0, reason="too_long")]

    def test_a_full_queue_says_when_to_come_again(self, scheduler: MakeScheduler) -> None:
        it = scheduler(capacity=replace(SMALL, slots=1), classes=(replace(CHAT, queue_max=1),))
        it.arrives()
        it.arrives()
        assert it.arrives() == [Reject(request_id=2, reason="queue_full", retry_after_s=Seconds(1.0))]

    def test_who_has_waited_too_long_expires(self, scheduler: MakeScheduler) -> None:
        it = scheduler("static", batch=2, classes=(replace(CHAT, wait_max_s=Seconds(5.0)),))
        assert it.arrives() == []
        assert it.wake_at == 5.0
        assert it.passes(5.0) == [Reject(request_id=0, reason="expired", retry_after_s=Seconds(1.0))]

    def test_many_short_lives_leave_no_crowd_behind(self, scheduler: MakeScheduler) -> None:
        it = scheduler("static", batch=4)
        it.arrives()
        for request_id in range(1, 200):
            it.arrives()
            it.leaves(request_id)
        assert len(it.machine.ledger._expiries) < 100


class TestLeaving:
    def test_one_who_waits_is_forgotten(self, scheduler: MakeScheduler) -> None:
        it = scheduler("static", batch=2)
        it.arrives()
        assert it.leaves(0) == [Finish(request_id=0, reason="cancelled")]
        assert it.leaves(0) == []

    def test_a_token_in_flight_for_one_who_left_is_dropped(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        it.arrives()
        it.arrives()
        it.step()
        assert it.leaves(0) == [Finish(request_id=0, reason="cancelled")]
        assert without_steps(it.step(stopped=(0,))) == []
        assert it.plan.decodes == (1,)

    def test_a_chunk_in_flight_for_one_who_left_is_dropped(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        it.arrives()
        it.leaves(0)
        assert it.step() == []
        assert it.machine.ledger.blocks_held == 0


class TestBatches:
    def test_a_static_batch_waits_until_it_is_complete_and_runs_to_its_end(self, scheduler: MakeScheduler) -> None:
        it = scheduler("static", batch=2)
        assert it.arrives(output=2) == []
        assert len(without_steps(it.arrives(output=3))) == 2
        it.arrives()
        it.arrives()
        said = without_steps([*it.step(), *it.step(), *it.step()])
        assert [type(c) for c in said] == [Finish, Finish, Admit, Admit]

    def test_a_dynamic_batch_begins_when_the_oldest_has_waited_long_enough(self, scheduler: MakeScheduler) -> None:
        it = scheduler("dynamic", batch=3, wait_s=0.1)
        it.arrives()
        assert it.wake_at == 0.1
        assert without_steps(it.passes(0.1)) == [Admit(request_id=0, slot=0)]

    def test_a_batch_larger_than_the_slots_begins_when_these_are_full(self, scheduler: MakeScheduler) -> None:
        it = scheduler("static", batch=9, capacity=replace(SMALL, slots=2))
        it.arrives()
        assert len(without_steps(it.arrives())) == 2

    def test_a_batch_whose_prompts_have_no_room_in_one_step_is_let_in_over_several(
        self, scheduler: MakeScheduler
    ) -> None:
        it = scheduler("static", batch=3, capacity=replace(SMALL, step_tokens_max=Tokens(10)))
        for _ in range(4):
            it.arrives(prompt=9, output=6)
        said = without_steps([*it.step(), *it.step(), *it.step()])
        assert [c.request_id for c in said if isinstance(c, Admit)] == [2]
        assert 3 not in {c.request_id for c in it.runs_dry() if isinstance(c, Admit)}

    def test_a_batch_that_the_kv_does_not_hold_goes_without_the_rest(self, scheduler: MakeScheduler) -> None:
        it = scheduler("static", batch=3, capacity=replace(SMALL, kv_blocks=Blocks(9)))
        for _ in range(3):
            it.arrives(prompt=16, output=2)
        assert sorted(it.machine.ledger.prefilling) == [0, 1]
        it.step()
        assert it.plan.prefills == ()

    def test_one_that_was_taken_back_does_not_wait_for_another_batch(self, scheduler: MakeScheduler) -> None:
        it = scheduler("static", batch=2, capacity=replace(SMALL, kv_blocks=Blocks(8)))
        it.arrives(prompt=8, output=20)
        it.arrives(prompt=8, output=20)
        said = it.runs_dry()
        assert Preempt(request_id=1) in said
        assert said[-1] == Finish(request_id=1, reason="length")


class TestShortOfKv:
    def test_the_last_in_order_gives_way_and_is_computed_anew(self, scheduler: MakeScheduler) -> None:
        it = scheduler(capacity=replace(SMALL, kv_blocks=Blocks(8)))
        it.arrives(prompt=8, output=20)
        it.arrives(prompt=8, output=20)
        said = it.runs_dry()
        assert said.count(Preempt(request_id=1)) == 1
        assert {c.request_id for c in said if isinstance(c, Finish)} == {0, 1}

    def test_a_prefill_that_gave_way_is_not_in_the_step(self, scheduler: MakeScheduler) -> None:
        it = scheduler(token_budget=4, capacity=replace(SMALL, kv_blocks=Blocks(8)))
        it.arrives(prompt=4, output=20)
        it.step()
        it.arrives(prompt=24, output=4)
        said = []
        while Preempt(request_id=1) not in said:
            said = it.step()
        assert it.plan.prefills == ()
        assert it.runs_dry()[-1] == Finish(request_id=1, reason="length")

    def test_where_even_one_alone_no_longer_fits_it_is_refused(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        it.arrives(prompt=40, output=40)
        it.step()
        it.becomes(replace(SMALL, kv_blocks=Blocks(8)))
        said = it.step()
        assert said == [Preempt(request_id=0), Reject(request_id=0, reason="too_long")]

    def test_batch_work_gives_way_to_chat_and_not_the_other_way(self, scheduler: MakeScheduler) -> None:
        it = scheduler("slack", capacity=replace(SMALL, kv_blocks=Blocks(10)))
        it.arrives("batch", prompt=16, output=12)
        it.arrives("chat", prompt=8, output=16)
        said = it.runs_dry()
        assert Preempt(request_id=0) in said
        assert Preempt(request_id=1) not in said

    def test_batch_work_alone_that_fills_the_kv_goes_on(self, scheduler: MakeScheduler) -> None:
        it = scheduler("slack", capacity=replace(SMALL, kv_blocks=Blocks(10)))
        for _ in range(3):
            it.arrives("batch", prompt=8, output=24)
        assert sum(isinstance(c, Finish) for c in it.runs_dry()) == 3


class TestCapacity:
    def test_fewer_slots_than_run_let_nobody_in_until_enough_have_ended(self, scheduler: MakeScheduler) -> None:
        it = scheduler()
        for _ in range(4):
            it.arrives(output=2)
        it.step()
        it.step()
        it.becomes(replace(SMALL, slots=1))
        it.arrives()
        assert it.machine.ledger.free_slots == -2
        assert without_steps(it.step())[-1] == Admit(request_id=4, slot=0)

    def test_what_waits_and_no_longer_fits_is_refused(self, scheduler: MakeScheduler) -> None:
        it = scheduler("static", batch=2)
        it.arrives(prompt=40)
        assert it.becomes(replace(SMALL, context_tokens_max=Tokens(20))) == [Reject(request_id=0, reason="too_long")]

    def test_other_block_sizes_keep_what_a_prefill_was_promised(self, scheduler: MakeScheduler) -> None:
        it = scheduler(token_budget=4)
        it.arrives(prompt=24)
        it.becomes(replace(SMALL, block_tokens=Tokens(8), kv_blocks=Blocks(32)))
        assert it.machine.ledger.blocks_held == 3


class LastCome(Strategy):
    """Whoever came last is next: the least that a strategy must say."""

    name = "last-come"

    def key(self, sequence: Sequence, state: State) -> Key:  # noqa: ARG002 - the contract of a strategy
        return (-sequence.arrived_at,)

    def plan(self, draft: Draft, state: State) -> None:
        draft.add_decodes(draft.decoding())
        prefill_in_order(draft, [*draft.prefilling(), *state.ledger.waiting_from()])


class TestAStrategyOfOnesOwn:
    def test_needs_an_order_and_a_plan_and_nothing_more(self, scheduler: MakeScheduler) -> None:
        it = scheduler(capacity=replace(SMALL, slots=1))
        it.machine.strategy = LastCome()
        it.arrives()
        for _ in range(2):
            it.now += 0.001
            it.arrives()
        it.now += 0.003
        finished = [c.request_id for c in it.runs_dry() if isinstance(c, Finish)]
        assert finished == [0, 2, 1]


class TestNames:
    def test_a_strategy_that_does_not_exist(self) -> None:
        with pytest.raises(ConfigError, match="unknown strategy 'magic'"):
            make_strategy("magic")

    @pytest.mark.parametrize(("name", "option"), [("slack", "speed"), ("continuous", "speed"), ("qoserve", "speed")])
    def test_an_option_that_does_not_exist(self, name: str, option: str) -> None:
        with pytest.raises(ConfigError, match=option):
            make_strategy(name, **{option: 1})

    def test_a_way_to_give_up_that_does_not_exist(self) -> None:
        with pytest.raises(ConfigError, match="coin"):
            make_strategy("slack", relegation="coin")
