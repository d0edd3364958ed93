"""Batch work beside online traffic: how much of the machine it gets, and what the online requests pay for it.

    python benchmarks/harvest.py [--quick] [--json]

Online: arrivals of the Azure conversation trace (Poisson) at 30, 50 and 80 % of the bound, TTFT 1 s and TPOT 50 ms at
P95. Offline: a backlog of long summaries (prompts of 2,000 to 6,000 tokens, answers of 100 to 300: the shape of
arXiv summarisation) that never ends. The engine is that of `policies.py`. Every policy is run with and without the
backlog on the same draws; *inflation* is over the online-only run under `slack`, *share* the offline tokens a second
over those of the backlog alone, with half of its 95 % interval over the seeds.

Bounds: online alone (no share), offline alone (a share of 1: the best of `slack` and of `continuous` with large
budgets), and `left over`, the machine time that the online work leaves when it is done in the largest batches.
Baselines: `priority` with its budget swept (online first in a fixed token budget: what vLLM's priority scheduling
does), and a fixed latency budget for every step with batch work, swept, as HyGen does it (`latency_budget.py`). The
front of `slack` is walked by the share of what is left that batch work may take at most (`boldness`, held fixed), with
the default, controlled, beside it; at half load in full, elsewhere in part.

Ratios, at half load: `share_within`: the largest offline share at no more than 5 % P99 TTFT and 2 % P99 TPOT inflation,
by any point of `slack`'s front; `share_in_slo`: the share of `slack` as it is, where 95 % of the online requests still
meet their targets; `..._priority` and `..._latency_budget`: the best of these baselines under the same conditions
(none: no setting meets them).
"""

from collections.abc import Sequence
from multiprocessing import Pool
from os import cpu_count
from statistics import fmean

import msgspec
from policy_report import estimate
from policy_runs import WARM_UP, Policy, bound, horizon, simulator
from policy_worlds import BY_NAME, Flow, arrivals, chat
from reporting import arguments, report, say

from setpoint.metrics import RequestRecord, rank_quantile
from setpoint.metrics.judge import met
from setpoint.model import PRESETS, Request
from setpoint.seeds import stream
from setpoint.sim.replica import Arrival
from setpoint.units import Instant, Tokens

