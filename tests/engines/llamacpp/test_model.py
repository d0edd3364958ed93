"""Loading a model, its facts, its tokens and its chat template; and files that are no model."""

import errno
from pathlib import Path

import pytest

from setpoint.engines.llamacpp.chat import ChatTemplate
from setpoint.engines.llamacpp.model import Model
from setpoint.errors import ModelError, RequestError

pytestmark = pytest.mark.model


def test_the_model_says_what_it_is(model: Model) -> None:
    info = model.info
    assert (info.architecture, info.layers, info.heads, info.kv_heads) == ("llama", 30, 9, 3)
    assert (info.context_tokens, info.vocabulary, info.embedding) == (8192, 49152, 576)
    assert info.kv_bytes_per_token == 30 * 3 * 64 * 2 * 2
    assert 90e6 < info.weight_bytes < 100e6
    assert model.eos_token in model.end_tokens


def test_special_tokens_are_text_unless_a_template_wrote_them(model: Model) -> None:
    assert len(model.tokenize("<|im_end|>")) > 1
    assert model.tokenize("<|im_end|>", is_special_parsed=True) == (2,)
    assert model.piece(2) == b""


def test_any_text_survives_tokenization(model: Model) -> None:
    text = "Emoji 👩‍👩‍👧, accents é, Chinese 漢字, tabs \t and an empty line\n\n."
    assert b"".join(map(model.piece, model.tokenize(text))).decode() == text
    assert model.tokenize("") == ()


def test_a_lone_surrogate_is_refused(model: Model) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        model.tokenize("\ud800")


def test_the_chat_template_is_the_model_s_own(chat: ChatTemplate) -> None:
    text = chat.render([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert chat.prompt([{"role": "user", "content": "Hi"}]).count(1) == 3


def test_messages_that_the_template_cannot_take_are_refused(chat: ChatTemplate) -> None:
    with pytest.raises(RequestError, match="refuses these messages"):
        chat.render([{"role": "user", "content": {"no": "text"}}, {}])


def test_a_template_cannot_leave_its_sandbox(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "chat_template", lambda: "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(RequestError, match="refuses"):
        ChatTemplate(model).render([])
    monkeypatch.setattr(model, "chat_template", lambda: "{% for %}")
    with pytest.raises(ModelError, match="broken"):
        ChatTemplate(model)
    monkeypatch.setattr(model, "chat_template", lambda: None)
    with pytest.raises(ModelError, match="has no chat template"):
        ChatTemplate(model)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model file") as caught:
        Model(tmp_path / "none.gguf")
    assert caught.value.hint
    with pytest.raises(ModelError, match="is a directory"):
        Model(tmp_path)


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        Model(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        Model(path)


@pytest.mark.parametrize("kept", [10, 5000, 2_000_000, 50_000_000])
def test_a_file_that_was_cut_short_is_refused_with_llama_cpps_reason(
    tmp_path: Path, starter_path: Path, kept: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "short.gguf"
    with starter_path.open("rb") as file:
        path.write_bytes(file.read(kept))
    with pytest.raises(ModelError, match="cannot load") as caught:
        Model(path)
    assert "no reason given" not in caught.value.message
    assert capfd.readouterr().err == ""


def test_a_broken_header_is_refused(tmp_path: Path, starter_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    with starter_path.open("rb") as file:
        data = bytearray(file.read(100_000))
    data[40:60] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(ModelError, match="cannot load"):
        Model(path)


def test_a_model_larger_than_memory_is_refused(starter_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setpoint.engines.llamacpp.model.memory_available", lambda: 10_000_000)
    with pytest.raises(ModelError, match=r"needs 0\.1 GiB of memory"):
        Model(starter_path)


def test_a_file_that_may_not_be_read_is_named(starter_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        Model(starter_path)
