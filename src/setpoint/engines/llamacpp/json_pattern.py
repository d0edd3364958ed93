"""A regular expression as a grammar for the inside of a JSON string.

Python's own parser reads the expression; its tree is written down as GBNF. Inside a JSON string a quote and a backslash
stand escaped and control characters do not stand at all, so every character class is cut down to what may stand plain,
with the two escapes beside it. Look-around, back references and unanchored expressions are refused.
"""

import importlib
import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from setpoint.errors import RequestError

_PATTERN_CHARACTERS_MAX: Final = 1000
_parser: Final[Any] = importlib.import_module("re._parser")
_LAST: Final = 0x10FFFF

Intervals = list[tuple[int, int]]

_PLAIN: Final[Intervals] = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, 0xD7FF), (0xE000, _LAST)]
_ESCAPED: Final = {0x22: r'"\\\""', 0x5C: r'"\\\\"', 0x0A: r'"\\n"', 0x09: r'"\\t"', 0x0D: r'"\\r"'}
_CATEGORIES: Final[dict[str, Intervals]] = {
    "CATEGORY_DIGIT": [(0x30, 0x39)],
    "CATEGORY_WORD": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "CATEGORY_SPACE": [(0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x20)],
}


def pattern_to_gbnf(pattern: object, where: str) -> str:
    """Return a GBNF expression for the strings that `pattern`, `^...$`, matches; raise RequestError naming `where`."""
    if not isinstance(pattern, str) or len(pattern) > _PATTERN_CHARACTERS_MAX:
        _fail(where, f"is no text, or longer than {_PATTERN_CHARACTERS_MAX} characters")
    if not pattern.startswith("^") or not pattern.endswith("$") or pattern.endswith(r"\$"):
        _fail(where, "is not anchored: it must begin with ^ and end with $")
    try:
        tree = _parser.parse(pattern[1:-1])
    except (re.error, OverflowError) as error:
        _fail(where, f"is malformed: {error}")
    return _sequence(tree, where)


def _sequence(tree: Iterable[tuple[Any, Any]], where: str) -> str:
    return " ".join(_node(str(kind), value, where) for kind, value in tree) or '""'


def _node(kind: str, value: Any, where: str) -> str:  # noqa: ANN401, PLR0911 - a private parser's tree, case by case
    if kind == "LITERAL":
        return _characters([(value, value)], where)
    if kind == "NOT_LITERAL":
        return _characters(_complement([(value, value)]), where)
    if kind == "ANY":
        return _characters(_complement([(0x0A, 0x0A)]), where)
    if kind == "IN":
        return _characters(_members(value, where), where)
    if kind == "BRANCH":
        return "(" + " | ".join(_sequence(option, where) for option in value[1]) + ")"
    if kind == "SUBPATTERN" and not value[1] and not value[2]:
        return f"({_sequence(value[3], where)})"
    if kind in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
        least, most, inner = value
        end = "" if most is _parser.MAXREPEAT else most
        return f"({_sequence(inner, where)}){{{least},{end}}}"
    return _fail(where, f"uses {kind.lower().replace('_', ' ')}, which a grammar cannot express")


def _members(members: Iterable[tuple[Any, Any]], where: str) -> Intervals:
    intervals: Intervals = []
    is_negated = False
    for kind, value in members:
        name = str(kind)
        if name == "NEGATE":
            is_negated = True
        elif name == "LITERAL":
            intervals.append((value, value))
        elif name == "RANGE":
            intervals.append((value[0], value[1]))
        elif name == "CATEGORY":
            category = str(value)
            found = _CATEGORIES.get(category.replace("_NOT_", "_"))
            if found is None:
                _fail(where, f"uses {category.lower()}, which a grammar cannot express")
            intervals += _complement(found) if "_NOT_" in category else found
        else:
            _fail(where, f"uses {name.lower()} in a character class")
    return _complement(intervals) if is_negated else intervals


def _characters(intervals: Intervals, where: str) -> str:
    """Return an expression for one character of `intervals`, as it stands in a JSON string."""
    options = []
    plain = [
        (max(low, start), min(high, end))
        for low, high in intervals
        for start, end in _PLAIN
        if low <= end and start <= high
    ]
    if plain:
        options.append(
            "[" + "".join(_code(low) + (f"-{_code(high)}" if high > low else "") for low, high in plain) + "]"
        )
    options += [text for code, text in _ESCAPED.items() if any(low <= code <= high for low, high in intervals)]
    if not options:
        _fail(where, "asks for a control character")
    return options[0] if len(options) == 1 else "(" + " | ".join(options) + ")"


def _complement(intervals: Intervals) -> Intervals:
    result, start = [], 0
    for low, high in sorted(intervals):
        if low > start:
            result.append((start, low - 1))
        start = max(start, high + 1)
    return [*result, (start, _LAST)] if start <= _LAST else result


def _code(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\U{code:08X}"


def _fail(where: str, what: str) -> NoReturn:
    raise RequestError(
        f"the JSON schema cannot be followed: the pattern of {where} {what}",
        hint="simplify the pattern, or check it in your own code",
        param="response_format",
    )
