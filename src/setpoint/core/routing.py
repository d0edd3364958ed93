"""Which replica a request goes to: one rule each, over what the pool machine knows of its replicas.

A rule gets the replicas that have room and returns one of them. It knows what was sent and what came back, nothing
else, so that the same rule works in front of engines that tell nothing.

- `round-robin` takes the next in turn.
- `least-work` takes the one with the least seconds of prompts ahead and, beside that, the fewest tokens in flight.
- `prefix-aware` adds what would have to be computed there: a replica that holds the prefix may be busier by as much.
- `slack-aware` predicts when the first token would come, counting those ahead with an earlier deadline that has not
  passed: who is late already gives way. Of the replicas where that is in time it takes the one where it comes first,
  with a little for what is decoded beside; if nobody can be in time, the one that is least late.
"""

# ruff: noqa: ARG001 - one signature for all rules

from collections import OrderedDict
from collections.abc import Callable, Sequence

from setpoint.model import Request
from setpoint.model.pool import Stage
from setpoint.units import NEVER

_DECODE_WEIGHT = 0.05
"""Seconds of prompt that a token in flight counts for, in tokens: it breaks ties, prompts decide."""


class Flight:
    """A request that the pool machine holds: waiting here, or on a replica."""

    __slots__ = (
        "block_tokens",
        "came_at",
        "class_name",
        "deadline",
        "has_begun",
        "is_urgent",
        "prefix",
        "replica",
        "request",
        "stage",
        "tries",
        "uncached",
    )

    def __init__(self, request: Request, prefix: tuple[int, ...], block_tokens: int, deadline: float) -> None:
        """Hold a request that has just come; `deadline`: of its first token."""
        self.request = request
        self.class_name = request.class_name
        self.prefix = prefix
        self.block_tokens = block_tokens
        self.deadline = deadline
        self.is_urgent = deadline < NEVER
        self.came_at: float = request.arrived_at
        self.replica: int | None = None
        self.stage: Stage = "whole"
        self.tries = 0
        self.has_begun = False
        self.uncached: int = request.prompt_tokens
        """Prompt tokens that the replica has to compute, as far as is known."""


class Replica:
    """What the pool machine knows of one replica."""

    __slots__ = (
        "blocks",
        "cache_blocks",
        "flights",
        "id",
        "in_flight_tokens",
        "is_open",
        "pending_tokens",
        "pool",
        "prefill_s",
    )

    def __init__(self, replica: int, pool: str, prefill_s: float, cache_blocks: int) -> None:
        """Start idle."""
        self.id = replica
        self.pool = pool
        self.prefill_s = prefill_s
        self.cache_blocks = cache_blocks
        self.flights: dict[int, Flight] = {}
        self.pending_tokens = 0
        """Prompt tokens of those whose first token has not come."""
        self.in_flight_tokens = 0
        self.is_open = True
        self.blocks: OrderedDict[int, None] = OrderedDict()
        """Ids of prefix blocks that were sent there lately, oldest first."""

    def cached(self, flight: Flight) -> int:
        """Return how many leading prompt tokens the replica probably holds."""
        found = 0
        for block in flight.prefix:
            if block not in self.blocks:
                break
            found += 1
        return min(found * flight.block_tokens, flight.request.prompt_tokens - 1)

    def take(self, flight: Flight) -> None:
        """Note that the request was sent there."""
        prompt = flight.request.prompt_tokens
        flight.uncached = 0 if flight.stage == "decode" else prompt - self.cached(flight)
        flight.replica = self.id
        flight.has_begun = False
        self.flights[flight.request.id] = flight
        self.pending_tokens += flight.uncached
        self.in_flight_tokens += prompt
        for block in flight.prefix:
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.cache_blocks:
            self.blocks.popitem(last=False)

    def begin(self, flight: Flight) -> None:
        """Note that the first token of the request came."""
        if not flight.has_begun:
            flight.has_begun = True
            self.pending_tokens -= flight.uncached

    def leave(self, flight: Flight) -> None:
        """Note that the request is no longer there."""
        self.begin(flight)
        del self.flights[flight.request.id]
        self.in_flight_tokens -= flight.request.prompt_tokens

    def behind_s(self) -> float:
        """Return the seconds of prompts ahead."""
        return self.pending_tokens * self.prefill_s

    def work_s(self) -> float:
        """Return the same with a little for what is being decoded."""
        return self.behind_s() + self.beside_s()

    def beside_s(self) -> float:
        """Return the little that what is in flight counts for."""
        return _DECODE_WEIGHT * self.prefill_s * self.in_flight_tokens

    def first_token_in_s(self, flight: Flight, now: float) -> float:
        """Return the seconds until the first token of `flight`, behind earlier deadlines that are still to come."""
        waiting = (f for f in self.flights.values() if not f.has_begun)
        ahead = sum(f.uncached for f in waiting if now < f.deadline <= flight.deadline)
        return (ahead + flight.request.prompt_tokens - self.cached(flight)) * self.prefill_s


Rule = Callable[[Flight, Sequence[Replica], float, int], Replica]
"""(request, replicas with room in order of their ids, now, requests sent so far) to the one that gets it."""


def round_robin(flight: Flight, replicas: Sequence[Replica], now: float, sent: int) -> Replica:
    """Take the next in turn."""
    return replicas[sent % len(replicas)]


def least_work(flight: Flight, replicas: Sequence[Replica], now: float, sent: int) -> Replica:
    """Take the least loaded."""
    return min(replicas, key=lambda r: (r.work_s(), r.id))


def prefix_aware(flight: Flight, replicas: Sequence[Replica], now: float, sent: int) -> Replica:
    """Take the one where load and own prompt, less what is cached there, are least."""
    return min(replicas, key=lambda r: (r.work_s() - r.cached(flight) * r.prefill_s, r.id))


def slack_aware(flight: Flight, replicas: Sequence[Replica], now: float, sent: int) -> Replica:
    """Take, of those that would be in time, the one with the least ahead; else the one that is least late."""
    if not flight.is_urgent:
        return prefix_aware(flight, replicas, now, sent)
    takes = {r.id: r.first_token_in_s(flight, now) for r in replicas}
    in_time = [r for r in replicas if now + 2.0 * takes[r.id] <= flight.deadline]
    if in_time:
        return min(in_time, key=lambda r: (takes[r.id] + r.beside_s(), r.id))
    return min(replicas, key=lambda r: (takes[r.id], r.id))


ROUTING: dict[str, Rule] = {
    "round-robin": round_robin,
    "least-work": least_work,
    "prefix-aware": prefix_aware,
    "slack-aware": slack_aware,
}
"""The rules by name."""
