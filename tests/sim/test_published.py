"""Published measurements are read as they are meant, and every one of them is predicted."""

import csv
from math import exp
from pathlib import Path

import pytest

from setpoint.sim import catalog
from setpoint.sim.predict import case, judged, predict
from setpoint.sim.published import Point, point
from setpoint.steptime.calibrate import calibration, fit_efficiencies
from setpoint.steptime.efficiency import ExpectedError, engine_key

POINTS = Path(__file__).parents[2] / "benchmarks" / "data" / "published-points.csv"
with POINTS.open(encoding="utf-8", newline="") as _file:
    ROWS = {row["id"]: row for row in csv.DictReader(_file)}
NOTHING = ExpectedError(throughput=0.0, tpot=0.0, ttft=0.0, values=0)


def read(row: str, **changes: str) -> Point:
    found = point({**ROWS[row], **changes})
    assert found is not None
    return found


def test_only_weak_rows_and_rows_without_a_machine_are_set_apart() -> None:
    apart = {key for key, row in ROWS.items() if point(row) is None}
    assert apart == {"S167", "S176", "S187", "S191", "S220", "S221", "S222"}


@pytest.mark.parametrize("row", [row for row in ROWS.values() if point(row)], ids=lambda row: row["id"])
def test_every_value_of_a_row_is_predicted(row: dict[str, str]) -> None:
    found = point(row)
    assert found is not None
    assert found.values
    predicted = predict(found, catalog.model(found.model), catalog.hardware(found.hardware), catalog.calibration())
    assert all(predicted[metric] > 0.0 for metric in judged(found))


def test_the_set_up_of_a_row_is_read() -> None:
    static = read("S154")
    assert (static.kind, static.requests, static.layouts[0].tensor) == ("static", 256, 8)
    assert static.values["throughput"] == pytest.approx(1567.4)
    spread = read("S310")
    assert spread.layouts[0].is_spread
    assert spread.quantization.kv_bits == 8
    apart = read("S184")
    assert (apart.kind, apart.workers) == ("disaggregated", (2, 2))
    server = read("S236")
    assert server.targets_s == (0.040, 0.45)
    assert len(server.layouts) > 1


def test_the_kernel_that_a_note_names_is_taken() -> None:
    assert read("S044").quantization.unpacked
    assert read("S157").quantization.unpacked
    assert read("S137").quantization.scope == "ffn"


def test_an_open_loop_beyond_saturation_is_not_judged_by_ttft() -> None:
    assert "ttft" not in judged(read("S101"))
    assert "ttft" not in judged(read("S017"))
    assert "ttft" in judged(read("S016"))


def test_engines_are_known_by_family_and_scheduler() -> None:
    assert engine_key("vLLM", "0.7.3") == "vllm-v0"
    assert engine_key("vLLM (ROCm)", "0.10.0") == engine_key("vLLM") == "vllm"
    assert engine_key("NIM (TensorRT-LLM)", "1.8.0") == "trtllm"
    assert engine_key("SGLang (PD-disaggregated)") == "sglang"
    assert engine_key("Something Else") == "something else"


def test_the_shipped_efficiencies_say_what_error_to_expect() -> None:
    shipped = catalog.calibration()
    assert shipped.fitted_on
    assert 0.0 < shipped.expected_error.throughput < 0.3
    assert 0.0 < shipped.expected_error.tpot < 0.3


def test_an_engine_that_was_never_measured_gets_the_base() -> None:
    shipped = catalog.calibration()
    assert shipped.of(engine="mine", generation="none", precision="none") == shipped.of()


def test_a_fit_finds_efficiencies_again() -> None:
    """Values made with known efficiencies are fitted; the fit reproduces them, though it starts elsewhere."""
    truth = calibration(
        {("base", "", "mbu"): -0.2, ("base", "", "layer_s"): 0.5, ("engines", "vllm", "step_s"): 0.5}, "", NOTHING
    )
    rows = []
    for key in ("S286", "S289", "S293", "S299", "S016", "S105", "S113", "S384"):
        row = read(key)
        model, hardware = catalog.model(row.model), catalog.hardware(row.hardware)
        made = {m: v for m, v in predict(row, model, hardware, truth).items() if m in ("throughput", "tpot", "ttft")}
        rows.append(
            (Point(**{**{f: getattr(row, f) for f in Point.__struct_fields__}, "values": made}), model, hardware)
        )
    cases = [case(*row) for row in rows]
    found = calibration(fit_efficiencies(cases, rounds=4), "", NOTHING)
    left = [abs(ratio) for each in cases for ratio in each.residuals(found) if ratio is not None]
    assert max(left) < 0.1
    assert sum(left) / len(left) < 0.03
    assert found.base.mbu / truth.base.mbu == pytest.approx(1.0, abs=exp(0.2) - 1.0)
