from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.engines.api import Generation, StepOutput
from setpoint.errors import WorkloadError
from setpoint.model import PRESETS, Capacity, StepShape
from setpoint.planner.demand import clipped, make_demand, parse_mix
from setpoint.planner.predict import Forecast
from setpoint.planner.profile import Profiler, design, pool_contexts
from setpoint.planner.search import FULL, QUICK, naive_rates, window_s, with_total
from setpoint.steptime.model import linear
from setpoint.units import Blocks, Seconds, Tokens
from setpoint.workload import Empirical, Fixed, LogNormal, Uniform

SMALL = Capacity(
    slots=8,
    kv_blocks=Blocks(128),
    block_tokens=Tokens(16),
    step_tokens_max=Tokens(256),
    context_tokens_max=Tokens(512),
)

capacities = st.builds(
    Capacity,
    slots=st.integers(2, 64),
    kv_blocks=st.integers(16, 2048).map(Blocks),
    block_tokens=st.just(Tokens(16)),
    step_tokens_max=st.integers(32, 1024).map(Tokens),
    context_tokens_max=st.integers(128, 8192).map(Tokens),
)


@given(capacities, st.integers(100, 20_000))
def test_the_pool_and_every_probe_fit_the_engine(capacity: Capacity, tokens: int) -> None:
    contexts = pool_contexts(capacity, tokens)
    assert 1 <= len(contexts) < capacity.slots
    assert contexts == sorted(contexts)
    assert contexts[-1] <= capacity.context_tokens_max // 2
    probes = design(capacity, len(contexts))
    assert len(set(probes)) == len(probes)
    for probe in probes:
        assert probe.decodes or probe.chunk
        assert probe.decodes <= len(contexts)
        assert probe.decodes + probe.chunk <= max(capacity.step_tokens_max, capacity.slots)


