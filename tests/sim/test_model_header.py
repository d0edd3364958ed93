"""Reading the shape of a model from the header of a GGUF file, made here byte by byte."""

import struct
from pathlib import Path

import pytest

from setpoint.errors import ModelError
from setpoint.sim.model_header import is_model_path, read_architecture

U32, STRING, ARRAY, F32 = 4, 8, 9, 6


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def number(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def tensor(name: str) -> bytes:
    return text(name) + struct.pack("<IQQIQ", 2, 64, 64, 0, 0)


def gguf(pairs: list[bytes], tensors: list[bytes], version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    return head + b"".join(pairs) + b"".join(tensors)


TOKENS = 5000
PAIRS = [
    pair("general.architecture", STRING, text("llama")),
    number("llama.embedding_length", 576),
    number("llama.block_count", 30),
    number("llama.attention.head_count", 9),
    number("llama.attention.head_count_kv", 3),
    number("llama.feed_forward_length", 1536),
    pair("llama.rope.freq_base", F32, struct.pack("<f", 10_000.0)),
    pair(
        "tokenizer.ggml.tokens",
        ARRAY,
        struct.pack("<IQ", STRING, TOKENS) + b"".join(text(f"t{i}") for i in range(TOKENS)),
    ),
]


def test_the_shape_is_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(gguf(PAIRS, [tensor("token_embd.weight"), tensor("output_norm.weight")]))
    shape = read_architecture(str(path))
    assert (shape.name, shape.layers, shape.hidden, shape.heads, shape.kv_heads) == ("small", 30, 576, 9, 3)
    assert shape.vocabulary == TOKENS
    assert shape.tied
    path.write_bytes(gguf(PAIRS, [tensor("token_embd.weight"), tensor("output.weight")]))
    assert not read_architecture(str(path)).tied


def test_every_cut_of_a_header_is_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    whole = gguf(PAIRS[:-1], [tensor("output.weight")])
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            read_architecture(str(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a GGUF"),
        (b"PK\x03\x04", "not a GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63), "damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62), "damaged"),
        (gguf([pair("general.architecture", 77, b"")], []), "damaged"),
        (gguf([pair("general.architecture", STRING, text("mamba")), number("mamba.ssm.state_size", 4)], []), "kind"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=words):
        read_architecture(str(path))


def test_a_path_is_told_from_a_name_of_the_catalog(tmp_path: Path) -> None:
    assert is_model_path("x/config.json")
    assert is_model_path("model.gguf")
    assert is_model_path(str(tmp_path))
    assert not is_model_path("llama-3.1-8b")
    with pytest.raises(ModelError, match="cannot read"):
        read_architecture(str(tmp_path / "absent.gguf"))
