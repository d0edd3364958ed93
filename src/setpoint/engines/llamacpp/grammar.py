"""Output that follows a grammar: llama.cpp's GBNF machine, asked about one token or about all of them.

llama.cpp throws a C++ exception, which would end the process, when a token is accepted that the grammar does not allow.
So `accept` is only for tokens of which `is_allowed` said yes or which survived `restrict`.
"""

import ctypes
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from setpoint.engines.llamacpp.json_schema import schema_to_gbnf
from setpoint.engines.llamacpp.model import Model
from setpoint.errors import RequestError

GRAMMAR_BYTES_MAX: Final = 65536
_token_data = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Grammar:
    """The state of one output within a grammar."""

    def __init__(self, model: Model, text: str) -> None:
        """Compile the GBNF `text`, whose start symbol is `root`; raise RequestError with llama.cpp's reason."""
        if len(text.encode()) > GRAMMAR_BYTES_MAX:
            raise RequestError(f"the grammar is larger than {GRAMMAR_BYTES_MAX} bytes", param="grammar")
        if "\0" in text:
            raise RequestError("the grammar holds a null character", param="grammar")
        self._native, self._vocabulary = model.native, model.info.vocabulary
        self._native.last_errors()
        self._handle: int | None = self._native.c.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        if not self._handle:
            raise RequestError(
                f"the grammar cannot be compiled: {self._native.last_errors() or 'it has no rule named root'}",
                hint="llama.cpp's grammars/README.md explains GBNF",
                param="grammar",
            )
        self._one = np.zeros(1, dtype=_token_data)

    def is_allowed(self, token: int) -> bool:
        """Return whether the grammar lets `token` come next."""
        self._one["id"], self._one["logit"] = token, 0.0
        self._apply(self._one)
        return bool(self._one["logit"][0] == 0.0)

    def restrict(self, row: npt.NDArray[np.float32], ids: npt.NDArray[np.intp] | None = None) -> None:
        """Set the logits `row` of tokens that may not come next to minus infinity; look only at `ids` when given."""
        data = np.zeros(self._vocabulary if ids is None else len(ids), dtype=_token_data)
        data["id"] = np.arange(self._vocabulary) if ids is None else ids
        data["logit"] = row if ids is None else row[ids]
        self._apply(data)
        row[slice(None) if ids is None else ids] = data["logit"]

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
