import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.core.filling import Draft
from setpoint.core.invariants import running, violations
from setpoint.core.state import State
from setpoint.core.steered import SteeredMachine
from setpoint.core.strategies import make_strategy
from setpoint.core.strategies.batching import Continuous
from setpoint.model import (
    PRESETS,
    AnyCommand,
    AnyEvent,
    Arrived,
    Cancelled,
    Capacity,
    CapacityChanged,
    Finish,
    Preempt,
    Reject,
    Request,
    RunStep,
    StepAsked,
    StepBegun,
    StepFinished,
    StepPlan,
)
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Blocks, Instant, Seconds, Tokens

MODEL = linear(key="engine", step_s=0.01, decode_s=1e-3, context_s=1e-6, prefill_s=1e-3)


def machine_of(capacity: Capacity, strategy: str = "slack") -> SteeredMachine:
    return SteeredMachine(make_strategy(strategy), PRESETS, capacity, LearnedStepTime(MODEL))


def room(slots: int = 8, kv_blocks: int = 64) -> Capacity:
    return Capacity(
        slots=slots,
        kv_blocks=Blocks(kv_blocks),
        block_tokens=Tokens(4),
        step_tokens_max=Tokens(64),
        context_tokens_max=Tokens(128),
    )


def ask(request_id: int, *, name: str = "chat", prompt: int = 8, output: int = 3, at: float = 0.0) -> Arrived:
    request = Request(
        id=request_id,
        class_name=name,
        arrived_at=Instant(at),
        prompt_tokens=Tokens(prompt),
        output_tokens_max=Tokens(output),
    )
    return Arrived(at=Instant(at), request=request)


def plan_of(commands: list[AnyCommand]) -> StepPlan | None:
    return next((c.plan for c in commands if isinstance(c, RunStep)), None)


def test_it_plans_when_it_is_asked_and_only_then() -> None:
    machine = machine_of(room())
    assert machine.handle(ask(1)) == []
    assert plan_of(machine.handle(StepAsked(at=Instant(0.0)))).prefills == ((1, 8),)
    assert machine.ledger.running == 0


def test_what_the_engine_did_not_let_in_keeps_waiting() -> None:
    machine = machine_of(room())
    machine.handle(ask(1))
    machine.handle(ask(2))
    machine.handle(StepAsked(at=Instant(0.0)))
    machine.handle(StepBegun(at=Instant(0.0), step_id=1, admitted=((2, 4, 8),), prefills=((2, 4),)))
    assert [s.id for s in machine.ledger.waiting_from()] == [1]
    assert machine.ledger.decoding[2].cached_tokens == 4
    assert violations(machine) == []


def test_the_next_plan_counts_on_the_tokens_that_are_under_way_and_begins_when_they_are_there() -> None:
    machine = machine_of(room())
    machine.handle(ask(1))
    machine.handle(StepBegun(at=Instant(0.0), step_id=1, admitted=((1, 0, 8),), prefills=((1, 8),)))
    plan = plan_of(machine.handle(StepAsked(at=Instant(0.001))))
    assert plan.decodes == (1,)
    assert machine.free_at(0.001) == pytest.approx(MODEL.predict(machine.underway[0].shape))


def test_the_first_token_is_dated_by_the_step_that_really_brought_it() -> None:
    machine = machine_of(room())
    machine.handle(ask(1))
    machine.handle(StepBegun(at=Instant(0.0), step_id=1, admitted=((1, 0, 8),), prefills=((1, 8),)))
    machine.handle(StepFinished(at=Instant(0.7), step_id=1, step_seconds=(Seconds(0.7),)))
    assert machine.ledger.decoding[1].first_token_at == 0.7


def test_a_sequence_whose_last_token_is_under_way_is_planned_no_more_and_holds_its_slot_till_then() -> None:
    machine = machine_of(room(slots=1))
    machine.handle(ask(1, output=1))
    machine.handle(ask(2))
    machine.handle(StepBegun(at=Instant(0.0), step_id=1, admitted=((1, 0, 8),), prefills=((1, 8),)))
    assert plan_of(machine.handle(StepAsked(at=Instant(0.0)))) is None
    done = machine.handle(StepFinished(at=Instant(0.1), step_id=1, step_seconds=(Seconds(0.1),), stopped=(1,)))
    assert done == [Finish(request_id=1, reason="length")]
    assert plan_of(machine.handle(StepAsked(at=Instant(0.1)))).prefills == ((2, 8),)


