import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.planner.curves import good, late, records, trial

from setpoint.metrics import met
from setpoint.model import PRESETS
from setpoint.planner.decide import choose, round_up
from setpoint.planner.holding import highest, holds, least_scale, monotone
from setpoint.planner.search import LOW_MIN, next_rate
from setpoint.planner.trial import Trial, scale_needed, scaled

CHAT = PRESETS["chat"].slo


@given(st.floats(0.001, 5.0), st.floats(0.001, 0.5))
def test_the_scale_of_a_request_is_the_least_factor_with_which_it_meets_its_targets(ttft: float, tpot: float) -> None:
    (record,) = records(1.0, [ttft], tpot_s=tpot)
    scale = scale_needed(record, CHAT)
    assert math.isclose(scale, max(ttft / 0.2, tpot / 0.05), rel_tol=1e-5)
    assert (scale <= 1.0) == met(record, CHAT)
    assert met(record, scaled(CHAT, scale))


@given(st.lists(st.floats(0.05, 0.4), min_size=5, max_size=60))
def test_a_trial_holds_exactly_when_the_promised_share_met_every_target(ttfts: list[float]) -> None:
    one = trial(2.0, ttfts)
    attainment = one.classes["chat"].attainment
    assert attainment is not None
    assert holds(one) == (attainment.value >= 0.95 - 1e-12)


@given(st.lists(st.tuples(st.floats(-5.0, 5.0), st.floats(0.1, 9.0)), min_size=1, max_size=20))
def test_the_monotone_fit_never_falls_keeps_the_mean_and_leaves_a_monotone_series_alone(
    pairs: list[tuple[float, float]],
) -> None:
    values, weights = [v for v, _ in pairs], [w for _, w in pairs]
    fitted = monotone(values, weights)
    assert all(a <= b + 1e-9 for a, b in pairwise(fitted))
    mean = sum(v * w for v, w in pairs)
    assert math.isclose(sum(f * w for f, w in zip(fitted, weights, strict=True)), mean, abs_tol=1e-6)
    rising = sorted(values)
    assert all(math.isclose(a, b, abs_tol=1e-12) for a, b in zip(monotone(rising, weights), rising, strict=True))


def test_the_highest_load_is_that_of_the_last_trial_before_the_targets_fail() -> None:
    found = highest([late(4.0, 0.3), good(1.0), late(3.0, 0.03), good(2.0)])
    assert found is not None
    assert found.rate_rps == 3.0
    assert found.is_supported
    assert found.low_rps is not None
    assert found.high_rps is not None
    assert found.low_rps <= 3.0 <= found.high_rps < 4.5


def test_one_unlucky_trial_among_good_ones_at_higher_rates_does_not_end_the_curve() -> None:
    found = highest([good(1.0), late(2.0, 0.06, n=50), good(3.0, n=300), late(4.0, 0.5)])
    assert found is not None
    assert found.rate_rps == 3.0


def test_a_lucky_short_trial_does_not_outweigh_what_long_ones_show_below_it() -> None:
    found = highest([good(1.0), late(2.0, 0.4, n=400), good(3.0, n=10)])
    assert found is not None
    assert found.rate_rps == 1.0


def test_few_requests_hold_without_support() -> None:
    found = highest([good(1.0, n=20)])
    assert found is not None
    assert not found.is_supported
    assert found.high_rps is None


def test_a_trial_in_which_the_client_was_late_says_nothing() -> None:
    broken = trial(5.0, [0.1] * 100, faults=("sends were late",))
    assert highest([broken]) is None
    assert highest([good(1.0), broken]) == highest([good(1.0)])


def test_failed_requests_beyond_the_percentile_hold_at_no_scale() -> None:
    seen = records(1.0, [0.1] * 20)
    seen[3].error = "timeout"
    assert scale_needed(seen[3], CHAT) == math.inf


def test_the_strategy_that_carries_most_is_chosen_with_what_is_left_at_that_load() -> None:
    chosen = choose(
        {
            "slack": [good(2.0), late(3.0, 0.03), late(4.0, 0.4)],
            "continuous": [good(1.0, strategy="continuous"), late(1.5, 0.6, strategy="continuous")],
        }
    )
    assert chosen is not None
    assert (chosen.strategy, chosen.holding.rate_rps, chosen.is_met) == ("slack", 3.0, True)
    assert chosen.rivals == ()
    assert chosen.headroom_ratio is not None
    assert 0.0 <= chosen.headroom_ratio < 0.34
    assert math.isclose(chosen.latency_room_ratio, 0.5, abs_tol=1e-6)


def test_at_the_same_load_the_one_with_more_room_is_chosen_and_the_other_is_named_as_a_rival() -> None:
    slower = [trial(2.0, [0.18] * 100, strategy="continuous")]
    chosen = choose({"continuous": slower, "slack": [good(2.0)]})
    assert chosen is not None
    assert chosen.strategy == "slack"
    assert chosen.rivals == ("continuous",)


def test_where_no_load_holds_the_choice_is_made_for_the_least_looser_targets() -> None:
    tried = {"slack": [late(1.0, 0.2, ttft_s=0.25), late(2.0, 0.5, ttft_s=0.6)]}
    chosen = choose(tried)
    assert chosen is not None
    assert not chosen.is_met
    assert chosen.factor == 1.3
    assert chosen.holding.rate_rps == 1.0
    assert least_scale(tried["slack"]) is not None


def test_nothing_measured_is_nothing_chosen() -> None:
    assert choose({}) is None
    assert choose({"slack": []}) is None


@given(st.floats(1.0, 900.0))
def test_a_factor_is_rounded_up_by_less_than_a_tenth(factor: float) -> None:
    assert factor - 1e-6 <= round_up(factor) <= factor * 1.1 + 1e-6


def test_the_search_starts_below_the_guess_rises_while_targets_hold_and_falls_while_they_fail() -> None:
    assert next_rate([], 2.0) == 1.6
    assert (next_rate([good(1.6)], 2.0) or 0.0) > 2.0
    assert (next_rate([late(1.6, 0.5)], 2.0) or 9.0) < 1.6


def test_the_search_goes_on_between_what_held_and_what_failed() -> None:
    rate = next_rate([good(1.0), late(3.0, 0.5)], 2.0)
    assert rate is not None
    assert 1.0 < rate < 3.0


def test_the_search_ends_where_even_a_tiny_load_fails() -> None:
    trials: list[Trial] = []
    while (rate := next_rate(trials, 2.0)) is not None:
        trials.append(late(rate, 0.9))
    assert min(one.rate_rps for one in trials) >= 2.0 * LOW_MIN
    assert len(trials) < 10
