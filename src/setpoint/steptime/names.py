"""One way to say that a name is not known: what was meant, what there is, how to add it."""

import difflib
from collections.abc import Iterable
from typing import TypeVar

from setpoint.errors import UserError

_E = TypeVar("_E", bound=UserError)
_SHOWN_MAX = 12


def unknown(error: type[_E], kind: str, name: str, known: Iterable[str], remedy: str) -> _E:
    """Return an `error` that says that no `kind` is called `name`, which was probably meant, and the `remedy`."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if close:
        hint = f"did you mean {' or '.join(close)}? If not, {remedy}"
    else:
        more = ", ..." if len(names) > _SHOWN_MAX else ""
        hint = f"known: {', '.join(names[:_SHOWN_MAX])}{more}; {remedy}"
    return error(f"unknown {kind} {name!r}", hint=hint)
