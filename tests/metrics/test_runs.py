"""Whole runs: warm-up, drift, overload, Little's law, and the summary."""

import math
import random

import pytest

from setpoint.metrics import RequestRecord, drift, latency, little_allowed, little_error, mser5, overload, summarize
from setpoint.model import Slo
from setpoint.units import Seconds


def served(rate: float, service_s: float, n: int, seed: int = 1) -> list[RequestRecord]:
    """Serve by a single server, first come first served, with exponential service of mean `service_s`."""
    generator = random.Random(seed)
    at = free_at = 0.0
    records = []
    for number in range(n):
        at += generator.expovariate(rate)
        start = max(at, free_at)
        free_at = start + generator.expovariate(1.0 / service_s)
        records.append(
            RequestRecord(
                id=number,
                class_name="chat",
                scheduled_at=at,
                sent_at=at,
                first_token_at=start,
                ended_at=free_at,
                prompt_tokens=10,
                output_tokens=5,
            )
        )
    return records


def span(records: list[RequestRecord]) -> tuple[float, float]:
    return records[0].scheduled_at, records[-1].scheduled_at


def test_the_warm_up_is_cut_where_the_slow_start_ends() -> None:
    generator = random.Random(3)
    series = [10.0] * 50 + [generator.random() for _ in range(400)]
    found = mser5(series)
    assert found.is_settled
    assert 50 <= found.dropped <= 100


def test_a_series_that_never_rests_is_not_settled() -> None:
    assert not mser5([float(i) for i in range(200)]).is_settled
    assert not mser5([1.0] * 10).is_settled


def test_a_straight_line_is_drift_and_noise_is_not() -> None:
    generator = random.Random(4)
    times = [float(i) for i in range(20)]
    line = drift(times, [t + generator.random() for t in times])
    flat = drift(times, [generator.random() for _ in times])
    assert line is not None
    assert line.is_rising
    assert line.slope == pytest.approx(1.0, abs=0.1)
    assert flat is not None
    assert not flat.is_drifting
    assert drift([1.0], [1.0]) is None


def test_a_server_asked_for_too_much_is_overloaded() -> None:
    records = served(rate=12.0, service_s=0.1, n=3000)
    found = overload(records, *span(records))
    assert found.is_overloaded
    assert found.completed_ratio < 0.9


def test_a_server_with_room_is_not_overloaded() -> None:
    verdicts = []
    for seed in range(20):
        records = served(rate=6.0, service_s=0.1, n=2000, seed=seed)
        verdicts.append(overload(records, *span(records)).is_overloaded)
    assert sum(verdicts) <= 1


def test_littles_law_holds_where_the_load_is_steady_and_fails_where_it_is_not() -> None:
    steady = served(rate=5.0, service_s=0.1, n=5000)
    growing = served(rate=20.0, service_s=0.1, n=2000)
    assert (little_error(steady, *span(steady)) or 0.0) < 0.02
    assert (little_error(growing, *span(growing)) or 0.0) > 0.2


def test_the_summary_of_a_queue_agrees_with_queueing_theory() -> None:
    records = served(rate=5.0, service_s=0.1, n=20_000)
    summary = summarize(records, {"chat": Slo(ttft_s=Seconds(0.2))})
    assert summary.offered_rps == pytest.approx(5.0, rel=0.03)
    assert summary.completed_rps == pytest.approx(summary.offered_rps, rel=0.01)
    assert summary.output_tokens_per_s == pytest.approx(25.0, rel=0.03)
    assert summary.total_tokens_per_s == pytest.approx(75.0, rel=0.03)
    assert summary.in_flight == pytest.approx(1.0, rel=0.1)
    assert summary.attainment is not None
    truth = 1.0 - 0.5 * 2.718281828 ** (-0.2 * 5.0)
    assert summary.attainment.low <= truth <= summary.attainment.high
    assert summary.overall.latencies["e2e"].mean_s == pytest.approx(0.2, rel=0.1)


