import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planner.curves import good, late, trial

from setpoint.model import PRESETS, ServiceClass
from setpoint.planner.point import bill
from setpoint.planner.shortfall import (
    Engine,
    Shortfall,
    explain,
    longest_prompt,
    prefill_s,
    slowest_ratio,
    smaller_types,
)
from setpoint.steptime.model import linear

MODEL = linear(key="test", step_s=0.010, decode_s=0.001, prefill_s=0.001)
ENGINE = Engine(model=MODEL, prompt_typical=50, prompt_long=300)
HALF = linear(key="half", step_s=0.005, decode_s=0.0005, prefill_s=0.0005)
SLOW_PREFILL = linear(key="slow", step_s=0.005, decode_s=0.0005, prefill_s=0.001)


def remedies(short: Shortfall) -> dict[str, float]:
    return {one.kind: one.value for one in short.remedies}


def test_a_late_first_token_is_told_with_target_excess_load_and_remedies() -> None:
    short = explain({"slack": [late(1.0, 0.2, ttft_s=0.25)]}, PRESETS, ENGINE)
    assert short is not None
    assert (short.class_name, short.objective, short.rate_rps) == ("chat", "ttft", 1.0)
    assert short.over_ratio == pytest.approx(0.25)
    assert short.is_met_idle is False
    found = remedies(short)
    assert found["target"] == 1.3
    assert found["percentile"] == pytest.approx(0.8)
    assert 50 < found["prompt"] < 300


def test_the_prompt_that_is_advised_is_predicted_to_be_in_time_and_a_longer_one_is_not() -> None:
    short = explain({"slack": [late(1.0, 0.2, ttft_s=0.25)]}, PRESETS, ENGINE)
    assert short is not None
    tokens = int(remedies(short)["prompt"])
    overhead = 0.1 - prefill_s(MODEL, 50)
    assert overhead + prefill_s(MODEL, tokens) * MODEL.tail_ratio <= 0.2
    assert overhead + prefill_s(MODEL, tokens + 1) * MODEL.tail_ratio > 0.2


def test_smaller_weights_are_advised_where_their_measured_steps_are_fast_enough() -> None:
    engine = msgspec.structs.replace(ENGINE, others={"q4_0": HALF})
    short = explain({"slack": [trial(1.0, [0.1] * 100, tpot_s=0.053)]}, PRESETS, engine)
    assert short is not None
    assert short.objective == "tpot"
    assert remedies(short)["quantization"] == pytest.approx(0.5, abs=0.01)
    assert "prompt" not in remedies(short)


def test_smaller_weights_that_speed_up_decodes_alone_promise_no_more_than_the_slowest_kind_of_step_gains() -> None:
    assert slowest_ratio(ENGINE, SLOW_PREFILL) > 0.9
    engine = msgspec.structs.replace(ENGINE, others={"q4_0": SLOW_PREFILL})
    short = explain({"slack": [trial(1.0, [0.3] * 100)]}, PRESETS, engine)
    assert short is not None
    assert "quantization" not in remedies(short)


def test_only_smaller_types_than_the_present_one_are_tried() -> None:
    assert smaller_types(16.0) == ["q8_0", "q4_0"]
    assert smaller_types(5.7) == ["q4_0"]
    assert smaller_types(4.5) == []


def test_nothing_that_would_not_suffice_is_advised() -> None:
    short = explain({"slack": [trial(1.0, [3.0] * 400, tpot_s=0.9)]}, PRESETS, ENGINE)
    assert short is not None
    assert set(remedies(short)) == {"target"}


@given(st.floats(0.0, 2.0))
def test_the_longest_prompt_is_the_longest(limit: float) -> None:
    tokens = longest_prompt(MODEL, limit)
    assert tokens == 0 or prefill_s(MODEL, tokens) <= limit
    assert prefill_s(MODEL, tokens + 1) > limit


def test_the_bill_follows_from_rates_and_price() -> None:
    one = good(2.0, n=200)
    cost = bill(one, 3.0)
    assert cost.requests_per_hour == pytest.approx(one.completed_rps * 3600.0)
    assert cost.per_million_output_tokens == pytest.approx(3.0 / cost.output_tokens_per_hour * 1e6)
    assert bill(one, 6.0).per_million_tokens == pytest.approx(2.0 * (bill(one, 3.0).per_million_tokens or 0.0))


def test_a_replica_that_yields_nothing_has_no_price_a_token() -> None:
    idle = msgspec.structs.replace(good(1.0), output_tokens_per_s=0.0, prompt_tokens_per_s=0.0)
    assert bill(idle, 1.0).per_million_output_tokens is None


def test_classes_without_latency_targets_are_never_the_ones_that_fail() -> None:
    classes: dict[str, ServiceClass] = {**PRESETS, "chat": msgspec.structs.replace(PRESETS["batch"], name="chat")}
    one = trial(1.0, [9.0] * 30, classes=classes)
    assert one.worst() is None
    assert one.scale == 0.0
