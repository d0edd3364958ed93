"""Grammars: ours says of every token what llama.cpp's says, and what would hold the engine up is refused before."""

import json
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.engines.llamacpp.oracle import Oracle, has_bytes, is_text

from setpoint.engines.api import Sampling
from setpoint.engines.llamacpp.grammar import Choice, Grammar, compile_ahead, compile_grammar
from setpoint.engines.llamacpp.json_schema import schema_to_gbnf
from setpoint.engines.llamacpp.model import Model
from setpoint.errors import RequestError

Schema = dict[str, Any]

SCHEMAS: tuple[Schema, ...] = (
    {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
    {},
    {"type": "string", "maxLength": 5},
    {"enum": ['a"b', 3, None, "é日本", "été"]},
    {"type": "string", "format": "date-time"},
    {"type": "string", "pattern": "^[^a-z]{1,3}[é-ü日-本]+(x|yz)?$"},
    {"properties": {"a": {"type": "integer", "minimum": -5, "maximum": 1234}, "b": {"type": ["number", "null"]}}},
)
LONG = '{"type": "string", "minLength": 1999}'
TEXTS = (
    'root ::= [^b]+ "é" | "bc" .',
    'root ::= ("ab"? "c"{2,3})* x # a comment\nx ::= "ö" |\n "q" [\\x41-\\u0045-]',
    "root ::= [\\U0001F300-\\U0001F5FF]+ [^\\n\\]]{2} | root2\nroot2 ::= (\n [a-z] | [0-9]\n)+",
)


def mask(choice: Choice, vocabulary: int) -> npt.NDArray[np.bool_]:
    found = np.full(vocabulary, not choice.are_allowed)
    found[choice.ids] = choice.are_allowed
    return found


def compiled(model: Model, text: str) -> Grammar:
    grammar = compile_grammar(model, grammar=text)
    assert grammar is not None
    return grammar


@pytest.mark.model
@pytest.mark.parametrize("text", [*(schema_to_gbnf(json.dumps(schema)) for schema in SCHEMAS), *TEXTS])
def test_each_token_is_allowed_where_llama_cpp_allows_it(model: Model, text: str) -> None:
    vocabulary, comparable = model.info.vocabulary, has_bytes(model)
    for seed in range(3):
        chance, ours, theirs = random.Random(seed), compiled(model, text), Oracle(model, text)
        said = b""
        for _ in range(12):
            mine, other = mask(ours.choice(), vocabulary), theirs.allowed(vocabulary)
            if is_whole(said):
                assert np.flatnonzero((mine != other) & comparable).tolist() == []
            else:
                assert not (mine & ~other).any()
            some = [t for t in np.flatnonzero(mine).tolist() if t not in model.end_tokens]
            if not some:
                break
            token = chance.choice(some)
            said += model.piece(token)
            assert is_text(said)
            assert ours.accept(token)
            theirs.accept(token)
        theirs.close()


def is_whole(said: bytes) -> bool:
    try:
        said.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.model
def test_what_is_not_allowed_moves_nothing(model: Model) -> None:
    grammar = compiled(model, 'root ::= "yes" | "no"')
    (yes,), (no,) = (model.tokenize(text, has_start=False) for text in ("yes", "no"))
    assert not grammar.is_allowed(model.eos_token)
    assert grammar.accept(yes)
    assert not grammar.accept(no)
    assert grammar.choice().ids.tolist() == sorted(model.end_tokens)
    assert grammar.accept(model.eos_token)


@pytest.mark.model
def test_who_compiles_ahead_is_found_by_text(model: Model) -> None:
    schema = '{"type": "string", "maxLength": 77}'
    held = compile_ahead(model, Sampling(json_schema=schema))
    for length in range(100, 150):
        compile_ahead(model, Sampling(json_schema=f'{{"type": "string", "maxLength": {length}}}'))
    assert compile_ahead(model, Sampling(json_schema=schema)) is held
    assert compile_ahead(model, Sampling()) is None


def shared(layers: int) -> str:
    """Return a schema of layers of alternatives that share what is below: 2 ** layers ways lead to the bottom."""
    rules = {
        f"{side}{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"$ref": f"#/$defs/b{i + 1}"}, {"const": f"{side}{i}"}]}
        for i in range(layers)
        for side in "ab"
    }
    bottom = {f"{side}{layers}": {"type": "null"} for side in "ab"}
    return json.dumps({"$defs": rules | bottom, "$ref": "#/$defs/a0"})


@pytest.mark.model
def test_rules_that_share_what_is_below_compile_in_linear_time(model: Model) -> None:
    grammar = compile_grammar(model, json_schema=shared(60))
    assert grammar is not None
    assert all(grammar.accept(token) for token in model.tokenize('"b50"'))


@pytest.mark.model
@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        (Sampling(grammar='x ::= "a"'), "no rule named root"),
        (Sampling(grammar="root ::= ("), "line 1: expected \\)"),
        (Sampling(grammar='root ::= "a"\nroot ::= "b"'), "line 2: a rule is defined twice"),
        (Sampling(grammar='root ::= "a" x'), "the rule x is not defined"),
        (Sampling(grammar='root ::= root "a" | "b"'), "left recursion"),
        (Sampling(grammar='root ::= ("a"?)*'), "left recursion"),
        (Sampling(grammar='root ::= "a" root'), "no finite text"),
        (Sampling(grammar="root ::= \0"), "cannot be read"),
        (Sampling(grammar='root ::= "\\q"'), "unknown escape"),
        (Sampling(grammar="root ::= [z-a]"), "empty class"),
        (Sampling(grammar="root ::= [a]{3000}"), "more than 2000 repetitions"),
        (Sampling(grammar='root ::= "ab"{2000}{2000}'), "more than 50000 symbols"),
        (Sampling(grammar=f"root ::= {'(' * 5000}"), "nested too deeply"),
        (Sampling(grammar="#" * 300_000), "more than 262144 bytes"),
        (Sampling(json_schema='{"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}}, '
                              '"required": ["b"]}}}'), "no finite text"),
        (Sampling(json_schema='{"type": "string", "pattern": "^(a?b?c?d?e?f?g?h?i?j?k?l?m?n?o?p?){90}$"}'),
         "too ambiguous"),
        (Sampling(json_schema=f'{{"prefixItems": [{", ".join(40 * [LONG])}]}}'), "more than 50000 symbols"),
        (Sampling(json_schema=shared(60).replace('"anyOf"', '"type": "null", "anyOf"')), "10000 rules"),
    ],
)  # fmt: skip
def test_a_grammar_that_cannot_be_followed_is_refused(model: Model, sampling: Sampling, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        compile_ahead(model, sampling)
    assert caught.value.param == ("response_format" if sampling.json_schema else "grammar")
