"""The pool machine: one door in, commands out, in front of any number of replicas.

    handle(event) -> list[Command]

It decides request by request: which pool, which replica, who waits here, who is refused. Like the replica machine it
is synchronous, reads no clock and draws no random number; a simulator and a gateway drive it alike. What the shell must
know:

- `Dispatch` is answered by `FirstTokenCame` (once, if a token comes) and `RequestEnded`, in this order;
- a request of a prefill pool ends there with its first token, and is dispatched again in the stage `decode`;
- when a replica is lost, what it had is dispatched anew (`retries_max` times) or refused as `lost`;
- `PoolWakeAt` asks for a `PoolTick`; each reply that holds one replaces the earlier.
"""

from collections import OrderedDict
from collections.abc import Mapping

from setpoint.core.routing import ROUTING, Flight, Replica
from setpoint.errors import ConfigError
from setpoint.model import ServiceClass
from setpoint.model.pool import (
    ClientLeft,
    Dispatch,
    FirstTokenCame,
    PoolCommand,
    PoolEvent,
    PoolLayout,
    PoolSpec,
    PoolWakeAt,
    Refusal,
    Refuse,
    ReplicaJoined,
    ReplicaLeft,
    ReplicaReported,
    RequestCame,
    RequestEnded,
    Withdraw,
)
from setpoint.units import NEVER, Instant, Seconds


