"""The search for the highest rate against a fine grid, on the simulator: how near, and at what cost.

    python benchmarks/loadgen_search.py [--quick] [--json]

The system is the simulated A100 of `policies.py` under the `continuous` strategy. The grid offers 25 rates in steps of
2.5% about the crossing, each with 6,000 requests; its answer is the last rate before the first that misses an
objective. The search knows nothing and is run on several seeds; closed loops are conversations without thought.

Ratios: `error`, the median over seeds of |estimate / grid - 1|, at most 0.05 is wanted; `of_grid_requests`, requests
sent by the search over those of the grid, at most 0.2 is wanted; `confirmed_over_grid`, the confirmed rate over the
grid's; `trials`, how many a search took.
"""

from collections.abc import Sequence
from functools import partial
from statistics import median

import msgspec
from policy_worlds import A100, CAPACITY
from reporting import Row, arguments, report, say

from setpoint.loadgen.search import SearchSettings, Trial, TrialResult
from setpoint.loadgen.trials import find_max_rate
from setpoint.metrics import RequestRecord, judge, overload, parse_objectives
from setpoint.model import ServiceClass, Slo
from setpoint.seeds import stream
from setpoint.sim.scenario import Scenario, simulate
from setpoint.workload import LogNormal, Steady, Traffic, plan_traffic

OBJECTIVES = parse_objectives("ttft_p95<500ms, tpot_p95<50ms")
MIX = (Traffic(class_name="chat", prompt=LogNormal(800, 1.0, 8, 8000), output=LogNormal(200, 0.7, 2, 1000)),)
CLASSES = {"chat": ServiceClass(name="chat", slo=Slo(), queue_max=100_000, wait_max_s=None)}
SCENARIO = Scenario(world=A100(), capacity=CAPACITY, classes=CLASSES, strategy="continuous")
STEP = 0.025
POINTS = 25
GRID_REQUESTS = 6000
WARMUP = 0.1


def carry(trial: Trial) -> TrialResult:
    """Carry a trial out on the simulator."""
    if trial.users is not None:
        return closed(trial, trial.users)
    rate = trial.rate or 1.0
    total = round(trial.requests * (1.0 + WARMUP))
    plan = plan_traffic(MIX, Steady(rate), partial(stream, trial.seed), count=total)
    records = sorted(simulate(SCENARIO, plan).records, key=lambda record: record.scheduled_at)
    return judged(trial, records[total - trial.requests :], sent=total)


def closed(trial: Trial, users: int) -> TrialResult:
    """Keep `users` requests in flight: each user is a conversation that goes on at once."""
    plan = plan_traffic(MIX, Steady(1.0), partial(stream, trial.seed), count=trial.requests)
    turns = [
        msgspec.structs.replace(one, at_s=0.0, session=index % users, turn=index // users)
        for index, one in enumerate(plan)
    ]
    records = sorted(simulate(SCENARIO, turns).records, key=lambda record: record.scheduled_at)
    return judged(trial, records, sent=len(plan))


def judged(trial: Trial, records: Sequence[RequestRecord], *, sent: int) -> TrialResult:
    """Return what the records show."""
    start, end = records[0].scheduled_at, max(record.ended_at or 0.0 for record in records)
    is_open = trial.users is None
    return TrialResult(
        trial=trial,
        completed_rps=len(records) / (end - start),
        judged=tuple(judge(records, one) for one in OBJECTIVES),
        is_overloaded=is_open and overload(records, start, records[-1].scheduled_at).is_overloaded,
        requests=len(records),
        sent=sent,
        mean_e2e_s=sum(record.e2e_s or 0.0 for record in records) / len(records),
    )


def grid(centre: float, requests: int, seed: int) -> tuple[float, int, list[Row]]:
    """Return the last rate of the grid before the first that misses an objective, its cost, and its rows."""
    rows: list[Row] = []
    best = 0.0
    for index in range(POINTS):
        rate = centre * (1.0 + STEP * (index - POINTS // 2))
        result = carry(Trial(kind="open", requests=requests, seed=seed, rate=rate))
        is_met = all(one.share <= one.objective.allowed for one in result.judged)
        rows.append({"rate": rate} | {one.objective.text: one.share for one in result.judged} | {"met": is_met})
        if is_met and index == len(rows) - 1 and all(row["met"] for row in rows):
            best = rate
    return best, POINTS * round(requests * (1.0 + WARMUP)), rows


def main() -> None:
    """Search, then lay the grid about where the searches ended, and compare."""
    args = arguments(__doc__ or "")
    seeds = range(args.seed, args.seed + (2 if args.quick else 7))
    found = []
    for seed in seeds:
        answer, history = find_max_rate(carry, SearchSettings(objectives=OBJECTIVES, seed=seed * 10_000))
        sent = sum(result.sent for result in history)
        found.append((answer, len(history), sent))
        say(f"  seed {seed}: {answer.estimate}, confirmed {answer.rate}, {len(history)} trials, {sent} sent")
    centre = median(answer.estimate or 0.0 for answer, _, _ in found)
    best, cost, rows = grid(centre, GRID_REQUESTS // 4 if args.quick else GRID_REQUESTS, 999)
    say(f"  grid: {best:.3f} requests/s, {cost} requests")
    confirmed = [answer.rate for answer, _, _ in found if answer.rate is not None]
    ratios = {
        "error": median(abs((answer.estimate or 0.0) / best - 1.0) for answer, _, _ in found) if best else None,
        "of_grid_requests": median(sent for _, _, sent in found) / (POINTS * GRID_REQUESTS * (1.0 + WARMUP)),
        "confirmed_over_grid": median(confirmed) / best if confirmed and best else None,
        "trials": float(median(trials for _, trials, _ in found)),
    }
    report("loadgen_search", ratios, rows, args)


if __name__ == "__main__":
    main()
