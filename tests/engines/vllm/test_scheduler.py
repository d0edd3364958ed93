# ruff: noqa: ANN401, PLC0415 - as in kits.py
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.engines.vllm.double import DoubleScheduler, RequestQueue
from tests.engines.vllm.kits import HAS_VLLM, WHY_NOT, DoubleKit, Engine, VllmKit

from setpoint.core.invariants import violations
from setpoint.errors import ConfigError
from setpoint.journal import replay
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import decode

KITS: dict[str, Any] = {"double": DoubleKit(), "vllm": VllmKit()}
Start = Callable[..., Engine]


VLLM = (
    pytest.mark.skipif(not HAS_VLLM, reason=WHY_NOT),
    pytest.mark.filterwarnings("ignore"),  # what vLLM and torch warn of as they are imported
)


@pytest.fixture(params=["double", pytest.param("vllm", marks=VLLM)], name="kit")
def _kit(request: pytest.FixtureRequest) -> Any:
    return KITS[request.param]


@pytest.fixture(params=[1, 2], ids=["sync", "async"], name="start")
def _start(request: pytest.FixtureRequest, kit: Any) -> Start:
    def start(*, before: Callable[[Engine], None] | None = None, **limits: Any) -> Engine:
        scheduler = kit.scheduler(depth=request.param, **limits)
        return Engine(scheduler, kit, depth=request.param, before=before)

    return start


def batch(engine: Engine, name: str, prompt: int = 40, output: int = 20) -> Any:
    return engine.ask(name, prompt, output, setpoint_class="batch")


def numbers(engine: Engine) -> dict[tuple[str, str], float]:
    counts: dict[tuple[str, str], float] = engine.scheduler.setpoint.numbers.counts
    return counts


def at_rest(engine: Engine, blocks: int) -> bool:
    pilot, scheduler = engine.scheduler.setpoint, engine.scheduler
    ledger = pilot.machine.ledger
    return (
        not ledger.sequences
        and not ledger.running
        and not pilot._id_of
        and not pilot._requests
        and not pilot._flying
        and not scheduler.running
        and not len(scheduler.waiting)
        and scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == blocks
    )


# ------------------------------------------------------------------------------------------------ all goes well


def test_every_request_gets_its_tokens_in_order_and_nothing_stays_held(start: Start) -> None:
    engine = start()
    for i in range(6):
        batch(engine, f"job {i}")
        engine.ask(f"chat {i}", 30, 8, stops_at=4 if i % 2 else None)
    engine.run()
    assert all(engine.is_exact(f"job {i}", 20) and engine.is_exact(f"chat {i}", 8) for i in range(6))
    assert at_rest(engine, 64)
    assert numbers(engine)["finished", "chat"] == 6
    assert not any(name == "fallbacks" for name, _ in numbers(engine))


@pytest.mark.parametrize("seed", range(6))
def test_with_little_kv_and_people_who_leave_the_others_get_just_their_tokens(start: Start, seed: int) -> None:
    chance = random.Random(seed)
    plans = {f"r{i}": (chance.randint(1, 150), chance.randint(1, 40)) for i in range(24)}
    late = list(plans)
    left: set[str] = set()

    def before(engine: Engine) -> None:
        machine = engine.scheduler.setpoint.machine
        assert violations(machine) == [] or engine.scheduler.setpoint.numbers.counts["fallbacks", "stalled"]
        if late and chance.random() < 0.4:
            name = late.pop()
            prompt, output = plans[name]
            kind = chance.choice(["chat", "batch"])
            stops_at = chance.choice([None, None, chance.randint(1, output)])
            engine.ask(name, prompt, output, stops_at=stops_at, setpoint_class=kind)
        if engine.scheduler.requests and chance.random() < 0.05:
            name = chance.choice(sorted(engine.scheduler.requests))
            left.add(name)
            engine.scheduler.finish_requests(name, abort(engine))

    engine = start(blocks=34, seqs=4, before=before)
    engine.ask("first")
    for i in itertools.count():
        engine.run()
        if not late:
            break
        batch(engine, f"bridge {i}", 5, 1)
    for name, (_, output) in plans.items():
        if name not in left:
            assert engine.is_exact(name, output), name
    assert at_rest(engine, 34)


def abort(engine: Engine) -> Any:
    if engine.kit.name == "double":
        return "ABORTED"
    from vllm.v1.request import RequestStatus

    return RequestStatus.FINISHED_ABORTED


