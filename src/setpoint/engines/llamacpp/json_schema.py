"""From a JSON schema to a GBNF grammar whose every output satisfies the schema.

The grammar may be narrower than the schema, never wider: properties come in the order in which they are declared, a
declared object gets no further properties, `pattern` must be anchored. What cannot be kept is refused by name, because
a schema that is silently weakened is worse than none. The one exception is `oneOf`, read as `anyOf`, as llama.cpp reads
it.

Each schema becomes one rule. An object is a chain of rules, one a property and per whether anything came before it (so
where a comma is due): its size grows linearly with the properties, whichever of them are optional.
"""

import json
from typing import Any, Final

from setpoint.engines.llamacpp.json_keywords import (
    NOTES,
    Schema,
    bound,
    count,
    known,
    literal,
    merge,
    refuse,
    repeat,
    some,
)
from setpoint.engines.llamacpp.json_pattern import pattern_to_gbnf
from setpoint.engines.llamacpp.json_range import integers_between
from setpoint.errors import RequestError

SCHEMA_BYTES_MAX: Final = 65536
RULES_MAX: Final = 10_000
"""How many schemas within a schema are compiled: where they are merged, a `$ref` is compiled once for each use."""

_BASICS: Final = {
    "space": r'| " " | "\n" [ \t]{0,20}',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "integral": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integral ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "integer": "integral",
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" space (string ":" space value (space "," space string ":" space value)*)? space "}"',
    "array": '"[" space (value (space "," space value)*)? space "]"',
}
_FORMATS: Final = {
    "date": r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$",
    "time": r"^([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,3})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$",
    "date-time": r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,3})?"
    r"(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$",
    "uuid": r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
}
_OF_TYPE: Final[dict[str, frozenset[str]]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format"}),
    "number": frozenset({"format"}),
    "boolean": frozenset(),
    "null": frozenset(),
}


def schema_to_gbnf(schema: str) -> str:
    """Return the GBNF text, start symbol `root`, for the JSON text `schema`; raise RequestError when it cannot."""
    if len(schema.encode()) > SCHEMA_BYTES_MAX:
        raise _refusal(f"is larger than {SCHEMA_BYTES_MAX} bytes")
    try:
        return _Compiler(json.loads(schema)).grammar()
    except json.JSONDecodeError as error:
        raise _refusal(f"is not valid JSON: {error}") from error
    except RecursionError as error:
        raise _refusal("is nested too deeply") from error