def test_the_population_is_what_was_due_in_the_window_finished_or_not() -> None:
    records = served(rate=5.0, service_s=0.01, n=100)
    records[50].error = "timeout"
    records[50].ended_at = None
    start, end = records[40].scheduled_at, records[60].scheduled_at
    summary = summarize(records, window=(start, end))
    assert summary.requests == 20
    assert summary.overall.failed == 1
    assert summary.overall.errors == {"timeout": 1}
    assert summary.overall.latencies["e2e"].count == 20


def test_a_queue_time_that_no_server_tells_has_no_value_not_even_for_the_failed() -> None:
    records = served(rate=5.0, service_s=0.01, n=100)
    records[50].error = "timeout"
    records[50].ended_at = None
    assert latency(records, "queue").count == 0
    records[0].queue_s = 0.01
    assert latency(records, "queue").count == 2


def test_tokens_are_credited_by_the_time_of_their_events() -> None:
    straddling = RequestRecord(
        id=0,
        class_name="chat",
        scheduled_at=1.0,
        sent_at=1.0,
        first_token_at=2.0,
        ended_at=5.0,
        output_tokens=4,
        prompt_tokens=8,
        event_at=[2.0, 3.0, 4.0, 5.0],
    )
    summary = summarize([straddling], window=(0.0, 3.5))
    assert summary.output_tokens_per_s == pytest.approx(2 / 3.5)
    assert summary.prompt_tokens_per_s == pytest.approx(8 / 3.5)


def test_gaps_are_pooled_over_tokens_and_classes_are_kept_apart() -> None:
    def one(number: int, name: str, gap: float) -> RequestRecord:
        times = [number + 1.0 + gap * i for i in range(11)]
        return RequestRecord(
            id=number,
            class_name=name,
            scheduled_at=float(number),
            sent_at=float(number),
            first_token_at=times[0],
            ended_at=times[-1],
            output_tokens=11,
            event_at=times,
        )

    records = [one(number, "fast" if number % 2 else "slow", 0.01 if number % 2 else 0.03) for number in range(100)]
    summary = summarize(records, window=(0.0, 100.0))
    assert summary.classes["fast"].latencies["itl"].at(0.99).value == pytest.approx(0.01, rel=0.005)
    assert summary.classes["slow"].latencies["itl"].at(0.5).value == pytest.approx(0.03, rel=0.005)
    assert summary.overall.latencies["itl"].count == 1000


def test_an_empty_run_is_refused() -> None:
    with pytest.raises(ValueError, match="no records"):
        summarize([])


def test_a_short_window_is_not_convicted_by_its_edges_and_a_growing_backlog_is() -> None:
    steady = [summarize(served(rate=5.0, service_s=0.1, n=60, seed=seed)).is_stationary for seed in range(40)]
    assert sum(steady) >= 36
    assert not summarize(served(rate=20.0, service_s=0.1, n=2000)).is_stationary


def test_the_gap_that_edges_explain_shrinks_with_the_window() -> None:
    def window(end: float) -> float:
        return little_allowed(served(rate=5.0, service_s=0.15, n=6000, seed=3), 100.0, end)

    assert window(104.0) > window(112.0) > 0.05
    assert window(1000.0) == 0.05


def test_long_answers_among_short_ones_are_no_drift() -> None:
    chance = random.Random(5)

    def run(first: int) -> bool:
        records = []
        at = 0.0
        for number in range(500):
            at += chance.expovariate(2.0)
            times = 0.5 * math.exp(chance.gauss(0.0, 1.2))
            records.append(
                RequestRecord(
                    id=first + number,
                    class_name="c",
                    scheduled_at=at,
                    sent_at=at,
                    first_token_at=at,
                    ended_at=at + times,
                )
            )
        error = little_error(records, 10.0, 40.0)
        return error is not None and error <= little_allowed(records, 10.0, 40.0)

    assert sum(run(1000 * number) for number in range(60)) >= 56


def test_one_example_of_each_kind_of_error_is_kept() -> None:
    records = served(rate=5.0, service_s=0.01, n=40)
    for number in (10, 20):
        records[number].error = "rate_limited"
        records[number].detail = f"HTTP 429, the {number}th"
    summary = summarize(records, window=(records[0].scheduled_at, records[-1].scheduled_at))
    assert summary.overall.error_details == {"rate_limited": "HTTP 429, the 10th"}
