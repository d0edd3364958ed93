"""A bare context of llama.cpp with sequences in it: the forward passes of an engine, with nothing around them.

The batch stands as it is from step to step, and `llama_decode` is called: no scheduler, no sampling, no text.
"""

import time
from collections.abc import Sequence

from embedded import Bench

from setpoint.engines.llamacpp.context import Context


class Bare:
    """The sequences `ids` with `tokens` tokens each, in a context of `slots` sequences with `cells_each` cells each."""

    def __init__(
        self, bench: Bench, ids: Sequence[int], tokens: int, *, slots: int, cells_each: int, is_shared: bool
    ) -> None:
        """Prefill them one by one; `is_shared`: the cells are one pool."""
        self._context = Context(
            bench.model,
            cells=slots * cells_each,
            sequences=slots,
            step_tokens_max=max(tokens, len(ids)),
            threads=bench.executor.threads,
            is_shared=is_shared,
        )
        self._width, self._position = len(ids), tokens
        for sequence in ids:
            self._fill(1, bench.prompt(tokens), range(tokens), [sequence] * tokens)
            self._context.decode(tokens)
        self._fill(self._width, bench.prompt(self._width), [tokens] * self._width, ids)

    def step(self) -> float:
        """Decode one token of each; return the seconds."""
        start = time.perf_counter()
        self._context.position[: self._width] = self._position
        self._context.decode(self._width)
        self._position += 1
        return time.perf_counter() - start

    def close(self) -> None:
        """Free the context."""
        self._context.close()

    def _fill(self, outputs: int, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        size = len(tokens)
        self._context.token[:size] = tokens
        self._context.position[:size] = positions
        self._context.sequence[:size] = sequences
        self._context.is_output[:size] = 0
        self._context.is_output[size - outputs : size] = 1
