"""One question to the simulator: what is deployed, how it is scheduled, what goes wrong; and the run that answers it.

A scenario with one replica and nothing beside it takes the fast path of `setpoint.sim.replica`; any other the cluster.
Both drive the same machines, and on the same plan give the same records where both can.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice

import msgspec

from setpoint.core.pool import PoolMachine
from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import Option, make_strategy
from setpoint.errors import WorkloadError
from setpoint.metrics.timeline import RequestRecord
from setpoint.model import Capacity, Request, ServiceClass, StepTime, chunk_work
from setpoint.model.pool import PoolLayout
from setpoint.seeds import stream
from setpoint.sim.cluster import ClusterSimulator
from setpoint.sim.faults import FaultSchedule, Spike
from setpoint.sim.fleet import ClusterSettings
from setpoint.sim.replica import ReplicaSimulator
from setpoint.sim.stepping import Arrival, Journal, SimulatedReplica, Watch
from setpoint.units import Blocks, Instant, Tokens
from setpoint.workload import PlannedRequest

BACKLOG_REQUESTS = 2000
BACKLOG_BUDGETS = (1024, 4096)


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run needs but its requests; it can be sent to another process.

    `world` is the truth about step time, `belief` what the machines take for it (`None`: the same). `cache_ratio`: the
    share of the KV cache that is set aside for shared prefixes. `transfer_s`: seconds a token whose KV is handed over.
    `request_s`: what a request spends outside of steps before its first token (HTTP, tokens), which the client sees.
    `drain_s`: how long after the last arrival a run goes on before what is left counts as unfinished.
    """

    world: StepTime
    capacity: Capacity
    classes: Mapping[str, ServiceClass]
    strategy: str = "slack"
    options: Mapping[str, Option] = {}
    belief: StepTime | None = None
    layout: PoolLayout = PoolLayout()
    faults: FaultSchedule = FaultSchedule()
    cache_ratio: float = 0.0
    transfer_s: float = 0.0
    request_s: float = 0.0
    drain_s: float = 120.0

    @property
    def machine_capacity(self) -> Capacity:
        """What each machine is told that it has: the KV cache less the share of the prefixes."""
        left = int(self.capacity.kv_blocks * (1.0 - self.cache_ratio))
        return msgspec.structs.replace(self.capacity, kv_blocks=Blocks(left))

    def make_machine(self) -> ReplicaMachine:
        """Return a fresh machine."""
        strategy = make_strategy(self.strategy, **self.options)
        return ReplicaMachine(strategy, self.classes, self.machine_capacity, self.belief or self.world)


class Outcome(msgspec.Struct, kw_only=True):
    """What a run left: the records in order of their ends, and sums over all replicas.

    `ended_at`: the instant at which it ended; `is_cut`: requests were left then. `replicas`: how many were there in the
    mean; `busy_ratio`: the share of their time spent in steps. `hit_ratio`: share of the prompt tokens that the prefix
    cache had (`None` without one). `missed`: the faults that changed nothing, in words.
    """

    records: list[RequestRecord]
    ended_at: float
    is_cut: bool
    steps: int
    busy_ratio: float
    preemptions: int
    replicas: float = 1.0
    hit_ratio: float | None = None
    missed: tuple[str, ...] = ()


def simulate(
    scenario: Scenario,
    plan: Sequence[PlannedRequest],
    *,
    seed: int = 0,
    watch: Watch | None = None,
    journal: Journal | None = None,
) -> Outcome:
    """Run the plan through the scenario."""
    plan = with_spikes(plan, scenario.faults.spike, seed)
    until = plan[-1].at_s + scenario.drain_s if plan else 0.0
    outcome = _simulate(scenario, plan, until, watch, journal)
    if scenario.request_s:
        for record in outcome.records:
            _shift(record, scenario.request_s)
    return outcome


def _shift(record: RequestRecord, delay_s: float) -> None:
    if record.first_token_at is not None:
        record.first_token_at += delay_s
        record.ended_at = None if record.ended_at is None else record.ended_at + delay_s
        record.event_at = [at + delay_s for at in record.event_at]


def _simulate(
    scenario: Scenario,
    plan: Sequence[PlannedRequest],
    until: float,
    watch: Watch | None,
    journal: Journal | None,
) -> Outcome:
    if is_single(scenario, plan):
        machine = scenario.make_machine()
        single = ReplicaSimulator(machine, scenario.world, watch=watch, journal=journal)
        records = list(single.run(arrivals(plan), until))
        ended_at = until if single.in_flight else single.now
        return Outcome(
            records=records,
            ended_at=ended_at,
            is_cut=single.in_flight > 0,
            steps=single.steps,
            busy_ratio=min(1.0, single.busy_s / ended_at) if ended_at else 0.0,
            preemptions=single.preemptions,
        )
    return _simulate_cluster(scenario, plan, until, watch, journal)


def is_single(scenario: Scenario, plan: Iterable[PlannedRequest]) -> bool:
    """Return whether the fast path says it all: one replica, no faults, no prefixes, no conversations."""
    layout = scenario.layout
    is_plain = layout.replicas == 1 and layout.pools[0].in_flight_max is None and scenario.faults.is_empty
    return is_plain and not scenario.cache_ratio and all(one.session is None for one in plan)


