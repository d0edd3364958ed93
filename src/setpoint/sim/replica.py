"""One replica on a virtual clock: the machine of `setpoint.core` unchanged, with step seconds from a model.

The loop knows four kinds of event: the next arrival, the end of the step in flight, the tick that the machine asked
for, and what a fault schedule adds. Within the horizon of a plan, steps are advanced many at a time: the loop adds up
their seconds one by one, so that instants are the same floats as in a run that asks at each step, and stops before an
arrival, a tick, or the first sequence that ends. The truth about step time (`world`) and the machine's belief
(its own `step_time`) are separate, so that prediction error can be studied.

At equal instants the order is: end of step, arrival, tick.
"""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from setpoint.core.replica import ReplicaMachine
from setpoint.metrics.timeline import RequestRecord
from setpoint.model import (
    AnyCommand,
    AnyEvent,
    Arrived,
    Finish,
    Preempt,
    Reject,
    Request,
    RunStep,
    StepFinished,
    StepPlan,
    StepTime,
    Tick,
    WakeAt,
)
from setpoint.units import Instant, Seconds

_NEVER = float("inf")
_ERRORS = {"expired": "expired"}

Journal = Callable[[AnyEvent, list[AnyCommand]], None]


class Arrival(msgspec.Struct, frozen=True):
    """A request as the simulator knows it: with the number of tokens that it will really produce."""

    request: Request
    output_tokens: int


class _Life:
    """What the simulator tracks of an unfinished request."""

    __slots__ = ("output_tokens", "record")

    def __init__(self, arrival: Arrival) -> None:
        self.output_tokens = arrival.output_tokens
        request = arrival.request
        self.record = RequestRecord(
            id=request.id,
            class_name=request.class_name,
            scheduled_at=request.arrived_at,
            sent_at=request.arrived_at,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            token_source="plan",  # noqa: S106 - tokens of text
        )


class ReplicaSimulator:
    """Runs arrivals through a replica machine; iterate `run` for the records, in the order in which requests end."""

    def __init__(
        self,
        machine: ReplicaMachine,
        world: StepTime,
        *,
        journal: Journal | None = None,
        is_skipping: bool = True,
        is_timeline_kept: bool = False,
    ) -> None:
        """Drive `machine` with true step seconds from `world`.

        `is_skipping`: advance many steps at a time within a horizon. `is_timeline_kept`: record the instant of every
        token (needed for classes judged by `pace`).
        """
        self.machine = machine
        self.now = 0.0
        self.steps = 0
        self.busy_s = 0.0
        self.preemptions = 0
        self._world = world
        self._journal = journal
        self._is_skipping = is_skipping
        self._is_timeline_kept = is_timeline_kept
        self._lives: dict[int, _Life] = {}
        self._finished: StepFinished | None = None
        self._wake_at = _NEVER
        self._done: list[RequestRecord] = []

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and not ended."""
        return len(self._lives)

    def run(self, arrivals: Iterable[Arrival], until: float = _NEVER) -> Iterator[RequestRecord]:
        """Yield a record for each request that ends; `arrivals` come in the order of their instants.

        Stops when nothing is left to do, or at the instant `until`: what has not ended by then is yielded without an
        end, as unfinished.
        """
        source = iter(arrivals)
        upcoming = next(source, None)
        while True:
            arrival_at = _NEVER if upcoming is None else upcoming.request.arrived_at
            step_at = _NEVER if self._finished is None else self._finished.at
            at = min(step_at, arrival_at, self._wake_at)
            if at == _NEVER or at > until:
                break
            self.now = at
            if step_at == at:
                assert self._finished is not None
                event: AnyEvent = self._finished
                self._finished = None
            elif arrival_at == at:
                assert upcoming is not None
                self._lives[upcoming.request.id] = _Life(upcoming)
                event = Arrived(at=Instant(at), request=upcoming.request)
                upcoming = next(source, None)
                arrival_at = _NEVER if upcoming is None else upcoming.request.arrived_at
            else:
                event = Tick(at=Instant(at))
            self._deliver(event, arrival_at)
            if self._done:
                yield from self._done
                self._done.clear()
        yield from (life.record for life in self._lives.values())

    def _deliver(self, event: AnyEvent, arrival_at: float) -> None:
        commands = self.machine.handle(event)
        if self._journal is not None:
            self._journal(event, commands)
        self._wake_at = _NEVER
        for command in commands:
            if isinstance(command, RunStep):
                self._begin(command.plan, arrival_at)
            elif isinstance(command, Finish):
                life = self._lives.pop(command.request_id)
                life.record.ended_at = self.now
                self._done.append(life.record)
            elif isinstance(command, Reject):
                life = self._lives.pop(command.request_id)
                life.record.error = "expired" if command.reason == "expired" else "rejected"
                life.record.detail = command.reason
                life.record.ended_at = self.now
                self._done.append(life.record)
            elif isinstance(command, WakeAt):
                self._wake_at = command.at
            elif isinstance(command, Preempt):
                self.preemptions += 1

    def _begin(self, plan: StepPlan, arrival_at: float) -> None:
        """Run the plan as often as its horizon and the next event allow; its end becomes an event."""
        shape = self.machine.shape
        seconds = self._world.seconds(*shape)
        at = self.now + seconds
        durations = [seconds]
        most = self._steps_to_first_stop(plan) if self._is_skipping and plan.horizon.steps > 1 else 1
        if most > 1:
            horizon = plan.horizon
            until_at = min(arrival_at, self._wake_at, _NEVER if horizon.until_at is None else horizon.until_at)
            pace_s = _NEVER if horizon.pace_s is None else horizon.pace_s
            context = shape.context_tokens
            while len(durations) < most and at < until_at and at <= self.now + len(durations) * pace_s:
                context += shape.decodes
                self._tokens_at(plan.decodes, at)
                seconds = self._world.seconds(shape.decodes, context)
                at += seconds
                durations.append(seconds)
        self._end(plan, at, durations)

    def _steps_to_first_stop(self, plan: StepPlan) -> int:
        lives = self._lives
        return min(
            plan.horizon.steps,
            *(lives[i].output_tokens - lives[i].record.output_tokens for i in plan.decodes if i in lives),
        )

    def _end(self, plan: StepPlan, at: float, durations: list[float]) -> None:
        lives = self._lives
        stopped = []
        repeats = len(durations)
        self._tokens_at(plan.decodes, at)
        for request_id in plan.decodes:
            record = lives[request_id].record
            record.output_tokens += repeats
            if record.output_tokens >= lives[request_id].output_tokens:
                stopped.append(request_id)
        for request_id, tokens in plan.prefills:
            life = lives[request_id]
            if tokens < self.machine.ledger.sequences[request_id].remaining_tokens:
                continue
            record = life.record
            if record.first_token_at is None:
                record.first_token_at = at
            record.output_tokens += 1
            self._tokens_at((request_id,), at)
            if record.output_tokens >= life.output_tokens:
                stopped.append(request_id)
        self.steps += repeats
        self.busy_s += sum(durations)
        self._finished = StepFinished(
            at=Instant(at),
            step_id=plan.step_id,
            step_seconds=tuple(map(Seconds, durations)),
            stopped=tuple(stopped),
        )

    def _tokens_at(self, request_ids: Iterable[int], at: float) -> None:
        if self._is_timeline_kept:
            for request_id in request_ids:
                self._lives[request_id].record.event_at.append(at)
