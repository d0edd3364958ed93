import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.worlds import CAPACITY, CLASSES, CURVED, SLOWER, STRATEGIES, WORLD, arrivals, machine, plan

from setpoint.core.invariants import violations
from setpoint.metrics import RequestRecord
from setpoint.model import StepTime
from setpoint.sim.replica import ReplicaSimulator
from setpoint.sim.scenario import Scenario, is_single, simulate
from setpoint.workload import PlannedRequest

SEEDS = st.integers(0, 10**6)
RATES = st.sampled_from([2.0, 8.0, 20.0, 60.0])
COUNTS = st.integers(1, 40)
QUICK = settings(max_examples=25, deadline=None)


def records_of(
    strategy: str, requests: list[PlannedRequest], *, is_skipping: bool = True, truth: StepTime = WORLD
) -> list[RequestRecord]:
    simulator = ReplicaSimulator(machine(strategy), truth, is_skipping=is_skipping)
    records = list(simulator.run(arrivals(requests)))
    assert not violations(simulator.machine)
    return records


@pytest.mark.parametrize("strategy", STRATEGIES)
@QUICK
@given(seed=SEEDS, count=COUNTS, rate=RATES)
def test_steps_advanced_many_at_a_time_end_as_steps_asked_for_one_by_one(
    strategy: str, seed: int, count: int, rate: float
) -> None:
    requests = plan(seed, count, rate)
    assert records_of(strategy, requests) == records_of(strategy, requests, is_skipping=False)
    for truth in (SLOWER, CURVED):
        swift = records_of(strategy, requests, truth=truth)
        assert swift == records_of(strategy, requests, is_skipping=False, truth=truth)


@pytest.mark.parametrize("strategy", STRATEGIES)
@QUICK
@given(seed=SEEDS, count=COUNTS, rate=RATES)
def test_every_request_ends_once_with_all_its_tokens_or_a_reason(
    strategy: str, seed: int, count: int, rate: float
) -> None:
    requests = plan(seed, count, rate)
    records = records_of(strategy, requests)
    assert sorted(record.id for record in records) == [one.id for one in requests]
    for record in records:
        assert record.ended_at is not None or strategy == "static"
        if record.error is None and record.ended_at is not None:
            assert record.output_tokens == requests[record.id].output_tokens
            assert record.first_token_at is not None
            assert record.scheduled_at < record.first_token_at <= record.ended_at
        elif record.error is not None:
            assert record.detail in {"expired", "too_long", "queue_full", "late"}


@pytest.mark.parametrize("strategy", STRATEGIES)
@QUICK
@given(seed=SEEDS, count=COUNTS, rate=RATES)
def test_a_machine_is_never_busier_than_the_clock_and_never_does_less_than_the_work(
    strategy: str, seed: int, count: int, rate: float
) -> None:
    requests = plan(seed, count, rate)
    simulator = ReplicaSimulator(machine(strategy), WORLD)
    records = list(simulator.run(arrivals(requests)))
    assert simulator.busy_s <= simulator.now + 1e-9
    served = [record for record in records if record.error is None]
    tokens = sum(record.output_tokens + record.prompt_tokens - 1 for record in served)
    token_s = WORLD.seconds(2, 0) - WORLD.seconds(1, 0)
    assert simulator.busy_s >= tokens * min(token_s, 0.0005) - 1e-6


@QUICK
@given(seed=SEEDS, count=COUNTS, rate=RATES, strategy=st.sampled_from(list(STRATEGIES)))
def test_the_same_seed_gives_the_same_bytes(seed: int, count: int, rate: float, strategy: str) -> None:
    def run() -> bytes:
        return msgspec.json.encode(records_of(strategy, plan(seed, count, rate)))

    assert run() == run()


@pytest.mark.parametrize("strategy", ["continuous", "slack"])
@QUICK
@given(seed=SEEDS, count=COUNTS, rate=RATES)
def test_a_cluster_of_one_replica_serves_like_the_replica_alone(
    strategy: str, seed: int, count: int, rate: float
) -> None:
    requests = plan(seed, count, rate)
    scenario = Scenario(
        world=WORLD, capacity=CAPACITY, classes=CLASSES, strategy=strategy, options=STRATEGIES[strategy], drain_s=1e6
    )
    assert is_single(scenario, requests)
    # a limit that is never reached makes the pool machine stand in front
    pools = tuple(msgspec.structs.replace(pool, in_flight_max=1000) for pool in scenario.layout.pools)
    layout = msgspec.structs.replace(scenario.layout, pools=pools)
    clustered = msgspec.structs.replace(scenario, layout=layout)
    assert not is_single(clustered, requests)
    alone, together = simulate(scenario, requests), simulate(clustered, requests)
    assert by_id(alone.records) == by_id(together.records)
    assert alone.steps == together.steps


def by_id(records: list[RequestRecord]) -> list[RequestRecord]:
    return sorted(records, key=lambda record: record.id)


def test_a_run_that_is_cut_hands_out_what_was_not_finished() -> None:
    requests = plan(1, 30, 50.0)
    simulator = ReplicaSimulator(machine("continuous"), WORLD)
    records = list(simulator.run(arrivals(requests), until=1.0))
    unfinished = [record for record in records if record.ended_at is None]
    assert unfinished
    assert len(records) == len({record.id for record in records}) == sum(one.at_s <= 1.0 for one in requests)
