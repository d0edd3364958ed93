"""Quantiles: their ranks against published tables, and the honesty of their intervals on a queue."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.metrics.binomial import binomial_cdf, binomial_tail, share_interval, student_t_quantile
from setpoint.metrics.histogram import ERROR, Histogram
from setpoint.metrics.quantile import binomial_ranks, effective_size, estimate, rank_quantile, sample_size_min

finite = st.floats(0.0, 1e3)


@pytest.mark.parametrize(
    ("n", "p95", "p99"),
    [
        (500, (465, 485), (490, 500)),
        (1000, (936, 964), (983, 997)),
        (2000, (1880, 1920), (1971, 1989)),
        (10_000, (9457, 9543), (9880, 9920)),
    ],
)
def test_ranks_agree_with_the_table_of_order_statistics(n: int, p95: tuple[int, int], p99: tuple[int, int]) -> None:
    assert binomial_ranks(0.95, n) == p95
    assert binomial_ranks(0.99, n) == p99


def test_a_finite_upper_end_needs_72_values_for_p95_and_368_for_p99() -> None:
    assert sample_size_min(0.95) == 72
    assert sample_size_min(0.99) == 368
    assert binomial_ranks(0.95, 71)[1] is None
    assert binomial_ranks(0.95, 72)[1] == 72
    assert binomial_ranks(0.99, 367)[1] is None


def test_student_t_agrees_with_the_printed_table() -> None:
    assert student_t_quantile(0.975, 4) == pytest.approx(2.7764451, abs=1e-6)
    assert student_t_quantile(0.025, 19) == pytest.approx(-2.0930241, abs=1e-6)


def test_binomial_sums_agree_with_direct_counting() -> None:
    direct = sum(math.comb(12, k) * 0.3**k * 0.7 ** (12 - k) for k in range(5))
    assert binomial_cdf(4, 12, 0.3) == pytest.approx(direct)
    assert binomial_tail(5, 12, 0.3) == pytest.approx(1.0 - direct)


def test_clopper_pearson_agrees_with_the_rule_of_three() -> None:
    low, high = share_interval(0, 100)
    assert low == 0.0
    assert high == pytest.approx(1.0 - 0.025 ** (1 / 100))


@given(st.lists(finite, min_size=1, max_size=200), st.floats(0.01, 0.999))
def test_the_quantile_is_the_least_value_that_covers_its_share(values: list[float], q: float) -> None:
    found = rank_quantile(sorted(values), q)
    assert sum(one <= found for one in values) >= q * len(values) - 1e-6
    assert sum(one < found for one in values) < q * len(values)


@given(st.lists(finite | st.just(math.inf), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_interval_encloses_the_estimate(values: list[float], q: float) -> None:
    found = estimate(values, q)
    assert (found.value is None) == (found.support == "failures")
    if found.value is not None:
        assert found.low is None or found.low <= found.value
        assert found.high is None or found.high >= found.value
    assert 0 < found.n_eff <= found.n


def test_a_failure_is_later_than_everything() -> None:
    values = [1.0] * 96 + [math.inf] * 4
    assert estimate(values, 0.95).value == 1.0
    assert estimate(values, 0.99).value is None
    assert estimate(values, 0.99).support == "failures"


def test_a_quantile_beyond_the_sample_is_marked() -> None:
    few = estimate([float(i) for i in range(50)], 0.99)
    assert few.support == "too_few"
    assert few.high is None
    assert estimate([], 0.5).support == "too_few"


def queue_times(load: float, n: int, seed: int) -> list[float]:
    """Response times of an M/M/1 queue, whose quantiles are known: -ln(1 - q) / (1 - load)."""
    generator = random.Random(seed)
    waiting, times = 0.0, []
    for _ in range(n):
        service = generator.expovariate(1.0)
        times.append(waiting + service)
        waiting = max(0.0, waiting + service - generator.expovariate(load))
    return times


@pytest.mark.parametrize(("load", "coverage_min"), [(0.01, 0.9), (0.8, 0.85)])
def test_intervals_cover_the_truth_of_a_queue(load: float, coverage_min: float) -> None:
    truth = -math.log(0.05) / (1.0 - load)
    runs = [estimate(queue_times(load, 3000, seed)[300:], 0.95) for seed in range(40)]
    covered = [(r.low is None or r.low <= truth) and (r.high is None or truth <= r.high) for r in runs]
    assert sum(covered) / len(covered) >= coverage_min


def test_a_backlog_makes_requests_worth_less() -> None:
    flags = [float(value > 10.0) for value in queue_times(0.8, 20_000, 1)]
    shuffled = flags[:]
    random.Random(2).shuffle(shuffled)
    assert effective_size(flags).n_eff < 0.2 * len(flags)
    assert effective_size(shuffled).n_eff > 0.4 * len(flags)


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.95, 0.999]))
def test_a_histogram_is_within_its_relative_error(values: list[float], q: float) -> None:
    histogram = Histogram()
    histogram.extend(values)
    assert histogram.quantile(q) == pytest.approx(rank_quantile(sorted(values), q), rel=1.01 * ERROR)


@given(st.lists(finite, max_size=50), st.lists(finite, max_size=50))
def test_merging_counts_as_if_counted_together(left: list[float], right: list[float]) -> None:
    together, one, other = Histogram(), Histogram(), Histogram()
    together.extend(left + right)
    one.extend(left)
    other.extend(right)
    one.merge(other)
    assert (one.buckets, one.zeros, one.count) == (together.buckets, together.zeros, together.count)
