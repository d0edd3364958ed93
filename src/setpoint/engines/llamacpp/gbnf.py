r"""Reading GBNF, the grammar notation of llama.cpp, into rules.

Repetitions become rules, as in llama.cpp: `x{1,3}` is `x r2`, with `r2 ::= x r1 |` and `r1 ::= x |`. Literals, classes,
groups, `.`, `* + ? {m,n}` and comments are known; the token literals `<[1]>` are not.

What is too large is refused as it is read.
"""

import re
from collections.abc import Iterator
from typing import Final, NoReturn

from setpoint.engines.llamacpp.rules import CODE_MAX, Intervals, Option, Rules, class_of, flat_rules, refusal

ITEMS_MAX: Final = 50_000
REPEATS_MAX: Final = 2000

_LEXEME: Final = re.compile(
    r"""(?P<space>[ \t]+|\#[^\r\n]*) | (?P<line>\r\n?|\n) | (?P<define>::=) | (?P<name>[A-Za-z0-9-]+)
    | (?P<literal>"(?:[^"\\]|\\.)*") | (?P<class>\[(?:[^\]\\]|\\.)*\]) | (?P<mark>[|()*+?.])
    | \{\s*(?P<repeat>\d{1,9}\s*(?:,\s*\d{0,9}\s*)?)\}""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER: Final = re.compile(
    r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\([tnr\\\"\[\]-])|([^\\])", re.DOTALL
)
_ESCAPES: Final = {"t": "\t", "n": "\n", "r": "\r"}


def parse_gbnf(text: str) -> Rules:
    """Return the rules of `text`, whose start symbol is `root`; raise RequestError, with the line, when it has none."""
    try:
        return _Parser(text).rules()
    except RecursionError as error:
        raise refusal("it is nested too deeply") from error


class _Parser:
    """Recursive descent; `_options` are the alternatives of each rule, `None` until it is defined."""

    def __init__(self, text: str) -> None:
        self._lexemes = list(_lex(text))
        self._at = 0
        self._items = 0
        self._names: dict[str, int] = {}
        self._classes: dict[Intervals, int] = {}
        self._options: list[list[Option] | None] = []

    def rules(self) -> Rules:
        self._skip_lines()
        while self._kind != "end":
            self._definition()
            self._skip_lines()
        if "root" not in self._names:
            raise refusal("it has no rule named root")
        for name, rule in self._names.items():
            if self._options[rule] is None:
                raise refusal(f"the rule {name} is not defined")
        return flat_rules([options or [] for options in self._options], self._names["root"], list(self._classes))

    @property
    def _kind(self) -> str:
        return self._lexemes[self._at][0]

    def _next(self) -> str:
        self._at += 1
        return self._lexemes[self._at - 1][1]

    def _skip_lines(self) -> None:
        while self._kind == "line":
            self._at += 1

    def _expect(self, kind: str) -> str:
        if self._kind != kind:
            self._fail(f"expected {kind}")
        return self._next()

    def _fail(self, what: str) -> NoReturn:
        _, text, line = self._lexemes[self._at]
        raise refusal(f"line {line}: {what} at {text[:20]!r}")

    def _definition(self) -> None:
        rule = self._named(self._expect("name"))
        if self._options[rule] is not None:
            self._fail("a rule is defined twice")
        self._expect("define")
        self._skip_lines()
        self._options[rule] = self._alternatives(is_nested=False)
        if self._kind not in {"line", "end"}:
            self._fail("expected the end of the line")

    def _alternatives(self, *, is_nested: bool) -> list[Option]:
        options = [self._sequence(is_nested=is_nested)]
        while self._kind == "|":
            self._next()
            self._skip_lines()
            options.append(self._sequence(is_nested=is_nested))
        return options

    def _sequence(self, *, is_nested: bool) -> Option:
        items: Option = []
        last: Option | None = None
        while True:
            if is_nested:
                self._skip_lines()
            if self._kind in {"*", "+", "?", "repeat"}:
                if last is None:
                    self._fail("nothing to repeat")
                last = self._repeated(last, *self._counts())
                continue
            items += last or []
            last = self._symbol()
            if last is None:
                self._count(len(items) + 1)
                return items

    def _symbol(self) -> Option | None:
        """Return the items of the next symbol, `None` when there is none."""
        kind = self._kind
        if kind == "literal":
            codes = self._characters(self._next()[1:-1])
            return [self._class(((code, code),)) for code, _ in codes]
        if kind == "class":
            return [self._class(self._intervals(self._next()[1:-1]))]
        if kind == ".":
            self._next()
            return [self._class(((0, CODE_MAX),))]
        if kind == "name":
            return [self._named(self._next())]
        if kind == "(":
            self._next()
            options = self._alternatives(is_nested=True)
            self._expect(")")
            return [self._add(options)]
        return None

    def _counts(self) -> tuple[int, int | None]:
        kind, text = self._kind, self._next()
        if kind != "repeat":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[kind]
        least, comma, most = (part.strip() for part in text.partition(","))
        bounds = (int(least), int(most) if most else None if comma else int(least))
        if max(bounds[0], bounds[1] or 0) > REPEATS_MAX:
            self._fail(f"more than {REPEATS_MAX} repetitions")
        return bounds

    def _repeated(self, items: Option, least: int, most: int | None) -> Option:
        self._count(len(items) * max(least, most or 1))
        if most is None:
            loop = self._add(None)
            self._options[loop] = [[*items, loop], []]
            return [*items * least, loop]
        tail: Option = []
        for _ in range(most - least):
            tail = [self._add([[*items, *tail], []])]
        return items * least + tail

    def _count(self, items: int) -> None:
        self._items += items
        if self._items > ITEMS_MAX:
            raise refusal(f"it comes to more than {ITEMS_MAX} symbols")

    def _add(self, options: list[Option] | None) -> int:
        self._options.append(options)
        return len(self._options) - 1

    def _named(self, name: str) -> int:
        if name not in self._names:
            self._names[name] = self._add(None)
        return self._names[name]

    def _class(self, intervals: Intervals) -> int:
        return class_of(self._classes.setdefault(intervals, len(self._classes)))

    def _characters(self, text: str) -> list[tuple[int, bool]]:
        """Return the code points of `text`, each with whether it was written with a backslash."""
        codes, at = [], 0
        while at < len(text):
            found = _CHARACTER.match(text, at)
            if found is None:
                self._at -= 1
                self._fail("an unknown escape")
            number = found[1] or found[2] or found[3]
            escape = found[4]
            code = int(number, 16) if number else ord(_ESCAPES.get(escape, escape) if escape else found[5])
            if code > CODE_MAX:
                self._at -= 1
                self._fail("no character")
            codes.append((code, bool(number or escape)))
            at = found.end()
        return codes

    def _intervals(self, text: str) -> Intervals:
        is_negated = text.startswith("^")
        codes = self._characters(text[is_negated:])
        found, at = [], 0
        while at < len(codes):
            if at + 2 < len(codes) and codes[at + 1] == (ord("-"), False):
                found.append((codes[at][0], codes[at + 2][0]))
                at += 3
            else:
                found.append((codes[at][0], codes[at][0]))
                at += 1
        if not found or any(low > high for low, high in found):
            self._at -= 1
            self._fail("an empty class")
        return _normal(found, is_negated=is_negated)


def _lex(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield (kind, text, line) of each lexeme, the spaces left out, and an `end`."""
    at, line = 0, 1
    while at < len(text):
        found = _LEXEME.match(text, at)
        if found is None:
            raise refusal(f"line {line}: cannot be read at {text[at : at + 20]!r}")
        kind = str(found.lastgroup)
        if kind != "space":
            yield (found[0] if kind == "mark" else kind), found[kind], line
        line += found[0].count("\n")
        at = found.end()
    yield "end", "", line


def _normal(found: list[tuple[int, int]], *, is_negated: bool) -> Intervals:
    """Return the intervals in order, joined where they touch, or what lies between them."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(found):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    if not is_negated:
        return tuple(joined)
    edges = [-1, *(edge for pair in joined for edge in pair), CODE_MAX + 1]
    return tuple((a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True) if a + 1 < b)
