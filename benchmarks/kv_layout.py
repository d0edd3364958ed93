"""What a KV cache of each slot's own gains over a shared pool: the same decodes in both layouts.

    python benchmarks/kv_layout.py [--quick] [--json]

Two bare contexts of llama.cpp, one a layout, with the same cells; 16 and 32 sequences of 100 and of 400 tokens decode
one token each a step, in turn. `gap`: every second sequence alone, which the per-slot layout must compute one by one.

Ratios: `per_slot_16_short`, `per_slot_16_long`, `per_slot_32_short`, `per_slot_32_long`: seconds of a step with the
shared pool over those with per-slot KV. `gap_16_short`: the same where neighbours do not run.
"""

import time
from statistics import median

from embedded import Bench
from reporting import Row, arguments, report, say

from setpoint.engines.llamacpp.context import Context

SLOTS, CELLS_EACH = 32, 512
SHORT, LONG = 100, 400
CASES = {
    "per_slot_16_short": (16, 1, SHORT),
    "per_slot_16_long": (16, 1, LONG),
    "per_slot_32_short": (32, 1, SHORT),
    "per_slot_32_long": (32, 1, LONG),
    "gap_16_short": (16, 2, SHORT),
}


class Sequences:
    """A context with sequences 0, `stride`, 2 `stride` ... of `tokens` tokens each."""

    def __init__(self, bench: Bench, count: int, stride: int, tokens: int, *, is_shared: bool) -> None:
        """Prefill them one by one."""
        self._context = Context(
            bench.model,
            cells=SLOTS * CELLS_EACH,
            sequences=SLOTS,
            step_tokens_max=CELLS_EACH,
            threads=bench.executor.threads,
            is_shared=is_shared,
        )
        self._ids = [stride * i for i in range(count)]
        self._tokens = tokens
        for sequence in self._ids:
            self._fill(list(bench.prompt(tokens)), list(range(tokens)), [sequence] * tokens)
            self._context.is_output[: tokens - 1] = 0
            self._context.decode(tokens)

    def step(self) -> float:
        """Decode one token of each; return the seconds."""
        count = len(self._ids)
        self._fill([500] * count, [self._tokens] * count, self._ids)
        self._tokens += 1
        start = time.perf_counter()
        self._context.decode(count)
        return time.perf_counter() - start

    def close(self) -> None:
        """Free the context."""
        self._context.close()

    def _fill(self, tokens: list[int], positions: list[int], sequences: list[int]) -> None:
        size, context = len(tokens), self._context
        context.token[:size], context.position[:size], context.sequence[:size] = tokens, positions, sequences
        context.is_output[:size] = 1


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__ or "")
    steps = 8 if args.quick else 40
    ratios: dict[str, float | None] = {}
    rows: list[Row] = []
    with Bench(args, slots=1, kv_tokens=512) as bench:
        for name, (count, stride, tokens) in CASES.items():
            per_slot = Sequences(bench, count, stride, tokens, is_shared=False)
            shared = Sequences(bench, count, stride, tokens, is_shared=True)
            pairs = [(per_slot.step(), shared.step()) for _ in range(steps)]
            per_slot.close()
            shared.close()
            own_s, shared_s = (median(side) for side in zip(*pairs, strict=True))
            ratios[name] = shared_s / own_s
            rows.append({"case": name, "per-slot ms": own_s * 1e3, "shared ms": shared_s * 1e3})
            say(f"  {name}: {shared_s / own_s:.2f}")
    report("kv_layout", ratios, rows, args)


if __name__ == "__main__":
    main()
