"""Strategies side by side on the embedded engine: chat at rising rates, beside a backlog of batch work that never ends.

Targets scale with the machine, so that the experiment is as hard on a slow processor: the TTFT target is some times
what a mean prompt takes alone, the TPOT target some times a decode alone. The baselines are tuned first: every option
of each, and the number of slots, is tried in the simulator on the step-time model just fitted; `slack` is never tuned.
Then each contender climbs a ladder of chat rates on the real engine, with the same draws at each rung, until too few
requests meet their targets. Its capacity is where attainment, made monotone, crosses what was promised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, pairwise

import msgspec
from embedded import Bench, Options, Run, arrivals_of, with_slots
from reporting import say

from setpoint import seeds
from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.metrics import RequestRecord, met, rank_quantile
from setpoint.model import PRESETS, Capacity, ServiceClass, Slo
from setpoint.sim.replica import Arrival, ReplicaSimulator
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import StepTimeModel
from setpoint.units import Instant, Seconds
from setpoint.workload import POISSON, Gaps, LogNormal, Steady, Traffic, plan_traffic

CHAT_LENGTHS = LogNormal(64, 0.7, 8, 384), LogNormal(40, 0.7, 4, 128)
BATCH_LENGTHS = LogNormal(128, 0.7, 16, 512), LogNormal(96, 0.5, 16, 256)
CHAT_OUTPUT_MAX, BATCH_OUTPUT_MAX = 128, 256
TTFT_TIMES, TPOT_TIMES = 6.0, 6.0
PROMISED = 0.95
GIVEN_UP = 0.75
WARM_UP = 0.1
BUDGETS = (8, 16, 24, 32, 64, 128, 512)
SLOTS = (4, 8, 16, 32)
FACTORS_S = (0.0, 0.001, 0.008)
MARGINS = (1.0, 1.2)


class Contender(msgspec.Struct, frozen=True):
    """A strategy with its options, the sequences that it may run at once, and the name under which it is reported."""

    name: str
    strategy: str
    options: Options = {}
    slots: int | None = None


BASELINES: dict[str, tuple[Contender, ...]] = {
    "continuous, best budget": tuple(
        Contender("", "continuous", {"token_budget": b}, slots) for b in BUDGETS for slots in SLOTS
    ),
    "priority, best budget": tuple(
        Contender("", "priority", {"token_budget": b}, slots) for b in BUDGETS for slots in SLOTS
    ),
    "qoserve, best factor": tuple(
        Contender("", "qoserve", {"factor_s": f, "margin": m, "tokens_min": t}, slots)
        for f in FACTORS_S
        for m in MARGINS
        for t in (8, 32)
        for slots in SLOTS
    ),
}
SLACK = Contender("slack, untuned", "slack")


@dataclass(frozen=True)
class Setting:
    """The experiment: service classes, how chat arrives, and the endless backlog (empty: none)."""

    classes: Mapping[str, ServiceClass]
    gaps: Gaps
    backlog: Sequence[Arrival]
    seed: int
    lengths: tuple[LogNormal, LogNormal] = CHAT_LENGTHS

    @property
    def slo(self) -> Slo:
        """What chat was promised."""
        return self.classes["chat"].slo

    def chat(self, rate: float, seconds: float) -> list[Arrival]:
        """Return the chat arrivals of one run; the same draws at every rate."""
        prompt, output = self.lengths
        traffic = Traffic(class_name="chat", prompt=prompt, output=output, gaps=self.gaps)
        plan = plan_traffic([traffic], Steady(rate), partial(seeds.stream, self.seed), duration_s=seconds)
        return arrivals_of(plan, CHAT_OUTPUT_MAX)


class Rung(msgspec.Struct, frozen=True):
    """What one run showed: the rate of chat, its attainment, its tails, and the batch work done beside it."""

    rate: float
    attainment: float
    ttft_attainment: float
    requests: int
    ttft_p95_s: float
    tpot_p95_s: float
    batch_tokens_per_s: float


def setting(
    slo: Slo,
    *,
    seed: int,
    gaps: Gaps = POISSON,
    has_backlog: bool = True,
    lengths: tuple[LogNormal, LogNormal] = CHAT_LENGTHS,
) -> Setting:
    """Return the experiment with these chat targets."""
    chat = ServiceClass(name="chat", slo=slo, band=1, wait_max_s=None, queue_max=100_000)
    prompt, output = BATCH_LENGTHS
    traffic = Traffic(class_name="batch", prompt=prompt, output=output)
    plan = plan_traffic([traffic], Steady(1.0), partial(seeds.stream, seed), count=400) if has_backlog else []
    return Setting({"chat": chat, "batch": PRESETS["batch"]}, gaps, arrivals_of(plan, BATCH_OUTPUT_MAX), seed, lengths)


def scaled_slo(model: StepTimeModel, *, tpot_times: float = TPOT_TIMES) -> Slo:
    """Return chat targets in multiples of what a mean prompt and one decode take alone on this machine."""
    alone = FixedStepTime(model)
    prompt = int(CHAT_LENGTHS[0].mean)
    ttft_s = TTFT_TIMES * alone.seconds(0, 0, prompt, prompt * prompt / 2, 1)
    tpot_s = tpot_times * alone.seconds(1, prompt)
    return Slo(percentile=PROMISED, ttft_s=Seconds(ttft_s), tpot_s=Seconds(tpot_s))


def bound(bench: Bench, experiment: Setting, seconds: float) -> float:
    """Return the chat requests per second that the engine completes when all of them wait from the start."""
    chat = list(experiment.chat(1000.0, seconds))[: int(40 * seconds)]
    best = 0.0
    for budget in (128, 512):
        run = bench.run("continuous", {"token_budget": budget}, experiment.classes, chat, until_s=seconds)
        tokens = run.output_tokens.get("chat", 0) + run.prompt_tokens.get("chat", 0)
        mean = sum(a.request.prompt_tokens + a.output_tokens for a in chat) / len(chat)
        best = max(best, tokens / mean / run.seconds)
    return best


def targets(slo: Slo) -> str:
    """Return the targets for people."""
    parts = [f"{name} {1e3 * value:.0f} ms" for name, value in (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s)) if value]
    return ", ".join(parts)


def rung(rate: float, records: Sequence[RequestRecord], experiment: Setting, seconds: float, batch: float) -> Rung:
    """Judge one run, less the warm-up and the requests that came too late to be judged."""
    slo = experiment.slo
    tail_s = min(0.3 * seconds, (slo.ttft_s or 0.0) + (slo.tpot_s or 0.0) * CHAT_OUTPUT_MAX)
    window = (WARM_UP * seconds, seconds - tail_s)
    judged = [r for r in records if r.class_name == "chat" and window[0] <= r.scheduled_at < window[1]]
    never = float("inf")
    ttft = sorted(never if r.ttft_s is None else r.ttft_s for r in judged)
    tpot = sorted(r.tpot_s for r in judged if r.tpot_s is not None)
    return Rung(
        rate=rate,
        attainment=sum(met(r, slo) for r in judged) / max(1, len(judged)),
        ttft_attainment=sum(t <= (slo.ttft_s or never) for t in ttft) / max(1, len(judged)),
        requests=len(judged),
        ttft_p95_s=rank_quantile(ttft, 0.95) if ttft else never,
        tpot_p95_s=rank_quantile(tpot, 0.95) if tpot else never,
        batch_tokens_per_s=batch,
    )


def real(bench: Bench, contender: Contender, experiment: Setting, rate: float, seconds: float) -> Rung:
    """Run one rung on the engine."""
    run: Run = bench.run(
        contender.strategy,
        contender.options,
        experiment.classes,
        experiment.chat(rate, seconds),
        until_s=seconds,
        backlog=experiment.backlog,
        slots=contender.slots,
    )
    return rung(rate, run.records, experiment, seconds, run.tokens_per_s("batch"))


def simulated(
    contender: Contender, experiment: Setting, model: StepTimeModel, capacity: Capacity, rate: float, seconds: float
) -> Rung:
    """Run one rung in the simulator, on the fitted step times."""
    world = FixedStepTime(model)
    strategy = make_strategy(contender.strategy, **contender.options)
    machine = ReplicaMachine(strategy, experiment.classes, with_slots(capacity, contender.slots), world)
    arrivals = [*_backlog(experiment, world, seconds), *experiment.chat(rate, seconds)]
    records = list(ReplicaSimulator(machine, world).run(arrivals, seconds))
    batch = sum(
        r.output_tokens + (0 if r.first_token_at is None else r.prompt_tokens)
        for r in records
        if r.class_name == "batch"
    )
    return rung(rate, records, experiment, seconds, batch / seconds)


def _backlog(experiment: Setting, world: FixedStepTime, seconds: float) -> list[Arrival]:
    """Return as much batch work, all there from the start, as a run could possibly do."""
    fastest_s = world.seconds(32, 0) / 32
    room = int(seconds / fastest_s) if experiment.backlog else 0
    mean = sum(a.request.prompt_tokens + a.output_tokens for a in experiment.backlog) / max(1, len(experiment.backlog))
    copies = islice(cycle(experiment.backlog), int(room / max(1.0, mean)))
    return [
        Arrival(msgspec.structs.replace(a.request, id=1_000_000 + n, arrived_at=Instant(0.0)), a.output_tokens)
        for n, a in enumerate(copies)
    ]


def tuned(
    name: str,
    experiment: Setting,
    model: StepTimeModel,
    capacity: Capacity,
    rates: Sequence[float],
    seconds: float,
) -> Contender:
    """Return the option of a baseline that attains most over `rates` in the simulator; batch work breaks ties."""

    def score(contender: Contender) -> tuple[float, float]:
        rungs = [simulated(contender, experiment, model, capacity, rate, seconds) for rate in rates]
        return round(sum(r.attainment for r in rungs), 2), sum(r.batch_tokens_per_s for r in rungs)

    best = max(BASELINES[name], key=score)
    return msgspec.structs.replace(best, name=name)


def climb(
    bench: Bench, contender: Contender, experiment: Setting, rates: Sequence[float], seconds: float
) -> list[Rung]:
    """Run the rungs in rising order, until too few requests meet their targets."""
    rungs = []
    for rate in rates:
        rungs.append(real(bench, contender, experiment, rate, seconds))
        say(f"  {contender.name} at {rate:.2f}/s: {rungs[-1].attainment:.3f} of {rungs[-1].requests}")
        if rungs[-1].attainment < GIVEN_UP:
            break
    return rungs


def capacity_of(rungs: Sequence[Rung], promised: float = PROMISED, *, which: str = "attainment") -> float:
    """Return the rate at which attainment crosses `promised`: interpolated after pooling adjacent violators.

    `which` names the field of a rung that is held to it.

    Below the lowest rung the crossing lies between it and zero, where attainment is taken to be 1.
    """
    points = [(0.0, 1.0), *((r.rate, a) for r, a in zip(rungs, _monotone(rungs, which), strict=True))]
    for (low, above), (high, below) in pairwise(points):
        if below < promised:
            return low + (high - low) * (above - promised) / (above - below)
    return points[-1][0]


def batch_at(rungs: Sequence[Rung], rate: float) -> float:
    """Return the batch tokens per second at a chat rate, interpolated between rungs."""
    points = [(r.rate, r.batch_tokens_per_s) for r in rungs]
    for (low, left), (high, right) in pairwise(points):
        if low <= rate <= high:
            return left + (right - left) * (rate - low) / (high - low)
    return points[0][1] if rate <= points[0][0] else points[-1][1]


def _monotone(rungs: Sequence[Rung], which: str) -> list[float]:
    """Return the attainments as the nearest falling sequence, each weighed by its requests."""
    blocks: list[tuple[float, int, int]] = []
    for r in rungs:
        mean, weight, size = getattr(r, which), max(1, r.requests), 1
        while blocks and blocks[-1][0] < mean:
            last, last_weight, last_size = blocks.pop()
            mean = (mean * weight + last * last_weight) / (weight + last_weight)
            weight, size = weight + last_weight, size + last_size
        blocks.append((mean, weight, size))
    return [mean for mean, _, size in blocks for _ in range(size)]
