"""Chat beside an endless backlog of batch work: how much chat each strategy can hold at 95 %, and what batch gets.

    python benchmarks/two_classes.py [--quick] [--bursty] [--json]

Chat arrives by a Poisson process (`--bursty`: gamma gaps with a coefficient of variation of 3). The *bound* is the rate
at which the engine empties an endless backlog of chat alone: no strategy holds more. See `contest` for the method.

Ratios: `over_best_fixed`, the chat rate of untuned `slack` over that of the best fixed token budget (continuous and
priority, each swept); `over_qoserve`, over that of `qoserve` with its factor swept; `batch_share`, batch tokens per
second beside that chat, of what batch alone gets. Where a baseline fails at the lowest rung already, that rung stands
for its capacity in the ratio, which is then a lower bound.
"""

import argparse

from contest import (
    BASELINES,
    SLACK,
    Contender,
    Rung,
    Setting,
    batch_at,
    bound,
    capacity_of,
    climb,
    scaled_slo,
    setting,
    targets,
    tuned,
)
from embedded import Bench
from reporting import arguments, report, say

from setpoint.workload import POISSON, Gaps

LADDER = (0.04, 0.08, 0.16, 0.24, 0.34, 0.46, 0.6)
QUICK_LADDER = (0.15, 0.4)
TUNED_AT = (0.12, 0.35)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bursty", action="store_true", help="gamma gaps with a coefficient of variation of 3")
    parser.add_argument("--seconds", type=float, help="length of one rung (default: 60, quick: 4)")


def batch_alone(bench: Bench, experiment: Setting, seconds: float) -> float:
    """Return the batch tokens per second without any chat."""
    run = bench.run("slack", {}, experiment.classes, [], until_s=seconds, backlog=experiment.backlog)
    return run.tokens_per_s("batch")


def main() -> None:
    """Tune the baselines in the simulator, let all contenders climb, and report."""
    args = arguments(__doc__ or "", _options)
    seconds = args.seconds or (4.0 if args.quick else 60.0)
    with Bench(args) as bench:
        model = bench.profile(6.0 if args.quick else 30.0, args.seed)
        slo = scaled_slo(model)
        experiment = setting(slo, seed=args.seed, gaps=Gaps(cv=3.0) if args.bursty else POISSON)
        limit = bound(bench, experiment, seconds / 2)
        say(f"bound {limit:.2f} requests/s; targets {targets(slo)}")
        rates = [limit * share for share in TUNED_AT]
        capacity = bench.executor.capacity
        tuning_s = 10.0 if args.quick else 60.0
        contenders = [tuned(name, experiment, model, capacity, rates, tuning_s) for name in BASELINES]
        ladder = [limit * share for share in (QUICK_LADDER if args.quick else LADDER)]
        climbs = {c.name: (c, climb(bench, c, experiment, ladder, seconds)) for c in [*contenders, SLACK]}
        alone = batch_alone(bench, experiment, seconds / 2)
    _report(climbs, limit, alone, args)


def _report(
    climbs: dict[str, tuple[Contender, list[Rung]]], limit: float, alone: float, args: argparse.Namespace
) -> None:
    held = {name: capacity_of(rungs) for name, (_, rungs) in climbs.items()}
    rows = [
        {
            "strategy": name,
            "options": str(dict(contender.options)),
            "slots": contender.slots,
            "chat/s at 95%": held[name],
            "of bound": held[name] / limit,
            "batch tokens/s there": batch_at(rungs, held[name]),
            **{f"{r.rate:.2f}/s": f"{r.attainment:.3f} of {r.requests}" for r in rungs},
        }
        for name, (contender, rungs) in climbs.items()
    ]
    slack = held[SLACK.name]
    at_most = {name: max(held[name], rungs[0].rate) for name, (_, rungs) in climbs.items()}
    fixed = max(at_most["continuous, best budget"], at_most["priority, best budget"])
    ratios = {
        "over_best_fixed": slack / fixed,
        "over_qoserve": slack / at_most["qoserve, best factor"],
        "batch_share": batch_at(climbs[SLACK.name][1], slack) / alone,
        "bound_rps": limit,
    }
    report("two_classes" + (" (bursty)" if args.bursty else ""), ratios, rows, args)


if __name__ == "__main__":
    main()
