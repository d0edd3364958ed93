import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.errors import ConfigError
from setpoint.model import PRESETS
from setpoint.planner.engine_measure import objectives_of
from setpoint.planner.engine_memory import Room, why_not
from setpoint.planner.knobs import (
    DEFAULTS,
    Engine,
    command_of,
    custom_engine,
    filled,
    narrowed,
    parse_knob,
    read_engine,
    with_variants,
)
from setpoint.steptime.architecture import Architecture

NAMES = ("llama-server", "vllm", "sglang")
FILLED = {"model": "m", "host": "h", "port": "1", "context": "500", "cores": "8", "cores_half": "4", "setpoint": "{}"}


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_the_engine_as_it_comes_and_every_other_setting_says_more(name: str) -> None:
    engine = filled(read_engine(name), FILLED)
    plain = command_of(engine, DEFAULTS, (), FILLED)
    assert next(engine.settings()) == DEFAULTS or DEFAULTS in engine.settings()
    for setting in itertools.islice(engine.settings(), 400):
        command = command_of(engine, setting, ("--extra",), FILLED)
        assert command[: len(plain)] == plain
        assert (len(command) > len(plain) + 1) == (setting != DEFAULTS)
        assert not any("{cores" in part or "{model" in part or "{slots" in part for part in command)


@pytest.mark.parametrize("name", NAMES)
def test_every_knob_says_what_it_means_and_what_it_trades(name: str) -> None:
    for knob in read_engine(name).knobs:
        assert knob.meaning
        assert knob.trades
        assert len(knob.labels) > 1
        assert knob.spread > 1.0


def test_what_contradicts_itself_is_no_setting() -> None:
    engine = read_engine("llama-server")
    assert not engine.is_allowed(engine.setting({"cache_type": "q8_0", "flash_attention": "off"}))
    assert engine.is_allowed(engine.setting({"cache_type": "q8_0", "flash_attention": "on"}))
    assert all(engine.is_allowed(one) for one in engine.settings())


def test_slots_bring_their_context_with_them() -> None:
    engine = read_engine("llama-server")
    command = command_of(engine, engine.setting({"slots": "8"}), (), FILLED)
    assert command[-4:] == ["-np", "8", "-c", "4000"]


def test_knobs_can_be_chosen_given_other_values_and_added_as_flags() -> None:
    given_values = {"slots": ("4", "6"), "--keep": ("0", "1")}
    engine = narrowed(read_engine("llama-server"), ("slots",), given_values, has_gpu=False)
    assert [knob.name for knob in engine.knobs] == ["slots", "--keep"]
    assert engine.knobs[0].labels == ("auto", "4", "6")
    assert engine.knob_args(engine.setting({"--keep": "1"})) == ["--keep", "1"]
    assert {knob.name for knob in narrowed(read_engine("vllm"), (), {}, has_gpu=False).knobs} >= {"scheduler"}
    assert "kv_dtype" not in {knob.name for knob in narrowed(read_engine("vllm"), (), {}, has_gpu=False).knobs}
    assert "kv_dtype" in {knob.name for knob in narrowed(read_engine("vllm"), (), {}, has_gpu=True).knobs}


@pytest.mark.parametrize("text", ["slots", "=1,2", "slots=", "slots=,"])
def test_a_knob_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_knob(text)


def test_unknown_engines_knobs_and_values_are_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        read_engine("triton")
    assert "llama-server" in (caught.value.hint or "")
    with pytest.raises(ConfigError) as caught:
        narrowed(read_engine("vllm"), ("slots",), {}, has_gpu=False)
    assert "sequences" in (caught.value.hint or "")
    with pytest.raises(ConfigError):
        narrowed(read_engine("vllm"), (), {"scheduler": ("random",)}, has_gpu=False)
    with pytest.raises(ConfigError):
        narrowed(custom_engine(["server"], ()), (), {}, has_gpu=False)


def test_other_weights_are_a_knob_whose_value_is_the_model() -> None:
    engine = with_variants(read_engine("llama-server"), ["small.gguf"])
    assert command_of(engine, engine.setting({"weights": "small.gguf"}), (), FILLED)[2] == "small.gguf"
    assert command_of(engine, DEFAULTS, (), FILLED)[2] == "m"


@given(memory=st.floats(0.0, 1e12), slots=st.sampled_from(["1", "8", "32"]))
def test_more_memory_never_makes_a_setting_impossible_and_more_slots_never_make_it_possible(
    memory: float, slots: str
) -> None:
    engine = read_engine("llama-server")
    shape = Architecture(
        name="m", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, vocabulary=32000, ffn=14336
    )

    def fits(value: str, size: float, kind: str = "f16") -> bool:
        room = Room(memory_bytes=size, weight_bytes=8e9, architecture=shape, context_tokens=8192)
        return why_not(engine, engine.setting({"slots": value, "cache_type": kind}), room) is None

    assert fits(slots, 2.0 * memory) or not fits(slots, memory)
    assert fits("1", memory) or not fits(slots, memory)
    assert fits(slots, memory, "q8_0") or not fits(slots, memory)


def test_what_memory_cannot_be_told_is_not_dropped() -> None:
    room = Room(memory_bytes=None, weight_bytes=1e15, architecture=None, context_tokens=8192)
    assert why_not(read_engine("vllm"), DEFAULTS, room) is None


def test_the_targets_of_a_class_are_one_promise_and_batch_work_has_none() -> None:
    found = objectives_of([PRESETS["chat"], PRESETS["batch"]])
    assert [one.text for one in found] == ["chat: (ttft<200ms & tpot<50ms)_p95"]


def test_a_command_line_of_ones_own_gets_a_port_where_it_has_none() -> None:
    def port_of(engine: Engine) -> list[str]:
        return command_of(engine, DEFAULTS, (), FILLED)

    assert port_of(custom_engine(["serve", "{model}"], ())) == ["serve", "m", "--port", "1"]
    assert port_of(custom_engine(["serve", "-p={port}"], ())) == ["serve", "-p=1"]