def test_chat_does_not_wait_behind_a_backlog_of_batch_work(start: Start) -> None:
    engine = start(seqs=4)
    for i in range(12):
        batch(engine, f"job {i}", 100, 30)
    for _ in range(8):
        engine.begin()
        engine.end()
    engine.ask("chat")
    engine.begin()
    engine.drain()
    engine.begin()
    assert any("chat" in step for step in engine.steps[-2:])
    engine.run()
    assert engine.is_exact("chat", 5)


def test_batch_work_is_parked_with_its_kv_and_goes_on_later(start: Start) -> None:
    engine = start(classes={"chat": {"ttft_ms": 500, "tpot_ms": 12}})
    for i in range(6):
        batch(engine, f"job {i}", 60, 60)
    parked = []

    def watch(engine: Engine) -> None:
        parked.append(engine.scheduler.setpoint.numbers.gauges.get("parked", 0))

    engine.before = watch
    for _ in range(12):
        engine.begin()
        engine.end()
    engine.ask("chat", 20, 30)
    engine.run()
    assert max(parked) > 0
    assert all(engine.is_exact(f"job {i}", 60) for i in range(6))
    assert engine.is_exact("chat", 30)


def test_after_every_step_the_scheduler_is_as_vllm_left_it(start: Start) -> None:
    def look(engine: Engine) -> None:
        host = engine.scheduler
        assert (host.max_num_scheduled_tokens, host.max_num_active_reqs) == (128, 8)
        assert host.scheduler_config.long_prefill_token_threshold == 0
        names = [r.request_id for r in [*host.running, *host.waiting]]
        assert sorted(names) == sorted(host.requests)

    engine = start(before=look)
    for i in range(10):
        batch(engine, f"job {i}", 100)
        engine.ask(f"chat {i}", 120)
    engine.run()


def test_no_step_computes_more_than_the_core_planned(start: Start) -> None:
    engine = start()
    for i in range(8):
        batch(engine, f"job {i}", 100)
    budgets: list[tuple[float, int]] = []

    def look(engine: Engine) -> None:
        if engine.steps:
            budget = engine.scheduler.setpoint.numbers.gauges["budget_tokens"]
            budgets.append((budget, sum(engine.steps[-1].values())))

    engine.before = look
    engine.run()
    assert all(tokens <= max(budget, 1) or budget == 0 for budget, tokens in budgets)


