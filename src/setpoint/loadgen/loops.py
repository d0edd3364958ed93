"""The event loop: uvloop where it is installed, the standard one elsewhere."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run `coroutine` to its end on a loop of its own, and return its result."""
    try:
        import uvloop  # noqa: PLC0415 - not to be had on every system
    except ImportError:
        return asyncio.run(coroutine)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)
