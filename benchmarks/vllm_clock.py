"""One of vLLM's real schedulers with its clients, on a virtual clock: the loop of vLLM's engine core without a model.

A step takes what a step-time model of a small model on a CPU says, with some noise. The plug-in does not know the
model: it starts from its guess and learns.
"""

import argparse
import importlib
import itertools
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

from contest import BATCH_LENGTHS, CHAT_LENGTHS
from vllm_loads import BANDS, IN_FLIGHT, SEQUENCES
from vllm_made import Made, made_request, made_scheduler
from vllm_seen import Load, Piece, Seen, judged

from setpoint import seeds
from setpoint.metrics import RequestRecord
from setpoint.model import Slo
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import linear
from setpoint.workload import PlannedRequest
from setpoint.workload.arrivals import Steady
from setpoint.workload.traffic import Traffic, plan_traffic

WORLD = linear(key="made up", step_s=0.022, decode_s=0.0015, context_s=1e-6, prefill_s=0.0011, work_s=1e-7)
WORLD_TIME = FixedStepTime(WORLD)
NOISE = 0.05
KV_BLOCKS = 2900


class Contender(NamedTuple):
    """A scheduler: its name, its policy and budget if it is stock, its strategy if it is the plug-in's."""

    name: str
    policy: str = "fcfs"
    budget: int = 2048
    strategy: dict[str, Any] | None = None


