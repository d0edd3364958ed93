"""Runs of `policies.py`: attainment at a rate, capacity by bisection, the bound. Each is one job of one process.

Capacity is the highest rate at which no class misses more than it may, over the requests due after the first tenth of
the run; whoever was refused, expired or not answered by the end has missed. A run that has already missed too much is
given up, so that overload costs little time. All strategies see the same draws (common random numbers), and
neighbouring rates too, so that differences are those of the decisions.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import sqrt

import msgspec
from latency_budget import LatencyBudget
from policy_worlds import A100, BY_NAME, CAPACITY, Workload, arrivals

from setpoint.core.replica import ReplicaMachine
from setpoint.core.state import Strategy
from setpoint.core.strategies import Option, make_strategy
from setpoint.metrics.judge import met
from setpoint.model import ServiceClass, Slo
from setpoint.sim.replica import Arrival, ReplicaSimulator

WARM_UP = 0.1
STEP = 1.05
RESOLUTION = 1.02
LEAST, MOST = 0.02, 1.6
OTHERS: Mapping[str, Callable[..., Strategy]] = {"latency-budget": LatencyBudget}
"""Baselines that nobody needs but to compare with them."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A strategy with its options, and what the table calls it."""

    label: str
    strategy: str
    options: Mapping[str, Option] = {}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The capacity of one policy under one seed is looked for, starting at `guess` requests a second."""

    workload: str
    policy: Policy
    seed: int
    count: int
    guess: float
    bound: float
    only: str | None = None
    """The one class that arrives (the silo of that class), if not all."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The capacity found for a job, in requests a second."""

    job: Job
    capacity: float
    runs: int


def simulator(policy: Policy, classes: Mapping[str, ServiceClass]) -> ReplicaSimulator:
    """Return a fresh replica under `policy`."""
    world = A100()
    if policy.strategy in OTHERS:
        strategy = OTHERS[policy.strategy](**policy.options)
    else:
        strategy = make_strategy(policy.strategy, **policy.options)
    return ReplicaSimulator(ReplicaMachine(strategy, classes, CAPACITY, world), world)


def holds(workload: Workload, policy: Policy, rate: float, seed: int, count: int) -> bool:
    """Tell whether every class keeps its promise at `rate`; ends as soon as one cannot."""
    requests = list(arrivals(workload, rate, count, seed))
    since = WARM_UP * requests[-1].request.arrived_at
    judged = Counter(a.request.class_name for a in requests if a.request.arrived_at > since)
    left = {name: int(workload.miss_max * number) for name, number in judged.items()}
    slos = {name: c.slo for name, c in workload.classes.items()}
    for record in simulator(policy, workload.classes).run(requests, until=horizon(requests, slos)):
        if record.scheduled_at > since and not met(record, slos[record.class_name]):
            left[record.class_name] -= 1
            if left[record.class_name] < 0:
                return False
    return True


def attainment(workload: Workload, policy: Policy, rate: float, seed: int, count: int) -> dict[str, float]:
    """Return the share of requests of each class that met its targets."""
    requests = list(arrivals(workload, rate, count, seed))
    since = WARM_UP * requests[-1].request.arrived_at
    slos = {name: c.slo for name, c in workload.classes.items()}
    good: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for record in simulator(policy, workload.classes).run(requests, until=horizon(requests, slos)):
        if record.scheduled_at > since:
            whole[record.class_name] += 1
            good[record.class_name] += met(record, slos[record.class_name])
    return {name: good[name] / whole[name] for name in sorted(whole)}


def horizon(requests: Iterable[Arrival], slos: Mapping[str, Slo]) -> float:
    """Return when to stop: whatever is unanswered by then has missed its targets."""
    last = max(a.request.arrived_at for a in requests)
    longest = max(a.output_tokens for a in requests)
    return last + max((s.e2e_s or 0.0) + (s.ttft_s or 0.0) + (s.tpot_s or 0.0) * longest + 1.0 for s in slos.values())


def capacity(job: Job) -> Found:
    """Return the highest rate that holds: the middle between one that does and one, `RESOLUTION` higher, that does not.

    From the guess on the steps grow, so that a good guess costs few runs and a bad one not many.
    """
    workload = BY_NAME[job.workload]
    if job.only is not None:
        flows = tuple(flow for flow in workload.flows if flow.service_class.name == job.only)
        workload = msgspec.structs.replace(workload, flows=flows)
    runs = 0

    def ok(rate: float) -> bool:
        nonlocal runs
        runs += 1
        return holds(workload, job.policy, rate, job.seed, job.count)

    low = high = job.guess
    step = STEP
    if ok(job.guess):
        while high < MOST * job.bound and ok(high := high * step):
            low, step = high, step**2
    else:
        while low > LEAST * job.bound and not ok(low := low / step):
            high, step = low, step**2
    while high > low * RESOLUTION:
        middle = sqrt(low * high)
        low, high = (middle, high) if ok(middle) else (low, middle)
    return Found(job=job, capacity=sqrt(low * high), runs=runs)


def bound(lengths: str, count: int = 6000) -> float:
    """Return the rate at which a replica empties an unlimited backlog, by the best of three large budgets.

    The rate is that at which requests end between the first tenth and the last two of them, so that neither the start
    nor the draining end counts.
    """
    workload = next(w for w in BY_NAME.values() if w.lengths == lengths and w.cv is not None)
    backlog = ServiceClass(name="backlog", slo=Slo(), queue_max=10**9, wait_max_s=None)
    flow = msgspec.structs.replace(workload.flows[0], service_class=backlog, share=1.0)
    workload = msgspec.structs.replace(workload, flows=(flow,))
    best = 0.0
    for budget in (1024, 2048, 4096):
        policy = Policy(label="", strategy="continuous", options={"token_budget": budget})
        ends = [
            record.ended_at or 0.0
            for record in simulator(policy, workload.classes).run(arrivals(workload, 1e6, count, 1))
        ]
        first, last = count // 10, count * 8 // 10
        best = max(best, (last - first) / (ends[last] - ends[first]))
    return best
