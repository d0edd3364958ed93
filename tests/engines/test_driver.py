"""The driver between asyncio, the real machine and the real engine: what is asked is answered, and nothing is kept."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from tests.engines.llamacpp.conversation import is_empty

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.engines.api import Finished, Generation, GenerationEvent, Piece, Refused, Sampling, StepOutput
from setpoint.engines.driver import Driver
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.starter import resolve_model
from setpoint.engines.llamacpp.text import TextStream
from setpoint.engines.observe import Observation
from setpoint.errors import EngineError, RequestError
from setpoint.model import PRESETS, AnyCommand, AnyEvent, Arrived, RunStep, StepFinished
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Tokens

pytestmark = pytest.mark.model


class Journal(list[tuple[AnyEvent, list[AnyCommand]]]):
    """A sink that keeps what it is told; `begun` is what was not answered."""

    begun: AnyEvent | None = None
    is_closed = False

    def begin(self, event: AnyEvent) -> None:
        self.begun = event

    def end(self, commands: list[AnyCommand]) -> None:
        assert self.begun is not None
        self.append((self.begun, commands))
        self.begun = None

    def close(self) -> None:
        self.is_closed = True


class CountingExecutor(LlamaExecutor):
    """The real executor, which counts its steps and fails in as many of the next ones as it is told to."""

    steps = 0
    failures = 0

    def __init__(self, *parts: Any, **sizes: Any) -> None:  # noqa: ANN401 - passed on as they come
        super().__init__(*parts, **sizes)
        self.may_run = threading.Event()
        self.may_run.set()

    def run(self, *plan: Any) -> StepOutput:  # noqa: ANN401 - passed on as it comes
        self.steps += 1
        assert self.may_run.wait(30)
        if self.failures:
            self.failures -= 1
            raise EngineError("the device is gone")
        return super().run(*plan)

    @property
    def is_empty(self) -> bool:
        return is_empty(self)


class Watch:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation)

    def all(self, name: str) -> list[Any]:
        return [item for observation in self.seen for item in getattr(observation, name)]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(resolve_model()) as model:
        yield model


@pytest.fixture
def executor(model: Model) -> Iterator[CountingExecutor]:
    executor = CountingExecutor(model, slots=2, kv_tokens=1024, prefix_tokens=0, prefixes=0, step_tokens_max=32)
    yield executor
    assert executor.is_empty, "every request that ends leaves the engine as it was"
    executor.close()


def new_machine(executor: LlamaExecutor, strategy: str = "slack") -> ReplicaMachine:
    step_time = LearnedStepTime(linear(key="test", step_s=0.02, decode_s=0.002, prefill_s=0.002))
    return ReplicaMachine(make_strategy(strategy), PRESETS, executor.capacity, step_time)


@asynccontextmanager
async def driving(executor: LlamaExecutor, **changes: Any) -> AsyncIterator[Driver]:  # noqa: ANN401 - of Driver
    parts: dict[str, Any] = {
        "handle": new_machine(executor).handle,
        "executor": executor,
        "text_stream": lambda generation: TextStream(executor.model, generation.stop),
    }
    async with Driver(**parts | changes) as driver:
        yield driver


def asking(model: Model, text: str = "Once upon a time", output_tokens: int = 8, **changes: Any) -> Generation:  # noqa: ANN401
    return Generation(
        prompt=model.tokenize(text),
        class_name=changes.pop("class_name", "chat"),
        output_tokens_max=Tokens(output_tokens),
        sampling=Sampling(temperature=0.0, is_eos_ignored=True),
        **changes,
    )


async def answer(driver: Driver, generation: Generation) -> list[GenerationEvent]:
    return [event async for event in driver.generate(generation)]


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_true():  # noqa: ASYNC110 - the other side is a thread
            await asyncio.sleep(0.002)


def test_an_answer_is_its_pieces_and_then_one_end(executor: CountingExecutor) -> None:
    async def talk() -> list[GenerationEvent]:
        async with driving(executor) as driver:
            return await answer(driver, asking(executor.model))

    *pieces, end = asyncio.run(talk())
    assert "".join(piece.text for piece in pieces if isinstance(piece, Piece))
    assert isinstance(end, Finished)
    assert (end.reason, end.output_tokens) == ("length", 8)
    assert sum(piece.tokens for piece in pieces if isinstance(piece, Piece)) == 8
    assert end.ttft_s is not None
    assert 0 <= end.queue_s <= end.ttft_s <= end.e2e_s


def test_more_requests_than_slots_are_all_answered_and_all_seen(executor: CountingExecutor) -> None:
    watch = Watch()

    async def talk() -> list[list[GenerationEvent]]:
        async with driving(executor, observer=watch) as driver:
            asks = [asking(executor.model, f"Number {n} is", 5) for n in range(6)]
            return await asyncio.gather(*(answer(driver, ask) for ask in asks))

    ends = [events[-1] for events in asyncio.run(talk())]
    assert all(isinstance(end, Finished) and end.output_tokens == 5 for end in ends)
    assert len(watch.all("first_tokens")) == len(watch.all("queued")) == 6
    assert len(watch.all("gaps")) == 6 * 4
    assert [record.outcome for record in watch.all("ended")] == ["length"] * 6
    assert max(sum(seen.status.running.values()) for seen in watch.seen) == 2
    assert sum(watch.seen[-1].status.running.values()) == watch.seen[-1].status.kv_blocks_used == 0


def test_the_durations_told_to_the_machine_add_up_to_the_wall_clock(executor: CountingExecutor) -> None:
    journal = Journal()

    async def talk() -> None:
        async with driving(executor, journal_sink=journal) as driver:
            await answer(driver, asking(executor.model, output_tokens=12))

    asyncio.run(talk())
    planned = next(event.at for event, commands in journal if any(isinstance(c, RunStep) for c in commands))
    steps = [event for event, _ in journal if isinstance(event, StepFinished)]
    assert len(steps) == executor.steps
    assert sum(step.step_seconds[0] for step in steps) == pytest.approx(steps[-1].at - planned)


def test_the_journal_replayed_gives_the_same_commands(executor: CountingExecutor) -> None:
    journal = Journal()

    async def talk() -> None:
        async with driving(executor, journal_sink=journal) as driver:
            asks = [asking(executor.model, f"{n}:", 3 + n, class_name=name) for n, name in enumerate(PRESETS)]
            await asyncio.gather(*(answer(driver, ask) for ask in asks))

    asyncio.run(talk())
    machine = new_machine(executor)
    assert [machine.handle(event) for event, _ in journal] == [commands for _, commands in journal]


def test_closing_the_iterator_frees_the_slot_within_one_step(executor: CountingExecutor) -> None:
    async def talk() -> tuple[int, int]:
        async with driving(executor) as driver:
            async with aclosing(driver.generate(asking(executor.model, output_tokens=400))) as events:
                await anext(events)
                before = executor.steps
            await until(lambda: not sum(driver.status.running.values()))
            return before, executor.steps

    before, after = asyncio.run(talk())
    assert after - before <= 2, "the step in flight when the client left, and at most the one planned meanwhile"


def test_leaving_while_waiting_costs_no_step(executor: CountingExecutor) -> None:
    watch = Watch()

    async def talk() -> None:
        async with driving(executor, observer=watch) as driver:
            runs = [asyncio.create_task(answer(driver, asking(executor.model, output_tokens=16))) for _ in range(2)]
            await until(lambda: sum(driver.status.running.values()) == 2)
            waits = asyncio.create_task(answer(driver, asking(executor.model, class_name="batch")))
            await until(lambda: driver.status.waiting.get("batch") == 1)
            waits.cancel()
            await asyncio.gather(*runs)

    asyncio.run(talk())
    left = next(record for record in watch.all("ended") if record.outcome == "cancelled")
    assert (left.class_name, left.output_tokens, left.ttft_s) == ("batch", 0, None)


def test_what_is_preempted_goes_on_as_if_nothing_had_happened(model: Model) -> None:
    watch = Watch()
    # each needs 3 of the 4 blocks before it ends
    executor = CountingExecutor(model, slots=2, kv_layout="shared", kv_tokens=64, prefixes=0, step_tokens_max=32)
    ask = asking(model, "The meaning of life is", 30)

    async def talk() -> list[list[GenerationEvent]]:
        handle = new_machine(executor, "continuous").handle
        async with driving(executor, handle=handle, observer=watch) as driver:
            return await asyncio.gather(*(answer(driver, ask) for _ in range(2)))

    try:
        answers = asyncio.run(talk())
    finally:
        assert executor.is_empty
        executor.close()
    assert watch.all("preempted") == ["chat"]
    assert sorted(record.preemptions for record in watch.all("ended")) == [0, 1]
    for events in answers:
        end = events[-1]
        assert isinstance(end, Finished)
        assert end.output_tokens == sum(e.tokens for e in events if isinstance(e, Piece)) == 30


def test_a_strategy_that_waits_is_woken(executor: CountingExecutor) -> None:
    async def talk() -> list[GenerationEvent]:
        async with driving(executor, handle=new_machine(executor, "dynamic").handle) as driver:
            return await answer(driver, asking(executor.model))

    end = asyncio.run(talk())[-1]
    assert isinstance(end, Finished)
    assert end.queue_s > 0


def test_a_request_that_the_engine_cannot_serve_fails_alone(executor: CountingExecutor) -> None:
    bad = Generation(prompt=(10**6,), class_name="chat", output_tokens_max=Tokens(2))

    async def talk() -> list[Any]:
        async with driving(executor) as driver:
            asks = (answer(driver, bad), answer(driver, asking(executor.model)))
            return list(await asyncio.gather(*asks, return_exceptions=True))

    failed, served = asyncio.run(talk())
    assert isinstance(failed, RequestError)
    assert isinstance(served[-1], Finished)


def test_what_the_machine_refuses_comes_as_a_refusal(executor: CountingExecutor) -> None:
    async def talk() -> list[Any]:
        async with driving(executor, requests_max=1) as driver:
            long = await answer(driver, asking(executor.model, output_tokens=5000))
            unknown = await answer(driver, asking(executor.model, class_name="gold"))
            first = driver.generate(asking(executor.model, output_tokens=100))
            async with aclosing(first):
                await anext(first)
                return [*long, *unknown, *await answer(driver, asking(executor.model))]

    refusals = asyncio.run(talk())
    assert all(isinstance(refusal, Refused) for refusal in refusals)
    assert [refusal.reason for refusal in refusals] == ["too_long", "unknown_class", "queue_full"]


def test_a_failed_step_is_told_to_all_and_the_next_request_is_served(executor: CountingExecutor) -> None:
    async def talk() -> tuple[list[Any], list[GenerationEvent], str | None]:
        async with driving(executor) as driver:
            executor.failures = 1
            asks = [answer(driver, asking(executor.model)) for _ in range(2)]
            failed = await asyncio.gather(*asks, return_exceptions=True)
            return failed, await answer(driver, asking(executor.model)), driver.status.failure

    failed, served, failure = asyncio.run(talk())
    assert any(isinstance(error, EngineError) and "the device is gone" in error.message for error in failed)
    assert isinstance(served[-1], Finished)
    assert failure is None


def test_an_engine_that_fails_again_and_again_is_given_up_with_its_reason(executor: CountingExecutor) -> None:
    async def talk() -> tuple[list[Any], str | None]:
        async with driving(executor) as driver:
            executor.failures = 100
            errors: list[Any] = []
            for _ in range(4):
                errors += await asyncio.gather(answer(driver, asking(executor.model)), return_exceptions=True)
            return errors, driver.status.failure

    errors, failure = asyncio.run(talk())
    assert all(isinstance(error, EngineError) for error in errors)
    assert executor.steps == 3
    assert failure is not None
    assert "the device is gone" in failure


def test_an_engine_that_does_not_end_its_step_is_told_until_it_does(executor: CountingExecutor) -> None:
    async def talk() -> tuple[list[Any], list[GenerationEvent], str | None]:
        async with driving(executor, stall_s=0.1) as driver:
            executor.may_run.clear()
            first = asyncio.create_task(answer(driver, asking(executor.model)))
            await until(lambda: driver.status.failure is not None)
            ask = answer(driver, asking(executor.model))
            second = list(await asyncio.gather(ask, return_exceptions=True))
            executor.may_run.set()
            return second, await first, driver.status.failure

    second, first, failure = asyncio.run(talk())
    assert isinstance(second[0], EngineError)
    assert isinstance(first[-1], Finished)
    assert failure is None


def test_a_fault_of_the_machine_ends_the_service_and_not_the_process(executor: CountingExecutor) -> None:
    machine = new_machine(executor)

    def handle(event: AnyEvent) -> list[AnyCommand]:
        assert not isinstance(event, StepFinished), "a bug"
        return machine.handle(event)

    async def talk() -> tuple[list[Any], str | None]:
        async with driving(executor, handle=handle) as driver:
            asks = [answer(driver, asking(executor.model)) for _ in range(3)]
            return await asyncio.gather(*asks, return_exceptions=True), driver.status.failure

    errors, failure = asyncio.run(talk())
    assert all(isinstance(error, EngineError) for error in errors)
    assert failure is not None
    assert "a bug" in failure


def test_the_journal_ends_with_the_event_on_which_the_machine_failed(executor: CountingExecutor) -> None:
    machine, journal = new_machine(executor), Journal()

    def handle(event: AnyEvent) -> list[AnyCommand]:
        assert not isinstance(event, StepFinished), "a bug"
        return machine.handle(event)

    async def talk() -> None:
        async with driving(executor, handle=handle, journal_sink=journal) as driver:
            for _ in range(2):
                with pytest.raises(EngineError, match="a bug"):
                    await answer(driver, asking(executor.model))

    asyncio.run(talk())
    assert [type(event) for event, _ in journal] == [Arrived]
    assert isinstance(journal.begun, StepFinished)
    assert journal.is_closed


def test_a_journal_that_cannot_be_written_stops_nobody(executor: CountingExecutor) -> None:
    class Full(Journal):
        def begin(self, event: AnyEvent) -> None:
            super().begin(event)
            raise OSError("no space left")

    async def talk() -> list[GenerationEvent]:
        async with driving(executor, journal_sink=Full()) as driver:
            return await answer(driver, asking(executor.model))

    assert isinstance(asyncio.run(talk())[-1], Finished)


def test_draining_finishes_what_runs_and_refuses_what_waits_and_comes(executor: CountingExecutor) -> None:
    async def talk() -> tuple[bool, list[GenerationEvent]]:
        async with driving(executor) as driver:
            asks = [asyncio.create_task(answer(driver, asking(executor.model, output_tokens=20))) for _ in range(4)]
            await until(lambda: sum(driver.status.running.values()) == 2)
            is_finished = await driver.drain(30.0)
            late = await answer(driver, asking(executor.model))
            return is_finished, [events[-1] for events in [*await asyncio.gather(*asks), late]]

    is_finished, ends = asyncio.run(talk())
    assert is_finished
    assert [type(end) for end in ends] == [Finished, Finished, Refused, Refused, Refused]
    assert {end.reason for end in ends if isinstance(end, Refused)} == {"draining"}


def test_draining_ends_at_its_bound(executor: CountingExecutor) -> None:
    async def talk() -> tuple[bool, list[GenerationEvent]]:
        async with driving(executor) as driver:
            asks = asyncio.create_task(answer(driver, asking(executor.model, output_tokens=480)))
            await until(lambda: sum(driver.status.running.values()) == 1)
            return await driver.drain(0.05), await asks

    is_finished, events = asyncio.run(talk())
    assert not is_finished
    assert isinstance(events[-1], Refused)
