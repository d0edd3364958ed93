"""Claim of the field: continuous batching reaches 80-90 % of the maximum without the latency of fixed batches.

    python benchmarks/continuous_batching.py [--quick] [--json]

The maximum is what the engine computes of an endless backlog, at the best of several token budgets. Static, dynamic,
continuous and slack are given the same backlog, of lengths that vary like chat: their throughput as a share of that
maximum. Then they serve the same requests offered at `LOAD` of the maximum. Batch 1 is the same requests one at a
time, each on an idle engine.

Ratios: `of_maximum`, throughput of slack on the backlog over the maximum; `p95_over_batch_1`, P95 of E2E under slack at
the offered load over that of batch 1.
"""

from collections.abc import Sequence

from contest import Setting, bound, scaled_slo, setting
from embedded import Bench, Options
from reporting import Row, arguments, report, say

from setpoint.metrics import RequestRecord, rank_quantile

LOAD = 0.9
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


def serve(bench: Bench, experiment: Setting, name: str, rate: float, seconds: float) -> tuple[float, float]:
    """Return (requests per second of an endless backlog, P95 of E2E in seconds at `rate`) of one strategy."""
    backlog = experiment.chat(1000.0, seconds)[: int(40 * seconds)]
    full = bench.run(name, STRATEGIES[name], experiment.classes, backlog, until_s=seconds / 2)
    tokens = full.output_tokens.get("chat", 0) + full.prompt_tokens.get("chat", 0)
    mean = sum(a.request.prompt_tokens + a.output_tokens for a in backlog) / len(backlog)
    run = bench.run(name, STRATEGIES[name], experiment.classes, experiment.chat(rate, seconds), until_s=seconds)
    return tokens / mean / full.seconds, p95_e2e(run.records, 0.1 * seconds, 0.8 * seconds)


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
            rps, e2e_s = serve(bench, experiment, name, LOAD * limit, seconds)
            say(f"  {name}: {rps / limit:.3f} of the maximum")
            ratios = {"of_maximum": rps / limit, "p95_over_batch_1": e2e_s / batch_1}
            rows.append({"strategy": name, "requests/s of a backlog": rps, "E2E P95 s": e2e_s, **ratios})
    report("continuous_batching", ratios, rows, args)


if __name__ == "__main__":
    main()
