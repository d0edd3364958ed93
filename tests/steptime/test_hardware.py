"""The catalog holds dense peaks with sources, and refuses what cannot be."""

from pathlib import Path

import msgspec
import pytest

from setpoint.errors import ConfigError
from setpoint.sim import catalog
from setpoint.steptime.hardware import Hardware
from setpoint.steptime.quantization import FORMATS, quantization

ENTRIES = list(catalog.hardwares().values())
GOOD = catalog.hardware("h100-sxm")
MINE = """
[my-card]
generation = "ada"
memory_gib = 24
bandwidth_gb_s = 500
peaks_tflops = { bf16 = 100 }
link_gb_s = 64
link = "PCIe4"
watts = 200
source = "data sheet"
date = "2026-11"
"""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_has_a_source_a_date_and_dated_prices(entry: Hardware) -> None:
    assert entry.source
    assert entry.date
    assert all(price.provider and price.date and price.source for price in entry.prices)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "fp8" in e.peaks_tflops], ids=lambda entry: entry.name)
def test_dense_fp8_is_twice_dense_bf16(entry: Hardware) -> None:
    assert entry.peaks_tflops["fp8"] == pytest.approx(2 * entry.peaks_tflops["bf16"], rel=0.03)


def test_the_int8_path_of_b300_is_all_but_gone() -> None:
    assert catalog.hardware("b300").peak("int8") < 0.1 * catalog.hardware("b300").peak("bf16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peaks_tflops": {"bf16": 362.0, "fp8": 1466.0}}, r"dense fp8 is 4\.05 x bf16"),
        ({"peaks_tflops": {"bf16": 2250.0, "fp4": 4500.0}}, "dense fp4"),
        ({"peaks_tflops": {"fp8": 1.0}}, "no bf16"),
        ({"peaks_tflops": {"bf16": 1.0, "fp6": 2.0}}, "fp6"),
        ({"bandwidth_gb_s": 0.0}, "above zero"),
        ({"source": ""}, "source and date"),
    ],
)
def test_a_figure_with_sparsity_or_without_source_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        msgspec.structs.replace(GOOD, **change)


def test_unknown_hardware_is_answered_with_what_was_meant_and_how_to_add_it() -> None:
    with pytest.raises(ConfigError, match="unknown hardware 'h100-smx'") as caught:
        catalog.hardware("h100-smx")
    assert "h100-sxm" in (caught.value.hint or "")
    assert "docs/models-and-hardware.md" in (caught.value.hint or "")


def test_a_user_adds_a_card_and_may_overrule_one(tmp_path: Path) -> None:
    path = tmp_path / "cards.toml"
    path.write_text(MINE + MINE.replace("my-card", "l4"))
    assert catalog.hardware("my-card", extra=path).bandwidth == 500e9
    assert catalog.hardware("l4", extra=path).bandwidth == 500e9
    assert catalog.hardware("L4").bandwidth == 300e9


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = ", "not TOML"), ("x = 1", "not a table"), ("[x]\nmemory_gib = 1", "missing required field")],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cards.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        catalog.hardware("x", extra=path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        catalog.hardware("x", extra=tmp_path / "none.toml")


def test_fp8_multiplies_in_16_bits_where_there_are_no_fp8_units() -> None:
    fp8 = quantization("FP8")
    assert fp8.precision(catalog.hardware("a100").peaks_tflops) == "bf16"
    assert fp8.precision(GOOD.peaks_tflops) == "fp8"
    assert quantization("w8a8").precision(catalog.hardware("a100").peaks_tflops) == "int8"
    assert quantization("mxfp4").precision(GOOD.peaks_tflops) == "bf16"


def test_a_weight_that_is_unpacked_moves_more_than_it_stores() -> None:
    packed, unpacked = FORMATS["w4a16"], FORMATS["w4a16-gptq"]
    assert unpacked.traffic(unpacked.dense_bytes) > 2.0 > packed.traffic(packed.dense_bytes)


def test_an_unknown_quantization_is_answered_with_what_was_meant() -> None:
    with pytest.raises(ConfigError, match="q4_k") as caught:
        quantization("q4_k")
    assert "q4_k_m" in (caught.value.hint or "")
