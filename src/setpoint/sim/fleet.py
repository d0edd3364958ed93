"""The replicas of a cluster with their prefix caches, and what the fault schedule does to them.

A fault is a value of the schedule, or one of the follow-ups below, which come due later: a replica that is as fast as
before, one that is back, a pool that has its new size.
"""

from collections.abc import Callable, Iterable
from itertools import count

import msgspec

from setpoint.model.pool import PoolEvent, PoolLayout, ReplicaJoined, ReplicaLeft
from setpoint.sim.faults import Crash, FaultSchedule, Scale, Slow, words_of
from setpoint.sim.prefix import BLOCK_TOKENS, PrefixCache
from setpoint.sim.stepping import SimulatedReplica
from setpoint.units import Instant, Seconds

MakeReplica = Callable[[int], SimulatedReplica]
Tell = Callable[[PoolEvent], None]


class Recovered(msgspec.Struct, frozen=True):
    """A slow replica is as fast as before."""

    replica: int


class Back(msgspec.Struct, frozen=True):
    """A replica that crashed is ready again, empty."""

    replica: int
    pool: str


class Resized(msgspec.Struct, frozen=True):
    """What an autoscaler decided has come about."""

    decided: Scale


Fault = Crash | Slow | Scale | Recovered | Back | Resized
Follow = tuple[float, Fault]
"""The instant at which a follow-up comes due, and what it is."""


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster needs beside its pool machine.

    `prefill_s`: seconds of a prompt token that the pool assumes at first. `cache_tokens`: prefix cache of each replica.
    `transfer_s`: seconds a prompt token whose KV goes from a prefill to a decode replica.
    """

    prefill_s: float
    cache_tokens: int = 0
    transfer_s: float = 0.0
    faults: FaultSchedule = FaultSchedule()


class Fleet:
    """All replicas that are there, by id; `retired` are those that crashed or were let go.

    `missed`: the faults, in words, that found nothing to happen to.
    """

    def __init__(self, settings: ClusterSettings, make_replica: MakeReplica, tell: Tell) -> None:
        """Start without any; `tell` hands an event to the pool machine."""
        self.replicas: dict[int, SimulatedReplica] = {}
        self.retired: list[SimulatedReplica] = []
        self.caches: dict[int, PrefixCache] = {}
        self.lost_caches: list[PrefixCache] = []
        self.missed: list[str] = []
        self._settings = settings
        self._make_replica = make_replica
        self._tell = tell
        self._pools: dict[int, str] = {}
        self._leaving: set[int] = set()
        self._joined_at: dict[int, float] = {}
        self._past_s = 0.0
        self._ids = count()

    def open(self, layout: PoolLayout) -> None:
        """Let the replicas of the layout join at 0."""
        for spec in layout.pools:
            for _ in range(spec.replicas):
                self._join(next(self._ids), spec.name, 0.0)

    def everyone(self) -> tuple[SimulatedReplica, ...]:
        """Return every replica that ever was."""
        return (*self.replicas.values(), *self.retired)

    def present_s(self, now: float) -> float:
        """Return for how many seconds replicas have been there up to `now`, all of them together."""
        return self._past_s + sum(now - at for at in self._joined_at.values())

    def happen(self, fault: Fault, now: float) -> list[Follow]:
        """Let a fault happen; return what follows from it, and when."""
        if isinstance(fault, Crash):
            return self._crash(fault, now)
        if isinstance(fault, Slow):
            return self._slow(fault, now)
        if isinstance(fault, Scale):
            return [(now + fault.delay_s, Resized(fault))]
        if isinstance(fault, Recovered):
            if fault.replica in self.replicas:
                self.replicas[fault.replica].stretch(1.0, now)
        elif isinstance(fault, Back):
            self._join(fault.replica, fault.pool, now)
        else:
            self._resize(fault.decided, now)
        return []

    def let_go(self, replica: SimulatedReplica, now: float) -> bool:
        """Retire a replica that was to leave and has ended all that it had; return whether it did."""
        if replica.id not in self._leaving or replica.lives or replica.id not in self.replicas:
            return False
        self._leaving.discard(replica.id)
        self._retire(replica.id, now)
        return True

    def _retire(self, replica_id: int, now: float) -> SimulatedReplica:
        replica = self.replicas.pop(replica_id)
        self.retired.append(replica)
        self._past_s += now - self._joined_at.pop(replica_id)
        return replica

    def _join(self, replica_id: int, pool: str, now: float) -> None:
        replica = self._make_replica(replica_id)
        replica.is_begin_told = True
        self.replicas[replica_id] = replica
        self._pools[replica_id] = pool
        self._joined_at[replica_id] = now
        tokens = self._settings.cache_tokens
        if tokens:
            self.caches[replica_id] = PrefixCache(tokens)
        self._tell(
            ReplicaJoined(
                at=Instant(now),
                replica=replica_id,
                pool=pool,
                prefill_s=Seconds(self._settings.prefill_s),
                cache_blocks=tokens // BLOCK_TOKENS,
            )
        )

    def _crash(self, crash: Crash, now: float) -> list[Follow]:
        if crash.replica not in self.replicas:
            self._miss(crash)
            return []
        replica = self._retire(crash.replica, now)
        self._leaving.discard(crash.replica)
        cache = self.caches.pop(crash.replica, None)
        if cache is not None:
            self.lost_caches.append(cache)
        for request_id in list(replica.lives):
            record = replica.drop(request_id)
            record.first_token_at = None
            record.output_tokens = 0
            record.event_at = []
        self._tell(ReplicaLeft(at=Instant(now), replica=crash.replica))
        if crash.restart_after_s is None:
            return []
        return [(now + crash.restart_after_s + crash.cold_start_s, Back(crash.replica, self._pools[crash.replica]))]

    def _slow(self, slow: Slow, now: float) -> list[Follow]:
        replica = self.replicas.get(slow.replica)
        if replica is None:
            self._miss(slow)
            return []
        replica.stretch(slow.factor, now)
        return [(now + slow.for_s, Recovered(slow.replica))]

    def _miss(self, fault: Crash | Slow) -> None:
        self.missed.append(f"{words_of(fault)} changed nothing: there was no replica {fault.replica} then")

    def _resize(self, change: Scale, now: float) -> None:
        """Let replicas join, or the newest leave once they have ended what they have."""
        here = [r for r in sorted(self.replicas) if self._pools[r] == change.pool and r not in self._leaving]
        for _ in range(change.replicas - len(here)):
            self._join(next(self._ids), change.pool, now)
        for replica_id in here[change.replicas :]:
            self._leaving.add(replica_id)
            self._tell(ReplicaLeft(at=Instant(now), replica=replica_id, is_lost=False))
            self.let_go(self.replicas[replica_id], now)


def late_words(left: Iterable[Fault]) -> list[str]:
    """Return, for each fault that was still to come when a run was over, that it changed nothing."""
    declared = (fault.decided if isinstance(fault, Resized) else fault for fault in left)
    return [
        f"{words_of(fault)} changed nothing: the run was over by then"
        for fault in declared
        if not isinstance(fault, Recovered | Back)
    ]
