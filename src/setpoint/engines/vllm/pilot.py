"""The pilot: sits in vLLM's scheduler, tells the core what happens, and has vLLM carry out what the core plans.

It has no policy of its own. What it keeps is the translation: vLLM's request ids to those of the core, and which steps
are under way. It tells the machine only what vLLM has really done: a plan that vLLM could carry out in part (KV, LoRA
slots, a grammar that still compiles, a prefix found in the cache) counts as far as it was.

Where no decision can be made, a step is vLLM's own: while vLLM is paused, and after a plan of which nothing could be
done although there was work, and when the machine itself has failed (see `setpoint.engines.vllm.door`). Each such step
is counted by its reason, and each reason is logged once.
"""

import logging
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import NamedTuple, TypeVar

from setpoint.core.steered import SteeredMachine
from setpoint.engines.vllm.arrange import Arrangement, arrange
from setpoint.engines.vllm.asked import core_request
from setpoint.engines.vllm.begun import begun
from setpoint.engines.vllm.door import Door
from setpoint.engines.vllm.host import HostRequest, StepResult
from setpoint.engines.vllm.numbers import Numbers
from setpoint.engines.vllm.parts import Parts
from setpoint.errors import RequestError
from setpoint.model import (
    AnyCommand,
    AnyEvent,
    Arrived,
    Cancelled,
    Preempt,
    Reject,
    Relegate,
    RunStep,
    StepAsked,
    StepBegun,
    StepFinished,
    StepPlan,
)
from setpoint.units import Instant, Seconds

STEP_S_MIN = 1e-6

T = TypeVar("T")
R = TypeVar("R", bound=StepResult)

log = logging.getLogger(__name__)


class _Flight(NamedTuple):
    """A step of vLLM that is under way: its result object, its number, when it began."""

    result: StepResult
    step_id: int
    began_at: float


