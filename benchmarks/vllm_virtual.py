"""vLLM's real schedulers, stock and with the plug-in, on a virtual clock: who attains what, without a model.

    DIR/venv/bin/python benchmarks/vllm_virtual.py --model DIR/smollm2            every contender, some minutes
    DIR/venv/bin/python benchmarks/vllm_virtual.py --model DIR/smollm2 --quick    a minute

It runs in the Python of a vLLM that has setpoint beside it; of the model, only the configuration is read. The loop of
vLLM's engine core (one step in flight, or two as under async scheduling) drives the real `Scheduler` and
`AsyncScheduler`; a step takes what a step-time model of a small model on a CPU says, with 5% of noise, which the
plug-in does not know: it starts from its guess and learns. So nothing of the machine disturbs the comparison, and
nothing but the step times is made up. Loads, targets and ladders are those of `vllm_plugin`.

Ratios: as in `vllm_plugin`, of `slack`, for two steps in flight; `..._sync` for one.
"""

import argparse
import importlib
import itertools
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

from contest import BATCH_LENGTHS, CHAT_LENGTHS, GIVEN_UP, capacity_of, scaled_slo
from reporting import arguments, report, say
from vllm_loads import IN_FLIGHT, Load, Seen, judged, loosened, tightened
from vllm_scheduler_cost import made_request, made_scheduler

from setpoint import seeds
from setpoint.chance import Chance
from setpoint.metrics import RequestRecord
from setpoint.model import Slo
from setpoint.steptime.model import StepTimeModel, linear
from setpoint.workload import PlannedRequest
from setpoint.workload.arrivals import Steady
from setpoint.workload.traffic import Traffic, plan_traffic

WORLD = linear(key="made up", step_s=0.022, decode_s=0.0015, context_s=1e-6, prefill_s=0.0011, work_s=1e-7)
NOISE = 0.05
BUDGETS = (64, 128, 256, 512)
SEQUENCES = 32
KV_BLOCKS = 2900
BESIDE = (0.06, 0.12, 0.25, 0.4, 0.55, 0.7, 0.8)
ALONE = (0.3, 0.45, 0.6, 0.75, 0.85, 0.95)
TIGHT = (0.2, 0.35, 0.5, 0.65, 0.8)
LOOSE_AT = 0.3
WARM_UP_S = 30.0
PRIORITIES = {"chat": 0, "batch": 9}


class Contender(NamedTuple):
    """A scheduler: its name, its policy and budget if it is stock, its strategy if it is the plug-in's."""

    name: str
    policy: str = "fcfs"
    budget: int = 2048
    strategy: dict[str, Any] | None = None


def contenders(*, is_quick: bool) -> list[Contender]:
    """Return what is compared."""
    budgets = BUDGETS[1:3] if is_quick else BUDGETS
    stocks = [
        Contender(f"stock {policy} {budget}", policy, budget) for policy in ("fcfs", "priority") for budget in budgets
    ]
    plugins = [Contender(f"plug-in {name}", strategy={"name": name}) for name in ("qoserve", "slack")]
    return [*stocks, *plugins]


