"""Many async generators read as one, first come first served; closing it closes them all."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merge(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yield (number of the source, value) until every source has ended; an exception of one ends the whole."""
    if len(sources) == 1:
        try:
            async for value in sources[0]:
                yield 0, value
        finally:
            await sources[0].aclose()
        return
    pending = {asyncio.ensure_future(_next(source)): index for index, source in enumerate(sources)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=pending.__getitem__):
                index = pending.pop(task)
                values = task.result()
                if values:
                    pending[asyncio.ensure_future(_next(sources[index]))] = index
                    yield index, values[0]
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for source in sources:
            await source.aclose()


async def _next(source: AsyncGenerator[T, None]) -> tuple[T, ...]:
    """Return the next value in a tuple, or an empty one at the end."""
    async for value in source:
        return (value,)
    return ()
