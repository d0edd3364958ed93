"""One loaded GGUF model: its weights, its vocabulary, its facts.

The model file is checked before llama.cpp sees it (magic, size against memory), so that the usual mistakes get a
sentence instead of a log. Tokenization is exact: `tokenize` treats text as text, and only a rendered chat template has
its special tokens parsed (`chat.ChatTemplate`).
"""

import ctypes
import os
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from setpoint.engines.llamacpp.native import Native, open_native
from setpoint.errors import ModelError, RequestError

_MAGIC: Final = b"GGUF"
_META_BYTES: Final = 1024
_PIECE_BYTES: Final = 256


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is; `weight_bytes` are the tensors, `kv_bytes_per_token` what one token's keys and values take."""

    name: str
    description: str
    architecture: str
    layers: int
    heads: int
    kv_heads: int
    embedding: int
    context_tokens: int
    vocabulary: int
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int


class Model:
    """A model in memory. Free it with `close()`, or use it in a `with` statement."""

    def __init__(self, path: Path, *, native: Native | None = None, gpu_layers: int = 0) -> None:
        """Load the GGUF file at `path`, with `gpu_layers` of it on a GPU (-1: all, where the build has one).

        Raises ModelError when the file is missing, is no GGUF, is broken, or needs more memory than there is.
        """
        self.native = native or open_native()
        self.path = path
        self._pieces: dict[int, bytes] = {}
        _check_file(path, is_in_memory=not gpu_layers)
        c = self.native.c
        params: Any = c.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        self.native.last_errors()
        self.handle: int | None = c.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise ModelError(
                f"llama.cpp cannot load {path}: {self.native.last_errors() or 'no reason given'}",
                hint="the file may be cut short or of an architecture that this build does not know; fetch it again",
            )
        self._vocab: int = c.llama_model_get_vocab(self.handle)
        self.info = self._read_info()
        if c.llama_model_has_encoder(self.handle) or not c.llama_model_has_decoder(self.handle):
            self.close()
            raise ModelError(f"{path} is not a decoder-only text model", hint="choose a model that generates text")
        self.end_tokens = frozenset(t for t in range(self.info.vocabulary) if c.llama_vocab_is_eog(self._vocab, t))

    def __enter__(self) -> Self:
        """Return the model itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Free the model."""
        self.close()

    def close(self) -> None:
        """Free the weights; contexts of this model must be gone."""
        if self.handle:
            self.native.c.llama_model_free(self.handle)
            self.handle = None

    @property
    def vocab(self) -> int:
        """The C handle of the vocabulary."""
        return self._vocab

    @property
    def is_prefix_sharable(self) -> bool:
        """Whether a part of a sequence's state can be copied (not so for recurrent models)."""
        c = self.native.c
        return not (c.llama_model_is_recurrent(self.handle) or c.llama_model_is_hybrid(self.handle))

    @property
    def eos_token(self) -> int:
        """The token that ends a text, or -1."""
        return int(self.native.c.llama_vocab_eos(self._vocab))

    def special_text(self, which: str) -> str:
        """Return the text of the `bos` or the `eos` token, empty when the model has none."""
        token = getattr(self.native.c, f"llama_vocab_{which}")(self._vocab)
        return (
            str(self.native.c.llama_vocab_get_text(self._vocab, token).decode(errors="replace")) if token >= 0 else ""
        )

    def metadata(self, key: str) -> str | None:
        """Return the GGUF metadata value of `key` as text, or `None`."""
        buffer = ctypes.create_string_buffer(_META_BYTES)
        length = self.native.c.llama_model_meta_val_str(self.handle, key.encode(), buffer, _META_BYTES)
        return buffer.value.decode(errors="replace") if length >= 0 else None

    def chat_template(self) -> str | None:
        """Return the model's own chat template (a Jinja2 text), or `None`."""
        template = self.native.c.llama_model_chat_template(self.handle, None)
        return template.decode(errors="replace") if template else None

    def tokenize(self, text: str, *, has_start: bool = True, is_special_parsed: bool = False) -> tuple[int, ...]:
        """Return the tokens of `text`; `has_start` adds the model's start token where it wants one.

        With `is_special_parsed` text such as `<|im_end|>` becomes the special token: only for rendered templates.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise RequestError("the text holds a lone surrogate, which is no Unicode character") from error
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        count = self.native.c.llama_tokenize(self._vocab, data, len(data), tokens, room, has_start, is_special_parsed)
        if count < 0:
            raise RequestError("the text cannot be tokenized", hint="shorten it")
        return tuple(tokens[:count])

    def piece(self, token: int) -> bytes:
        """Return the bytes that `token` stands for; a control token stands for none."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._read_piece(token)
        return found

    def _read_piece(self, token: int) -> bytes:
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = int(self.native.c.llama_token_to_piece(self._vocab, token, buffer, room, 0, False))
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    def _read_info(self) -> ModelInfo:
        c, handle = self.native.c, self.handle
        architecture = self.metadata("general.architecture") or "unknown"
        layers, heads = int(c.llama_model_n_layer(handle)), int(c.llama_model_n_head(handle))
        kv_heads, embedding = int(c.llama_model_n_head_kv(handle)), int(c.llama_model_n_embd(handle))
        key = int(self.metadata(f"{architecture}.attention.key_length") or embedding // max(heads, 1))
        value = int(self.metadata(f"{architecture}.attention.value_length") or embedding // max(heads, 1))
        description = ctypes.create_string_buffer(_META_BYTES)
        c.llama_model_desc(handle, description, _META_BYTES)
        return ModelInfo(
            name=self.metadata("general.name") or self.path.stem,
            description=description.value.decode(errors="replace"),
            architecture=architecture,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            embedding=embedding,
            context_tokens=int(c.llama_model_n_ctx_train(handle)),
            vocabulary=int(c.llama_vocab_n_tokens(self._vocab)),
            parameters=int(c.llama_model_n_params(handle)),
            weight_bytes=int(c.llama_model_size(handle)),
            kv_bytes_per_token=2 * layers * kv_heads * (key + value),
        )


def memory_available() -> int | None:
    """Return the bytes of memory that can still be used, or `None` where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _check_file(path: Path, *, is_in_memory: bool) -> None:
    if path.is_dir():
        raise ModelError(f"{path} is a directory", hint="name the .gguf file in it")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no model file {path}", hint="leave the model out to use the starter model"
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", hint="check the permissions of the file") from error
    if magic != _MAGIC:
        raise ModelError(f"{path} is not a GGUF file", hint="convert it with llama.cpp's convert_hf_to_gguf.py")
    available = memory_available()
    if is_in_memory and available is not None and size > available:
        raise ModelError(
            f"{path} needs {size / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are free",
            hint="choose a smaller model or a smaller quantization of it",
        )
