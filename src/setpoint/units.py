"""Units of measure as types, so that a token count is never added to a block count.

`NewType` costs nothing at run time: a value of type `Tokens` is an `int`.
"""

from typing import NewType

Tokens = NewType("Tokens", int)
"""A number of tokens."""

Blocks = NewType("Blocks", int)
"""A number of KV blocks."""

Seconds = NewType("Seconds", float)
"""A duration in seconds."""

Instant = NewType("Instant", float)
"""A point in time in seconds on some monotonic clock; which clock is the shell's business."""

NEVER: float = float("inf")
"""The instant that does not come; as a duration, one without end."""
