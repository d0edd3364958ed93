"""Two loads of `policies.py` that are not a capacity: chat beside an unlimited backlog, and arrivals past the bound."""

from itertools import pairwise
from multiprocessing import Pool
from statistics import fmean

import msgspec
from policy_runs import WARM_UP, Policy, horizon, simulator
from policy_settings import PUBLISHED, SLACK, fixed, qoserves
from policy_worlds import BY_NAME, Flow, Workload, arrivals, chat
from reporting import say

from setpoint.metrics.judge import met
from setpoint.model import PRESETS
from setpoint.sim.replica import Arrival

BESIDE_SHARES = (0.3, 0.55, 0.7, 0.85)
OVERLOADS = (0.8, 1.0, 1.2, 1.5, 2.0)
_BACKLOG_ID = 10_000_000


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """Chat at `load` times the bound beside batch work without end."""

    policy: str
    load: float
    seed: int
    attainment: float
    batch_tokens_per_s: float
    preemptions: int


class Overload(msgspec.Struct, frozen=True, kw_only=True):
    """Chat alone at `load` times the bound: attainment of all, and by quartile of prompt length, shortest first."""

    policy: str
    load: float
    seed: int
    attainment: float
    quartiles: tuple[float, ...]

    @property
    def longest(self) -> float:
        """Attainment of the quarter with the longest prompts."""
        return self.quartiles[-1]


def beside(policy: Policy, rate: float, load: float, seed: int, count: int) -> Beside:
    """Run chat at `rate` beside a backlog that outlasts it."""
    service_class = chat(1.0, 0.05, 0.95)
    workload = msgspec.structs.replace(BY_NAME["conv 1s 50ms 5%"], flows=(Flow(service_class=service_class),))
    requests = list(arrivals(workload, rate, min(count, int(rate * 300)), seed))
    last = requests[-1].request.arrived_at
    backlog = _backlog(workload, seed, int(last * 9.0))
    slo = service_class.slo
    sim = simulator(policy, {**workload.classes, "batch": PRESETS["batch"]})
    until = horizon(requests, {"chat": slo})
    good, tokens = [], 0
    for record in sim.run([*backlog, *requests], until=until):
        if record.class_name == "batch":
            tokens += record.output_tokens + (record.prompt_tokens if record.first_token_at is not None else 0)
        elif record.scheduled_at > WARM_UP * last:
            good.append(float(met(record, slo)))
    return Beside(
        policy=policy.label,
        load=load,
        seed=seed,
        attainment=fmean(good),
        batch_tokens_per_s=tokens / max(sim.now, 1e-9),
        preemptions=sim.preemptions,
    )


def _backlog(workload: Workload, seed: int, count: int) -> list[Arrival]:
    """Return batch requests that all wait from the start."""
    found = []
    for arrival in arrivals(workload, 1e9, count, seed + 1000, first_id=_BACKLOG_ID):
        request = msgspec.structs.replace(arrival.request, class_name="batch", arrived_at=0.0)
        found.append(Arrival(request, arrival.output_tokens))
    return found


def overload(policy: Policy, rate: float, load: float, seed: int, count: int) -> Overload:
    """Run chat at `rate`, and look at who is given up."""
    workload = BY_NAME["conv 2s 50ms 1%"]
    slo = workload.flows[0].service_class.slo
    requests = list(arrivals(workload, rate, count, seed))
    since = WARM_UP * requests[-1].request.arrived_at
    records = [
        record
        for record in simulator(policy, workload.classes).run(requests, until=horizon(requests, {"chat": slo}))
        if record.scheduled_at > since
    ]
    records.sort(key=lambda record: record.prompt_tokens)
    good = [float(met(record, slo)) for record in records]
    cut = [len(good) * i // 4 for i in range(5)]
    return Overload(
        policy=policy.label,
        load=load,
        seed=seed,
        attainment=fmean(good),
        quartiles=tuple(fmean(good[a:b]) for a, b in pairwise(cut)),
    )


def mixed(limit: float, seeds: int, count: int, workers: int) -> tuple[list[Beside], list[Overload]]:
    """Measure chat beside an unlimited backlog, and what is left past the bound, which is `limit` requests a second."""
    chosen = [PUBLISHED, *qoserves(), SLACK]
    drawn = range(1, seeds + 1)
    with Pool(workers) as pool:
        loads = [(p, load, seed) for p in [*fixed("priority")[:3], *chosen] for load in BESIDE_SHARES for seed in drawn]
        besides = pool.starmap(beside, [(p, load * limit, load, seed, count) for p, load, seed in loads])
        say("chat beside a backlog: done")
        pasts = [(p, load, seed) for p in [*fixed("continuous")[1:3], *chosen] for load in OVERLOADS for seed in drawn]
        overloads = pool.starmap(overload, [(p, load * limit, load, seed, count) for p, load, seed in pasts])
        say("past the bound: done")
    return besides, overloads