def _simulate_cluster(
    scenario: Scenario,
    plan: Sequence[PlannedRequest],
    until: float,
    watch: Watch | None,
    journal: Journal | None,
) -> Outcome:
    def make_replica(replica_id: int) -> SimulatedReplica:
        own = journal if replica_id == 0 else None
        return SimulatedReplica(scenario.make_machine(), scenario.world, id=replica_id, watch=watch, journal=own)

    probe = 128
    prefill_s = scenario.world.seconds(0, 0, probe, chunk_work(0, probe), 1) / probe
    capacity = scenario.capacity
    settings = ClusterSettings(
        prefill_s=prefill_s,
        cache_tokens=int(capacity.kv_blocks * scenario.cache_ratio) * capacity.block_tokens,
        transfer_s=scenario.transfer_s,
        faults=scenario.faults,
    )
    cluster = ClusterSimulator(PoolMachine(scenario.layout, scenario.classes), make_replica, settings)
    records = list(cluster.run(plan, until))
    ended_at = until if cluster.in_flight else cluster.now
    replicas = cluster.fleet.everyone()
    caches = [*cluster.fleet.caches.values(), *cluster.fleet.lost_caches]
    asked = sum(cache.asked_tokens for cache in caches)
    busy_s = sum(replica.busy_s for replica in replicas)
    present_s = cluster.fleet.present_s(ended_at)
    return Outcome(
        records=records,
        ended_at=ended_at,
        is_cut=cluster.in_flight > 0,
        steps=sum(replica.steps for replica in replicas),
        busy_ratio=busy_s / present_s if present_s else 0.0,
        preemptions=sum(replica.preemptions for replica in replicas),
        replicas=present_s / ended_at if ended_at else float(scenario.layout.replicas),
        missed=tuple(cluster.missed),
        hit_ratio=sum(cache.hit_tokens for cache in caches) / asked if asked else None,
    )


def arrivals(plan: Iterable[PlannedRequest]) -> Iterator[Arrival]:
    """Yield the requests of a plan as the machine sees them."""
    for one in plan:
        request = Request(
            id=one.id,
            class_name=one.class_name,
            arrived_at=Instant(one.at_s),
            prompt_tokens=Tokens(one.prompt_tokens),
            output_tokens_max=Tokens(one.output_tokens),
        )
        yield Arrival(request, one.output_tokens)


def with_spikes(plan: Sequence[PlannedRequest], spikes: Sequence[Spike], seed: int) -> Sequence[PlannedRequest]:
    """Return the plan with more arrivals in each spike: copies of those that are due then, at instants of their own."""
    if not spikes:
        return plan
    chance = stream(seed, "spikes")
    added: list[PlannedRequest] = []
    for spike in spikes:
        for one in plan:
            if spike.at_s <= one.at_s < spike.at_s + spike.for_s:
                wanted = spike.factor - 1.0
                copies = int(wanted) + (chance.random() < wanted % 1.0)
                added += [
                    msgspec.structs.replace(one, at_s=spike.at_s + chance.random() * spike.for_s, session=None, turn=0)
                    for _ in range(copies)
                ]
    merged = sorted([*plan, *added], key=lambda one: one.at_s)
    return [msgspec.structs.replace(one, id=number) for number, one in enumerate(merged)]


def _tokens_max(capacity: Capacity) -> int:
    return min(capacity.kv_blocks * capacity.block_tokens, capacity.context_tokens_max)


def check_fit(plan: Sequence[PlannedRequest], capacity: Capacity) -> int:
    """Return how many requests are longer than a replica can hold; raises `WorkloadError` when that is all of them."""
    most = _tokens_max(capacity)
    too_long = sum(one.prompt_tokens + one.output_tokens > most for one in plan)
    if plan and too_long == len(plan):
        raise WorkloadError(
            f"no request fits: the shortest has {min(one.prompt_tokens + one.output_tokens for one in plan):,} tokens, "
            f"and a replica holds {most:,} of one sequence",
            hint="give more KV cache (--kv-tokens, --tp, another --hardware) or clip the lengths",
        )
    return too_long


def bound_rps(scenario: Scenario, plan: Sequence[PlannedRequest]) -> float:
    """Return the rate of arrivals at which all replicas together would empty an unlimited backlog of such requests.

    No strategy that gives none up carries more for long; one that gives up the long ones ends more, but shorter ones.
    Prefix hits are not counted, and requests longer than a replica can hold cost nothing.
    """
    sample = plan[:BACKLOG_REQUESTS]
    most = _tokens_max(scenario.machine_capacity)
    fitting = [one for one in sample if one.prompt_tokens + one.output_tokens <= most]
    # a backlog shorter than what runs at once would end all at once
    backlog = islice(cycle(fitting), BACKLOG_REQUESTS)
    pool = [msgspec.structs.replace(one, at_s=0.0, id=i) for i, one in enumerate(backlog)]
    classes = {
        name: msgspec.structs.replace(one, queue_max=10**9, wait_max_s=None, late="wait")
        for name, one in scenario.classes.items()
    }
    best = 0.0
    for budget in BACKLOG_BUDGETS:
        machine = ReplicaMachine(
            make_strategy("continuous", token_budget=budget), classes, scenario.machine_capacity, scenario.world
        )
        ends = [r.ended_at or 0.0 for r in ReplicaSimulator(machine, scenario.world).run(arrivals(pool))]
        first, last = len(ends) // 10, max(len(ends) * 8 // 10, 1)
        if last > first and ends[last - 1] > ends[first]:
            best = max(best, (last - 1 - first) / (ends[last - 1] - ends[first]))
    return best * scenario.layout.replicas * len(sample) / max(1, len(fitting))
