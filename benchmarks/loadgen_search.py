"""The search for the highest rate against a fine grid, on virtual clocks: how near, how sure, and at what cost.

    python benchmarks/loadgen_search.py [--quick] [--json]

Two systems: `engine`, the simulated A100 of `policies.py` under the `continuous` strategy, whose violations rise slowly
with the rate, since long prompts are late by themselves; and `slots`, a first-come-first-served queue before ten slots,
with the times of the mock server, whose violations come in bursts. Trials run on them with the plans, stop rules and
verdicts of a real endpoint (`virtual_endpoint`), each search under seeds of its own.

The *grid* offers 25 rates in steps of 2.5% about the crossing, each with 6,000 requests under one seed; its answer is
the last rate before the first that misses an objective. One such grid is itself some percent off: the *truth* is where
violations cross what is allowed over the pooled requests of many seeds.

Ratios, each the worst of the systems: `error`, the median over seeds of |estimate / truth - 1|, at most 0.05 is wanted;
`of_grid_requests`, requests sent by a search over those that the grid sent in this run, at most 0.2 is wanted;
`grid_error`, what single grids are off; `coverage`, share of the 90% intervals that hold the truth; `confirmed`, share
of the searches that confirmed a rate; `over_truth`, share of the confirmed rates above the truth; `trials` and
`minutes` of the system's time, a search.

`--quick` leaves the engine out, whose truth takes minutes.
"""

import heapq
import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from policy_worlds import A100, CAPACITY
from reporting import Row, arguments, report, say
from virtual_endpoint import NOWHERE, Serve, carry_on

from setpoint.loadgen.experiment import MixSource, Setup
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.search import Answer, SearchSettings, Trial, TrialResult
from setpoint.loadgen.trials import find_max_rate, result_of, run_trial
from setpoint.metrics import Objective, RequestRecord, parse_objectives, violations
from setpoint.model import ServiceClass, Slo
from setpoint.seeds import stream
from setpoint.sim.scenario import Scenario, simulate
from setpoint.workload import Fixed, LogNormal, PlannedRequest, Steady, Traffic, plan_traffic

CLASSES = {"chat": ServiceClass(name="chat", slo=Slo(), queue_max=100_000, wait_max_s=None)}
SCENARIO = Scenario(world=A100(), capacity=CAPACITY, classes=CLASSES, strategy="continuous")
STEP, POINTS, GRID_REQUESTS = 0.025, 25, 6000
WARMUP, COOLING = 600, 400
"""Requests at the start and at the end of a run of the grid that do not count."""
TRUTH_STEPS = (-0.08, -0.04, 0.0, 0.04, 0.08)
SEARCH_SEEDS, GRID_SEEDS, TRUTH_SEEDS = 1_000_000, 2_000_000, 3_000_000
SLOTS, FIRST_S, FIRST_SIGMA, GAP_S, GAP_SIGMA = 10, 0.05, 0.5, 0.01, 0.3


class World(NamedTuple):
    """A system under a workload, with what must hold; `e2e_s`: about how long a request takes when it is alone."""

    name: str
    serve: Serve
    mix: tuple[Traffic, ...]
    objectives: tuple[Objective, ...]
    e2e_s: float


class Found(NamedTuple):
    """What a search came to, and what it took."""

    answer: Answer
    trials: int
    sent: int
    minutes: float


def engine(plan: Sequence[PlannedRequest]) -> list[RequestRecord]:
    """Serve a plan on the simulated engine."""
    return simulate(SCENARIO, plan).records


def slots(plan: Sequence[PlannedRequest]) -> list[RequestRecord]:
    """Serve a plan in order of arrival by ten slots, with the times that the mock server draws."""
    chance = stream(round(1e6 * sum(one.at_s for one in plan)), "slots")
    turns = {(one.session, one.turn): one for one in plan if one.turn}
    arrivals = [(one.at_s, one.id, one) for one in plan if not one.turn]
    heapq.heapify(arrivals)
    free = [0.0] * SLOTS
    records = []
    while arrivals:
        at, _, one = heapq.heappop(arrivals)
        first_at = max(at, heapq.heappop(free)) + FIRST_S * math.exp(FIRST_SIGMA * chance.gauss(0.0, 1.0))
        gaps = (math.exp(GAP_SIGMA * chance.gauss(0.0, 1.0)) for _ in range(one.output_tokens - 1))
        ended_at = first_at + GAP_S * sum(gaps)
        heapq.heappush(free, ended_at)
        records.append(
            RequestRecord(
                id=one.id,
                class_name=one.class_name,
                scheduled_at=at,
                sent_at=at,
                first_token_at=first_at,
                ended_at=ended_at,
                prompt_tokens=one.prompt_tokens,
                output_tokens=one.output_tokens,
            )
        )
        following = turns.get((one.session, one.turn + 1)) if one.session is not None else None
        if following is not None:
            heapq.heappush(arrivals, (ended_at, following.id, following))
    return records


WORLDS = (
    World(
        "slots",
        slots,
        (Traffic(class_name="chat", prompt=Fixed(40), output=Fixed(20)),),
        parse_objectives("ttft_p90<150ms"),
        0.25,
    ),
    World(
        "engine",
        engine,
        (Traffic(class_name="chat", prompt=LogNormal(800, 1.0, 8, 8000), output=LogNormal(200, 0.7, 2, 1000)),),
        parse_objectives("ttft_p95<500ms, tpot_p95<50ms"),
        3.0,
    ),
)


