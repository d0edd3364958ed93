"""The book of one engine loop: which requests are open, what is to be delivered, what was seen.

Every open request is in the book from its arrival to its one last delivery; `close` is the only way out.
"""

from collections import Counter
from collections.abc import Iterator

from setpoint.engines.observe import DriverStatus, Observation, Outcome, StepRecord
from setpoint.engines.ticket import Delivery, Ticket
from setpoint.model import Capacity, StepPlan
from setpoint.units import Instant, Seconds


class Book:
    """Open tickets, and what has gathered since it was last handed over."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.is_draining = False
        self.failure: str | None = None
        self.seen = Observation()
        self._outbox: list[tuple[Ticket, Delivery]] = []
        self._tickets: dict[int, Ticket] = {}
        self._admitted: dict[int, Ticket] = {}
        self._open = Counter[str]()

    def __iter__(self) -> Iterator[Ticket]:
        """Iterate over the open tickets as they are now."""
        return iter(list(self._tickets.values()))

    def get(self, request_id: int) -> Ticket | None:
        """Return the open ticket of that id, or `None` when it is closed."""
        return self._tickets.get(request_id)

    def open(self, ticket: Ticket) -> None:
        """Enter a ticket."""
        self._tickets[ticket.id] = ticket
        self._open[ticket.class_name] += 1

    def admit(self, ticket: Ticket, at: Instant) -> None:
        """Note that the ticket holds a slot from now on."""
        self._admitted[ticket.id] = ticket
        ticket.computed_tokens = ticket.cached_tokens
        if ticket.admitted_at is None:
            ticket.admitted_at = at
            self.seen.queued.append((ticket.class_name, ticket.queue_s(at)))

    def preempt(self, ticket: Ticket) -> None:
        """Note that the ticket lost its slot and waits again."""
        self._admitted.pop(ticket.id, None)
        ticket.computed_tokens = 0
        ticket.preemptions += 1
        self.seen.preempted.append(ticket.class_name)

    def deliver(self, ticket: Ticket, delivery: Delivery) -> None:
        """Put something into the outbox."""
        self._outbox.append((ticket, delivery))

    def close(self, ticket: Ticket, delivery: Delivery, outcome: Outcome, at: Instant) -> None:
        """Deliver the last event of the ticket and strike it from the book."""
        del self._tickets[ticket.id]
        self._admitted.pop(ticket.id, None)
        self._open[ticket.class_name] -= 1
        self.deliver(ticket, delivery)
        self.seen.ended.append(ticket.record(outcome, at))

    def note_computed(self, plan: StepPlan) -> None:
        """Note the tokens that a step put into the KV cache."""
        for request_id, tokens in (*plan.prefills, *((request_id, 1) for request_id in plan.decodes)):
            ticket = self._tickets.get(request_id)
            if ticket is not None:
                ticket.computed_tokens += tokens

    def note_token(self, ticket: Ticket, at: Instant, last_token_at: Instant | None) -> None:
        """Note one more output token: the first, or the gap since the one before."""
        if last_token_at is None:
            self.seen.first_tokens.append((ticket.class_name, Seconds(at - ticket.arrived_at)))
        else:
            self.seen.gaps.append((ticket.class_name, Seconds(at - last_token_at)))

    def note_step(self, record: StepRecord) -> None:
        """Note what the last step was."""
        self.seen.step = record

    def hand_over(self, *, is_stepping: bool) -> tuple[list[tuple[Ticket, Delivery]], Observation]:
        """Return the outbox and the observation with the present status, and start both anew."""
        self.seen.status = self.status(is_stepping=is_stepping)
        outbox, seen = self._outbox, self.seen
        self._outbox, self.seen = [], Observation()
        return outbox, seen

    def status(self, *, is_stepping: bool) -> DriverStatus:
        """Return what is held at this instant."""
        running = Counter(ticket.class_name for ticket in self._admitted.values())
        return DriverStatus(
            running=dict(running),
            waiting={name: count - running[name] for name, count in self._open.items()},
            slots=self.capacity.slots,
            kv_blocks=self.capacity.kv_blocks,
            kv_blocks_used=sum(self.capacity.blocks(t.computed_tokens) for t in self._admitted.values()),
            is_draining=self.is_draining,
            is_stepping=is_stepping,
            failure=self.failure,
        )
