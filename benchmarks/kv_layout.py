"""What a KV cache of each slot's own gains over a shared pool: the same decodes in both layouts.

    python benchmarks/kv_layout.py [--quick] [--json]

Two bare contexts of llama.cpp, one a layout, with the same cells; 16 and 32 sequences of 100 and of 400 tokens decode
one token each a step, in turn. `gap`: every second sequence alone, which the per-slot layout must compute one by one.

Ratios: `per_slot_16_short`, `per_slot_16_long`, `per_slot_32_short`, `per_slot_32_long`: seconds of a step with the
shared pool over those with per-slot KV. `gap_16_short`: the same where neighbours do not run.
"""

from statistics import median

from bare import Bare
from embedded import Bench
from reporting import Row, arguments, report, say

SLOTS, CELLS_EACH = 32, 512
SHORT, LONG = 100, 400
CASES = {
    "per_slot_16_short": (16, 1, SHORT),
    "per_slot_16_long": (16, 1, LONG),
    "per_slot_32_short": (32, 1, SHORT),
    "per_slot_32_long": (32, 1, LONG),
    "gap_16_short": (16, 2, SHORT),
}


def main() -> None:
    """Run the benchmark."""
    args = arguments(__doc__ or "")
    steps = 8 if args.quick else 40
    ratios: dict[str, float | None] = {}
    rows: list[Row] = []
    with Bench(args, slots=1, kv_tokens=512) as bench:
        for name, (count, stride, tokens) in CASES.items():
            ids = range(0, stride * count, stride)
            per_slot, shared = (
                Bare(bench, ids, tokens, slots=SLOTS, cells_each=CELLS_EACH, is_shared=is_shared)
                for is_shared in (False, True)
            )
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