class PoolMachine:
    """Decides in front of engines, by the rules of one layout."""

    def __init__(self, layout: PoolLayout, classes: Mapping[str, ServiceClass]) -> None:
        """Start without replicas; raises `ConfigError` for an unknown routing rule or class."""
        rule = ROUTING.get(layout.routing)
        if rule is None:
            raise ConfigError(f"unknown routing {layout.routing!r}", hint=f"choose one of {', '.join(ROUTING)}")
        unknown = {name for pool in layout.pools for name in pool.classes} - set(classes)
        if unknown:
            raise ConfigError(f"a pool serves an unknown class {min(unknown)!r}", hint=f"known: {', '.join(classes)}")
        self.layout = layout
        self.replicas: dict[int, Replica] = {}
        self.flights: dict[int, Flight] = {}
        self.waiting: dict[str, OrderedDict[int, Flight]] = {pool.name: OrderedDict() for pool in layout.pools}
        self.now = 0.0
        self.classes = dict(classes)
        self._pools = {pool.name: pool for pool in layout.pools}
        self._rule = rule
        self._sent = 0
        self._out: list[PoolCommand] = []

    def handle(self, event: PoolEvent) -> list[PoolCommand]:
        """Take in what has happened; return what is to be done, in order."""
        assert event.at >= self.now, "events come in the order of their instants"
        self.now = event.at
        out = self._out = []
        if isinstance(event, RequestCame):
            self._came(event)
        elif isinstance(event, FirstTokenCame):
            self._first_token(event.request_id)
        elif isinstance(event, RequestEnded):
            self._ended(event)
        elif isinstance(event, ClientLeft):
            self._client_left(event.request_id)
        elif isinstance(event, ReplicaJoined):
            self.replicas[event.replica] = Replica(event.replica, event.pool, event.prefill_s, event.cache_blocks)
            self._drain(event.pool)
        elif isinstance(event, ReplicaLeft):
            self._left(event)
        elif isinstance(event, ReplicaReported) and event.replica in self.replicas:
            self.replicas[event.replica].prefill_s = event.prefill_s
        self._expire()
        return out

    def pool_of(self, class_name: str) -> PoolSpec | None:
        """Return the pool that serves a class: the one that names it, else the first that names none."""
        entry = [pool for pool in self.layout.pools if pool.role != "decode"]
        for pool in entry:
            if class_name in pool.classes:
                return pool
        return next((pool for pool in entry if not pool.classes), None)

    def _came(self, event: RequestCame) -> None:
        request = event.request
        service_class = self.classes.get(request.class_name)
        pool = self.pool_of(request.class_name)
        if service_class is None or pool is None:
            self._out.append(Refuse(request_id=request.id, reason="unknown_class"))
            return
        target = request.slo(service_class).ttft_target(request.prompt_tokens)
        deadline = NEVER if target is None else request.arrived_at + target
        flight = Flight(request, event.prefix, event.block_tokens, deadline)
        flight.stage = "prefill" if pool.role == "prefill" else "whole"
        self.flights[request.id] = flight
        self._place(flight, pool)

    def _place(self, flight: Flight, pool: PoolSpec) -> None:
        """Send the request to a replica of the pool or of one that helps out, or let it wait."""
        if not self._send(flight, pool):
            waiting = self.waiting[pool.name]
            if len(waiting) >= self.layout.queue_max:
                self._refuse(flight, "queue_full")
                return
            flight.came_at = self.now
            waiting[flight.request.id] = flight
            if len(waiting) == 1:
                self._out.append(PoolWakeAt(at=Instant(self._expiry() or self.now)))

    def _send(self, flight: Flight, pool: PoolSpec) -> bool:
        candidates = self._open(pool)
        if not candidates or min(r.behind_s() for r in candidates) > pool.spill_after_s:
            for name in pool.spill_to:
                helpers = [r for r in self._open(self._pools[name]) if r.behind_s() <= pool.spill_after_s]
                if helpers:
                    candidates = helpers
                    break
        if not candidates:
            return False
        replica = self._rule(flight, candidates, self.now, self._sent)
        self._sent += 1
        replica.take(flight)
        self._out.append(Dispatch(request_id=flight.request.id, replica=replica.id, stage=flight.stage))
        return True

    def _open(self, pool: PoolSpec) -> list[Replica]:
        limit = pool.in_flight_max
        return [
            r
            for r in self.replicas.values()
            if r.pool == pool.name and r.is_open and (limit is None or len(r.flights) < limit)
        ]

    def _first_token(self, request_id: int) -> None:
        flight = self.flights.get(request_id)
        if flight is not None and flight.replica is not None:
            self.replicas[flight.replica].begin(flight)

    def _ended(self, event: RequestEnded) -> None:
        flight = self.flights.get(event.request_id)
        if flight is None or flight.replica is None:
            return
        replica = self.replicas[flight.replica]
        replica.leave(flight)
        flight.replica = None
        if flight.stage == "prefill" and not event.is_refused and flight.request.output_tokens_max > 1:
            flight.stage = "decode"
            self._place(flight, next(pool for pool in self.layout.pools if pool.role == "decode"))
        else:
            del self.flights[event.request_id]
        self._forget(replica)
        self._drain(replica.pool)

    def _client_left(self, request_id: int) -> None:
        flight = self.flights.pop(request_id, None)
        if flight is None:
            return
        for waiting in self.waiting.values():
            waiting.pop(request_id, None)
        if flight.replica is not None:
            replica = self.replicas[flight.replica]
            replica.leave(flight)
            self._out.append(Withdraw(request_id=request_id, replica=replica.id))
            self._forget(replica)
            self._drain(replica.pool)

    def _left(self, event: ReplicaLeft) -> None:
        replica = self.replicas.get(event.replica)
        if replica is None:
            return
        replica.is_open = False
        if event.is_lost:
            lost = list(replica.flights.values())
            del self.replicas[event.replica]
            for flight in lost:
                self._again(flight)
        else:
            self._forget(replica)

    def _again(self, flight: Flight) -> None:
        """Send a request that was lost with its replica elsewhere, from its beginning, or refuse it."""
        flight.replica = None
        flight.tries += 1
        pool = self.pool_of(flight.class_name)
        if flight.tries > self.layout.retries_max or pool is None:
            self._refuse(flight, "lost")
            return
        flight.stage = "prefill" if pool.role == "prefill" else "whole"
        self._place(flight, pool)

    def _forget(self, replica: Replica) -> None:
        if not replica.is_open and not replica.flights:
            self.replicas.pop(replica.id, None)

    def _drain(self, pool_name: str) -> None:
        """Send what waits, for the pool itself and then for those that it helps out."""
        names = [pool_name, *(p.name for p in self.layout.pools if pool_name in p.spill_to)]
        for name in names:
            waiting = self.waiting[name]
            while waiting:
                flight = next(iter(waiting.values()))
                if not self._send(flight, self._pools[name]):
                    break
                del waiting[flight.request.id]

    def _refuse(self, flight: Flight, reason: Refusal) -> None:
        self.flights.pop(flight.request.id, None)
        behind = [r.behind_s() for r in self.replicas.values()]
        retry_after_s = Seconds(max(1.0, min(behind))) if behind else None
        self._out.append(Refuse(request_id=flight.request.id, reason=reason, retry_after_s=retry_after_s))

    def _expiry(self) -> float | None:
        oldest = [next(iter(waiting.values())).came_at for waiting in self.waiting.values() if waiting]
        return min(oldest) + self.layout.wait_max_s if oldest else None

    def _expire(self) -> None:
        """Refuse those who have waited too long here, and ask to be woken for the next."""
        is_changed = False
        for waiting in self.waiting.values():
            while waiting:
                flight = next(iter(waiting.values()))
                if flight.came_at + self.layout.wait_max_s > self.now:
                    break
                del waiting[flight.request.id]
                self._refuse(flight, "no_replica" if not self.replicas else "expired")
                is_changed = True
        expiry = self._expiry()
        if is_changed and expiry is not None:
            self._out.append(PoolWakeAt(at=Instant(expiry)))
