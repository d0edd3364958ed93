"""Output that follows a grammar: llama.cpp's GBNF machine, asked about one token or about all of them.

Asking about every token of a vocabulary takes llama.cpp many milliseconds. But a token whose first character may not
come next may not come either, and nearly every character is a token itself. So the characters are asked about first,
and of the rest of the vocabulary only what begins with one of those that may come.

llama.cpp throws a C++ exception, which would end the process, when a token is accepted that the grammar does not allow.
So `accept` is only for tokens of which `is_allowed` said yes or which survived `restrict`.
"""

import ctypes
import weakref
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from setpoint.engines.llamacpp.json_schema import schema_to_gbnf
from setpoint.engines.llamacpp.model import Model
from setpoint.errors import RequestError

GRAMMAR_BYTES_MAX: Final = 65536
_token_data = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class FirstBytes:
    """The first byte of every token (256: none), and the tokens that are one ASCII character each."""

    def __init__(self, model: Model) -> None:
        """Read the whole vocabulary once."""
        pieces = [model.piece(token) for token in range(model.info.vocabulary)]
        self.of_token = np.array([piece[0] if piece else 256 for piece in pieces], dtype=np.int16)
        singles = {piece[0]: token for token, piece in enumerate(pieces) if len(piece) == 1 and piece.isascii()}
        self.characters = np.array(list(singles), dtype=np.intp)
        self.tokens = np.array(list(singles.values()), dtype=np.intp)


_first_bytes: weakref.WeakKeyDictionary[Model, FirstBytes] = weakref.WeakKeyDictionary()


class Grammar:
    """The state of one output within a grammar."""

    def __init__(self, model: Model, text: str) -> None:
        """Compile the GBNF `text`, whose start symbol is `root`; raise RequestError with llama.cpp's reason."""
        if len(text.encode()) > GRAMMAR_BYTES_MAX:
            raise RequestError(f"the grammar is larger than {GRAMMAR_BYTES_MAX} bytes", param="grammar")
        if "\0" in text:
            raise RequestError("the grammar holds a null character", param="grammar")
        self._native = model.native
        self._native.last_errors()
        self._handle: int | None = self._native.c.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        if not self._handle:
            raise RequestError(
                f"the grammar cannot be compiled: {self._native.last_errors() or 'it has no rule named root'}",
                hint="llama.cpp's grammars/README.md explains GBNF",
                param="grammar",
            )
        self._one = np.zeros(1, dtype=_token_data)
        if model not in _first_bytes:
            _first_bytes[model] = FirstBytes(model)
        self._first = _first_bytes[model]

    def is_allowed(self, token: int) -> bool:
        """Return whether the grammar lets `token` come next."""
        self._one["id"], self._one["logit"] = token, 0.0
        self._apply(self._one)
        return bool(self._one["logit"][0] == 0.0)

    def restrict(self, row: npt.NDArray[np.float32], ids: npt.NDArray[np.intp] | None = None) -> None:
        """Set the logits `row` of tokens that may not come next to minus infinity; look only at `ids` when given."""
        if ids is None:
            may_come = np.ones(257, dtype=np.bool_)
            may_come[self._first.characters] = self._after(np.zeros_like(row), self._first.tokens) == 0.0
            may_begin = may_come[self._first.of_token]
            row[~may_begin] = -np.inf
            ids = np.flatnonzero(may_begin)
        row[ids] = self._after(row, ids)

    def _after(self, row: npt.NDArray[np.float32], ids: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Return the logits of `ids`, minus infinity for those that may not come next."""
        data = np.zeros(len(ids), dtype=_token_data)
        data["id"], data["logit"] = ids, row[ids]
        self._apply(data)
        return np.asarray(data["logit"])

    def accept(self, token: int) -> None:
        """Move on over `token`, which must be allowed."""
        self._native.c.llama_sampler_accept(self._handle, token)

    def close(self) -> None:
        """Free the state."""
        if self._handle:
            self._native.c.llama_sampler_free(self._handle)
            self._handle = None

    def _apply(self, data: npt.NDArray[Any]) -> None:
        layout = self._native.layout
        array: Any = layout.token_data_array()
        array.data = ctypes.cast(data.ctypes.data, ctypes.POINTER(layout.token_data))
        array.size, array.selected, array.sorted = len(data), -1, False
        self._native.c.llama_sampler_apply(self._handle, ctypes.byref(array))


def compile_grammar(model: Model, *, grammar: str | None, json_schema: str | None) -> Grammar | None:
    """Return a fresh grammar state for a request, or `None` when it wants none; raise RequestError."""
    if json_schema is not None:
        grammar = schema_to_gbnf(json_schema)
    return Grammar(model, grammar) if grammar is not None else None