def test_the_engines_own_count_of_free_blocks_is_believed() -> None:
    machine = machine_of(room(kv_blocks=64))
    machine.handle(ask(1))
    assert plan_of(machine.handle(StepAsked(at=Instant(0.0), free_blocks=Blocks(1)))) is None
    assert plan_of(machine.handle(StepAsked(at=Instant(0.0), free_blocks=Blocks(2)))) is not None


class Engine:
    """Owns its loop, runs up to `depth` steps ahead, and does to every plan what engines do: less, or otherwise."""

    def __init__(self, machine: SteeredMachine, depth: int, seed: int) -> None:
        self.machine = machine
        self.chance = random.Random(seed)
        self.depth = depth
        self.now = 0.0
        self.steps = 0
        self.flying: list[StepBegun] = []
        self.known: dict[int, Request] = {}
        self.outputs: dict[int, int] = {}
        self.ends: list[int] = []
        self.journal: list[tuple[AnyEvent, list[AnyCommand]]] = []

    def tell(self, event: AnyEvent) -> list[AnyCommand]:
        commands = self.machine.handle(event)
        self.journal.append((event, commands))
        assert violations(self.machine) == []
        for command in commands:
            if isinstance(command, Reject | Finish):
                self.ends.append(command.request_id)
                self.known.pop(command.request_id, None)
        return commands

    def arrive(self, request: Request) -> None:
        self.known[request.id] = request
        self.outputs[request.id] = 0
        self.tell(Arrived(at=Instant(self.now), request=request))

    def begin(self) -> None:
        ledger = self.machine.ledger
        taken = sum(ledger.blocks_for(s, s.computed_tokens) for s in running(ledger))
        free_blocks = Blocks(ledger.capacity.kv_blocks - taken)
        plan = plan_of(self.tell(StepAsked(at=Instant(self.now), free_blocks=free_blocks)))
        if plan is None:
            return
        decodes = tuple(i for i in plan.decodes if self.chance.random() < 0.95)
        chunks = [(i, self.chance.randint(1, n) if self.chance.random() < 0.2 else n) for i, n in plan.prefills]
        chunks = [c for c in chunks if self.chance.random() < 0.9]
        admitted = tuple(
            (i, 0, ledger.sequences[i].target_tokens) for i, _ in chunks if ledger.sequences[i].slot is None
        )
        victims = [i for i in ledger.decoding if i not in decodes and self.chance.random() < 0.05]
        if decodes or chunks:
            self.steps += 1
            begun = StepBegun(
                at=Instant(self.now),
                step_id=self.steps,
                decodes=decodes,
                prefills=tuple(chunks),
                admitted=admitted,
                preempted=tuple(victims),
            )
            self.tell(begun)
            self.flying.append(begun)
            for request_id in self.machine.underway[-1].yields:
                self.outputs[request_id] += 1

    def end(self) -> None:
        if not self.flying:
            return
        self.now += self.chance.uniform(0.001, 0.05)
        begun = self.flying.pop(0)
        yields = {*self.machine.underway[0].yields} & self.known.keys()
        later = [step.yields for step in list(self.machine.underway)[1:]]
        stopped = []
        for i in sorted(yields):
            so_far = self.outputs[i] - sum(i in step for step in later)
            if so_far >= self.known[i].output_tokens_max or self.chance.random() < 0.05:
                stopped.append(i)
        seconds = (Seconds(self.chance.uniform(0.001, 0.05)),)
        self.tell(
            StepFinished(at=Instant(self.now), step_id=begun.step_id, step_seconds=seconds, stopped=tuple(stopped))
        )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    depth=st.integers(1, 3),
    strategy=st.sampled_from(["slack", "qoserve", "continuous", "priority"]),
    slots=st.integers(1, 5),
    kv_blocks=st.integers(32, 64),
)
def test_whatever_the_engine_makes_of_the_plans_every_request_ends_once_and_nothing_stays_held(
    seed: int, depth: int, strategy: str, slots: int, kv_blocks: int
) -> None:
    machine = machine_of(room(slots, kv_blocks), strategy)
    engine = Engine(machine, depth, seed)
    chance = random.Random(seed + 1)
    for request_id in range(12):
        name = chance.choice(["chat", "batch"])
        engine.arrive(ask(request_id, name=name, prompt=chance.randint(1, 60), output=chance.randint(1, 9)).request)
        if chance.random() < 0.1 and engine.known:
            engine.tell(Cancelled(at=Instant(engine.now), request_id=chance.choice(sorted(engine.known))))
    for _ in range(2000):
        while len(engine.flying) < depth:
            before = engine.steps
            engine.begin()
            if engine.steps == before:
                break
        engine.end()
        if not engine.known and not engine.flying:
            break
        engine.now += 0.0001
    assert sorted(engine.ends) == list(range(12))
    ledger = machine.ledger
    assert (ledger.running, ledger.blocks_held, ledger.sequences, list(machine.underway)) == (0, 0, {}, [])
    again = machine_of(room(slots, kv_blocks), strategy)
    replayed = [(event, again.handle(event)) for event, _ in engine.journal]
    assert msgspec.json.encode(replayed) == msgspec.json.encode(engine.journal)


