"""Output that follows a grammar: llama.cpp's GBNF machine, asked about one token or about many of them.

Asking about every token of a vocabulary takes llama.cpp many milliseconds. But a token whose first character may not
come next may not come either, and nearly every character is a token itself. So the characters are asked about first,
and where few may come, the pairs of characters that begin with them. What remains are the *candidates*, the tokens that
begin so. The same few answers come again and again within a grammar, so the candidates of the latest are kept.

llama.cpp throws a C++ exception, which would end the process, when a token is accepted that the grammar does not allow.
So `accept` is only for tokens of which `is_allowed` or `allowed` said yes.
"""

import ctypes
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from setpoint.engines.llamacpp.json_schema import schema_to_gbnf
from setpoint.engines.llamacpp.model import Model
from setpoint.errors import RequestError

GRAMMAR_BYTES_MAX: Final = 65536
_SETS_KEPT: Final = 32
_FEW: Final = 16
Ids = npt.NDArray[np.intp]
_token_data = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Beginnings:
    """How the tokens of a vocabulary begin: their first byte (256: none), and their first two (65536: fewer)."""

    def __init__(self, model: Model) -> None:
        """Read the whole vocabulary once."""
        pieces = [model.piece(token) for token in range(model.info.vocabulary)]
        self._byte = np.array([piece[0] if piece else 256 for piece in pieces], dtype=np.int32)
        self._pair = np.array([256 * p[0] + p[1] if len(p) > 1 else 65536 for p in pieces], dtype=np.int32)
        ascii_pieces = [(token, piece) for token, piece in enumerate(pieces) if piece.isascii()]
        self._characters = np.array(
            list({p: token for token, p in ascii_pieces if len(p) == 1}.values()), dtype=np.intp
        )
        self._pairs = np.array(list({p: token for token, p in ascii_pieces if len(p) == 2}.values()), dtype=np.intp)  # noqa: PLR2004
        self._kept: OrderedDict[bytes, Ids] = OrderedDict()

    def candidates(self, allowed: Callable[[Ids], npt.NDArray[np.bool_]]) -> Ids:
        """Return the tokens whose first character, and the second where the first are few, `allowed` says may come.

        Tokens that begin with part of a character count as well.
        """
        may_come = allowed(self._characters)
        of_byte = np.ones(257, dtype=np.bool_)
        of_byte[self._byte[self._characters]] = may_come
        pairs = self._pairs[:0]
        if np.count_nonzero(may_come) <= _FEW:
            pairs = self._pairs[of_byte[self._byte[self._pairs]]]
        may_follow = allowed(pairs)
        key = may_come.tobytes() + may_follow.tobytes()
        ids = self._kept.pop(key, None)
        if ids is None:
            of_pair = np.ones(65537, dtype=np.bool_)
            of_pair[self._pair[pairs]] = may_follow
            ids = np.flatnonzero(of_byte[self._byte] & of_pair[self._pair])
            if len(self._kept) == _SETS_KEPT:
                self._kept.popitem(last=False)
        self._kept[key] = ids
        return ids


_beginnings: weakref.WeakKeyDictionary[Model, Beginnings] = weakref.WeakKeyDictionary()


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
        if model not in _beginnings:
            _beginnings[model] = Beginnings(model)
        self._beginnings = _beginnings[model]

    def is_allowed(self, token: int) -> bool:
        """Return whether the grammar lets `token` come next."""
        self._one["id"], self._one["logit"] = token, 0.0
        self._apply(self._one)
        return bool(self._one["logit"][0] == 0.0)

    def allowed(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Return, for each of `ids`, whether the grammar lets it come next."""
        data = np.zeros(len(ids), dtype=_token_data)
        data["id"] = ids
        self._apply(data)
        return np.asarray(data["logit"] == 0.0)

    def candidates(self) -> Ids:
        """Return the tokens whose first characters may come next, in order: all that are allowed are among them."""
        return self._beginnings.candidates(self.allowed)

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