class Server:
    """One scheduler with a client of each class, on a virtual clock."""

    def __init__(self, contender: Contender, depth: int, args: argparse.Namespace) -> None:
        """Begin idle."""
        self.contender = contender
        self._depth = depth
        self._chance: Chance = seeds.stream(args.seed, "vllm_virtual")
        self._names = itertools.count()
        self._flying: deque[tuple[Any, float, dict[str, bool]]] = deque()
        self._records: dict[str, RequestRecord] = {}
        self._made: dict[str, int] = {}
        self._free_at = 0.0
        self.now = 1000.0
        self.tokens = 0
        self.steps = 0
        options = None
        if contender.strategy is not None:
            options = {"strategy": contender.strategy, "default_class": "chat"}
            if args.journal:
                options["journal"] = args.journal
        self.host = made_scheduler(
            args.model,
            running=SEQUENCES,
            budget=contender.budget,
            depth=depth,
            policy=contender.policy,
            blocks=KV_BLOCKS,
            options=options,
        )
        pilot = getattr(self.host, "setpoint", None)
        if pilot is not None:
            pilot._parts = pilot._parts._replace(clock=lambda: self.now, wall=lambda: self.now)  # noqa: SLF001

    def run(self, load: Load, seed: int) -> Seen:
        """Offer a load; return what came of it. What is left of the backlog is aborted."""
        began_at, until = self.now, self.now + load.seconds
        chat = deque(_planned("chat", load.rate, seed, load.seconds)) if load.rate else deque()
        backlog = _backlog(seed)
        tokens, window = 0, (began_at + 0.1 * load.seconds, until)
        for _ in range(IN_FLIGHT if load.has_backlog else 0):
            self._ask(next(backlog), self.now, load.slo)
        records: list[RequestRecord] = []
        while chat or self._chatting or self.now < until:
            while chat and began_at + chat[0].at_s <= self.now:
                one = chat.popleft()
                self._ask(one, began_at + one.at_s, load.slo)
            before = self.now
            for record in self._turn(min(until, began_at + chat[0].at_s) if chat else until):
                if record.class_name == "chat":
                    records.append(record)
                elif self.now < until:
                    self._ask(next(backlog), self.now, load.slo)
            if window[0] <= before < window[1]:
                tokens += self.tokens
        self._leave()
        return judged(load, sorted(records, key=lambda r: r.scheduled_at), tokens / (window[1] - window[0]), 0)

    @property
    def _chatting(self) -> bool:
        return any(record.class_name == "chat" for record in self._records.values())

    def _turn(self, until: float) -> list[RequestRecord]:
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
        self.steps += 1
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

    def _ask(self, one: PlannedRequest, at: float, slo: Slo) -> None:
        name = f"{one.class_name}{next(self._names)}"
        self._records[name] = RequestRecord(id=one.id, class_name=one.class_name, scheduled_at=at)
        self._made[name] = 0
        asked: dict[str, Any] = {"setpoint.class": one.class_name}
        if one.class_name == "chat" and slo.ttft_s is not None and slo.tpot_s is not None:
            asked |= {"setpoint.ttft_ms": 1e3 * slo.ttft_s, "setpoint.tpot_ms": 1e3 * slo.tpot_s}
        prompt = [self._chance.randint(10, 900) for _ in range(one.prompt_tokens)]
        request = made_request(name, prompt, one.output_tokens, at=at, asked=asked)
        request.priority = PRIORITIES[one.class_name] if self.contender.policy == "priority" else 0
        self.host.add_request(request)

    def _leave(self) -> None:
        status = importlib.import_module("vllm.v1.request").RequestStatus.FINISHED_ABORTED
        self.host.finish_requests([*self.host.requests], status)
        self._records.clear()
        while self._flying or self.host.has_requests():
            self._turn(self.now)


def _planned(
    name: str, rate: float, seed: int, seconds: float | None, total: int | None = None
) -> list[PlannedRequest]:
    prompt, output = CHAT_LENGTHS if name == "chat" else BATCH_LENGTHS
    traffic = Traffic(class_name=name, prompt=prompt, output=output)
    return plan_traffic([traffic], Steady(rate), partial(seeds.stream, seed), duration_s=seconds, count=total)


def _backlog(seed: int) -> Iterator[PlannedRequest]:
    return cycle(_planned("batch", 1.0, seed, None, 1000))


def bound(args: argparse.Namespace) -> float:
    """Return the chat requests per second that a stock scheduler completes of an endless backlog of them."""
    server = Server(Contender("bound", budget=2048), 2, args)
    plan = _planned("chat", 1e6, args.seed, None, 400)
    began_at = server.now
    for one in plan:
        server._ask(one, server.now, Slo(percentile=0.95))  # noqa: SLF001 - one file
    left = len(plan)
    while left:
        left -= len(server._turn(server.now))  # noqa: SLF001 - one file
    return len(plan) / (server.now - began_at)


