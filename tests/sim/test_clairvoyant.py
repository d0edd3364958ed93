"""The clairvoyant reference of the policy benchmark: exact on small cases, a limit on all, and no policy beats it."""

import importlib
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.model import Capacity, Request, ServiceClass, Slo, chunk_work
from setpoint.sim.replica import Arrival, ReplicaSimulator
from setpoint.units import Blocks, Instant, Seconds, Tokens

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

Job = tuple[float, float, int]
"""Arrival, deadline, prompt tokens."""


@pytest.fixture(scope="module")
def clairvoyant() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("clairvoyant")
    finally:
        sys.path.remove(str(BENCHMARKS))


@st.composite
def jobs(draw: st.DrawFn, most: int = 4) -> tuple[Job, ...]:
    found = []
    for _ in range(draw(st.integers(1, most))):
        arrival = draw(st.integers(0, 40)) / 50.0
        found.append((arrival, arrival + draw(st.integers(2, 60)) / 100.0, draw(st.integers(50, 4000))))
    return tuple(sorted(found))


def schedules(left: frozenset[int]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield every way to compute some of the jobs, in groups one after the other."""
    yield ()
    for size in range(1, len(left) + 1):
        for group in combinations(sorted(left), size):
            for rest in schedules(left - frozenset(group)):
                yield (group, *rest)


def brute_force(clairvoyant: ModuleType, given_jobs: tuple[Job, ...]) -> int:
    """Return the best of all schedules, each group begun as soon as all of it is there."""
    world, best = clairvoyant.A100(), 0
    for groups in schedules(frozenset(range(len(given_jobs)))):
        now, served = 0.0, 0
        for group in groups:
            chosen = [given_jobs[i] for i in group]
            start = max(now, *(job[0] for job in chosen))
            tokens = sum(job[2] for job in chosen)
            now = start + world.seconds(0, 0, tokens, sum(chunk_work(0, job[2]) for job in chosen), len(group))
            served += sum(now <= job[1] for job in chosen)
        best = max(best, served)
    return best


@settings(max_examples=60, deadline=None)
@given(jobs())
def test_it_is_the_best_of_all_schedules(clairvoyant: ModuleType, given_jobs: tuple[Job, ...]) -> None:
    assert clairvoyant.most_in_time(given_jobs) == brute_force(clairvoyant, given_jobs)


@settings(max_examples=60, deadline=None)
@given(jobs(most=6), st.floats(0.01, 1.0))
def test_more_time_never_serves_fewer(clairvoyant: ModuleType, given_jobs: tuple[Job, ...], more_s: float) -> None:
    later = [(arrival, deadline + more_s, tokens) for arrival, deadline, tokens in given_jobs]
    assert clairvoyant.most_in_time(later) >= clairvoyant.most_in_time(given_jobs)


def arrivals_of(given_jobs: tuple[Job, ...]) -> list[Arrival]:
    return [
        Arrival(
            Request(
                id=i,
                class_name="chat",
                arrived_at=Instant(arrival),
                prompt_tokens=Tokens(tokens),
                output_tokens_max=Tokens(1),
            ),
            1,
        )
        for i, (arrival, _, tokens) in enumerate(given_jobs)
    ]


@settings(max_examples=60, deadline=None)
@given(jobs(most=6), st.sampled_from(["continuous", "edf", "srpf"]))
def test_no_policy_that_computes_whole_prompts_serves_more(
    clairvoyant: ModuleType, given_jobs: tuple[Job, ...], strategy: str
) -> None:
    capacity = Capacity(
        slots=8,
        kv_blocks=Blocks(10_000),
        block_tokens=Tokens(16),
        step_tokens_max=Tokens(100_000),
        context_tokens_max=Tokens(100_000),
    )
    world = clairvoyant.A100()
    classes = {"chat": ServiceClass(name="chat", slo=Slo(ttft_s=Seconds(0.3)))}
    machine = ReplicaMachine(make_strategy(strategy, token_budget=100_000), classes, capacity, world)
    records = ReplicaSimulator(machine, world).run(arrivals_of(given_jobs))
    served = sum(r.first_token_at is not None and r.first_token_at <= given_jobs[r.id][1] for r in records)
    assert served <= clairvoyant.most_in_time(given_jobs)


@settings(max_examples=60, deadline=None)
@given(jobs(most=6), st.integers(5, 60))
def test_the_relaxation_is_never_below_the_exact_answer(
    clairvoyant: ModuleType, given_jobs: tuple[Job, ...], hundredths: int
) -> None:
    pytest.importorskip("scipy")
    ttft_s = hundredths / 100.0
    alike = tuple((arrival, arrival + ttft_s, tokens) for arrival, _, tokens in given_jobs)
    limit = clairvoyant.relaxed_in_time(arrivals_of(alike), ttft_s, 1.0)
    assert limit >= clairvoyant.most_in_time(alike) - 1e-6


def test_what_cannot_be_in_time_is_not_served_and_what_is_alone_is(clairvoyant: ModuleType) -> None:
    assert clairvoyant.most_in_time(()) == 0
    assert clairvoyant.most_in_time([(0.0, 0.001, 4000)]) == 0
    assert clairvoyant.most_in_time([(0.0, 5.0, 4000)]) == 1
    # two that are there together, of which only one can be in time
    assert clairvoyant.most_in_time([(0.0, 0.45, 4000), (0.0, 0.45, 4000)]) == 1
