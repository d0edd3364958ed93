"""Several replicas behind the pool machine, on one virtual clock, with whatever the fault schedule brings.

The loop is a heap of instants. Replicas advance their passes as in `setpoint.sim.stepping`; the pool machine of
`setpoint.core.pool` decides who goes where; faults, arrivals and what is on its way between the door and a replica are
entries of the heap like any other. At equal instants the order is: replicas, faults, deliveries, arrivals, the pool's
own clock; then the order in which they were entered.

The pool hears of a first token and of an end when they happen; the network delay counts for what the client sees.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from operator import itemgetter

import msgspec

from setpoint.core.pool import PoolMachine
from setpoint.metrics.timeline import ErrorKind, RequestRecord
from setpoint.model import Cancelled, Request
from setpoint.model.pool import (
    Dispatch,
    FirstTokenCame,
    PoolCommand,
    PoolEvent,
    PoolTick,
    PoolWakeAt,
    Refuse,
    ReplicaReported,
    RequestCame,
    RequestEnded,
    Withdraw,
)
from setpoint.sim.fleet import ClusterSettings, Fault, Fleet, MakeReplica, late_words
from setpoint.sim.opened import Open
from setpoint.sim.prefix import BLOCK_TOKENS, session_blocks
from setpoint.sim.stepping import Arrival, SimulatedReplica
from setpoint.units import NEVER, Instant, Seconds, Tokens
from setpoint.workload import PlannedRequest

_REPLICA, _FAULT, _DELIVERY, _ARRIVAL, _POOL = range(5)
_ERRORS: dict[str, ErrorKind] = {"lost": "cut", "expired": "expired"}

PoolJournal = Callable[[PoolEvent, list[PoolCommand]], None]


class ClusterSimulator:
    """Runs a plan through the pool machine and its replicas; iterate `run` for the records, as requests end."""

    def __init__(
        self,
        pool: PoolMachine,
        make_replica: MakeReplica,
        settings: ClusterSettings,
        *,
        journal: PoolJournal | None = None,
    ) -> None:
        """Start with the replicas of the layout, all ready at 0."""
        self.pool = pool
        self.now = 0.0
        self.fleet = Fleet(settings, make_replica, self._tell)
        self._settings = settings
        self._journal = journal
        self._delay_s = settings.faults.network.delay_ms / 1000.0
        self._heap: list[tuple[float, int, int, object]] = []
        self._order = count()
        self._open: dict[int, Open] = {}
        self._done: list[RequestRecord] = []
        self._followers: dict[int, list[PlannedRequest]] = {}
        self._upcoming: PlannedRequest | None = None
        self._arrival_at = NEVER
        self._coming = 0
        self.fleet.open(pool.layout)
        faults = settings.faults
        declared: list[Fault] = [*faults.crash, *faults.slow, *faults.scale]
        for fault in declared:
            self._enter(fault.at_s, _FAULT, fault)  # type: ignore[union-attr]  # those of the schedule have it

    @property
    def missed(self) -> list[str]:
        """The faults that changed nothing, in words: they found no replica, or the run was over by then."""
        left = (what for _, kind, _, what in sorted(self._heap, key=itemgetter(0, 2)) if kind == _FAULT)
        return [*self.fleet.missed, *late_words(left)]  # type: ignore[arg-type]  # by its kind

    @property
    def in_flight(self) -> int:
        """Requests that have come and not ended."""
        return len(self._open)

    def run(self, plan: Iterable[PlannedRequest], until: float = NEVER) -> Iterator[RequestRecord]:
        """Yield a record for each request that ends; `plan` comes in the order of its instants.

        Stops when the last request has ended, or at the instant `until`: what has not ended by then is yielded without
        end. Faults that are due later do not happen.
        """
        source = iter(plan)
        self._next_arrival(source)
        while self._heap and (self._open or self._coming) and self._heap[0][0] <= until:
            at, kind, _, what = heapq.heappop(self._heap)
            if kind == _REPLICA and not self._is_due(what, at):
                continue
            self._coming -= kind == _ARRIVAL
            self.now = at
            self._happen(kind, what, source)
            if self._done:
                yield from self._done
                self._done.clear()
        for replica in self.fleet.everyone():
            replica.lives.records()
        yield from (one.record for one in self._open.values())

    def _happen(self, kind: int, what: object, source: Iterator[PlannedRequest]) -> None:
        if isinstance(what, SimulatedReplica):
            what.tick(self._arrival_at)
            self._settle(what)
        elif kind == _FAULT:
            for at, follow in self.fleet.happen(what, self.now):  # type: ignore[arg-type]  # by its kind
                self._enter(at, _FAULT, follow)
            for replica in self.fleet.replicas.values():
                self._look_at(replica)
        elif isinstance(what, Dispatch):
            self._deliver(what)
        elif isinstance(what, PlannedRequest):
            self._arrive(what)
        elif kind == _ARRIVAL and self._upcoming is not None:
            planned = self._upcoming
            self._next_arrival(source)
            self._arrive(planned)
        else:
            self._tell(PoolTick(at=Instant(self.now)))

    # ------------------------------------------------------------------------------------------ arrivals

    def _next_arrival(self, source: Iterator[PlannedRequest]) -> None:
        """Enter the next request of the plan; the later turns of a conversation wait for the one before them."""
        for planned in source:
            if planned.session is not None and planned.turn > 0:
                self._followers.setdefault(planned.session, []).append(planned)
                continue
            self._arrival_at = planned.at_s
            self._upcoming = planned
            self._enter(planned.at_s, _ARRIVAL, None)
            return
        self._arrival_at = NEVER

    def _arrive(self, planned: PlannedRequest) -> None:
        request = Request(
            id=planned.id,
            class_name=planned.class_name,
            arrived_at=Instant(self.now),
            prompt_tokens=Tokens(planned.prompt_tokens),
            output_tokens_max=Tokens(planned.output_tokens),
        )
        one = self._open[request.id] = Open(msgspec.structs.replace(planned, at_s=self.now), request)
        self._tell(RequestCame(at=Instant(self.now), request=request, prefix=one.prefix, block_tokens=one.block_tokens))

    def _close(self, one: Open) -> None:
        """Hand the record out, and let the next turn of a conversation come."""
        record = one.record
        del self._open[record.id]
        if self._delay_s:
            record.ended_at = None if record.ended_at is None else record.ended_at + self._delay_s
            if record.first_token_at is not None:
                record.first_token_at += self._delay_s
            record.event_at = [at + self._delay_s for at in record.event_at]
        self._done.append(record)
        waiting = None if one.planned.session is None else self._followers.get(one.planned.session)
        if waiting:
            turn = waiting.pop(0)
            due = max(turn.at_s, self.now + self._delay_s + turn.think_s)
            self._enter(due, _ARRIVAL, turn)

    # ------------------------------------------------------------------------------------------ the pool machine

    def _tell(self, event: PoolEvent) -> None:
        commands = self.pool.handle(event)
        if self._journal is not None:
            self._journal(event, commands)
        for command in commands:
            if isinstance(command, Dispatch):
                self._enter(self.now + self._way(command), _DELIVERY, command)
            elif isinstance(command, Refuse):
                self._refuse(command)
            elif isinstance(command, PoolWakeAt):
                self._enter(max(command.at, self.now), _POOL, None)
            else:
                self._withdraw(command)

    def _way(self, command: Dispatch) -> float:
        """Return the seconds until a request is at its replica."""
        if command.stage != "decode":
            return self._delay_s
        return self._delay_s + self._settings.transfer_s * self._open[command.request_id].request.prompt_tokens

    def _refuse(self, command: Refuse) -> None:
        one = self._open.get(command.request_id)
        if one is not None:
            record = one.record
            record.error = _ERRORS.get(command.reason, "rejected")
            record.detail = command.reason
            record.ended_at = self.now
            self._close(one)

    def _withdraw(self, command: Withdraw) -> None:
        replica = self.fleet.replicas.get(command.replica)
        if replica is None or command.request_id not in replica.lives:
            return
        replica.drop(command.request_id)
        replica.deliver(Cancelled(at=Instant(self.now), request_id=command.request_id), self._arrival_at)
        self._settle(replica)

    # ------------------------------------------------------------------------------------------ replicas

    def _deliver(self, command: object) -> None:
        assert isinstance(command, Dispatch)
        one = self._open.get(command.request_id)
        replica = self.fleet.replicas.get(command.replica)
        flight = self.pool.flights.get(command.request_id)
        if one is None or replica is None or flight is None or flight.replica != command.replica:
            return
        one.stage = command.stage
        request, output = self._as_sent(one, command)
        replica.arrive(Arrival(request, output), one.record, self.now, self._arrival_at)
        self._settle(replica)

    def _as_sent(self, one: Open, command: Dispatch) -> tuple[Request, int]:
        """Return the request as the replica sees it, and at how many tokens in all it ends there."""
        request = one.request
        if command.stage == "decode":
            return one.handed_over(self.now, self.pool.classes[request.class_name]), one.output_tokens
        cache = self.fleet.caches.get(command.replica)
        if cache is not None:
            cached = cache.pin(request.id, one.prefix, one.block_tokens, request.prompt_tokens)
            one.record.cached_tokens = cached
            request = msgspec.structs.replace(request, cached_tokens=Tokens(cached))
        if command.stage == "prefill":
            return msgspec.structs.replace(request, output_tokens_max=Tokens(1)), 1
        return request, one.output_tokens

    def _is_due(self, what: object, at: float) -> bool:
        return isinstance(what, SimulatedReplica) and what.next_at == at and self.fleet.replicas.get(what.id) is what

    def _look_at(self, replica: SimulatedReplica) -> None:
        if replica.next_at < NEVER:
            self._enter(replica.next_at, _REPLICA, replica)

    def _settle(self, replica: SimulatedReplica) -> None:
        """Tell the pool what a replica brought forth, and note when it has to be looked at again."""
        begun, replica.begun = replica.begun, []
        ended, replica.ended = replica.ended, []
        cache = self.fleet.caches.get(replica.id)
        for record in begun:
            one = self._open[record.id]
            if cache is not None:
                cache.insert(one.prefix, one.block_tokens)
            self._tell(FirstTokenCame(at=Instant(self.now), request_id=record.id))
        for record in ended:
            self._end(replica, record)
        if ended:
            prefill_s = Seconds(replica.machine.state.seconds_per_prefill_token())
            self._tell(ReplicaReported(at=Instant(self.now), replica=replica.id, prefill_s=prefill_s))
        if not self.fleet.let_go(replica, self.now):
            self._look_at(replica)

    def _end(self, replica: SimulatedReplica, record: RequestRecord) -> None:
        one = self._open[record.id]
        cache = self.fleet.caches.get(replica.id)
        if cache is not None:
            cache.release(record.id)
            if one.planned.session is not None and record.error is None:
                cache.insert(session_blocks(one.planned, with_answer=True), BLOCK_TOKENS)
        is_refused = record.error is not None
        is_handed_over = one.stage == "prefill" and not is_refused and one.output_tokens > 1
        if is_handed_over:
            record.ended_at = None
        else:
            self._close(one)
        self._tell(
            RequestEnded(
                at=Instant(self.now), request_id=record.id, output_tokens=record.output_tokens, is_refused=is_refused
            )
        )

    def _enter(self, at: float, kind: int, what: object) -> None:
        self._coming += kind == _ARRIVAL
        heapq.heappush(self._heap, (at, kind, next(self._order), what))
