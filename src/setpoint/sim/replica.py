"""One replica on a virtual clock, with requests that come as they were planned: the fast path of the simulator.

The loop knows three kinds of instant: the next arrival, the end of the passes in flight, and the tick that the machine
asked for; see `setpoint.sim.stepping` for how many passes are advanced at a time. At equal instants the order is: end
of passes, arrival, tick. Memory is bounded by what is in flight: arrivals and records are streams.
"""

from collections.abc import Iterable, Iterator

from setpoint.core.replica import ReplicaMachine
from setpoint.metrics.timeline import RequestRecord
from setpoint.model import StepTime
from setpoint.sim.stepping import Arrival, Journal, SimulatedReplica, Watch, new_record
from setpoint.units import NEVER

__all__ = ["Arrival", "ReplicaSimulator"]


class ReplicaSimulator:
    """Runs arrivals through a replica machine; iterate `run` for the records, in the order in which requests end."""

    def __init__(
        self,
        machine: ReplicaMachine,
        world: StepTime,
        *,
        journal: Journal | None = None,
        watch: Watch | None = None,
        is_skipping: bool = True,
    ) -> None:
        """Drive `machine` with true step seconds from `world`; `is_skipping`: advance many steps within a horizon."""
        self.now = 0.0
        self.replica = SimulatedReplica(machine, world, journal=journal, watch=watch, is_skipping=is_skipping)

    @property
    def machine(self) -> ReplicaMachine:
        """The machine that is driven."""
        return self.replica.machine

    @property
    def steps(self) -> int:
        """Passes run so far."""
        return self.replica.steps

    @property
    def busy_s(self) -> float:
        """Seconds spent in passes so far."""
        return self.replica.busy_s

    @property
    def preemptions(self) -> int:
        """Sequences taken back so far."""
        return self.replica.preemptions

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and not ended."""
        return len(self.replica.lives)

    def run(self, arrivals: Iterable[Arrival], until: float = NEVER) -> Iterator[RequestRecord]:
        """Yield a record for each request that ends; `arrivals` come in the order of their instants.

        Stops when nothing is left to do, or at the instant `until`: what has not ended by then is yielded without an
        end, as unfinished.
        """
        replica = self.replica
        source = iter(arrivals)
        upcoming = next(source, None)
        arrival_at = NEVER if upcoming is None else upcoming.request.arrived_at
        while True:
            step_at = replica.next_at
            at = min(step_at, arrival_at)
            if at == NEVER or at > until:
                break
            self.now = at
            if step_at == at and (arrival_at > at or replica.passes_end_at == at):
                replica.tick(arrival_at)
            else:
                assert upcoming is not None
                arrival = upcoming
                upcoming = next(source, None)
                arrival_at = NEVER if upcoming is None else upcoming.request.arrived_at
                replica.arrive(arrival, new_record(arrival.request, at), at, arrival_at)
            if replica.ended:
                yield from replica.ended
                replica.ended.clear()
        yield from replica.lives.records()
