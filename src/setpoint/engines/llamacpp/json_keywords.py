"""The keywords of JSON schema, one at a time: reading, joining and refusing them."""

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from setpoint.errors import RequestError

WHERE_CHARACTERS: Final = 200
COUNT_MAX: Final = 2000
"""The longest string or array that may be demanded or capped: a grammar unrolls each repetition."""

NOTES: Final = frozenset({
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
    "$comment", "$anchor", "$defs", "definitions", "discriminator", "contentMediaType", "contentEncoding",
})  # fmt: skip
GENERAL: Final = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"})

Schema = Mapping[str, Any]


def merge(left: Schema, right: Schema, where: str) -> Schema:
    """Return the schema that satisfies both, for the keywords that can be joined."""
    merged = dict(left)
    for key, value in right.items():
        if key in NOTES or merged.get(key, value) == value:
            merged.setdefault(key, value)
        elif key == "properties":
            both = merged[key].keys() & value.keys()
            merged[key] = merged[key] | value | {name: {"allOf": [merged[key][name], value[name]]} for name in both}
        elif key == "required":
            merged[key] = list(dict.fromkeys([*merged[key], *value]))
        elif key in {"minimum", "minLength", "minItems"}:
            merged[key] = max(merged[key], value)
        elif key in {"maximum", "maxLength", "maxItems"}:
            merged[key] = min(merged[key], value)
        else:
            refuse(where, f"combines two different values of {key}")
    return merged


def known(schema: Schema, allowed: frozenset[str], where: str) -> None:
    """Refuse `schema` when it has a keyword that is neither `allowed` nor a general one."""
    for key in schema:
        if key not in allowed and key not in GENERAL:
            refuse(where, f"uses {key}, which cannot be enforced here")


def some(options: object, where: str) -> list[Any]:
    """Return the non-empty list `options`."""
    if not isinstance(options, list) or not options:
        refuse(where, "has an empty or malformed list of alternatives")
    return options


def count(schema: Schema, key: str, where: str) -> int | None:
    """Return the value of `key`, a count within `COUNT_MAX`, or `None`."""
    value = schema.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        refuse(where, f"has {key} = {value!r}, which is no count")
    if value is not None and value > COUNT_MAX:
        refuse(where, f"has {key} = {value}, more than {COUNT_MAX}")
    return value


def bound(schema: Schema, inclusive: str, exclusive: str, step: int, where: str) -> int | None:
    """Return the tighter of two integer bounds, the exclusive one moved by `step`, or `None`."""
    values = [schema[inclusive]] if inclusive in schema else []
    values += [schema[exclusive] + step] if isinstance(schema.get(exclusive), (int, float)) else []
    if any(not isinstance(value, (int, float)) or int(value) != value for value in values):
        refuse(where, f"has a fractional {inclusive}")
    if not values:
        return None
    return int(max(values) if step > 0 else min(values))


def repeat(least: int, most: int | None, where: str) -> str:
    """Return the GBNF repetition of `least` to `most` times (`None`: without end)."""
    if most is not None and most < least:
        refuse(where, "allows no length at all")
    return f"{{{least},{'' if most is None else most}}}"


def literal(text: str) -> str:
    """Return `text` as a GBNF literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def refuse(where: str, what: str) -> NoReturn:
    """Raise RequestError: the schema at `where` does `what`."""
    if len(where) > WHERE_CHARACTERS:
        where = f"...{where[-WHERE_CHARACTERS:]}"
    raise RequestError(
        f"the JSON schema cannot be followed: {where} {what}",
        hint="simplify the schema, or check the constraint in your own code",
        param="response_format",
    )
