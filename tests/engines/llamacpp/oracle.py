"""llama.cpp's own grammar machine, asked about tokens: what ours must agree with."""

import codecs
import ctypes
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from setpoint.engines.llamacpp.model import Model

_token_data = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class _TokenDataArray(ctypes.Structure):
    """`struct llama_token_data_array`."""

    _fields_: ClassVar[list[tuple[str, type[Any]]]] = [
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    ]


class Oracle:
    """One output within a GBNF grammar. llama.cpp ends the process when a token is accepted that is not allowed."""

    def __init__(self, model: Model, text: str) -> None:
        self._c = ctypes.CDLL(str(model.native.library))
        self._c.llama_sampler_init_grammar.restype = ctypes.c_void_p
        self._c.llama_sampler_init_grammar.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
        self._c.llama_sampler_apply.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._c.llama_sampler_accept.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self._c.llama_sampler_free.argtypes = [ctypes.c_void_p]
        self._handle = self._c.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        assert self._handle, "llama.cpp refuses the grammar"

    def allowed(self, vocabulary: int) -> npt.NDArray[np.bool_]:
        """Return, for each token, whether the grammar lets it come next."""
        data = np.zeros(vocabulary, dtype=_token_data)
        data["id"] = np.arange(vocabulary)
        array = _TokenDataArray(data.ctypes.data, len(data), -1, False)
        self._c.llama_sampler_apply(self._handle, ctypes.byref(array))
        return np.asarray(data["logit"] == 0.0)

    def accept(self, token: int) -> None:
        """Move on over `token`, which must be allowed."""
        self._c.llama_sampler_accept(self._handle, token)

    def close(self) -> None:
        """Free the state."""
        self._c.llama_sampler_free(self._handle)


def has_bytes(model: Model) -> npt.NDArray[np.bool_]:
    """Return, for each token, whether it stands for well-formed UTF-8 or its beginning, or ends a text.

    Only of these llama.cpp and we have to say the same: it lets control tokens and malformed bytes stand in a text.
    """
    return np.array(
        [token in model.end_tokens or is_text(model.piece(token)) for token in range(model.info.vocabulary)]
    )


def is_text(piece: bytes) -> bool:
    """Return whether `piece` is well-formed UTF-8 that may be cut short at its end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(piece)
    except UnicodeDecodeError:
        return False
    return piece not in {b"", b"\0"}
