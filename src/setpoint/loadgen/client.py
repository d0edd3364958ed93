"""The measuring client: one event loop, no task for each request, decoding put off until nothing else is to be done.

The pump asks the pacer what is due, hands each request to the connection pool, and sets the timer for the next. An
answer that has ended frees its slot at once; it is decoded later, one a turn of the loop, so that reads are dated in
time. A sweep ends what has exceeded a limit. Bodies of the next requests are made ahead of their time.
"""

import asyncio
import contextlib
import gc
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from setpoint.loadgen.connection import Connection, Pool
from setpoint.loadgen.exchange import Exchange, to_record
from setpoint.loadgen.health import ClientSamples
from setpoint.loadgen.pacer import Pacer
from setpoint.loadgen.prompts import Lexicon, prompt_text, request_body, request_headers
from setpoint.loadgen.target import EndpointTarget
from setpoint.loadgen.timer import make_timer
from setpoint.loadgen.wire import request_bytes
from setpoint.metrics import RequestRecord
from setpoint.workload import PlannedRequest

SWEEP_S = 0.1
HEARTBEAT_S = 0.02
AHEAD = 64
LAGS_MAX = 200_000
SPARE_S = 0.002
"""Work that can wait is left alone when the next send is nearer than this."""

OnRecord = Callable[[RequestRecord], None]


class RunOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a plan is carried out.

    `concurrency`: closed loop. `stagger_s`: over which its first requests are spread. `window_s`: the load goes on
    until all that was due before it has ended. `connections`: opened ahead. `seed`: of the prompts' words.
    """

    concurrency: int | None = None
    stagger_s: float = 0.0
    window_s: float | None = None
    connections: int = 4
    seed: int = 0


class LoadClient:
    """Carries out one plan from one event loop; records are handed over as requests end."""

    def __init__(
        self,
        target: EndpointTarget,
        plan: Sequence[PlannedRequest],
        options: RunOptions,
        lexicon: Lexicon,
        on_record: OnRecord,
    ) -> None:
        self.samples = ClientSamples(offered=0)
        self.in_flight = 0
        self._target, self._options, self._lexicon, self._on_record = target, options, lexicon, on_record
        self._pacer = Pacer(
            plan, concurrency=options.concurrency, stagger_s=options.stagger_s, window_s=options.window_s
        )
        self._ahead = deque(one for one in plan if one.session is None)
        self._has_sessions = len(self._ahead) < len(plan)
        self._payloads: dict[int, bytes] = {}
        self._histories: dict[int, list[dict[str, str]]] = {}
        self._ended: deque[Exchange] = deque()
        self._is_digesting = False
        self._is_stopping = False
        self._start = 0.0
        self._over = asyncio.Event()

    async def run(self, start_at: float | None = None) -> None:
        """Carry out the plan from the instant `start_at` of `time.monotonic` (now, when not given) to its end."""
        loop = asyncio.get_running_loop()
        is_open = self._options.concurrency is None and not self._has_sessions
        self._pool = Pool(self._target, loop, self._on_ended, is_patient=is_open)
        self._timer = make_timer(loop, self._pump)
        self._start = time.monotonic() if start_at is None else start_at
        self._prepare(AHEAD)
        with contextlib.suppress(OSError, TimeoutError):
            await self._pool.warm(min(self._options.connections, self._target.limits.connections_max))
        if start_at is None:
            self._start = time.monotonic()
        gc.collect()
        gc.freeze()
        gc.disable()
        cpu = time.process_time()
        background = [loop.create_task(self._sweep()), loop.create_task(self._beat())]
        try:
            self._timer.set(self._start)
            await self._over.wait()
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self._settle()
            gc.enable()
            gc.unfreeze()
            self.samples.cpu_s = time.process_time() - cpu
            self.samples.wall_s = max(1e-9, time.monotonic() - self._start)
            self.samples.connections = self._pool.opened
            self.samples.is_connection_limited = self._pool.is_full_seen

    def stop(self) -> None:
        """Send nothing more and end the run; what is in flight is recorded as cancelled."""
        self._pacer.stop()
        self._over.set()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self._start

    async def _settle(self) -> None:
        self._is_stopping = True
        self._timer.close()
        self._pacer.stop()
        await self._pool.close()
        while self._ended:
            self._digest_one()
        elapsed = self.elapsed_s
        window = self._options.window_s
        for one, at in self._pacer.unsent(elapsed if window is None else min(elapsed, window)):
            self.samples.offered += 1
            self._on_record(
                RequestRecord(
                    id=one.id,
                    class_name=one.class_name,
                    scheduled_at=self._start + at,
                    prompt_tokens=one.prompt_tokens,
                    error="unsent",
                )
            )

    # ------------------------------------------------------------------------------------------------------ sending

    def _pump(self) -> None:
        if self._is_stopping:
            return
        now = self.elapsed_s
        for one, at in self._pacer.due(now):
            self._send(one, self._start + at)
        self.in_flight = self._pacer.in_flight
        if self._pacer.is_done(self.elapsed_s):
            self._over.set()
            return
        next_at = self._pacer.next_at()
        if next_at is not None:
            self._timer.set(self._start + next_at)
            if next_at - self.elapsed_s > SPARE_S:
                self._prepare(1)

    def _send(self, one: PlannedRequest, scheduled_at: float) -> None:
        payload = self._payloads.pop(one.id, None) or self._payload(one)
        now = time.monotonic()
        self.samples.offered += 1
        self.samples.sent += 1
        if len(self.samples.dispatch_lags) < LAGS_MAX:
            self.samples.dispatch_lags.append(now - scheduled_at)
        self._pool.submit(Exchange(one, scheduled_at, now, payload))

    def _prepare(self, count: int) -> None:
        while self._ahead and count > 0 and len(self._payloads) < AHEAD:
            one = self._ahead.popleft()
            self._payloads[one.id] = self._payload(one)
            count -= 1

    def _payload(self, one: PlannedRequest) -> bytes:
        target = self._target
        history = self._histories.get(one.session, []) if one.session is not None else []
        tokens = one.prompt_tokens - sum(len(message["content"].split()) for message in history)
        prompt = prompt_text(self._lexicon, one, self._options.seed, tokens)
        if one.session is not None:
            self._histories[one.session] = [*history, {"role": "user", "content": prompt}]
        body = request_body(target, one, prompt, history, due_epoch_s=self._due_epoch_s(one))
        return request_bytes("POST", target.path, request_headers(target, one), body)

    def _due_epoch_s(self, one: PlannedRequest) -> float:
        """Return when a request is due by the wall clock: now, where it is not sent by a schedule or is late."""
        ahead_s = 0.0 if self._options.concurrency is not None else self._start + one.at_s - time.monotonic()
        return time.time() + max(0.0, ahead_s)

    # ------------------------------------------------------------------------------------------------------- ending

    def _on_ended(self, exchange: Exchange) -> None:
        planned = exchange.planned
        self.samples.reads += len(exchange.times)
        self._ended.append(exchange)
        if planned.session is not None:
            self._digest_all()
        ended_at = exchange.ended_at or time.monotonic()
        self._pacer.ended(planned, exchange.scheduled_at - self._start, ended_at - self._start)
        if not self._is_digesting and self._ended and not self._is_stopping:
            self._is_digesting = True
            asyncio.get_running_loop().call_soon(self._digest)
        self._pump()

    def _digest(self) -> None:
        if self._is_stopping:
            return
        loop = asyncio.get_running_loop()
        next_at = self._pacer.next_at()
        if next_at is not None and next_at - self.elapsed_s < SPARE_S and len(self._ended) < AHEAD:
            loop.call_later(SPARE_S, self._digest)
            return
        if self._ended:
            self._digest_one()
        if self._ended:
            loop.call_soon(self._digest)
        else:
            self._is_digesting = False

    def _digest_all(self) -> None:
        while self._ended:
            self._digest_one()

    def _digest_one(self) -> None:
        exchange = self._ended.popleft()
        record, text = to_record(exchange, self._target)
        session = exchange.planned.session
        if session is not None and session in self._histories:
            self._histories[session].append({"role": "assistant", "content": text})
        self.samples.events += len(record.event_at)
        self._on_record(record)
        self._prepare(1)

    # ----------------------------------------------------------------------------------------------------- watching

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for connection in self._pool.busy:
                self._check(connection, now)
            if self._options.window_s is not None and self._pacer.is_done(self.elapsed_s):
                self._over.set()

    def _check(self, connection: Connection, now: float) -> None:
        exchange, limits = connection.exchange, self._target.limits
        if exchange is None or exchange.sent_at is None:
            return
        waited = now - exchange.sent_at
        last = exchange.times[-1] if exchange.times else None
        if last is None and waited > limits.answer_s:
            connection.give_up("timeout", f"no answer within {limits.answer_s:g} s")
        elif last is not None and now - last > limits.stall_s:
            connection.give_up("timeout", f"the stream stood still for {limits.stall_s:g} s")
        elif waited > limits.total_s:
            connection.give_up("timeout", f"the answer took more than {limits.total_s:g} s")

    async def _beat(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(HEARTBEAT_S)
            if len(self.samples.loop_lags) < LAGS_MAX:
                self.samples.loop_lags.append(time.monotonic() - before - HEARTBEAT_S)