def test_the_journal_of_a_vllm_replays_in_the_pure_core_to_the_same_commands(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    engine = start(journal=str(path), blocks=40, seqs=4)
    for i in range(8):
        batch(engine, f"job {i}", 90, 30)
        engine.ask(f"chat {i}", 60, 9, stops_at=7)
    engine.run()
    engine.scheduler.setpoint.close()
    with path.open("rb") as lines:
        report = replay(lines, lambda data, _: LearnedStepTime(decode(data)))
    assert report.is_identical
    assert report.steps > 30


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("xargs", "words"),
    [
        ({"setpoint_class": "nope"}, "unknown setpoint.class"),
        ({"setpoint_ttft_ms": -1}, "milliseconds above 0"),
        ({"setpoint_tpot_ms": "soon"}, "milliseconds above 0"),
        ({"setpoint_ttft_ms": float("nan")}, "milliseconds above 0"),
        ({"setpoint_ttftms": 10}, "unknown setpoint.ttftms"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason_and_harms_nobody(
    start: Start, xargs: dict[str, Any], words: str
) -> None:
    engine = start()
    engine.ask("good")
    engine.ask("bad", **xargs)
    engine.run()
    assert words in engine.reasons["bad"]
    assert engine.reasons["bad"].startswith("error")
    assert engine.is_exact("good", 5)
    assert at_rest(engine, 64)


def test_a_refused_request_gets_its_answer_even_when_there_is_nothing_else(start: Start) -> None:
    engine = start(refusal="abort")
    engine.ask("bad", setpoint_class="nope")
    engine.begin()
    engine.drain()
    assert engine.reasons["bad"].startswith("abort")


def test_who_cannot_be_in_time_is_refused_where_the_class_says_so(start: Start) -> None:
    engine = start(classes={"chat": {"ttft_ms": 60, "tpot_ms": 50, "late": "refuse"}})
    for i in range(12):
        engine.ask(f"chat {i}", 120, 4)
    engine.run()
    refused = [name for name, reason in engine.reasons.items() if "late" in reason]
    assert refused
    assert all("retry after" in engine.reasons[name] for name in refused)
    assert len(engine.reasons) == 12


def test_own_targets_and_priorities_reach_the_policy(start: Start) -> None:
    engine = start(priorities={"7": "batch"})
    request = engine.kit.request("by number", 20, 3, at=engine.now)
    request.priority = 7
    engine.prompts["by number"], engine.made["by number"], engine.tokens["by number"] = 20, 0, []
    engine.scheduler.add_request(request)
    engine.ask("by hand", setpoint_ttft_ms=123, setpoint_tpot_ms=45)
    assert {s.service_class.name for s in engine.scheduler.setpoint.machine.ledger.sequences.values()} == {
        "batch",
        "chat",
    }
    chat = next(s for s in engine.scheduler.setpoint.machine.ledger.sequences.values() if not s.is_harvest)
    assert (chat.slo.ttft_s, chat.slo.tpot_s) == (0.123, 0.045)
    engine.run()


# ------------------------------------------------------------------------------------------------------- faults


def test_when_the_policy_fails_vllm_serves_on_and_a_new_machine_takes_over_when_it_is_idle(start: Start) -> None:
    engine = start()
    engine.ask("one", 30, 10)
    engine.begin()
    engine.end()
    strategy = engine.scheduler.setpoint.machine.strategy
    strategy.plan = None
    engine.ask("two", 30, 10)
    engine.run()
    assert engine.is_exact("one", 10)
    assert engine.is_exact("two", 10)
    assert numbers(engine)["fallbacks", "failure"] > 0
    engine.ask("three", 30, 10)
    assert engine.scheduler.setpoint.machine is not None
    engine.run()
    assert engine.is_exact("three", 10)
    assert at_rest(engine, 64)


def test_a_fault_inside_vllms_own_schedule_leaves_everything_put_back(start: Start) -> None:
    engine = start()
    for i in range(4):
        batch(engine, f"job {i}")
    for _ in range(4):
        engine.begin()
        engine.drain()
    engine.ask("chat")
    host = engine.scheduler
    before = (host.max_num_scheduled_tokens, host.max_num_active_reqs, len(host.running), len(host.waiting))
    manager = host.kv_cache_manager
    name = "allocate" if engine.kit.name == "double" else "allocate_slots"
    real = getattr(manager, name)

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("no more")

    setattr(manager, name, broken)
    with pytest.raises(RuntimeError, match="no more"):
        host.schedule()
    setattr(manager, name, real)
    assert before == (host.max_num_scheduled_tokens, host.max_num_active_reqs, len(host.running), len(host.waiting))
    assert bool(host.waiting)


def test_one_who_leaves_is_forgotten_wherever_the_request_is(start: Start) -> None:
    engine = start(seqs=2)
    for i in range(5):
        batch(engine, f"job {i}", 100, 40)
    engine.begin()
    for i in range(4):
        engine.scheduler.finish_requests(f"job {i}", abort(engine))
    engine.run()
    assert engine.is_exact("job 4", 40)
    assert at_rest(engine, 64)


def pause(engine: Engine, state: str) -> None:
    if engine.kit.name == "double":
        engine.scheduler.pause_state.name = state
        return
    from vllm.v1.core.sched.interface import PauseState

    engine.scheduler.set_pause_state(PauseState[state])


def test_while_paused_vllm_is_left_alone(start: Start) -> None:
    engine = start()
    engine.ask("chat")
    pause(engine, "PAUSED_ALL")
    assert engine.begin() == {}
    engine.drain()
    assert numbers(engine)["fallbacks", "paused"] == 1
    pause(engine, "UNPAUSED")
    engine.run()
    assert engine.is_exact("chat", 5)


def test_what_vllm_preempts_by_itself_is_told_and_recomputed(start: Start) -> None:
    engine = start()
    for i in range(3):
        batch(engine, f"job {i}", 50, 20)
    for _ in range(6):
        engine.begin()
        engine.end()
    engine.drain()
    host = engine.scheduler
    for request in list(host.running):
        host.running.remove(request)
        host._preempt_request(request, 0.0)
    engine.run()
    assert all(engine.is_exact(f"job {i}", 20) for i in range(3))
    assert numbers(engine)["preempted", "vllm"] == 3
    assert at_rest(engine, 64)


def test_when_nothing_of_a_plan_could_be_done_the_next_step_is_vllms_own() -> None:
    kit = DoubleKit()
    engine = Engine(kit.scheduler(seqs=2), kit)
    request = engine.ask("not ready")
    request.is_ready = False
    batch(engine, "job")
    for _ in range(200):
        engine.begin()
        engine.drain()
        if engine.reasons:
            break
    assert engine.is_exact("job", 20)
    request.is_ready = True
    engine.run()
    assert engine.is_exact("not ready", 5)


# ---------------------------------------------------------------------------------------------------- the start


def test_a_vllm_that_lacks_what_is_used_is_refused_at_start_with_the_tested_versions() -> None:
    class Newer(DoubleScheduler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            del self.max_num_active_reqs
            self._preempt_request = None  # type: ignore[assignment, method-assign]

    with pytest.raises(ConfigError, match=r"max_num_active_reqs.*_preempt_request") as caught:
        DoubleKit().scheduler(base=Newer)
    assert "0.32.0" in str(caught.value.hint)
    assert caught.value.__notes__ == [caught.value.hint]


def test_a_queue_with_a_method_that_is_not_known_is_refused_at_start() -> None:
    class NewerQueue(RequestQueue):
        def rebalance(self) -> None: ...

        rebalance.__isabstractmethod__ = True  # type: ignore[attr-defined]

    class Newer(DoubleScheduler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.waiting = type("Queue", (NewerQueue,), dict.fromkeys(RequestQueue.__abstractmethods__, len))
            self.waiting = object.__new__(type("Q", (), {"__abstractmethods__": {"rebalance"}}))

    with pytest.raises(ConfigError, match="rebalance"):
        DoubleKit().scheduler(base=Newer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: setattr(c, "speculative_config", object()), "speculative decoding"),
        (lambda c: setattr(c, "kv_transfer_config", object()), "a KV connector"),
        (lambda c: setattr(c.scheduler_config, "enable_chunked_prefill", False), "chunked prefill is off"),
        (lambda c: setattr(c.parallel_config, "pipeline_parallel_size", 2), "pipeline parallelism"),
        (lambda c: setattr(c.model_config, "runner_type", "pooling"), "does not generate"),
    ],
)
def test_what_cannot_be_steered_is_refused_at_start(change: Callable[[Any], None], words: str) -> None:
    class Changed(DoubleScheduler):
        def __init__(self, config: Any, **kwargs: Any) -> None:
            change(config)
            super().__init__(config, **kwargs)

    with pytest.raises(ConfigError, match=words):
        DoubleKit().scheduler(base=Changed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"default_clas": "chat"}, "default_clas"),
        ({"strategy": "fastest"}, "unknown strategy"),
        ({"priorities": {"1": "nope"}}, "unknown class"),
        ({"priorities": {"high": "chat"}}, "not a whole number"),
        ({"config": "no such file.toml"}, "cannot read"),
        ({"journal": "/no/such/folder/journal"}, "cannot write"),
        ({"refusal": "shout"}, "refusal"),
    ],
)
def test_options_that_make_no_sense_end_the_start(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DoubleKit().scheduler(**options)


def test_numbers_travel_in_the_stats_of_each_step(start: Start) -> None:
    from setpoint.engines.vllm.numbers import unpack

    engine = start()
    engine.ask("chat")
    engine.run()
    table = engine.scheduler.make_stats().num_kv_fetch_reqs_by_stage
    found = {(n.name, n.label): n.value for n in unpack(table)}
    assert found["finished", "chat"] == 1
    assert found["measured_s", ""] > 0.0
    assert all(isinstance(value, int) for value in table.values())


def test_numbers_are_not_sent_with_each_of_many_short_steps_but_with_the_last_request(start: Start) -> None:
    engine = start()
    pilot = engine.scheduler.setpoint
    engine.ask("chat")
    engine.begin()
    pilot.stats()
    assert pilot.stats() == {}
    engine.drain()
    engine.now += 0.1
    engine.begin()
    assert pilot.stats()
    assert pilot.stats() == {}
    engine.run()
    assert pilot.stats()
    assert pilot.stats()


def test_stats_may_be_off() -> None:
    class Quiet(DoubleScheduler):
        def make_stats(self) -> Any:
            return None

    assert DoubleKit().scheduler(base=Quiet).make_stats() is None