class Server:
    """One scheduler with a client of each class, on a virtual clock."""

    def __init__(self, contender: Contender, depth: int, args: argparse.Namespace) -> None:
        """Begin idle."""
        self.contender = contender
        self._depth = depth
        self._chance = seeds.stream(args.seed, "vllm_virtual")
        self._names = itertools.count()
        self._flying: deque[tuple[Any, float, dict[str, bool]]] = deque()
        self._records: dict[str, RequestRecord] = {}
        self._made: dict[str, int] = {}
        self._free_at = 0.0
        self.now = 1000.0
        self.tokens = 0
        options = None
        if contender.strategy is not None:
            options = {"strategy": contender.strategy, "default_class": "chat"}
            if args.journal:
                options["journal"] = args.journal
        self.host = made_scheduler(
            Made(args.model, SEQUENCES, depth, KV_BLOCKS, contender.budget, contender.policy, options)
        )
        pilot = getattr(self.host, "setpoint", None)
        if pilot is not None:
            pilot._parts = pilot._parts._replace(clock=lambda: self.now, wall=lambda: self.now)  # noqa: SLF001

    def run(self, load: Load, seed: int) -> Seen:
        """Offer a load; return what came of it. What is left of the backlog is aborted."""
        began_at, until = self.now, self.now + load.seconds
        chat = deque(planned("chat", load.rate, seed, load.seconds)) if load.rate else deque()
        backlog = _backlog(seed)
        tokens, window = 0, (began_at + 0.1 * load.seconds, until)
        for _ in range(IN_FLIGHT if load.has_backlog else 0):
            self.ask(next(backlog), self.now, load.slo)
        records: list[RequestRecord] = []
        while chat or self._chatting or self.now < until:
            while chat and began_at + chat[0].at_s <= self.now:
                one = chat.popleft()
                self.ask(one, began_at + one.at_s, load.slo)
            before = self.now
            for record in self.turn(min(until, began_at + chat[0].at_s) if chat else until):
                if record.class_name == "chat":
                    records.append(record)
                elif self.now < until:
                    self.ask(next(backlog), self.now, load.slo)
            if window[0] <= before < window[1]:
                tokens += self.tokens
        self._leave()
        records.sort(key=lambda r: r.scheduled_at)
        return judged(load, [Piece.of(load, records, tokens / (window[1] - window[0]), 0)])

    @property
    def _chatting(self) -> bool:
        return any(record.class_name == "chat" for record in self._records.values())

    def turn(self, until: float) -> list[RequestRecord]:
        """Do what the engine core does next; return the records of those that ended. `until`: when to look up."""
        self.tokens = 0
        if self.host.has_requests() and len(self._flying) < self._depth:
            output = self.host.schedule()
            if output.total_num_scheduled_tokens:
                self._launch(output)
                if len(self._flying) < self._depth:
                    return []
            elif not self._flying:
                self._collect(output, {})
                self.now = max(self.now + 1e-4, min(until, self.now + 0.01))
                return []
        if not self._flying:
            self.now = max(until, self.now + 1e-6)
            return []
        output, ends_at, due = self._flying.popleft()
        self.now = max(self.now, ends_at)
        return self._collect(output, due)

    def _launch(self, output: Any) -> None:  # noqa: ANN401 - vLLM has no types for us, as in all that follows
        decodes = context = prefills = prefill = 0
        work = 0.0
        due = {}
        for name, tokens in output.num_scheduled_tokens.items():
            request = self.host.requests[name]
            computed = request.num_computed_tokens - tokens
            if tokens == 1 and computed >= request.num_prompt_tokens:
                decodes, context = decodes + 1, context + computed
            else:
                prefills, prefill, work = prefills + 1, prefill + tokens, work + tokens * (computed + tokens / 2)
            due[name] = request.num_computed_tokens >= request.num_prompt_tokens + self._made[name]
            self._made[name] += due[name]
        seconds = WORLD_TIME.seconds(decodes, context, prefill, work, prefills)
        seconds *= 1.0 + NOISE * self._chance.uniform(-1.0, 1.0)
        self._free_at = max(self.now, self._free_at) + seconds
        self._flying.append((output, self._free_at, due))
        self.tokens = output.total_num_scheduled_tokens

    def _collect(self, output: Any, due: dict[str, bool]) -> list[RequestRecord]:  # noqa: ANN401
        names = list(due)
        sampled = importlib.import_module("vllm.v1.outputs").ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[[11] if due[name] else [] for name in names],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        ended = []
        for per_client in (self.host.update_from_output(output, sampled) or {}).values():
            for one in per_client.outputs:
                record = self._records.get(one.request_id)
                if record is None:
                    continue
                record.output_tokens += len(one.new_token_ids)
                if one.new_token_ids and record.first_token_at is None:
                    record.first_token_at = self.now
                if one.finish_reason is not None:
                    record.ended_at = self.now
                    ended.append(self._records.pop(one.request_id))
        return ended

    def ask(self, one: PlannedRequest, at: float, slo: Slo) -> None:
        """Send a request that was due at `at`."""
        name = f"{one.class_name}{next(self._names)}"
        self._records[name] = RequestRecord(id=one.id, class_name=one.class_name, scheduled_at=at)
        self._made[name] = 0
        asked: dict[str, Any] = {"setpoint.class": one.class_name}
        if one.class_name == "chat" and slo.ttft_s is not None and slo.tpot_s is not None:
            asked |= {"setpoint.ttft_ms": 1e3 * slo.ttft_s, "setpoint.tpot_ms": 1e3 * slo.tpot_s}
        prompt = [self._chance.randint(10, 900) for _ in range(one.prompt_tokens)]
        request = made_request(name, prompt, one.output_tokens, at=at, asked=asked)
        request.priority = BANDS[one.class_name] if self.contender.policy == "priority" else 0
        self.host.add_request(request)

    def _leave(self) -> None:
        status = importlib.import_module("vllm.v1.request").RequestStatus.FINISHED_ABORTED
        self.host.finish_requests([*self.host.requests], status)
        self._records.clear()
        while self._flying or self.host.has_requests():
            self.turn(self.now)


def planned(name: str, rate: float, seed: int, seconds: float | None, total: int | None = None) -> list[PlannedRequest]:
    """Return the requests of one class: those of the first `seconds`, or `total` of them."""
    prompt, output = CHAT_LENGTHS if name == "chat" else BATCH_LENGTHS
    traffic = Traffic(class_name=name, prompt=prompt, output=output)
    return plan_traffic([traffic], Steady(rate), partial(seeds.stream, seed), duration_s=seconds, count=total)


def _backlog(seed: int) -> Iterator[PlannedRequest]:
    return cycle(planned("batch", 1.0, seed, None, 1000))