def test_what_the_engine_tells_of_sequences_that_are_gone_changes_nothing() -> None:
    machine = machine_of(room())
    machine.handle(ask(1))
    machine.handle(
        StepBegun(at=Instant(0.0), step_id=1, admitted=((1, 0, 8), (9, 0, 8)), prefills=((1, 8),), preempted=(8,))
    )
    machine.handle(StepBegun(at=Instant(0.0), step_id=2, admitted=((1, 0, 8),)))
    machine.handle(Cancelled(at=Instant(0.1), request_id=1))
    assert machine.handle(StepFinished(at=Instant(0.2), step_id=1, step_seconds=(Seconds(0.2),), stopped=(1,))) == []
    assert violations(machine) == []


def test_what_the_engine_takes_back_waits_again() -> None:
    machine = machine_of(room())
    machine.handle(ask(1))
    machine.handle(ask(2))
    both = StepBegun(
        at=Instant(0.0), step_id=1, admitted=((1, 0, 8), (2, 0, 8)), prefills=((1, 8), (2, 8)), preempted=()
    )
    machine.handle(both)
    machine.handle(StepBegun(at=Instant(0.1), step_id=2, decodes=(1,), preempted=(2,)))
    assert [s.id for s in machine.ledger.waiting_from()] == [2]
    assert machine.ledger.decoding[1].output_tokens == 2
    assert violations(machine) == []


def test_a_change_of_capacity_is_believed_at_once() -> None:
    machine = machine_of(room())
    machine.handle(ask(1, prompt=40, output=40))
    small = msgspec.structs.replace(room(), context_tokens_max=Tokens(32))
    said = machine.handle(CapacityChanged(at=Instant(0.1), capacity=small))
    assert said == [Reject(request_id=1, reason="too_long")]


class TakesBackFirst(Continuous):
    """Takes everything back at its first plan that finds a decode, and puts nothing in its place."""

    has_taken = False

    def plan(self, draft: Draft, state: State) -> None:
        if state.ledger.decoding and not self.has_taken:
            self.has_taken = True
            draft.preempt(next(iter(state.ledger.decoding.values())))
        else:
            super().plan(draft, state)


def test_what_was_freed_by_taking_back_alone_is_planned_for_at_once() -> None:
    machine = SteeredMachine(TakesBackFirst(), PRESETS, room(), LearnedStepTime(MODEL))
    machine.handle(ask(1))
    machine.handle(StepBegun(at=Instant(0.0), step_id=1, admitted=((1, 0, 8),), prefills=((1, 8),)))
    machine.handle(StepFinished(at=Instant(0.1), step_id=1, step_seconds=(Seconds(0.1),)))
    said = machine.handle(StepAsked(at=Instant(0.1)))
    assert Preempt(request_id=1) in said
    assert plan_of(said).prefills == ((1, 9),)