class Clockwork:
    """An executor that computes nothing and takes exactly as long as a known model says."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.now = 0.0
        self.steps = 0
        self.held: dict[int, int] = {}
        self.slots: dict[int, int] = {}
        self.truth = linear(key="truth", step_s=0.005, decode_s=0.001, context_s=1e-6, prefill_s=0.0008, work_s=1e-7)

    def prepare(self, request_id: int, generation: Generation) -> int:
        assert len(generation.prompt) < self.capacity.context_tokens_max
        self.held[request_id] = 0
        return 0

    def admit(self, request_id: int, slot: int) -> None:
        assert slot not in self.slots.values()
        self.slots[request_id] = slot

    def run(self, decodes: Sequence[int], prefills: Sequence[tuple[int, int]]) -> StepOutput:
        tokens = sum(n for _, n in prefills)
        work = sum(n * (self.held[i] + 0.5 * n) for i, n in prefills)
        shape = StepShape(len(decodes), sum(self.held[i] for i in decodes), tokens, work, len(prefills))
        self.now += self.truth.predict(shape)
        self.steps += 1
        for request_id, n in [*((i, 1) for i in decodes), *prefills]:
            self.held[request_id] += n
        assert sum(self.held.values()) <= self.capacity.kv_blocks * self.capacity.block_tokens
        return StepOutput(tokens=(), forward_s=Seconds(0.0), sampling_s=Seconds(0.0))

    def preempt(self, request_id: int) -> None:
        raise AssertionError(request_id)

    def release(self, request_id: int) -> None:
        del self.held[request_id]
        self.slots.pop(request_id, None)


def test_a_profile_finds_the_step_times_of_an_engine_that_is_exactly_linear_and_leaves_it_empty() -> None:
    engine = Clockwork(SMALL)
    profile = Profiler(engine, lambda: engine.now, Random(1), key="truth").run(20.0)
    assert not engine.held
    assert profile.rounds > 1
    assert profile.model.mape < 0.01
    assert profile.p95_error < 0.03
    for shape in (StepShape(1, 100), StepShape(6, 900), StepShape(4, 200, 100, 5000.0, 1)):
        assert profile.model.predict(shape) == pytest.approx(engine.truth.predict(shape), rel=0.03)


def test_a_profile_of_an_engine_far_too_slow_for_the_time_ends_with_one_look_at_what_it_can() -> None:
    engine = Clockwork(SMALL)
    engine.truth = linear(key="truth", step_s=0.5, decode_s=0.1, prefill_s=0.02)
    profile = Profiler(engine, lambda: engine.now, Random(1), key="slow").run(5.0)
    assert engine.steps < 50
    assert profile.model.mape < 0.2


def test_an_interrupted_profile_keeps_what_suffices_for_a_fit() -> None:
    engine = Clockwork(SMALL)

    def interrupt(_share: float) -> None:
        if engine.steps > 60:
            raise KeyboardInterrupt

    profile = Profiler(engine, lambda: engine.now, Random(1), key="truth").run(1e9, interrupt)
    assert profile.is_cut
    assert not engine.held
    with pytest.raises(KeyboardInterrupt):
        Profiler(engine, lambda: engine.now, Random(1), key="truth").run(1e9, interrupt)
    assert not engine.held


def test_a_mix_is_read_as_shares_of_all_arrivals() -> None:
    assert parse_mix("chat=0.7, batch=0.3", PRESETS) == {"chat": 0.7, "batch": 0.3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chat=0.7,botch=0.3", "unknown class 'botch'"),
        ("chat=0.7,batch=0.7", "add up to 1.4"),
        ("chat=0.7", "add up to 0.7"),
        ("chat=x,batch=0.3", "no number"),
        ("chat=-0.5,batch=1.5", "0..1"),
        ("chat=0.5,chat=0.5", "twice"),
        ("chat=nan", "0..1"),
        ("", "unknown class"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        parse_mix(text, PRESETS)


@given(st.integers(64, 8192))
def test_lengths_are_clipped_to_the_context(context: int) -> None:
    demand = make_demand({"chat": 0.5, "batch": 0.5}, target="chat", context_tokens=context)
    chance = Random(context)
    for one in demand.traffic:
        assert one.prompt.draw(chance) + one.output.draw(chance) <= context
    assert sum(demand.shares.values()) == pytest.approx(1.0)


def test_each_kind_of_length_is_clipped() -> None:
    assert clipped(Fixed(500), 100) == Fixed(100)
    assert clipped(Uniform(50, 500), 100) == Uniform(50, 100)
    assert clipped(LogNormal(70.0, 0.8, 4, 4096), 100) == LogNormal(70.0, 0.8, 4, 100)
    assert clipped(Empirical.of([10, 10, 300]), 100) == Empirical.of([10, 10, 100])


def test_the_simulator_foresees_that_a_higher_load_needs_looser_targets_and_where_they_hold() -> None:
    model = linear(key="m", step_s=0.005, decode_s=0.001, prefill_s=0.0005)
    capacity = Capacity(
        slots=16,
        kv_blocks=Blocks(512),
        block_tokens=Tokens(16),
        step_tokens_max=Tokens(256),
        context_tokens_max=Tokens(1024),
    )
    demand = make_demand({"chat": 1.0}, target="chat", context_tokens=1024)
    forecast = Forecast(model, capacity, demand, PRESETS, 3)
    highest = forecast.highest_rps("continuous", {}, 80)
    assert highest is not None
    assert 0.1 * forecast.bound_rps < highest < 1.1 * forecast.bound_rps
    low, high = (forecast.trial("continuous", {}, share * forecast.bound_rps, 80).scale for share in (0.2, 1.6))
    assert low < 1.0 < high
    assert forecast.best_budget("continuous", highest, 80) in {64, 128, 256}


@pytest.mark.parametrize("time", [QUICK, FULL, with_total(QUICK, 30.0)])
def test_the_windows_of_all_trials_fit_the_time_that_is_left(time: object) -> None:
    plan = QUICK if time is QUICK else FULL if time is FULL else with_total(QUICK, 30.0)
    left = plan.total_s - plan.profile_s
    window = window_s(left, 2 * plan.trials + plan.trials_naive, 3)
    assert window * (2 * plan.trials + plan.trials_naive) < left


def test_the_rates_of_a_baseline_enclose_the_guess() -> None:
    assert naive_rates(2.0, 1) == [2.0]
    rates = naive_rates(2.0, 3)
    assert rates[0] < 2.0 < rates[-1]