class Climbed(NamedTuple):
    """What one contender did."""

    beside: list[Seen]
    alone: list[Seen]
    tight: list[Seen]
    loose: Seen


def climbed(contender: Contender, depth: int, slo: Slo, limit: float, args: argparse.Namespace) -> Climbed:
    """Warm one contender up, and let it climb both ladders and meet the loose targets."""
    server = Server(contender, depth, args)
    seconds = args.seconds or (60.0 if args.quick else 300.0)
    server.run(Load(0.2 * limit, WARM_UP_S, slo), args.seed)

    def climb(shares: tuple[float, ...], slo: Slo, *, has_backlog: bool) -> list[Seen]:
        seen: list[Seen] = []
        for share in shares:
            seen.append(server.run(Load(share * limit, seconds, slo, has_backlog), args.seed))
            if seen[-1].rung.attainment < GIVEN_UP:
                break
        return seen

    beside, alone = climb(BESIDE, slo, has_backlog=True), climb(ALONE, slo, has_backlog=False)
    tight = climb(TIGHT, tightened(slo), has_backlog=False)
    loose = server.run(Load(LOOSE_AT * limit, seconds, loosened(slo)), args.seed)
    pilot = getattr(server.host, "setpoint", None)
    if pilot is not None:
        counts = pilot.numbers.counts
        off = counts["error_s", ""] / counts["measured_s", ""]
        kept = {"/".join(key): n for key, n in counts.items() if key[0] in {"fallbacks", "preempted", "relegated"}}
        say(
            f"  predictions off by {off:.1%}; {kept}; {pilot.machine.strategy.setpoints.report() if contender.name.endswith('slack') else ''}"
        )
    return Climbed(beside, alone, tight, loose)


def row(name: str, depth: int, came: Climbed, limit: float) -> dict[str, object]:
    """Return what is printed of a contender."""
    return {
        "scheduler": name,
        "in flight": depth,
        "chat/s beside": capacity_of([one.rung for one in came.beside]),
        "of bound": capacity_of([one.rung for one in came.beside]) / limit,
        **{f"{one.rung.rate:.2f}": f"{one.rung.attainment:.2f} {one.tokens_per_s:.0f}" for one in came.beside},
        "chat/s alone": capacity_of([one.rung for one in came.alone]),
        **{f"alone {one.rung.rate:.2f}": f"{one.rung.attainment:.2f}" for one in came.alone},
        "chat/s alone, tight": capacity_of([one.rung for one in came.tight]),
        **{f"tight {one.rung.rate:.2f}": f"{one.rung.attainment:.2f}" for one in came.tight},
        "loose": came.loose.rung.attainment,
        "tokens/s, loose": came.loose.tokens_per_s,
    }


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="contenders whose names hold this (for trials)")
    parser.add_argument("--seconds", type=float, help="virtual length of one rung (default: 300, quick: 60)")
    parser.add_argument("--depth", type=int, help="steps in flight (default: 1 and 2)")
    parser.add_argument("--journal", help="a file for the plug-in's journal (for trials)")


def main() -> None:
    """Let every contender climb, and report."""
    args = arguments(__doc__ or "", _options)
    if args.model is None:
        raise SystemExit("--model: name the folder of a model that vLLM can read")
    slo, limit = scaled_slo(WORLD), bound(args)
    say(f"bound {limit:.2f} chat/s; TTFT {slo.ttft_s:.3f} s, TPOT {slo.tpot_s:.3f} s")
    rows, ratios = [], {}
    for depth in (args.depth,) if args.depth else (1, 2):
        found: dict[str, Climbed] = {}
        for contender in contenders(is_quick=args.quick):
            if not args.only or args.only in contender.name:
                found[contender.name] = climbed(contender, depth, slo, limit, args)
                rows.append(row(contender.name, depth, found[contender.name], limit))
                say(str(rows[-1]))
    report("vllm_virtual", ratios, rows, args)


from setpoint.steptime.learner import FixedStepTime  # noqa: E402

WORLD_TIME = FixedStepTime(WORLD)

if __name__ == "__main__":
    main()
