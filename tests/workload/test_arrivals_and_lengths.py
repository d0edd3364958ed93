"""Laws of arrivals, lengths and mixes."""

import math
from functools import partial
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.errors import WorkloadError
from setpoint.seeds import stream
from setpoint.workload import (
    CONSTANT,
    Diurnal,
    Empirical,
    Fixed,
    Gaps,
    LogNormal,
    Ramp,
    Rate,
    Stairs,
    Steady,
    Traffic,
    Uniform,
    arrival_times,
    parse_lengths,
    plan_traffic,
)

RATES = [
    Steady(4.0),
    Ramp(1.0, 7.0, 30.0),
    Ramp(9.0, 1.0, 30.0),
    Diurnal(4.0, 0.9, 60.0),
    Stairs(((10, 2.0), (5, 8.0))),
]


def cumulative(rate: Rate, at: float) -> float:
    """Return how many arrivals are due by `at`, by bisection on the inverse."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rate.when(middle) < at else (low, middle)
    return low


@given(st.sampled_from(RATES), st.floats(0.0, 300.0), st.floats(0.001, 50.0))
def test_time_never_runs_backwards(rate: Rate, units: float, more: float) -> None:
    assert 0.0 <= rate.when(units) <= rate.when(units + more) + 1e-9


@pytest.mark.parametrize(
    ("rate", "at", "arrivals"),
    [
        (Steady(4.0), 10.0, 40.0),
        (Ramp(1.0, 7.0, 30.0), 30.0, 120.0),
        (Ramp(1.0, 7.0, 30.0), 15.0, 15.0 + 0.5 * 0.2 * 15.0**2),
        (Ramp(0.0, 6.0, 30.0), 40.0, 90.0 + 60.0),
        (Diurnal(4.0, 0.9, 60.0), 60.0, 240.0),
        (Diurnal(4.0, 1.0, 60.0), 30.0, 120.0 + 4.0 * 60.0 / math.pi),
        (Stairs(((10, 2.0), (5, 8.0))), 12.0, 36.0),
    ],
)
def test_a_profile_yields_the_integral_of_its_rate(rate: Rate, at: float, arrivals: float) -> None:
    assert cumulative(rate, at) == pytest.approx(arrivals, rel=1e-6)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_gaps_have_mean_one_and_the_burstiness_asked_for(cv: float) -> None:
    chance = stream(1, "gaps")
    gaps = [Gaps(cv=cv).draw(chance) for _ in range(40_000)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1.0, abs=0.06)
    assert spread / mean == pytest.approx(cv, abs=0.15)


@given(st.floats(0.1, 100.0), st.floats(0.1, 100.0), st.sampled_from([CONSTANT, Gaps(), Gaps(cv=2.5)]))
def test_another_rate_is_the_same_pattern_at_another_speed(one: float, other: float, gaps: Gaps) -> None:
    slow = list(islice(arrival_times(Steady(one), stream(7, "x"), gaps), 50))
    fast = list(islice(arrival_times(Steady(other), stream(7, "x"), gaps), 50))
    assert [at * one for at in slow] == pytest.approx([at * other for at in fast])


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_that_is_not_positive_is_refused(bad: float) -> None:
    with pytest.raises(WorkloadError, match="must be positive"):
        Steady(bad)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("256", Fixed(256)),
        ("uniform:100-500", Uniform(100, 500)),
        ("lognormal:mean=200,cv=0.8,max=2048", LogNormal(200.0, 0.8, 1, 2048)),
    ],
)
def test_lengths_are_read_as_written(text: str, meant: object) -> None:
    assert parse_lengths(text) == meant


@pytest.mark.parametrize(
    "text", ["", "zipf:3", "uniform:9-3", "uniform:a-b", "0", "-4", "lognormal:cv=1", "lognormal:sd=1"]
)
def test_a_length_that_means_nothing_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        parse_lengths(text)
    assert caught.value.hint


@given(
    st.integers(0, 2**32),
    st.sampled_from([Fixed(9), Uniform(3, 5), LogNormal(50, 2.0, 4, 80), Empirical.of([1, 1, 7])]),
)
def test_a_length_stays_in_its_range(seed: int, lengths: Fixed | Uniform | LogNormal | Empirical) -> None:
    drawn = lengths.draw(stream(seed, "lengths"))
    allowed = {Fixed: {9}, Uniform: {3, 4, 5}, LogNormal: set(range(4, 81)), Empirical: {1, 7}}[type(lengths)]
    assert drawn in allowed


def test_a_log_normal_has_the_mean_that_it_is_given() -> None:
    chance = stream(2, "lengths")
    drawn = [LogNormal(200.0, 0.8).draw(chance) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(200.0, rel=0.03)


CHAT = Traffic(class_name="chat", share=3, prompt=Uniform(10, 90), output=Fixed(20))
BATCH = Traffic(class_name="batch", share=1, prompt=Fixed(500), output=Uniform(50, 99))


def test_a_mix_keeps_its_shares_and_its_order() -> None:
    plan = plan_traffic([CHAT, BATCH], Steady(10.0), partial(stream, 1), duration_s=400.0)
    assert len(plan) == pytest.approx(4000, rel=0.05)
    assert sum(one.class_name == "chat" for one in plan) / len(plan) == pytest.approx(0.75, abs=0.02)
    assert all(earlier.at_s <= later.at_s for earlier, later in pairwise(plan))
    assert len({one.id for one in plan}) == len(plan)


def test_one_class_does_not_disturb_the_draws_of_another() -> None:
    alone = plan_traffic([CHAT], Steady(7.5), partial(stream, 1), duration_s=50.0)
    mixed = plan_traffic([CHAT, BATCH], Steady(10.0), partial(stream, 1), duration_s=50.0)
    chats = [(one.at_s, one.prompt_tokens) for one in mixed if one.class_name == "chat"]
    assert [at for at, _ in chats] == pytest.approx([one.at_s for one in alone])
    assert [tokens for _, tokens in chats] == [one.prompt_tokens for one in alone]


def test_another_rate_asks_the_same_questions() -> None:
    slow = plan_traffic([CHAT], Steady(1.0), partial(stream, 1), count=100)
    fast = plan_traffic([CHAT], Steady(9.0), partial(stream, 1), count=100)
    assert [one.prompt_tokens for one in slow] == [one.prompt_tokens for one in fast]


def test_a_conversation_carries_its_history() -> None:
    talk = Traffic(class_name="chat", prompt=Fixed(10), output=Fixed(20), turns=Fixed(3), think_s=5.0, prefix_tokens=4)
    plan = plan_traffic([talk], Steady(1.0), partial(stream, 1), count=2)
    first = sorted((one for one in plan if one.session == 0), key=lambda one: one.turn)
    assert [one.prompt_tokens for one in first] == [10, 40, 70]
    assert first[0].think_s == 0.0
    assert all(one.think_s > 0.0 for one in first[1:])
    assert {one.prefix_id for one in plan} == {0}


def test_a_plan_without_an_end_or_with_a_class_twice_is_refused() -> None:
    with pytest.raises(WorkloadError, match="needs an end"):
        plan_traffic([CHAT], Steady(1.0), partial(stream, 1))
    with pytest.raises(WorkloadError, match="each name once"):
        plan_traffic([CHAT, CHAT], Steady(1.0), partial(stream, 1), count=3)
