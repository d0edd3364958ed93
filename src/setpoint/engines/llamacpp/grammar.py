"""Output that follows a grammar: which tokens may come next, at a cost that all outputs of the same grammar share.

A grammar (or a JSON schema, which becomes one) is compiled once into an `Automaton`, and what a request holds is a
number, the state of its output. A token moves the state byte by byte. Where it is asked which of all tokens may come,
the answer is kept with the state: it stands for every later output in it, of any request with this grammar.

Compiling takes milliseconds, for the largest grammars some tenths of a second. So it is done before a request comes to
the engine (`compile_ahead`), where a grammar that is wrong, too large or too ambiguous is refused. Who compiled it
holds it meanwhile, and the engine finds it by its text.

llama.cpp's own machine says the same of each token (the tests walk both), except that it lets control tokens and
malformed UTF-8 stand in a text. But it answers each question anew for each output.
"""

import threading
import weakref
from collections import OrderedDict
from typing import Final, NamedTuple

import numpy as np

from setpoint.engines.api import Sampling
from setpoint.engines.llamacpp.automaton import DEAD, Automaton
from setpoint.engines.llamacpp.gbnf import parse_gbnf
from setpoint.engines.llamacpp.json_schema import schema_to_gbnf
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.vocabulary import Ids, Vocabulary
from setpoint.errors import RequestError

GRAMMAR_BYTES_MAX: Final = 262_144
_COMPILED_KEPT: Final = 32
_CHOICE_IDS_KEPT: Final = 500_000
_WIDE: Final = 64
"""From how many first bytes on the next token may begin in many ways."""


class Choice(NamedTuple):
    """The tokens that may come, or those that may not where these are fewer: `are_allowed` says which `ids` are."""

    ids: Ids
    are_allowed: bool


class _Source(NamedTuple):
    text: str
    is_schema: bool


class Grammars:
    """The grammars of one model: those compiled lately or in use, and the choices that outputs came to lately."""

    def __init__(self, model: Model) -> None:
        """Read the vocabulary of `model`."""
        self.vocabulary = Vocabulary(model)
        self._compiling = threading.Lock()
        self._in_use: weakref.WeakValueDictionary[_Source, Automaton] = weakref.WeakValueDictionary()
        self._latest: OrderedDict[_Source, Automaton] = OrderedDict()
        self._choices: weakref.WeakKeyDictionary[Automaton, dict[int, Choice]] = weakref.WeakKeyDictionary()

    def find(self, source: _Source) -> Automaton | None:
        """Return the compiled grammar when there is one; from any thread."""
        return self._in_use.get(source)

    def compiled(self, source: _Source) -> Automaton:
        """Return the compiled grammar; raise RequestError when there can be none. From any thread."""
        with self._compiling:
            automaton = self._in_use.get(source)
            if automaton is None:
                automaton = self._in_use[source] = _compile(source)
            self._latest[source] = automaton
            self._latest.move_to_end(source)
            if len(self._latest) > _COMPILED_KEPT:
                self._latest.popitem(last=False)
            return automaton

    def choice(self, automaton: Automaton, state: int) -> Choice:
        """Return what may come in `state`; from the engine's thread only."""
        known = self._choices.setdefault(automaton, {})
        choice = known.get(state)
        if choice is None:
            if sum(len(choice.ids) for choice in known.values()) > _CHOICE_IDS_KEPT:
                known.clear()
            allowed = self.vocabulary.allowed(automaton, state)
            are_few = 2 * int(np.count_nonzero(allowed)) <= len(allowed)
            choice = known[state] = Choice(np.flatnonzero(allowed if are_few else ~allowed), are_few)
        return choice


_grammars: weakref.WeakKeyDictionary[Model, Grammars] = weakref.WeakKeyDictionary()
_reading = threading.Lock()


class Grammar:
    """The state of one output within a grammar."""

    def __init__(self, model: Model, grammars: Grammars, automaton: Automaton) -> None:
        """Begin an output."""
        self._model, self._grammars, self._automaton = model, grammars, automaton
        self._state = automaton.start

    @property
    def is_wide(self) -> bool:
        """Whether the next token may begin in many ways, as within a string; depends on the state alone."""
        return int(np.count_nonzero(self._automaton.row(self._state))) > _WIDE

    def choice(self) -> Choice:
        """Return the tokens that may come next."""
        return self._grammars.choice(self._automaton, self._state)

    def is_allowed(self, token: int) -> bool:
        """Return whether `token` may come next."""
        return self._after(token) != DEAD

    def accept(self, token: int) -> bool:
        """Move on over `token` if it may come next; return whether it may."""
        state = self._after(token)
        if state != DEAD:
            self._state = state
        return state != DEAD

    def _after(self, token: int) -> int:
        if token in self._model.end_tokens:
            return self._state if self._automaton.is_complete(self._state) else DEAD
        piece = self._model.piece(token)
        return self._automaton.after(self._state, piece) if piece else DEAD


def compile_ahead(model: Model, sampling: Sampling) -> Automaton | None:
    """Return the compiled grammar that `sampling` asks for, `None` when it asks for none; raise RequestError.

    From any thread but the engine's. While what is returned is held, `compile_grammar` takes microseconds.
    """
    source = _source(sampling.grammar, sampling.json_schema)
    return None if source is None else _grammars_of(model).compiled(source)


def compile_grammar(model: Model, *, grammar: str | None = None, json_schema: str | None = None) -> Grammar | None:
    """Return a fresh grammar state for a request, or `None` when it wants none; raise RequestError."""
    source = _source(grammar, json_schema)
    if source is None:
        return None
    grammars = _grammars_of(model)
    return Grammar(model, grammars, grammars.find(source) or grammars.compiled(source))


def _source(grammar: str | None, json_schema: str | None) -> _Source | None:
    if json_schema is not None:
        return _Source(json_schema, is_schema=True)
    return None if grammar is None else _Source(grammar, is_schema=False)


def _grammars_of(model: Model) -> Grammars:
    with _reading:
        if model not in _grammars:
            _grammars[model] = Grammars(model)
        return _grammars[model]


def _compile(source: _Source) -> Automaton:
    text = schema_to_gbnf(source.text) if source.is_schema else source.text
    if len(text.encode()) > GRAMMAR_BYTES_MAX:
        what = "schema" if source.is_schema else "grammar"
        raise RequestError(f"the {what} comes to a grammar of more than {GRAMMAR_BYTES_MAX} bytes", param=what)
    try:
        return Automaton(parse_gbnf(text))
    except RequestError as error:
        if not source.is_schema:
            raise
        why = error.message.removeprefix("the grammar ")
        raise RequestError(f"the JSON schema {why}", hint="simplify the schema", param="response_format") from error
