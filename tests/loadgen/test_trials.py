"""Trials that end when they have shown enough, and a search that keeps to its time."""

import random
from functools import partial

import pytest

from setpoint.loadgen.process import Snapshot
from setpoint.loadgen.search import Answer, SearchSettings, Trial, TrialResult, next_step
from setpoint.loadgen.trials import StopRule, find_max_rate
from setpoint.metrics import Judged, RequestRecord, judge, parse_objectives
from setpoint.workload import PlannedRequest

P95 = parse_objectives("ttft_p95<100ms")


def answered(number: int, ttft_s: float) -> RequestRecord:
    at = 100.0 + 0.1 * number
    return RequestRecord(
        id=number, class_name="c", scheduled_at=at, sent_at=at, first_token_at=at + ttft_s, ended_at=at + ttft_s + 0.1
    )


def plan_of(count: int) -> list[PlannedRequest]:
    return [PlannedRequest(id=number, at_s=0.1 * number, prompt_tokens=1, output_tokens=1) for number in range(count)]


def seen(elapsed_s: float, records: list[RequestRecord]) -> Snapshot:
    return Snapshot(elapsed_s=elapsed_s, sent=0, ended=len(records), in_flight=0, records=records)


def rule(*, is_met_enough: bool = True) -> StopRule:
    return StopRule(P95, plan_of(1000), warmup_s=1.0, window_s=100.0, drain_s=10.0, is_met_enough=is_met_enough)


def test_a_trial_of_which_most_requests_are_late_ends_at_once() -> None:
    stop = rule()
    assert stop(seen(2.0, [answered(number, 0.5) for number in range(10, 25)])) is None
    assert stop(seen(4.0, [answered(number, 0.5) for number in range(25, 35)])) == "missed"


def test_late_requests_of_the_warm_up_end_nothing() -> None:
    assert rule()(seen(9.0, [answered(number, 0.5) for number in range(10)])) is None


def test_a_trial_plainly_within_ends_unless_it_is_to_confirm() -> None:
    good = [answered(number, 0.01) for number in range(300)]
    assert rule()(seen(31.0, good)) == "met"
    assert rule(is_met_enough=False)(seen(31.0, good)) is None


def test_a_trial_is_not_within_while_an_early_request_has_not_ended() -> None:
    good = [answered(number, 0.01) for number in range(300) if number != 20]
    assert rule()(seen(31.0, good)) is None


def test_a_few_long_answers_are_no_backlog_until_they_take_far_longer() -> None:
    stop = rule()
    assert stop(seen(50.0, [answered(number, 0.01) for number in range(998)])) in {None, "met"}
    assert stop(seen(111.0, [])) != "overload"
    assert stop(seen(151.0, [])) == "overload"


def test_a_backlog_that_does_not_drain_is_overload() -> None:
    stop = rule()
    assert stop(seen(109.0, [])) is None
    assert stop(seen(111.0, [])) == "overload"


CROSSING = 6.0


def on_the_clock(trial: Trial, *, generator: random.Random, asked: float) -> TrialResult:
    """Carry out a trial on a server whose violations are 5% at `CROSSING`; it takes the time that it would take."""
    rate = min(trial.users / 0.5, 8.0) if trial.users is not None else trial.rate or 1.0
    share = 0.05 * (rate / CROSSING) ** 8 if trial.users is None else 0.6 * (trial.users > asked)
    seconds = min(trial.requests / rate, trial.seconds_max or 1e9)
    count = max(1, int(seconds * rate))
    records = [answered(number, 0.5 if generator.random() < share else 0.01) for number in range(count)]
    judged: tuple[Judged, ...] = tuple(judge(records, one) for one in P95)
    return TrialResult(
        trial=trial, completed_rps=rate, judged=judged, requests=count, sent=count, spent_s=seconds + 3.0
    )


@pytest.mark.parametrize("minutes", [2.0, 5.0, 15.0])
def test_a_search_keeps_to_its_time_and_is_the_surer_the_more_it_has(minutes: float) -> None:
    widths, rates = [], []
    for seed in range(6):
        generator = random.Random(seed)
        chosen = SearchSettings(objectives=P95, seed=seed, budget_s=60.0 * minutes)
        answer, history = find_max_rate(partial(on_the_clock, generator=generator, asked=4.0), chosen)
        assert sum(result.spent_s for result in history) < 60.0 * minutes * 1.35
        assert answer.estimate is not None
        assert answer.low is not None
        assert answer.high is not None
        widths.append((answer.high - answer.low) / answer.estimate)
        rates += [answer.rate] if answer.rate is not None else []
    assert len(rates) >= 3
    assert all(0.5 * CROSSING < rate < 1.1 * CROSSING for rate in rates)
    assert sorted(widths)[3] < {2.0: 0.9, 5.0: 0.5, 15.0: 0.3}[minutes]


def test_a_trial_in_which_the_client_stood_still_is_repeated_at_no_cost() -> None:
    chosen = SearchSettings(objectives=P95, budget_s=60.0)
    first = next_step([], chosen)
    assert isinstance(first, Trial)
    judged = tuple(judge([], one) for one in P95)
    stalled = TrialResult(
        trial=first, completed_rps=0.0, judged=judged, is_valid=False, is_stalled=True, faults=("still",), spent_s=600.0
    )
    assert next_step([stalled] * 3, chosen) == first
    given_up = next_step([stalled] * 20, chosen)
    assert isinstance(given_up, Answer)
    assert "still" in given_up.reason


def test_a_confirmation_out_of_a_steady_state_is_none() -> None:
    def carry(trial: Trial) -> TrialResult:
        result = on_the_clock(trial, generator=random.Random(trial.seed), asked=4.0)
        return TrialResult(
            trial=trial,
            completed_rps=result.completed_rps,
            judged=result.judged,
            requests=result.requests,
            is_stationary=trial.kind != "confirm",
        )

    answer, _ = find_max_rate(carry, SearchSettings(objectives=P95))
    assert answer.rate is None
    assert "no confirmation run met" in answer.reason
