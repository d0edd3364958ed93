"""What the pool machine is told and what it orders: requests in front of replicas, and the layout of the pools.

A *pool* is a group of like replicas that serves some classes. Its `role` is `whole` (a request stays to its end),
`prefill` (it leaves with its first token) or `decode` (it comes with its KV, from a pool of prefills).
"""

from typing import Literal

import msgspec

from setpoint.errors import ConfigError
from setpoint.model.commands import Command
from setpoint.model.events import Event
from setpoint.model.request import Request
from setpoint.units import Instant, Seconds

Role = Literal["whole", "prefill", "decode"]
Stage = Literal["whole", "prefill", "decode"]
Refusal = Literal["unknown_class", "queue_full", "no_replica", "lost", "expired"]


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One pool: the classes that it serves (none: all that no other pool names), and where work goes beyond it.

    `in_flight_max`: requests that one replica is given at a time, the rest wait here (`None`: no limit, the replicas
    queue). `spill_to`: pools that help out while the least loaded replica here is more than `spill_after_s` behind.
    """

    name: str
    replicas: int = 1
    classes: tuple[str, ...] = ()
    role: Role = "whole"
    in_flight_max: int | None = None
    spill_to: tuple[str, ...] = ()
    spill_after_s: Seconds = Seconds(1.0)


class PoolLayout(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All pools, the routing policy by name, and the limits: waiting requests a pool, tries of a request that was lost.

    `wait_max_s` bounds how long a request waits here before it is refused.
    """

    pools: tuple[PoolSpec, ...] = (PoolSpec(name="main"),)
    routing: str = "least-work"
    queue_max: int = 100_000
    retries_max: int = 1
    wait_max_s: Seconds = Seconds(600.0)

    def __post_init__(self) -> None:
        """Refuse a contradiction (`ConfigError`)."""
        names = [pool.name for pool in self.pools]
        if not names or len(set(names)) < len(names):
            raise ConfigError("a layout needs one pool at least, and each name once")
        served = [name for pool in self.pools if pool.role != "decode" for name in pool.classes]
        if len(set(served)) < len(served):
            raise ConfigError("two pools serve the same class", hint="let one of them spill over to the other")
        missing = {to for pool in self.pools for to in pool.spill_to} - set(names)
        if missing:
            raise ConfigError(f"work spills to an unknown pool {min(missing)!r}", hint=f"known: {', '.join(names)}")
        roles = {pool.role for pool in self.pools}
        if ("prefill" in roles) != ("decode" in roles):
            raise ConfigError("prefill and decode pools come together", hint="add the other, or use whole replicas")

    @property
    def replicas(self) -> int:
        """Replicas of all pools."""
        return sum(pool.replicas for pool in self.pools)


class RequestCame(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A request stands at the door; `prefix`: ids of its leading blocks, equal where prefixes are shared."""

    request: Request
    prefix: tuple[int, ...] = ()
    block_tokens: int = 16


class ReplicaJoined(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A replica is ready. `prefill_s`: seconds that a prompt token costs it; `cache_blocks`: prefix blocks it keeps."""

    replica: int
    pool: str
    prefill_s: Seconds
    cache_blocks: int = 0


class ReplicaLeft(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A replica takes no more; with `is_lost` what it had is gone, else it ends what it has."""

    replica: int
    is_lost: bool = True


class ReplicaReported(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A replica tells the seconds that a prompt token lately cost it, decodes of the same steps included."""

    replica: int
    prefill_s: Seconds


class FirstTokenCame(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A replica has yielded the first token of a request."""

    request_id: int


class RequestEnded(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A replica is done with a request: complete, or refused by it."""

    request_id: int
    output_tokens: int = 0
    is_refused: bool = False


class ClientLeft(Event, frozen=True, kw_only=True, omit_defaults=True):
    """The client of a request is gone."""

    request_id: int


class PoolTick(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Time has passed; a `PoolWakeAt` asked for it."""


PoolEvent = (
    RequestCame | ReplicaJoined | ReplicaLeft | ReplicaReported | FirstTokenCame | RequestEnded | ClientLeft | PoolTick
)


class Dispatch(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Give the request to a replica; in the stage `decode` its KV goes there first."""

    request_id: int
    replica: int
    stage: Stage = "whole"


class Withdraw(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Take the request back from a replica: its client left."""

    request_id: int
    replica: int


class Refuse(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Answer the request with a refusal; `retry_after_s` predicts when it would be taken."""

    request_id: int
    reason: Refusal
    retry_after_s: Seconds | None = None


class PoolWakeAt(Command, frozen=True, kw_only=True, omit_defaults=True):
    """Send a `PoolTick` at this instant; a later one replaces it."""

    at: Instant


PoolCommand = Dispatch | Withdraw | Refuse | PoolWakeAt
