"""A grammar for the integers between two bounds, digit by digit."""

from typing import Final

from setpoint.errors import RequestError

_DIGITS_MAX: Final = 16


def integers_between(least: int | None, most: int | None, where: str) -> str:
    """Return a GBNF expression for the integers from `least` to `most`, at most 16 digits; `None` is unbounded.

    Raises RequestError, naming `where` in the schema, when there are none or a bound has more digits.
    """
    limit = 10**_DIGITS_MAX - 1
    low, high = -limit if least is None else least, limit if most is None else most
    if low > high or abs(low) > limit or abs(high) > limit:
        raise RequestError(
            f"the JSON schema cannot be followed: {where} allows no integer between {least} and {most}",
            hint=f"give bounds of at most {_DIGITS_MAX} digits, the smaller first",
            param="response_format",
        )
    options = []
    if low < 0:
        options.append(f'"-" ({_magnitudes(max(1, -high), -low)})')
    if high >= 0:
        options.append(_magnitudes(max(low, 0), high))
    return " | ".join(options)


def _magnitudes(low: int, high: int) -> str:
    """Return an expression for `low` to `high`, neither negative, without leading zeros."""
    parts = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        start = max(low, 0 if digits == 1 else 10 ** (digits - 1))
        parts.append(_same_length(str(start), str(min(high, 10**digits - 1))))
    return " | ".join(parts)


def _same_length(low: str, high: str) -> str:
    """Return an expression for the digit strings from `low` to `high`, both of the same length."""
    if low == high:
        return f'"{low}"'
    rest = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return f"[{low[0]}-{high[0]}]" + (f" [0-9]{{{rest}}}" if rest else "")
    if low[0] == high[0]:
        return f'"{low[0]}" ({_same_length(low[1:], high[1:])})'
    first, last = int(low[0]), int(high[0])
    parts = []
    if set(low[1:]) > {"0"} or set(low[1:]) - {"0"}:
        parts.append(f'"{first}" ({_same_length(low[1:], "9" * rest)})')
        first += 1
    is_high_cut = bool(set(high[1:]) - {"9"})
    whole_last = last - 1 if is_high_cut else last
    if first <= whole_last:
        parts.append(f"[{first}-{whole_last}] [0-9]{{{rest}}}")
    if is_high_cut:
        parts.append(f'"{last}" ({_same_length("0" * rest, high[1:])})')
    return " | ".join(parts)
