"""The recursions that `benchmarks/sim_theory.py` holds the simulator against, and the simulator, on the same draws."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.metrics import RequestRecord

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SEEDS = st.integers(0, 10**6)
COUNTS = st.integers(2, 60)
LOADS = st.sampled_from([0.3, 0.8, 1.5])
QUICK = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def theory() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("sim_theory")
    finally:
        sys.path.remove(str(BENCHMARKS))


def came(*instants: float) -> list[RequestRecord]:
    """Return the records of jobs that came at these instants."""
    return [RequestRecord(id=i, class_name="job", scheduled_at=at, prompt_tokens=1) for i, at in enumerate(instants)]


def in_system(records: list[RequestRecord]) -> list[float]:
    return [(record.ended_at or 0.0) - record.scheduled_at for record in records]


def test_jobs_wait_for_the_first_of_the_servers_to_be_free(theory: ModuleType) -> None:
    assert theory.waits_of(came(0.0, 1.0, 2.0), [4.0, 1.0, 1.0], 1) == [0.0, 3.0, 3.0]
    assert theory.waits_of(came(0.0, 1.0, 1.5), [4.0, 1.0, 1.0], 2) == [0.0, 0.0, 0.5]


def test_jobs_that_share_a_processor_take_as_long_as_there_are_others(theory: ModuleType) -> None:
    assert theory.times_shared(came(0.0), [3.0]) == [3.0]
    assert theory.times_shared(came(0.0, 0.0), [2.0, 2.0]) == [4.0, 4.0]
    # alone for one second, then at half speed until the second one, with 1 s of work, has ended
    assert theory.times_shared(came(0.0, 1.0), [3.0, 1.0]) == [4.0, 2.0]


@QUICK
@given(seed=SEEDS, count=COUNTS, load=LOADS)
def test_one_slot_serves_as_lindleys_queue_does(theory: ModuleType, seed: int, count: int, load: float) -> None:
    prompts = theory.exponential(1000, count, seed)
    records = theory.run(theory.Linear(prompt=0.001), 1, load, [(prompt, 1) for prompt in prompts], seed)
    work = [prompt * 0.001 for prompt in prompts]
    waits = [whole - own for whole, own in zip(in_system(records), work, strict=True)]
    assert waits == pytest.approx(theory.waits_of(records, work, 1), abs=1e-6)


@QUICK
@given(seed=SEEDS, count=COUNTS, load=LOADS, servers=st.integers(1, 8))
def test_slots_that_do_not_slow_each_other_are_servers_to_a_step_for_each_job_ahead(
    theory: ModuleType, seed: int, count: int, load: float, servers: int
) -> None:
    outputs = theory.exponential(100, count, seed)
    world = theory.Linear(fixed=0.001)
    records = theory.run(world, servers, load * servers * 10.0, [(1, output) for output in outputs], seed)
    work = [output * 0.001 for output in outputs]
    exact = theory.waits_of(records, work, servers)
    for place, (whole, own, wait) in enumerate(zip(in_system(records), work, exact, strict=True)):
        assert -1e-9 <= whole - own - wait <= 0.001 * (place + 1) + 1e-9
