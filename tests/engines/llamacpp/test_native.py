"""A library whose structs are not ours is convicted before it can corrupt memory."""

import ctypes
import ctypes.util
import dataclasses
import importlib.metadata
from pathlib import Path
from typing import ClassVar

import pytest

from setpoint.engines.llamacpp.layout import B11549, ContextParams, Field, ModelParams
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.native import Native, check_layout, open_native
from setpoint.errors import ConfigError


@pytest.fixture(scope="module")
def xllamacpp() -> Native:
    return open_native("xllamacpp")


def without(structure: type[ctypes.Structure], name: str) -> type[ctypes.Structure]:
    kept: list[Field] = [(field[0], field[1]) for field in structure._fields_ if field[0] != name]

    class Shifted(ctypes.Structure):
        _fields_: ClassVar[list[Field]] = kept

    return Shifted


def test_the_layout_fits_the_build_that_it_is_made_for(xllamacpp: Native) -> None:
    check_layout(xllamacpp.c, B11549, provider="xllamacpp")
    assert xllamacpp.c.llama_version() == b"0.6.0-dev"
    assert "CPU" in xllamacpp.system


@pytest.mark.parametrize("name", ["lazy_mode", "n_gpu_layers", "kv_overrides", "vocab_only", "tensor_split"])
def test_a_model_struct_that_lacks_a_field_is_convicted(xllamacpp: Native, name: str) -> None:
    wrong = dataclasses.replace(B11549, model_params=without(ModelParams, name))
    with pytest.raises(ConfigError, match="does not fit") as caught:
        check_layout(xllamacpp.c, wrong, provider="xllamacpp")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["n_seq_max", "n_outputs_max_per_seq", "moe_cache_size", "swa_full", "ctx_other"])
def test_a_context_struct_that_lacks_a_field_is_convicted(xllamacpp: Native, name: str) -> None:
    wrong = dataclasses.replace(B11549, context_params=without(ContextParams, name))
    with pytest.raises(ConfigError, match="llama_context_default_params"):
        check_layout(xllamacpp.c, wrong, provider="xllamacpp")


def test_a_struct_with_a_field_too_many_is_convicted(xllamacpp: Native) -> None:
    class Longer(ctypes.Structure):
        _fields_: ClassVar[list[Field]] = [*ContextParams._fields_, ("new", ctypes.c_void_p)]

    wrong = dataclasses.replace(B11549, context_params=Longer)
    with pytest.raises(ConfigError, match="bytes into a struct"):
        check_layout(xllamacpp.c, wrong, provider="xllamacpp")


def test_another_version_is_convicted(xllamacpp: Native) -> None:
    with pytest.raises(ConfigError, match=r"the layout is for 9\.9"):
        check_layout(xllamacpp.c, dataclasses.replace(B11549, version="9.9"), provider="xllamacpp")


def test_another_package_version_is_refused_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setpoint.engines.llamacpp.native._opened", {})
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "2027.1.1")
    with pytest.raises(ConfigError, match=r"xllamacpp 2027\.1\.1 is installed"):
        open_native("xllamacpp")


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a provider nor a file"):
        open_native("nonsense")
    broken = tmp_path / "libllama.so"
    broken.write_bytes(b"\x7fELF")
    with pytest.raises(ConfigError, match="cannot open libllama"):
        open_native(str(broken))


def test_a_library_without_the_functions_is_refused() -> None:
    other = Path(ctypes.util.find_library("m") or "libm.so.6")
    with pytest.raises(ConfigError, match="functions are missing"):
        Native(other, B11549, provider="libm", version="1")


def test_the_environment_names_the_provider(monkeypatch: pytest.MonkeyPatch, xllamacpp: Native) -> None:
    monkeypatch.setenv("SETPOINT_LLAMA", "xllamacpp")
    assert open_native() is xllamacpp


@pytest.mark.model
def test_every_installed_provider_tokenizes_alike(model: Model, starter_path: Path, xllamacpp: Native) -> None:
    with Model(starter_path, native=xllamacpp) as other:
        text = "Naïve café, 東京 and 👋🏽 <|im_end|>"
        assert other.tokenize(text) == model.tokenize(text)
        assert b"".join(map(other.piece, other.tokenize(text))).decode() == text