class Pilot:
    """Steers one scheduler; every method runs on the thread of the engine core."""

    def __init__(self, parts: Parts) -> None:
        """Take the seat with a first machine."""
        self._parts = parts
        self._seat = parts.seat
        self._door = Door(parts.make_machine, self._carry_out, parts.journal)
        self.numbers = Numbers()
        self._logged: set[str] = set()
        self._ids = count(1)
        self._steps = count(1)
        self._id_of: dict[str, int] = {}
        self._requests: dict[int, HostRequest] = {}
        self._flying: deque[_Flight] = deque()
        self._victims: list[int] = []
        self._freed: list[HostRequest] | None = None
        self._plan: StepPlan | None = None
        self._is_stalled = False
        self._free_since = 0.0
        self._now = 0.0

    @property
    def machine(self) -> SteeredMachine | None:
        """The machine that decides; `None` while the policy is given up."""
        return self._door.machine

    # ----------------------------------------------------------------------------------------- what vLLM tells

    def arrived(self, request: HostRequest) -> None:
        """Take in a request that vLLM has put into its queue."""
        if self._seat.requests == 1 and self._door.renew():
            self._flying.clear()
        if self.machine is None:
            return
        now = self._read_clock()
        request_id = next(self._ids)
        cached_tokens = self._seat.cached_tokens(request)
        try:
            asked = core_request(
                request, request_id, self._parts.options, now=now, wall=self._parts.wall(), cached_tokens=cached_tokens
            )
        except RequestError as error:
            self._refuse(request, "malformed", error.message)
            return
        self._id_of[request.request_id] = request_id
        self._requests[request_id] = request
        self._tell(Arrived(at=now, request=asked))

    def freed(self, request: HostRequest) -> None:
        """Take in that vLLM has freed a request, for whatever reason."""
        if self._freed is None:
            self._left(request)
        else:
            self._freed.append(request)

    def preempted(self, request: HostRequest) -> None:
        """Take in that vLLM has taken slot and KV back from a request."""
        request_id = self._id_of.get(request.request_id)
        self.numbers.add("preempted", "setpoint" if self._seat.is_taking_back else "vllm")
        if request_id is not None and not self._seat.is_taking_back:
            self._victims.append(request_id)

    # ------------------------------------------------------------------------------------------------- a step

    def schedule(self, schedule: Callable[[], R]) -> R:
        """Let `schedule`, vLLM's own, make the step that the core plans; return its result."""
        began_at = self._parts.clock()
        reason = self._reason_to_leave_alone()
        arrangement = None if reason else self._decide()
        planned_at = self._parts.clock()
        if arrangement is None:
            self._leave_alone(reason or "failure")
            result = schedule()
        else:
            with self._seat.arranged(arrangement, self._requests) as parked:
                result = schedule()
            self.numbers.set("parked", parked)
        done_at = self._parts.clock()
        self._begun(result, arrangement)
        self.numbers.spent(planned_at - began_at + self._parts.clock() - done_at)
        return result

    def ended(self, result: StepResult, update: Callable[[], T]) -> T:
        """Let `update`, vLLM's own, take in the outputs of a step, and tell the core; return what it returns."""
        at = self._read_clock()
        self._freed = []
        try:
            outputs = update()
        finally:
            freed, self._freed = self._freed, None
        updated_at = self._parts.clock()
        if self._flying and self._flying[0].result is result:
            self._finished(self._flying.popleft(), at, freed)
        for request in freed:
            self._left(request)
        self.numbers.add("planning_s", amount=self._parts.clock() - updated_at)
        return outputs

    def stats(self) -> dict[str, int]:
        """Return the numbers that are to travel now."""
        return self.numbers.due(self._now, is_last=not self._seat.requests)

    def close(self) -> None:
        """End the journal."""
        self._door.close()

    def _reason_to_leave_alone(self) -> str | None:
        if self.machine is None:
            return "failure"
        if self._seat.is_paused:
            return "paused"
        return "stalled" if self._is_stalled else None

    def _decide(self) -> Arrangement | None:
        """Ask the core for a plan, carry out what it takes back and refuses; `None` when it failed."""
        self._plan = None
        victims, self._victims = self._victims, []
        if victims:
            self._tell(StepBegun(at=self._read_clock(), step_id=0, preempted=tuple(victims)))
        self._tell(StepAsked(at=self._read_clock(), free_blocks=self._seat.free_blocks()))
        if self.machine is None:
            return None
        ledger = self.machine.ledger
        arrangement = arrange(self._plan, ledger.sequences.__getitem__)
        self.numbers.planned(self._plan, tokens=arrangement.budget, waiting=len(ledger.waiting))
        return arrangement

    def _begun(self, result: StepResult, shown: Arrangement | None) -> None:
        """Tell the core what vLLM made of the step; `shown`: what it saw, if a plan was put to it."""
        machine = self.machine
        if machine is None:
            return
        scheduled = result.total_num_scheduled_tokens
        is_wanted = self._plan is not None or machine.ledger.running > 0
        self._is_stalled = shown is not None and not scheduled and not self._flying and is_wanted
        if not scheduled:
            return
        victims, self._victims = self._victims, []
        decodes, prefills, admitted = begun(result, shown, machine.ledger, self._id_of, self._requests)
        flight = _Flight(result, next(self._steps), self._read_clock())
        self._flying.append(flight)
        self._tell(
            StepBegun(
                at=Instant(flight.began_at),
                step_id=flight.step_id,
                decodes=decodes,
                prefills=prefills,
                admitted=admitted,
                preempted=tuple(victims),
            )
        )

    def _finished(self, flight: _Flight, at: Instant, freed: list[HostRequest]) -> None:
        """Tell the core that the oldest step under way is over, and which of its sequences ended with it."""
        machine = self.machine
        if machine is None or not machine.underway or machine.underway[0].step_id != flight.step_id:
            return
        step = machine.underway[0]
        step_s = Seconds(max(at - max(flight.began_at, self._free_since), STEP_S_MIN))
        self._free_since = at
        stopped = []
        for request in freed:
            request_id = self._id_of.get(request.request_id)
            if request_id in step.yields:
                stopped.append(request_id)
                sequence = machine.ledger.sequences[request_id]
                first_at = at if request_id in step.firsts else sequence.first_token_at
                self.numbers.judge(sequence, first_at=first_at, at=at, tokens=request.num_output_tokens)
        self.numbers.measured(predicted_s=step.predicted_s, measured_s=step_s)
        self._tell(StepFinished(at=at, step_id=flight.step_id, step_seconds=(step_s,), stopped=tuple(stopped)))
        for request_id in stopped:
            self._forget(request_id)

    # --------------------------------------------------------------------------------------- events, commands

    def _tell(self, event: AnyEvent) -> None:
        """Hand one event to the machine; when that fails, forget what it knew."""
        if not self._door.tell(event):
            self._id_of.clear()
            self._requests.clear()
            self._victims.clear()

    def _carry_out(self, command: AnyCommand) -> None:
        if isinstance(command, RunStep):
            self._plan = command.plan
        elif isinstance(command, Preempt):
            self._seat.take_back(self._requests[command.request_id], self._now)
        elif isinstance(command, Reject):
            request = self._requests[command.request_id]
            wait = "" if command.retry_after_s is None else f", retry after {command.retry_after_s:.1f} s"
            self._forget(command.request_id)
            self._refuse(request, command.reason, command.reason + wait)
        elif isinstance(command, Relegate) and command.is_relegated and self.machine is not None:
            self.numbers.add("relegated", self.machine.ledger.sequences[command.request_id].service_class.name)

    def _refuse(self, request: HostRequest, reason: str, why: str) -> None:
        self.numbers.add("refused", reason)
        self._log_once(f"refused {reason}", "request %s is refused: %s", request.request_id, why)
        self._parts.refuse(request, why)

    def _left(self, request: HostRequest) -> None:
        """Tell the core that a request is gone, if it still knows it."""
        request_id = self._id_of.get(request.request_id)
        if request_id is not None:
            self._tell(Cancelled(at=self._read_clock(), request_id=request_id))
            self._forget(request_id)

    def _forget(self, request_id: int) -> None:
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._id_of.pop(request.request_id, None)

    def _leave_alone(self, reason: str) -> None:
        self._is_stalled = False
        self.numbers.add("fallbacks", reason)
        self._log_once(f"fallback {reason}", "a step is left to vLLM's own scheduling: %s", reason)

    def _log_once(self, key: str, message: str, *words: object) -> None:
        if key not in self._logged:
            self._logged.add(key)
            log.warning(message, *words)

    def _read_clock(self) -> Instant:
        self._now = max(self._now, self._parts.clock())
        return Instant(self._now)
