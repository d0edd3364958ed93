"""JSON schemas as grammars: what they let through, and what is refused by name."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.engines.llamacpp.grammar import compile_grammar
from setpoint.engines.llamacpp.json_range import integers_between
from setpoint.engines.llamacpp.json_schema import schema_to_gbnf
from setpoint.engines.llamacpp.model import Model
from setpoint.errors import RequestError

Schema = dict[str, Any]
Accepts = Callable[[Schema | str, str], bool]


@pytest.fixture(scope="module")
def accepts(model: Model) -> Accepts:
    """Return what tells whether a schema (or a GBNF text) accepts a text as a whole."""

    def ask(schema: Schema | str, text: str) -> bool:
        grammar = schema if isinstance(schema, str) else schema_to_gbnf(json.dumps(schema))
        state = compile_grammar(model, grammar=grammar)
        assert state is not None
        return all(state.accept(token) for token in model.tokenize(text)) and state.is_allowed(model.eos_token)

    return ask


PERSON = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": ["number", "null"]}},
    "required": ["b"],
    "title": "Person",
}
NODE = {
    "type": "object",
    "properties": {"v": {}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    "required": ["v"],
}
TREE = {"$defs": {"node": NODE}, "$ref": "#/$defs/node"}


@pytest.mark.model
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (PERSON, ['{"b": 1}', '{"a": "x", "b": -2, "c": null}', '{"b":0,"c":1.5e3}'], ["{}", '{"b": 1.5}', "[1]"]),
        (PERSON, [], ['{"a": "x"}', '{"b": 1, "d": 2}', '{"b": 1,}', '{"a": "x" "b": 1}']),
        (TREE, ['{"v": 1}', '{"v": [], "kids": [{"v": "x", "kids": []}]}'], ['{"kids": []}', '{"v": 1, "kids": [1]}']),
        ({"enum": ['a"b', 3, None]}, ['"a\\"b"', "3", "null"], ['"a"', "4"]),
        ({"const": {"k": [True]}}, ['{"k": [true]}'], ['{"k": [false]}']),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
         ["[true, false]", "[true,true,true]"], ["[]", "[true]", "[true, true, true, true]"]),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}]}, ['[1, "x"]'], ["[1]", '["x", 1]']),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"a\\n"', '"äöü"'], ['"a"', '"abcd"', "ab"]),
        ({"type": "string", "pattern": "^[A-C]+-\\d{2}(x|yz)?$"}, ['"AB-12"', '"C-00yz"'], ['"D-12"', '"A-12y"']),
        ({"type": "string", "pattern": '^[^a-z]"\\\\.$'}, ['"A\\"\\\\b"'], ['"a\\"\\\\b"', '"A\\\\b"']),
        ({"type": "string", "format": "date"}, ['"2026-11-24"'], ['"2026-13-24"', '"today"']),
        ({"type": "integer", "minimum": -3, "exclusiveMaximum": 12}, ["-3", "0", "11"], ["-4", "12", "-0", "100"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"x": 1, "y": 2}'], ['{"x": "y"}']),
        ({"anyOf": [{"type": "null"}, {"type": "object", "properties": {"x": {}}, "required": ["x"]}]},
         ["null", '{"x": [1, {}]}'], ["{}", "1"]),
        ({"allOf": [{"properties": {"x": {"type": "integer"}}, "required": ["x"]},
                    {"properties": {"y": {"type": "null"}}, "required": ["y"]}]},
         ['{"x": 1, "y": null}'], ['{"x": 1}']),
        ({}, ["null", '{"any": ["thing", 1.5, {"x": {}}]}'], ["nul", "{"]),
    ],
)  # fmt: skip
def test_a_schema_lets_through_what_satisfies_it(
    accepts: Accepts, schema: Schema, good: list[str], bad: list[str]
) -> None:
    assert [text for text in good if not accepts(schema, text)] == []
    assert [text for text in bad if accepts(schema, text)] == []


@pytest.mark.model
@given(low=st.integers(-3000, 3000), width=st.integers(0, 3000), data=st.data())
def test_an_integer_range_is_exact(accepts: Accepts, low: int, width: int, data: st.DataObject) -> None:
    grammar = f"root ::= {integers_between(low, low + width, 'root')}\n"
    value = data.draw(st.sampled_from([low, low - 1, low + width, low + width + 1]) | st.integers(-7000, 7000))
    assert accepts(grammar, str(value)) == (low <= value <= low + width)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 60_000, "nested too deeply"),
        ('{"items":' * 5000 + "{}" + "}" * 5000, "nested too deeply"),
        ('{"type": "frob"}', "unknown type 'frob'"),
        ('{"type": "object", "properties": {"a": {"not": {}}}}', "root.a uses not"),
        ('{"type": "number", "minimum": 3}', "uses minimum"),
        ('{"type": "string", "pattern": "abc"}', "not anchored"),
        ('{"type": "string", "pattern": "^(?=a)b$"}', "assert"),
        ('{"type": "string", "pattern": "^(a$"}', "malformed"),
        ('{"type": "string", "maxLength": 100000}', "more than 2000"),
        ('{"type": "string", "minLength": 5, "maxLength": 2}', "no length at all"),
        ('{"type": "integer", "minimum": 5, "maximum": 1}', "no integer between"),
        ('{"$ref": "#/$defs/none"}', "does not exist"),
        ('{"$ref": "https://example.org/schema"}', "outside the schema"),
        ('{"$ref": "#"}', "without end"),
        ('{"anyOf": []}', "empty or malformed"),
        ('{"allOf": [{"type": "string"}, {"type": "null"}]}', "two different values of type"),
        ('{"properties": 3}', "wrong kind"),
        ('{"required": [3]}', "wrong kind"),
        ('{"type": "array", "minItems": -1}', "no count"),
        ("3", "is not a schema"),
        (json.dumps({"description": "x" * 70_000}), "larger than"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_by_name(schema: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        schema_to_gbnf(schema)
    assert caught.value.hint
    assert caught.value.param
