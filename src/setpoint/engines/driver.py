"""The asyncio face of an engine: `generate` is an async iterator, and behind it one thread runs the engine loop.

The two sides share three things: an inbox (a deque under a condition, filled here, drained there), the batches that the
engine thread hands to the event loop with one `call_soon_threadsafe` a step, and nothing else. A request counts as
arrived when `generate` is first awaited, not when the engine gets round to it.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from itertools import count
from types import TracebackType
from typing import Self

import msgspec

from setpoint.engines.api import Executor, Finished, Generation, GenerationEvent, Refused, TextStream
from setpoint.engines.journal import JournalSink
from setpoint.engines.loop import EngineLoop
from setpoint.engines.observe import DriverStatus, Observation, Observer
from setpoint.engines.parts import Drain, Handle, Left, Message, Opened, Parts
from setpoint.engines.ticket import Delivery, Ticket
from setpoint.errors import EngineError
from setpoint.units import Instant

JOIN_TIMEOUT_S = 10.0
STALL_S = 120.0

log = logging.getLogger(__name__)


class Driver:
    """One engine with the machine that schedules it; an async context manager, used from one event loop."""

    def __init__(  # noqa: PLR0913 - the parts of an engine, each named
        self,
        *,
        handle: Handle,
        executor: Executor,
        text_stream: Callable[[Generation], TextStream],
        observer: Observer | None = None,
        journal_sink: JournalSink | None = None,
        requests_max: int = 4096,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the machine's door `handle` and the executor over: nobody else may call either from now on.

        `requests_max` bounds the requests held at once, waiting or running. `journal_sink` is told each event
        and its commands on the engine thread; `observer` is called on the event loop. A step that takes longer than
        `stall_s` counts as a failure until it ends.
        """
        self._text_stream = text_stream
        self._observer = observer
        self._requests_max = requests_max
        self._clock = clock
        self._ids = count(1)
        self._held = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._inbox: deque[Message] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="setpoint-engine", daemon=True)
        self._engine_loop = EngineLoop(
            Parts(handle=handle, executor=executor, clock=clock, deliver=self._post_batch, journal_sink=journal_sink)
        )
        self._stall_s = stall_s
        self._status = DriverStatus(slots=executor.capacity.slots, kv_blocks=executor.capacity.kv_blocks)
        self._status_at = clock()

    @property
    def status(self) -> DriverStatus:
        """The latest known; read it on the event loop."""
        silent_s = self._clock() - self._status_at
        if self._status.is_stepping and self._status.failure is None and silent_s > self._stall_s:
            failure = f"the engine has been in one step for {silent_s:.0f} s"
            return msgspec.structs.replace(self._status, failure=failure)
        return self._status

    async def __aenter__(self) -> Self:
        """Start the engine thread."""
        self._event_loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse whatever is still open and stop the engine thread after the step that it is in."""
        self._post(Drain(is_final=True))
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("the engine did not end its step within %g s; it is left behind", JOIN_TIMEOUT_S)

    async def generate(self, generation: Generation) -> AsyncGenerator[GenerationEvent, None]:
        """Yield pieces of output and then exactly one `Finished` or `Refused`.

        Closing the iterator early cancels the request: its slot and KV are free within one step. Raises `EngineError`
        when the engine fails, and `UserError` when it cannot serve this request (a schema that does not compile).
        """
        failure = self.status.failure
        if failure is not None:
            raise EngineError(failure, hint="/ready says when it serves again; it may need a restart")
        ticket = Ticket(next(self._ids), generation, self._text_stream(generation), Instant(self._clock()))
        if self._held >= self._requests_max:
            yield ticket.refused("queue_full")
            return
        self._held += 1
        self._idle.clear()
        is_over = False
        try:
            self._post(Opened(ticket))
            while not is_over:
                delivery = await ticket.queue.get()
                is_over = isinstance(delivery, Finished | Refused | Exception)
                if isinstance(delivery, Exception):
                    raise delivery
                yield delivery
        finally:
            self._held -= 1
            if not self._held:
                self._idle.set()
            if not is_over:
                self._post(Left(ticket.id))

    async def drain(self, timeout_s: float) -> bool:
        """Refuse what waits and all that comes, let what runs finish for `timeout_s`, then end it; say if it finished.

        The driver goes on answering (with refusals) until it is closed.
        """
        self._post(Drain())
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self._post(Drain(is_final=True))
            return False
        return True

    # ---------------------------------------------------------------------------------------------- event loop

    def _post(self, message: Message) -> None:
        with self._changed:
            self._inbox.append(message)
            self._changed.notify()

    def _deliver(self, batch: list[tuple[Ticket, Delivery]], observation: Observation) -> None:
        self._status, self._status_at = observation.status, self._clock()
        for ticket, delivery in batch:
            ticket.queue.put_nowait(delivery)
        if self._observer is not None:
            self._observer.observe(observation)

    # ------------------------------------------------------------------------------------------- engine thread

    def _post_batch(self, batch: list[tuple[Ticket, Delivery]], observation: Observation) -> None:
        if self._event_loop is None or self._event_loop.is_closed():
            return
        self._event_loop.call_soon_threadsafe(self._deliver, batch, observation)

    def _take(self) -> Iterator[Message]:
        # one at a time: what a failure leaves behind stays in the inbox for the next turn
        while self._inbox:
            yield self._inbox.popleft()

    def _run(self) -> None:
        loop = self._engine_loop
        while True:
            with self._changed:
                if not self._inbox and not loop.is_busy:
                    if self._is_closing:
                        return
                    self._changed.wait(self._wait_s())
            loop.turn(self._take)

    def _wait_s(self) -> float | None:
        wake_at = self._engine_loop.wake_at
        return None if wake_at is None else max(0.0, wake_at - self._clock())
