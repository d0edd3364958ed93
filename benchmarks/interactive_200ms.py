"""Claim of the field: interactive work under 200 ms while batch work fills the machine.

    python benchmarks/interactive_200ms.py [--quick] [--json]

Short chat turns with the preset targets of `chat` (TTFT P95 200 ms, TPOT P95 50 ms) under untuned `slack`: the highest
chat rate at which P95 TTFT stays under 200 ms beside an endless backlog of batch work, and without any.

Ratio: `of_idle`, the first over the second. Where the processor is too slow for the target at any rate, both are 0 and
the ratio is null.
"""

from contest import SLACK, capacity_of, climb, setting, targets
from embedded import Bench
from reporting import arguments, report, say

from setpoint.model import PRESETS
from setpoint.workload import LogNormal

LENGTHS = LogNormal(24, 0.5, 8, 64), LogNormal(24, 0.7, 4, 96)
RATES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0, 12.0)
QUICK_RATES = (1.0, 3.0)


def main() -> None:
    """Climb with and without the backlog, and report."""
    args = arguments(__doc__ or "")
    seconds = 7.0 if args.quick else 30.0
    slo = PRESETS["chat"].slo
    say(f"targets {targets(slo)}")
    rows, held = [], {}
    with Bench(args) as bench:
        bench.profile(6.0 if args.quick else 30.0, args.seed)
        for name, has_backlog in (("idle machine", False), ("full of batch", True)):
            experiment = setting(slo, seed=args.seed, has_backlog=has_backlog, lengths=LENGTHS)
            rungs = climb(bench, SLACK, experiment, QUICK_RATES if args.quick else RATES, seconds)
            held[name] = capacity_of(rungs, which="ttft_attainment")
            rows += [
                {
                    "machine": name,
                    "chat/s": r.rate,
                    "requests": r.requests,
                    "TTFT P95 ms": 1e3 * r.ttft_p95_s,
                    "TTFT met": r.ttft_attainment,
                    "TPOT P95 ms": 1e3 * r.tpot_p95_s,
                    "both met": r.attainment,
                    "batch tokens/s": r.batch_tokens_per_s,
                }
                for r in rungs
            ]
    idle, full = held["idle machine"], held["full of batch"]
    ratios = {"of_idle": full / idle if idle else None, "idle_rps": idle, "full_rps": full}
    report("interactive_200ms", ratios, rows, args)


if __name__ == "__main__":
    main()
