"""Definitions of the durations, and of a kept promise, on examples worked out by hand."""

import pytest

from setpoint.metrics import RequestRecord, attainment, goodput_rps, met, misses
from setpoint.model import Slo
from setpoint.units import Seconds


def streamed(**changes: object) -> RequestRecord:
    """Return a request due at 10.0, sent 5 ms late, with four tokens at 10.2, 10.25, 10.30 and 10.40."""
    fields: dict[str, object] = {
        "id": 1,
        "class_name": "chat",
        "scheduled_at": 10.0,
        "sent_at": 10.005,
        "first_token_at": 10.2,
        "ended_at": 10.4,
        "prompt_tokens": 100,
        "output_tokens": 4,
        "event_at": [10.2, 10.25, 10.30, 10.40],
    }
    return RequestRecord(**(fields | changes))  # type: ignore[arg-type]


def slo(**changes: float | str) -> Slo:
    fields: dict[str, object] = {"ttft_s": Seconds(0.25), "tpot_s": Seconds(0.07)}
    return Slo(**(fields | changes))  # type: ignore[arg-type]


def test_latency_counts_from_the_planned_send() -> None:
    record = streamed()
    assert record.ttft_s == pytest.approx(0.2)
    assert record.ttft_wire_s == pytest.approx(0.195)
    assert record.dispatch_lag_s == pytest.approx(0.005)
    assert record.e2e_s == pytest.approx(0.4)


def test_tpot_divides_by_the_tokens_after_the_first() -> None:
    assert streamed().tpot_s == pytest.approx(0.2 / 3)


def test_tpot_leaves_out_every_token_of_the_first_event() -> None:
    record = streamed(event_at=[10.2, 10.4], event_tokens=[2, 2])
    assert record.tpot_s == pytest.approx(0.2 / 2)


def test_tpot_of_an_answer_in_one_event_is_undefined_and_counts_as_met() -> None:
    record = streamed(output_tokens=1, event_at=[10.2], ended_at=10.2)
    assert record.tpot_s is None
    assert met(record, slo(tpot_s=1e-6))


def test_an_event_of_three_tokens_gives_three_equal_gaps() -> None:
    record = streamed(event_at=[10.2, 10.5], event_tokens=[1, 3])
    assert record.itl_s() == pytest.approx([0.1, 0.1, 0.1])
    assert record.event_gaps_s() == pytest.approx([0.3])


def test_events_with_more_tokens_than_told_are_spread_evenly() -> None:
    record = streamed(output_tokens=20, event_at=[10.2, 10.4], ended_at=10.4)
    assert record.itl_s() == pytest.approx([0.02] * 10)


def test_an_unseen_end_of_text_token_does_not_turn_events_into_pairs() -> None:
    record = streamed(output_tokens=5)
    assert record.itl_s() == pytest.approx([0.05, 0.05, 0.10])


def test_each_missed_objective_is_named() -> None:
    assert misses(streamed(), slo()) == ()
    assert misses(streamed(), slo(ttft_s=0.199)) == ("ttft",)
    assert misses(streamed(), slo(ttft_s=0.1, tpot_s=0.06, e2e_s=0.39)) == ("ttft", "tpot", "e2e")


def test_a_failed_request_meets_nothing_even_after_its_first_token() -> None:
    record = streamed(error="cut")
    assert misses(record, Slo()) == ("failed",)
    assert record.e2e_s is None


def test_a_target_that_grows_with_the_prompt_is_honoured() -> None:
    assert met(streamed(), slo(ttft_s=0.1, ttft_per_prompt_token_s=0.001))
    assert not met(streamed(prompt_tokens=50), slo(ttft_s=0.1, ttft_per_prompt_token_s=0.001))


def test_pace_banks_an_early_first_token() -> None:
    """Token 3 comes 200 ms after the first, later than 3 x 60 ms; but the reader began at 10.25, not at 10.2."""
    assert not met(streamed(), slo(tpot_s=0.06))
    assert met(streamed(), slo(tpot_s=0.06, judged_by="pace"))


def test_pace_sees_a_stall_that_the_mean_hides() -> None:
    record = streamed(event_at=[10.2, 10.38, 10.39, 10.40])
    assert met(record, slo())
    assert misses(record, slo(judged_by="pace", ttft_s=0.21)) == ("pace",)


def test_pace_without_a_timeline_judges_the_last_token() -> None:
    assert met(streamed(event_at=[]), slo(judged_by="pace"))
    assert not met(streamed(event_at=[], ended_at=10.5), slo(judged_by="pace"))


def test_attainment_counts_failures_as_misses() -> None:
    records = [streamed(), streamed(error="timeout"), streamed(first_token_at=10.3), streamed(class_name="free")]
    slos = {"chat": slo(ttft_s=0.25)}
    assert attainment(records, slos) == 0.5
    assert goodput_rps(records, slos, window_s=4.0) == 0.5
    assert attainment([], slos) is None
