"""The search, run on systems whose answer is known."""

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.loadgen.crossing import Crossing, Observation, crossing, effective_sizes, least
from setpoint.loadgen.search import Answer, SearchSettings, Trial, TrialResult, next_step
from setpoint.metrics import RequestRecord, judge, overload
from setpoint.metrics.slo_text import parse_objectives

SERVERS = 4
SERVICE_S = 0.1
P95 = parse_objectives("ttft_p95<100ms")


def queue(arrivals: list[float], generator: random.Random) -> list[RequestRecord]:
    """Serve arrivals in order by four servers with exponential service; TTFT is the wait."""
    free = [0.0] * SERVERS
    records = []
    for number, at in enumerate(arrivals):
        server = min(range(SERVERS), key=lambda index: free[index])
        start = max(at, free[server])
        free[server] = start + generator.expovariate(1.0 / SERVICE_S)
        records.append(
            RequestRecord(
                id=number,
                class_name="chat",
                scheduled_at=at,
                sent_at=at,
                first_token_at=start,
                ended_at=free[server],
                output_tokens=1,
            )
        )
    return records


def run(trial: Trial) -> TrialResult:
    """Carry out a trial on the queue; a closed loop of k users keeps min(k, 4) servers busy, and waits only above 4."""
    arrivals_chance, services_chance = random.Random(trial.seed), random.Random(trial.seed + 1000)
    if trial.users is not None:
        waits = 0.0 if trial.users <= SERVERS else (trial.users - SERVERS) * SERVICE_S / SERVERS
        records = [
            RequestRecord(
                id=i, class_name="c", scheduled_at=0.0, sent_at=0.0, first_token_at=waits, ended_at=waits + 0.1
            )
            for i in range(trial.requests)
        ]
        rps = min(trial.users, SERVERS) / SERVICE_S
        return TrialResult(
            trial=trial,
            completed_rps=rps,
            judged=tuple(judge(records, one) for one in P95),
            requests=len(records),
            sent=len(records),
        )
    assert trial.rate is not None
    at, arrivals = 0.0, []
    for _ in range(trial.requests + 100):
        at += arrivals_chance.expovariate(1.0) / trial.rate
        arrivals.append(at)
    records = queue(arrivals, services_chance)[100:]
    return TrialResult(
        trial=trial,
        completed_rps=trial.rate,
        judged=tuple(judge(records, one) for one in P95),
        is_overloaded=overload(records, records[0].scheduled_at, records[-1].scheduled_at).is_overloaded,
        requests=len(records),
        sent=len(arrivals),
    )


def truth() -> float:
    """Return the rate at which 5% of an M/M/4 queue wait longer than 100 ms (Erlang C), by bisection."""
    low, high = 1.0, SERVERS / SERVICE_S - 1e-6
    for _ in range(60):
        rate = (low + high) / 2.0
        load = rate * SERVICE_S
        tail = load**SERVERS / math.factorial(SERVERS) * SERVERS / (SERVERS - load)
        waits = tail / (sum(load**k / math.factorial(k) for k in range(SERVERS)) + tail)
        late = waits * math.exp(-(SERVERS / SERVICE_S - rate) * 0.1)
        low, high = (rate, high) if late < 0.05 else (low, rate)
    return low


def search(seed: int) -> tuple[Answer, list[TrialResult]]:
    history: list[TrialResult] = []
    chosen = SearchSettings(objectives=P95, seed=seed * 100)
    while True:
        step = next_step(history, chosen)
        if isinstance(step, Answer):
            return step, history
        history.append(run(step))
        assert len(history) < 40


def test_the_search_finds_the_rate_of_a_queue_in_few_trials() -> None:
    errors, costs = [], []
    for seed in range(10):
        answer, history = search(seed)
        assert answer.estimate is not None
        errors.append(answer.estimate / truth() - 1.0)
        costs.append(len(history))
    assert sorted(abs(error) for error in errors)[8] < 0.13
    assert abs(sum(errors) / len(errors)) < 0.06
    assert sum(costs) / len(costs) < 20


def test_what_is_confirmed_lies_at_or_below_the_truth_most_of_the_time() -> None:
    answers = [search(seed)[0] for seed in range(10, 18)]
    confirmed = [answer.rate / truth() for answer in answers if answer.rate is not None]
    assert len(confirmed) >= 7
    assert sum(rate <= 1.05 for rate in confirmed) >= len(confirmed) - 1
    assert min(confirmed) > 0.65