def search(world: World, seed: int) -> Found:
    """Search on a system of which nothing is known."""
    setup = Setup(
        target=NOWHERE,
        source=MixSource(world.mix),
        lexicon=Lexicon(),
        carry=carry_on(world.serve),
        e2e_s=world.e2e_s,
        trial_s_max=math.inf,
    )

    def carry(trial: Trial) -> TrialResult:
        run = run_trial(setup, trial, world.objectives)
        spent_s = max((record.ended_at or 0.0 for record in run.records), default=0.0)
        result = result_of(trial, run, world.objectives, spent_s=spent_s)
        if trial.users == 1 and result.mean_e2e_s:
            setup.e2e_s = result.mean_e2e_s
        return result

    answer, history = find_max_rate(carry, SearchSettings(objectives=world.objectives, seed=SEARCH_SEEDS + 1000 * seed))
    sent = sum(result.sent for result in history)
    return Found(answer, len(history), sent, sum(result.spent_s for result in history) / 60.0)


def excess(world: World, rate: float, seeds: Sequence[int]) -> float:
    """Return by how much the log odds of a violation exceed what is allowed, of the objective that is worst."""
    counts = [0.0] * len(world.objectives)
    for seed in seeds:
        total = WARMUP + GRID_REQUESTS + COOLING
        plan = plan_traffic(world.mix, Steady(rate), partial(stream, seed), count=total)
        records = sorted(world.serve(plan), key=lambda record: record.scheduled_at)[WARMUP:-COOLING]
        for index, objective in enumerate(world.objectives):
            counts[index] += sum(violations(records, objective))
    requests = len(seeds) * GRID_REQUESTS
    return max(
        _log_odds((count + 0.5) / (requests + 1.0)) - _log_odds(objective.allowed)
        for count, objective in zip(counts, world.objectives, strict=True)
    )


def _log_odds(p: float) -> float:
    return math.log(p / (1.0 - p))


def truth_about(world: World, centre: float, seeds: Sequence[int]) -> float | None:
    """Return where the violations of all seeds cross what is allowed; `None` where they do not, near `centre`."""
    rates = [centre * (1.0 + step) for step in TRUTH_STEPS]
    found = [(rate, excess(world, rate, seeds)) for rate in rates]
    for (low, below), (high, above) in pairwise(found):
        if below <= 0.0 < above:
            return low + (high - low) * -below / (above - below)
    return None


def grid(world: World, centre: float, seed: int) -> float | None:
    """Return the last rate of the grid before the first that misses an objective."""
    best = None
    for index in range(POINTS):
        rate = centre * (1.0 + STEP * (index - POINTS // 2))
        if excess(world, rate, (seed,)) > 0.0:
            return best
        best = rate
    return best


def row_of(world: World, found: Sequence[Found], truth: float, grids: Sequence[float | None]) -> Row:
    """Return what the searches on one system came to."""
    answers = [one.answer for one in found]
    errors = sorted(abs((answer.estimate or 0.0) / truth - 1.0) for answer in answers)
    rates = [answer.rate for answer in answers if answer.rate is not None]
    cost = POINTS * (WARMUP + GRID_REQUESTS + COOLING)
    return {
        "system": world.name,
        "searches": len(found),
        "truth": truth,
        "error": median(errors),
        "error p90": errors[math.ceil(0.9 * len(errors)) - 1],
        "bias": sum((answer.estimate or 0.0) / truth - 1.0 for answer in answers) / len(answers),
        "coverage": sum((answer.low or 0.0) <= truth <= (answer.high or 0.0) for answer in answers) / len(answers),
        "confirmed": len(rates) / len(answers),
        "confirmed/truth": median(rates) / truth if rates else None,
        "over_truth": sum(rate > truth for rate in rates) / len(rates) if rates else None,
        "sent": median(one.sent for one in found),
        "of_grid_requests": median(one.sent for one in found) / cost,
        "grid_error": median(abs((best or 0.0) / truth - 1.0) for best in grids),
        "trials": median(one.trials for one in found),
        "minutes": median(one.minutes for one in found),
    }


def measured(world: World, first: int, count: int, *, is_quick: bool) -> Row | None:
    """Return the row of one system, or `None` where the truth is not near to what the searches found."""
    found = []
    for seed in range(first, first + count):
        found.append(search(world, seed))
        answer = found[-1].answer
        say(f"  {world.name}, seed {seed}: {answer.estimate}, confirmed {answer.rate}, {found[-1].sent} sent")
    centre = median(one.answer.estimate or 0.0 for one in found)
    truth = truth_about(world, centre, range(TRUTH_SEEDS, TRUTH_SEEDS + (8 if is_quick else 40)))
    if truth is None:
        say(f"  {world.name}: the truth is more than 8% from {centre:.3f}, the median of what was found")
        return None
    grids = [grid(world, truth, GRID_SEEDS + number) for number in range(1 if is_quick else 5)]
    say(f"  {world.name}: the truth is {truth:.3f}, grids say {grids}")
    return row_of(world, found, truth, grids)


def main() -> None:
    """Search on each system, find out what is true, and compare."""
    args = arguments(__doc__ or "")
    worlds = WORLDS[:1] if args.quick else WORLDS
    found = [measured(world, args.seed, 6 if args.quick else 30, is_quick=args.quick) for world in worlds]
    rows = [row for row in found if row is not None]

    def worst(name: str, *, is_least: bool = False) -> float | None:
        values = [value for row in rows if isinstance(value := row[name], float | int)]
        return float((min if is_least else max)(values)) if len(values) == len(worlds) else None

    names = ("error", "of_grid_requests", "grid_error", "over_truth", "trials", "minutes")
    ratios = {name: worst(name) for name in names}
    ratios |= {name: worst(name, is_least=True) for name in ("coverage", "confirmed")}
    report("loadgen_search", ratios, rows, args)


if __name__ == "__main__":
    main()
