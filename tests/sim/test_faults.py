"""What goes wrong on the virtual clock, and what is said of it."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.worlds import CAPACITY, CLASSES, WORLD, plan

from setpoint.errors import ConfigError
from setpoint.model.pool import PoolLayout, PoolSpec
from setpoint.sim.faults import Crash, FaultSchedule, Scale, Slow, Spike, late_of, overlapping, parse_faults
from setpoint.sim.scenario import Outcome, Scenario, simulate


def served(faults: FaultSchedule, *, replicas: int = 2, count: int = 60, rate: float = 12.0) -> Outcome:
    """Return what came of a random plan under the schedule."""
    scenario = Scenario(
        world=WORLD,
        capacity=CAPACITY,
        classes=CLASSES,
        layout=PoolLayout(pools=(PoolSpec(name="main", replicas=replicas),)),
        faults=faults,
        drain_s=1e6,
    )
    return simulate(scenario, plan(3, count, rate))


def test_a_schedule_is_read_and_what_is_unknown_in_it_refused() -> None:
    text = "[network]\ndelay_ms = 2\n[[crash]]\nat_s = 60\nreplica = 0\n[[spike]]\nat_s = 1\nfor_s = 2\nfactor = 3\n"
    schedule = parse_faults(text)
    assert schedule.crash == (Crash(at_s=60.0, replica=0),)
    assert schedule.network.delay_ms == 2.0
    for wrong in ("[[crsh]]\nat_s = 1", "[[crash]]\nat_s = -1\nreplica = 0", "[[spike]]\nfactor = 0.5", "crash ="):
        with pytest.raises(ConfigError) as caught:
            parse_faults(wrong, "f.toml")
        assert "f.toml" in str(caught.value)
        assert caught.value.hint


def test_what_lies_beyond_any_end_of_the_run_is_found() -> None:
    crash, slow = Crash(at_s=161.0, replica=0), Slow(at_s=159.0, for_s=900.0, replica=0, factor=2.0)
    inside, beyond = Spike(at_s=99.0, for_s=5.0, factor=2.0), Spike(at_s=101.0, for_s=5.0, factor=2.0)
    schedule = FaultSchedule(crash=(crash,), slow=(slow,), spike=(beyond,))
    assert late_of(schedule, 100.0, 60.0) == [crash, beyond]
    assert late_of(msgspec.structs.replace(schedule, spike=(inside,)), 100.0, 60.0) == []


def test_slow_times_of_a_replica_must_not_overlap() -> None:
    first, second = Slow(at_s=10.0, for_s=5.0, replica=0, factor=2.0), Slow(at_s=14.0, for_s=5.0, replica=0, factor=3.0)
    elsewhere = msgspec.structs.replace(second, replica=1)
    assert overlapping(FaultSchedule(slow=(second, first))) == second
    assert overlapping(FaultSchedule(slow=(first, elsewhere))) is None


def test_a_fault_after_the_last_request_does_not_happen_and_is_told() -> None:
    quiet = served(FaultSchedule())
    late = FaultSchedule(crash=(Crash(at_s=500.0, replica=1),), scale=(Scale(at_s=600.0, pool="main", replicas=9),))
    outcome = served(late)
    assert outcome.missed == (
        "the crash of replica 1 at 500 s changed nothing: the run was over by then",
        "the scaling of pool main to 9 at 600 s changed nothing: the run was over by then",
    )
    assert msgspec.structs.replace(outcome, missed=()) == quiet


def test_what_an_autoscaler_decided_too_late_is_told_by_its_decision() -> None:
    outcome = served(FaultSchedule(scale=(Scale(at_s=1.0, pool="main", replicas=9, delay_s=500.0),)))
    assert outcome.missed == ("the scaling of pool main to 9 at 1 s changed nothing: the run was over by then",)


def test_a_fault_of_a_replica_that_is_not_there_is_told() -> None:
    twice = FaultSchedule(crash=(Crash(at_s=1.0, replica=1), Crash(at_s=2.0, replica=1)))
    assert served(twice).missed == ("the crash of replica 1 at 2 s changed nothing: there was no replica 1 then",)


def test_replicas_are_busy_in_the_time_in_which_they_are_there() -> None:
    alone = served(FaultSchedule(), replicas=1, count=200, rate=40.0)
    grown = served(FaultSchedule(scale=(Scale(at_s=2.0, pool="main", replicas=4),)), replicas=1, count=200, rate=40.0)
    assert alone.busy_ratio > 0.95
    assert grown.ended_at < alone.ended_at
    assert 1.0 < grown.replicas < 4.0
    assert 0.5 < grown.busy_ratio < 1.0
    shrunk = served(FaultSchedule(scale=(Scale(at_s=2.0, pool="main", replicas=1),)), count=200, rate=40.0)
    assert 1.0 < shrunk.replicas < 2.0
    lost = served(FaultSchedule(crash=(Crash(at_s=2.0, replica=0),)), count=200, rate=40.0)
    assert 1.0 < lost.replicas < 2.0


INSTANTS = st.floats(0.0, 8.0)
FAULTS = st.builds(
    FaultSchedule,
    crash=st.lists(
        st.builds(
            Crash,
            at_s=INSTANTS,
            replica=st.integers(0, 2),
            restart_after_s=st.sampled_from([None, 0.5]),
            cold_start_s=INSTANTS,
        ),
        max_size=2,
    ).map(tuple),
    slow=st.lists(
        st.builds(
            Slow, at_s=INSTANTS, for_s=st.floats(0.1, 5.0), replica=st.integers(0, 2), factor=st.floats(0.5, 4.0)
        ),
        max_size=2,
    ).map(tuple),
    scale=st.lists(
        st.builds(Scale, at_s=INSTANTS, pool=st.just("main"), replicas=st.integers(1, 4), delay_s=INSTANTS), max_size=2
    ).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(faults=FAULTS)
def test_whatever_goes_wrong_every_request_is_accounted_for_once_and_nobody_is_busier_than_there(
    faults: FaultSchedule,
) -> None:
    outcome = served(faults)
    assert sorted(record.id for record in outcome.records) == list(range(60))
    for record in outcome.records:
        if record.ended_at is not None and record.error is None:
            assert record.first_token_at is not None
            assert record.scheduled_at < record.first_token_at <= record.ended_at
    assert 0.0 <= outcome.busy_ratio <= 1.0 + 1e-9
    assert outcome.replicas <= 2.0 + 2.0 * len(faults.scale) + len(faults.crash)