HALF = 0.5
LOADS = (0.3, HALF, 0.8)
ELSEWHERE = ("slack", "slack, boldness 0.03", "slack, boldness 0.1", "priority 384", "latency budget 30 ms")
TTFT_MAX, TPOT_MAX = 1.05, 1.02
_OFFLINE_ID = 10_000_000
CLASS = chat(1.0, 0.05, 0.95)
SLACK = Policy(label="slack", strategy="slack")
ALONE = (
    SLACK,
    *(
        Policy(label=f"continuous {budget}", strategy="continuous", options={"token_budget": budget})
        for budget in (1024, 2048, 4096)
    ),
)
"""What may say how much batch work the machine does with nothing else to do."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One run: a policy, an online load as a share of the bound, with the backlog or without."""

    policy: Policy
    load: float
    rate: float
    has_backlog: bool
    seed: int
    seconds: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Online latencies at P99, attainment, and offline tokens a second."""

    case: Case
    ttft_p99: float
    tpot_p99: float
    attainment: float
    offline_tokens_per_s: float


def policies() -> list[Policy]:
    """Return what is compared."""
    front = [
        Policy(
            label=f"slack, boldness {share:g}",
            strategy="slack",
            options={"boldness": share, "is_controlled": False},
        )
        for share in (0.01, 0.03, 0.05, 0.07, 0.1, 0.25, 0.5)
    ]
    fixed = [
        Policy(label=f"priority {budget}", strategy="priority", options={"token_budget": budget})
        for budget in (128, 256, 384, 512)
    ]
    timed = [
        Policy(label=f"latency budget {ms} ms", strategy="latency-budget", options={"budget_s": ms / 1e3})
        for ms in (20, 30, 40, 50)
    ]
    return [SLACK, *front, *fixed, *timed]


def compared(load: float) -> list[Policy]:
    """Return what is compared at this load: everything where the ratios are taken, else some of each."""
    return [p for p in policies() if load == HALF or p.label in ELSEWHERE]


def backlog(seed: int, count: int) -> list[Arrival]:
    """Return offline requests that all wait from the start."""
    chance = stream(seed, "offline")
    found = []
    for number in range(count):
        prompt, output = 2000 + chance.randrange(4001), 100 + chance.randrange(201)
        request = Request(
            id=_OFFLINE_ID + number,
            class_name="batch",
            arrived_at=Instant(0.0),
            prompt_tokens=Tokens(prompt),
            output_tokens_max=Tokens(output),
        )
        found.append(Arrival(request, output))
    return found


def run(case: Case) -> Outcome:
    """Run one case."""
    workload = msgspec.structs.replace(BY_NAME["conv 1s 50ms 5%"], flows=(Flow(service_class=CLASS),))
    count = max(1, int(case.rate * case.seconds))
    online = list(arrivals(workload, case.rate, count, case.seed)) if case.rate > 0.0 else []
    offline = backlog(case.seed, int(case.seconds * 4.0)) if case.has_backlog else []
    sim = simulator(case.policy, {"chat": CLASS, "batch": PRESETS["batch"]})
    until = horizon(online, {"chat": CLASS.slo}) if online else case.seconds
    records = list(sim.run([*offline, *online], until=min(until, case.seconds + 30.0)))
    since = WARM_UP * case.seconds
    ours = [r for r in records if r.class_name == "chat" and r.scheduled_at > since]
    tokens = sum(_tokens(r) for r in records if r.class_name == "batch")
    return Outcome(
        case=case,
        ttft_p99=_p99([r.ttft_s for r in ours]),
        tpot_p99=_p99([r.tpot_s for r in ours]),
        attainment=fmean(met(r, CLASS.slo) for r in ours) if ours else 1.0,
        offline_tokens_per_s=tokens / sim.now,
    )


def _tokens(record: RequestRecord) -> int:
    return record.output_tokens + (record.prompt_tokens if record.first_token_at is not None else 0)


def _p99(values: list[float | None]) -> float:
    known = sorted(value for value in values if value is not None)
    return rank_quantile(known, 0.99) if known else 0.0


def cases(limit: float, seconds: float, seeds: range, loads: Sequence[float]) -> list[Case]:
    """Return every run: offline alone, and for each load online alone and beside the backlog."""
    found = []
    for seed in seeds:
        found += [Case(policy=p, load=0.0, rate=0.0, has_backlog=True, seed=seed, seconds=seconds) for p in ALONE]
        for load in loads:
            rate = load * limit
            found.append(Case(policy=SLACK, load=load, rate=rate, has_backlog=False, seed=seed, seconds=seconds))
            found += [
                Case(policy=p, load=load, rate=rate, has_backlog=True, seed=seed, seconds=seconds)
                for p in compared(load)
            ]
    return found


def main() -> None:
    """Run everything and print the front."""
    args = arguments("Batch work beside online traffic.")
    seconds, seeds, loads = (120.0, 1, (HALF,)) if args.quick else (300.0, 3, LOADS)
    limit = bound("conv", 2000 if args.quick else 6000)
    wanted = cases(limit, seconds, range(args.seed, args.seed + seeds), loads)
    say(f"{len(wanted)} runs")
    with Pool(cpu_count()) as pool:
        found = pool.map(run, wanted, chunksize=1)
    by_policy = [[o.offline_tokens_per_s for o in found if not o.case.load and o.case.policy == p] for p in ALONE]
    alone = max(fmean(rates) for rates in by_policy)
    rows: list[dict[str, float | str]] = []
    for load in loads:
        base = [o for o in found if o.case.load == load and not o.case.has_backlog]
        ttft, tpot = fmean(o.ttft_p99 for o in base), fmean(o.tpot_p99 for o in base)
        rows.append(_row("online alone", load, base, ttft, tpot, alone))
        rows.append({"policy": "left over", "load": load, "offline share": 1.0 - load})
        for policy in compared(load):
            chosen = [o for o in found if o.case.load == load and o.case.has_backlog and o.case.policy == policy]
            rows.append(_row(policy.label, load, chosen, ttft, tpot, alone))
    rows.append({"policy": "offline alone", "load": 0.0, "offline share": 1.0, "offline tokens/s": alone})
    report("harvest", _ratios(rows), rows, args)


def _row(
    label: str, load: float, found: list[Outcome], ttft: float, tpot: float, alone: float
) -> dict[str, float | str]:
    shares = [o.offline_tokens_per_s / alone for o in found]
    return {
        "policy": label,
        "load": load,
        "TTFT P99 ms": 1e3 * fmean(o.ttft_p99 for o in found),
        "TPOT P99 ms": 1e3 * fmean(o.tpot_p99 for o in found),
        "TTFT inflation": fmean(o.ttft_p99 for o in found) / ttft,
        "TPOT inflation": fmean(o.tpot_p99 for o in found) / tpot,
        "attainment": fmean(o.attainment for o in found),
        "offline share": fmean(shares),
        **({"± share": estimate(shares).half} if len(shares) > 1 else {}),
        "offline tokens/s": fmean(o.offline_tokens_per_s for o in found),
    }


def _ratios(rows: list[dict[str, float | str]]) -> dict[str, float | None]:
    half = [row for row in rows if row["load"] == HALF]

    def best(name: str, *, within: bool) -> float | None:
        shares = [
            float(row["offline share"])
            for row in half
            if str(row["policy"]).startswith(name)
            and "attainment" in row
            and (
                (float(row["TTFT inflation"]) <= TTFT_MAX and float(row["TPOT inflation"]) <= TPOT_MAX)
                if within
                else float(row["attainment"]) >= 0.95
            )
        ]
        return max(shares, default=None)

    own = next(row for row in half if row["policy"] == "slack")
    return {
        "share_within": best("slack", within=True),
        "share_within_priority": best("priority", within=True),
        "share_within_latency_budget": best("latency budget", within=True),
        "share_in_slo": float(own["offline share"]) if float(own["attainment"]) >= 0.95 else None,
        "share_in_slo_priority": best("priority", within=False),
        "share_in_slo_latency_budget": best("latency budget", within=False),
    }


if __name__ == "__main__":
    main()
