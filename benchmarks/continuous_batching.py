"""Claim of the field: continuous batching reaches 80-90 % of the maximum without the latency of fixed batches.

    python benchmarks/continuous_batching.py [--quick] [--json]

The maximum is what the engine computes of an endless backlog, at the best of several token budgets. Then static,
dynamic, continuous and slack serve the same requests, of lengths that vary like chat, offered at `LOAD` of that
maximum. Batch 1 is the same requests one at a time, each on an idle engine.

Ratios: `of_maximum`, throughput of slack at that load over the maximum; `p95_over_batch_1`, its P95 of E2E over that of
batch 1. A strategy whose queue grows shows it in both.
"""

from collections.abc import Sequence

from contest import Setting, bound, scaled_slo, setting
from embedded import Bench, Options
from reporting import Row, arguments, report, say

from setpoint.metrics import RequestRecord, rank_quantile
from setpoint.sim.replica import Arrival

LOAD = 0.97
STRATEGIES: dict[str, Options] = {
    "static": {"batch": 16},
    "dynamic": {"batch": 16, "wait_s": 0.5},
    "continuous": {"token_budget": 128},
    "slack": {},
}


def p95_e2e(records: Sequence[RequestRecord], start: float, end: float) -> float:
    """Return the P95 of E2E of the requests that were due in `start`..`end`; an unfinished one is infinitely late."""
    values = sorted(float("inf") if r.e2e_s is None else r.e2e_s for r in records if start <= r.scheduled_at < end)
    return rank_quantile(values, 0.95)


def serve(bench: Bench, experiment: Setting, name: str, chat: Sequence[Arrival], seconds: float) -> tuple[float, float]:
    """Return (requests per second by tokens computed, P95 of E2E in seconds) of one strategy."""
    run = bench.run(name, STRATEGIES[name], experiment.classes, chat, until_s=seconds)
    tokens = run.output_tokens.get("chat", 0) + run.prompt_tokens.get("chat", 0)
    mean = sum(a.request.prompt_tokens + a.output_tokens for a in chat) / len(chat)
    return tokens / mean / run.seconds, p95_e2e(run.records, 0.1 * seconds, 0.8 * seconds)


def main() -> None:
    """Measure the maximum, batch 1 and each strategy at the same load, and report."""
    args = arguments(__doc__ or "")
    seconds = 7.0 if args.quick else 60.0
    rows: list[Row] = []
    ratios: dict[str, float | None] = {}
    with Bench(args) as bench:
        model = bench.profile(6.0 if args.quick else 30.0, args.seed)
        experiment = setting(scaled_slo(model), seed=args.seed, has_backlog=False)
        limit = bound(bench, experiment, seconds / 2)
        say(f"maximum {limit:.2f} requests/s; offered {LOAD:.2f} of it")
        chat = experiment.chat(LOAD * limit, seconds)
        single = bench.run_one_by_one(experiment.classes, chat[: 8 if args.quick else 50])
        batch_1 = p95_e2e(single, 0.0, seconds)
        for name in STRATEGIES:
            rps, e2e_s = serve(bench, experiment, name, chat, seconds)
            say(f"  {name}: {rps / limit:.3f} of the maximum")
            ratios = {"of_maximum": rps / limit, "p95_over_batch_1": e2e_s / batch_1}
            rows.append({"strategy": name, "requests": len(chat), "requests/s": rps, "E2E P95 s": e2e_s, **ratios})
    report("continuous_batching", ratios, rows, args)


if __name__ == "__main__":
    main()