class _Compiler:
    """The rules made so far; a `$ref` is compiled once, so that a schema may refer to itself."""

    def __init__(self, document: object) -> None:
        self._document = document
        self._rules = dict(_BASICS)
        self._references: dict[str, str] = {}
        self._compiled = 0

    def grammar(self) -> str:
        root = self._reference("#", "root") if isinstance(self._document, dict) else self._rule(self._document, "root")
        rules = {"root": f"space {root} space", **self._rules}
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items()) + "\n"

    def _add(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules[name] = body
        return name

    def _rule(self, schema: object, where: str) -> str:  # noqa: PLR0911 - one case after the other
        """Return the name of the rule for `schema`, which stands at `where` in the document."""
        self._compiled += 1
        if self._compiled > RULES_MAX:
            raise _refusal(f"comes to more than {RULES_MAX} rules")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            refuse(where, "is not a schema")
        schema = {key: value for key, value in schema.items() if key not in NOTES}
        if set(schema) == {"$ref"}:
            return self._reference(schema["$ref"], where)
        if "$ref" in schema:
            target = self._resolve(schema.pop("$ref"), where)
            return self._rule(merge(target, schema, where), where)
        if "allOf" in schema:
            return self._all_of(schema, where)
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return self._any_of(schema, union, where)
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else some(schema["enum"], where)
            return self._union([literal(json.dumps(value, ensure_ascii=False)) for value in values])
        return self._typed(schema, where)

    def _typed(self, schema: Schema, where: str) -> str:
        kinds = schema.get("type")
        if kinds is None:
            kinds = [kind for kind, keys in _OF_TYPE.items() if kind != "number" and keys & set(schema)]
            kinds = kinds or ["value"]
        if isinstance(kinds, list):
            shared = {key: value for key, value in schema.items() if key != "type"}
            parts = [{k: v for k, v in shared.items() if k in _OF_TYPE.get(kind, shared)} for kind in kinds]
            known(shared, frozenset().union(*(_OF_TYPE.get(kind, frozenset()) for kind in kinds)), where)
            return self._union([self._of(kind, part, where) for kind, part in zip(kinds, parts, strict=True)])
        return self._of(kinds, schema, where)

    def _of(self, kind: object, schema: Schema, where: str) -> str:
        if kind == "value":
            known(schema, frozenset(), where)
            return "value"
        if not isinstance(kind, str) or kind not in _OF_TYPE:
            refuse(where, f"has the unknown type {kind!r}")
        known(schema, _OF_TYPE[kind], where)
        compiler = {"object": self._object, "array": self._array, "string": self._string, "integer": self._integer}
        return compiler[kind](schema, where) if kind in compiler else kind

    def _object(self, schema: Schema, where: str) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list) or {type(n) for n in required} - {str}:
            refuse(where, "has properties or required of the wrong kind")
        properties = properties | {name: {} for name in required if name not in properties}
        if not properties:
            return self._map(schema.get("additionalProperties", True), where)
        first = more = '""'
        for name, inner in reversed(properties.items()):
            pair = f'{literal(json.dumps(name, ensure_ascii=False))} space ":" space ' + self._rule(
                inner, f"{where}.{name}"
            )
            head, tail = self._add(f"{pair} {more}"), self._add(f'space "," space {pair} {more}')
            if name not in required:
                head, tail = self._add(f"{head} | {first}"), self._add(f"{tail} | {more}")
            first, more = head, tail
        return self._add(f'"{{" space {first} space "}}"')

    def _map(self, additional: object, where: str) -> str:
        if additional is False:
            return self._add('"{" space "}"')
        pair = 'string space ":" space ' + self._rule(additional, f"{where}.*")
        return self._add(f'"{{" space ({pair} (space "," space {pair})*)? space "}}"')

    def _array(self, schema: Schema, where: str) -> str:
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(items, list):
            prefix, items = items, False
        least, most = count(schema, "minItems", where), count(schema, "maxItems", where)
        if prefix:
            if (least or 0) > len(prefix) or (most is not None and most < len(prefix)):
                refuse(where, "has prefixItems and another number of items")
            body = ' space "," space '.join(self._rule(item, f"{where}[{i}]") for i, item in enumerate(prefix))
            return self._add(f'"[" space {body} space "]"')
        if items is False or most == 0:
            return self._add('"[" space "]"')
        item = self._rule(items, f"{where}[]")
        rest = f'(space "," space {item})' + repeat(max((least or 0) - 1, 0), None if most is None else most - 1, where)
        body = f"{item} {rest}" if least else f"({item} {rest})?"
        return self._add(f'"[" space {body} space "]"')

    def _string(self, schema: Schema, where: str) -> str:
        least, most = count(schema, "minLength", where), count(schema, "maxLength", where)
        pattern = schema.get("pattern", _FORMATS.get(schema.get("format", "")))
        if pattern is not None:
            if least is not None or most is not None:
                refuse(where, "has both a pattern or format and a length")
            return self._add(rf'"\"" {pattern_to_gbnf(pattern, where)} "\""')
        if least is None and most is None:
            return "string"
        return self._add(rf'"\"" char{repeat(least or 0, most, where)} "\""')

    def _integer(self, schema: Schema, where: str) -> str:
        least = bound(schema, "minimum", "exclusiveMinimum", 1, where)
        most = bound(schema, "maximum", "exclusiveMaximum", -1, where)
        if least is None and most is None:
            return "integer"
        return self._add(integers_between(least, most, where))

    def _union(self, options: list[str]) -> str:
        return options[0] if len(options) == 1 and options[0].isalnum() else self._add(" | ".join(options))

    def _any_of(self, schema: Schema, union: str, where: str) -> str:
        base = {key: value for key, value in schema.items() if key != union}
        options = some(schema[union], where)
        if base:
            options = [merge(base, self._inline(option, where), where) for option in options]
        return self._union([self._rule(option, f"{where}.{union}[{i}]") for i, option in enumerate(options)])

    def _all_of(self, schema: Schema, where: str) -> str:
        merged: Schema = {key: value for key, value in schema.items() if key != "allOf"}
        for part in some(schema["allOf"], where):
            merged = merge(merged, self._inline(part, where), where)
        return self._rule(merged, where)

    def _inline(self, schema: object, where: str) -> Schema:
        """Return `schema` without notes, its reference followed, so that it can be merged."""
        if not isinstance(schema, dict):
            refuse(where, "combines something that is not a schema")
        schema = {key: value for key, value in schema.items() if key not in NOTES}
        seen = 0
        while "$ref" in schema:
            seen += 1
            if seen > len(self._references) + 100:
                refuse(where, "refers to itself without end")
            target = self._resolve(schema.pop("$ref"), where)
            schema = dict(merge({k: v for k, v in target.items() if k not in NOTES}, schema, where))
        return schema

    def _reference(self, reference: object, where: str) -> str:
        target = self._resolve(reference, where)
        key = str(reference)
        if key not in self._references:
            self._references[key] = name = self._add("")
            body = self._rule(target, "root" if key == "#" else key)
            if body == name:
                refuse(where, "refers to itself without end")
            self._rules[name] = body
        return self._references[key]

    def _resolve(self, reference: object, where: str) -> dict[str, Any]:
        if not isinstance(reference, str) or not reference.startswith("#"):
            refuse(where, f"refers to {reference!r}, which is outside the schema")
        found: Any = self._document
        for part in reference[1:].strip("/").split("/") if len(reference) > 1 else []:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            refuse(where, f"refers to {reference}, which does not exist")
        return dict(found)


def _refusal(what: str) -> RequestError:
    return RequestError(f"the JSON schema {what}", hint="simplify the schema", param="response_format")