def test_the_same_results_give_the_same_next_trial() -> None:
    _, history = search(1)
    chosen = SearchSettings(objectives=P95, seed=100)
    for length in range(len(history)):
        assert next_step(history[:length], chosen) == history[length].trial


def test_an_infeasible_target_is_named_after_one_short_trial() -> None:
    first = next_step([], SearchSettings(objectives=P95))
    assert isinstance(first, Trial)
    assert first.users == 1
    late = [
        RequestRecord(id=i, class_name="c", scheduled_at=0.0, sent_at=0.0, first_token_at=9.0, ended_at=9.1)
        for i in range(30)
    ]
    judged = tuple(judge(late, one) for one in P95)
    answer = next_step([TrialResult(trial=first, completed_rps=1.0, judged=judged)], SearchSettings(objectives=P95))
    assert isinstance(answer, Answer)
    assert answer.rate is None
    assert "one user alone misses ttft_p95<100ms" in answer.reason


def test_a_client_at_its_limits_ends_the_search_and_says_so() -> None:
    first = next_step([], SearchSettings(objectives=P95))
    assert isinstance(first, Trial)
    judged = tuple(judge([], one) for one in P95)
    invalid = TrialResult(trial=first, completed_rps=1.0, judged=judged, is_valid=False, faults=("sends were late",))
    assert next_step([invalid], SearchSettings(objectives=P95)) == first
    answer = next_step([invalid] * 4, SearchSettings(objectives=P95))
    assert isinstance(answer, Answer)
    assert "sends were late" in answer.reason


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(1.5, 90.0), st.floats(0.0, 1.0), st.floats(1.0, 2000.0)), max_size=6),
    st.sampled_from([0.01, 0.05, 0.5]),
)
def test_a_crossing_is_a_distribution_within_its_bounds(seen: list[tuple[float, float, float]], allowed: float) -> None:
    found = crossing([Observation(rate=r, share=s, n=n) for r, s, n in seen], allowed, 1.0, 100.0)
    assert sum(found.masses) == pytest.approx(1.0)
    assert 1.0 <= found.at(0.05) <= found.at(0.5) <= found.at(0.95) <= 100.0 * 1.001


def test_more_violations_move_the_crossing_down() -> None:
    def median(share: float) -> float:
        return crossing([Observation(rate=10.0, share=share, n=300.0)], 0.05, 1.0, 100.0).at(0.5)

    assert median(0.2) < median(0.05) < median(0.0)


def test_a_run_of_luck_is_worth_no_more_requests_than_its_neighbours() -> None:
    clustered = Observation(rate=10.0, share=0.05, requests=800, n=80.0)
    lucky = Observation(rate=10.2, share=0.0, requests=800, n=800.0)
    sizes = effective_sizes([clustered, lucky], 0.05)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)
    assert sizes[1] < 150


def test_far_beyond_the_mark_it_does_not_matter_how_far() -> None:
    def median(share: float) -> float:
        far = Observation(rate=20.0, share=share, requests=400, n=400.0)
        return crossing([far, Observation(rate=8.0, share=0.02, requests=400, n=400.0)], 0.05, 1.0, 100.0).at(0.5)

    assert median(0.3) == pytest.approx(median(0.95), rel=0.02)


def test_a_search_asks_again_after_a_confirmation_that_failed_while_it_is_unsure() -> None:
    _, history = search(3)
    chosen = SearchSettings(objectives=P95, seed=300)
    tried = [result for result in history if result.trial.kind != "confirm"]
    failed = next_step(tried[:12], chosen)
    assert isinstance(failed, Trial)
    late = [
        RequestRecord(id=i, class_name="c", scheduled_at=0.1 * i, sent_at=0.1 * i, first_token_at=9.0, ended_at=9.1)
        for i in range(300)
    ]
    missed = TrialResult(
        trial=msgspec.structs.replace(failed, kind="confirm"),
        completed_rps=1.0,
        judged=tuple(judge(late, one) for one in P95),
        requests=300,
    )
    following = next_step([*tried[:12], missed], chosen)
    assert isinstance(following, Trial)
    assert following.kind == "open"


def test_the_least_of_two_crossings_lies_below_both() -> None:
    rates = (1.0, 2.0, 3.0)
    one, other = Crossing(rates=rates, masses=(0.5, 0.5, 0.0)), Crossing(rates=rates, masses=(0.0, 0.5, 0.5))
    assert least([one, other]).masses == pytest.approx((0.5, 0.5, 0.0))
    assert least([other]).masses == other.masses
