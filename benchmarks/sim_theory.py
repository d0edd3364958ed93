"""The simulator against queueing theory, where theory is exact.

    python benchmarks/sim_theory.py [--quick] [--json]

Each case is made of the real machine and the real loop, with lengths and step times chosen so that a textbook model
holds: one slot and one step a request is a single server; c slots that never slow each other down are c servers; many
slots that share a fixed speed share the processor. Every case is held against two things:

- *the formula*: the mean over independent seeds, with an interval (Student's t), has to hold the value of theory. There
  are many cases, of which at 99 % each one benchmark in nine would see one outside by chance alone: the intervals are
  therefore such that *all* of them hold with 99 % (Sidak).
- *the recursion*: the same arrivals and the same work through the textbook's own recursion, job by job (Kiefer and
  Wolfowitz for c servers, of which Lindley's is the case of one; attained service for a shared processor). Chance falls
  out, so that an error of a thousandth shows.

| case | made of | theory |
|---|---|---|
| M/M/1 | one slot, exponential prompts | wait = rho / (mu - lambda) |
| M/D/1 | one slot, equal prompts | wait = rho / (2 (mu - lambda)) (Pollaczek-Khinchine) |
| M/M/c | c slots, exponential outputs, steps of equal length | wait = C(c, a) / (c mu - lambda) (Erlang C) |
| PS | steps that take as long as sequences decode | time in system = work / (1 - rho), whatever the distribution |
| Little | each of these | mean in flight = rate x mean time in system |

Ratios: `worst_error`, the largest relative error of a mean against the formula, `worst_against_recursion` against the
recursion; `outside`, cases whose interval misses either.
"""

import heapq
from collections.abc import Callable, Sequence
from math import factorial, sqrt
from statistics import fmean, stdev
from typing import NamedTuple, TypeVar

from reporting import arguments, report

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.metrics import RequestRecord
from setpoint.metrics.binomial import student_t_quantile
from setpoint.model import Capacity, Request, ServiceClass, Slo, StepShape
from setpoint.seeds import stream
from setpoint.sim.replica import Arrival, ReplicaSimulator
from setpoint.units import Blocks, Instant, Seconds, Tokens

CLASS = ServiceClass(name="job", slo=Slo(), queue_max=10**9, wait_max_s=None)
CONFIDENCE = 0.99
WARM_UP = 0.2
TOKEN_S = 0.001
MEAN_TOKENS = 1000


class Linear:
    """Step seconds: `fixed` a step, `decode` a decoding sequence, `prompt` a prompt token."""

    is_fixed = True
    tail_ratio = 1.0

    def __init__(self, *, fixed: float = 0.0, decode: float = 0.0, prompt: float = 0.0) -> None:
        """Cost as given."""
        self._fixed, self._decode, self._prompt = fixed, decode, prompt

    def seconds(
        self, decodes: int, context: int, prompt_tokens: int = 0, work: float = 0.0, prefills: int = 0, /
    ) -> float:
        """Return the seconds of a step."""
        del context, work, prefills
        return self._fixed + self._decode * decodes + self._prompt * prompt_tokens

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn nothing."""


T = TypeVar("T")


class Seen(NamedTuple):
    """One seed of a case: a mean as simulated, by the formula, and by the recursion, if there is one."""

    simulated: float
    formula: float
    recursion: float | None


def run(world: Linear, slots: int, rate: float, jobs: list[tuple[int, int]], seed: int) -> list[RequestRecord]:
    """Return the records of (prompt, output) jobs that arrive at `rate`, first come first served."""
    capacity = Capacity(
        slots=slots,
        kv_blocks=Blocks(10**8),
        block_tokens=Tokens(1000),
        step_tokens_max=Tokens(10**9),
        context_tokens_max=Tokens(10**9),
    )
    machine = ReplicaMachine(make_strategy("continuous", token_budget=10**9), {"job": CLASS}, capacity, world)
    gaps = stream(seed, "gaps")
    at = 0.0
    arrivals = []
    for number, (prompt, output) in enumerate(jobs):
        at += gaps.expovariate(rate)
        request = Request(
            id=number,
            class_name="job",
            arrived_at=Instant(at),
            prompt_tokens=Tokens(prompt),
            output_tokens_max=Tokens(output),
        )
        arrivals.append(Arrival(request, output))
    return sorted(ReplicaSimulator(machine, world).run(arrivals), key=lambda record: record.id)


def judged(values: Sequence[T]) -> Sequence[T]:
    """Return what comes after the warm-up, of values in order of arrival."""
    return values[int(WARM_UP * len(values)) :]


def waits_of(records: Sequence[RequestRecord], work: Sequence[float], servers: int) -> list[float]:
    """Return the waits of jobs served as they come by so many servers, by the recursion of Kiefer and Wolfowitz."""
    free = [0.0] * servers
    found = []
    for record, seconds in zip(records, work, strict=True):
        start = max(record.scheduled_at, free[0])
        heapq.heapreplace(free, start + seconds)
        found.append(start - record.scheduled_at)
    return found


def times_shared(records: Sequence[RequestRecord], work: Sequence[float]) -> list[float]:
    """Return the times in system of jobs that share one processor evenly.

    Each of n attains service at the rate 1/n, so that a job ends when what is attained has grown by its work since it
    came: who ends next is the head of a heap.
    """
    found = [0.0] * len(records)
    here: list[tuple[float, int]] = []
    attained = now = 0.0
    for job in range(len(records) + 1):
        comes_at = records[job].scheduled_at if job < len(records) else float("inf")
        while here and now + (here[0][0] - attained) * len(here) <= comes_at:
            now += (here[0][0] - attained) * len(here)
            attained, ended = heapq.heappop(here)
            found[ended] = now - records[ended].scheduled_at
        if job < len(records):
            attained += (comes_at - now) / len(here) if here else 0.0
            now = comes_at
            heapq.heappush(here, (attained + work[job], job))
    return found


def exponential(mean: float, count: int, seed: int) -> list[int]:
    """Return whole numbers of at least 1, near exponential."""
    chance = stream(seed, "lengths")
    return [max(1, round(chance.expovariate(1.0 / mean))) for _ in range(count)]


def in_system(records: Sequence[RequestRecord]) -> float:
    """Return the mean seconds in the system."""
    return fmean((record.ended_at or 0.0) - record.scheduled_at for record in records)


def single_server(rho: float, count: int, seed: int, *, is_random: bool) -> Seen:
    """Return the mean wait of M/M/1 or M/D/1: one slot, all the work in the prompt."""
    prompts = exponential(MEAN_TOKENS, count, seed) if is_random else [MEAN_TOKENS] * count
    mean = fmean(prompts) * TOKEN_S
    rate = rho / mean
    records = run(Linear(prompt=TOKEN_S), 1, rate, [(p, 1) for p in prompts], seed)
    work = [p * TOKEN_S for p in prompts]
    wait = in_system(judged(records)) - fmean(judged(work))
    second = fmean(seconds**2 for seconds in work)
    return Seen(wait, rate * second / (2.0 * (1.0 - rho)), fmean(judged(waits_of(records, work, 1))))


def many_servers(servers: int, rho: float, count: int, seed: int) -> Seen:
    """Return the same of M/M/c: every step takes as long however many decode, so that slots do not slow each other."""
    outputs = exponential(MEAN_TOKENS, count, seed)
    mean = fmean(outputs) * TOKEN_S
    rate = rho * servers / mean
    records = run(Linear(fixed=TOKEN_S), servers, rate, [(1, o) for o in outputs], seed)
    work = [o * TOKEN_S for o in outputs]
    wait = in_system(judged(records)) - fmean(judged(work))
    offered = rho * servers
    erlangs = [offered**k / factorial(k) for k in range(servers)]
    last = offered**servers / factorial(servers) / (1.0 - rho)
    formula = last / (sum(erlangs) + last) * mean / (servers * (1.0 - rho))
    return Seen(wait, formula, fmean(judged(waits_of(records, work, servers))))


def shared_processor(rho: float, count: int, seed: int, *, is_random: bool) -> Seen:
    """Return the mean time in system where all who decode share a fixed speed."""
    outputs = exponential(MEAN_TOKENS, count, seed) if is_random else [MEAN_TOKENS] * count
    mean = fmean(outputs) * TOKEN_S
    records = run(Linear(decode=TOKEN_S, prompt=TOKEN_S), 10_000, rho / mean, [(1, o) for o in outputs], seed)
    exact = times_shared(records, [o * TOKEN_S for o in outputs])
    return Seen(in_system(judged(records)), mean / (1.0 - rho), fmean(judged(exact)))


def little(count: int, seed: int) -> Seen:
    """Return the mean in flight as an integral over time, and as rate x mean time in system, of a shared processor."""
    outputs = exponential(MEAN_TOKENS, count, seed)
    rate = 0.7 / (fmean(outputs) * TOKEN_S)
    records = judged(run(Linear(decode=TOKEN_S, prompt=TOKEN_S), 10_000, rate, [(1, o) for o in outputs], seed))
    instants = sorted([(r.scheduled_at, 1) for r in records] + [(r.ended_at or 0.0, -1) for r in records])
    area, here, before = 0.0, 0, instants[0][0]
    for at, change in instants:
        area += here * (at - before)
        here, before = here + change, at
    span = instants[-1][0] - instants[0][0]
    return Seen(area / span, len(records) / span * in_system(records), None)


def main() -> None:
    """Run every case and print it."""
    args = arguments("The simulator against queueing theory.")
    count, seeds = (4000, 6) if args.quick else (30_000, 10)
    cases: dict[str, Callable[[int], Seen]] = {}
    for rho in (0.3, 0.6, 0.8):
        cases[f"M/M/1 rho={rho}"] = lambda s, rho=rho: single_server(rho, count, s, is_random=True)  # type: ignore[misc]
        cases[f"M/D/1 rho={rho}"] = lambda s, rho=rho: single_server(rho, count, s, is_random=False)  # type: ignore[misc]
    for servers in (2, 8):
        cases[f"M/M/{servers} rho=0.8"] = lambda s, c=servers: many_servers(c, 0.8, count, s)  # type: ignore[misc]
    cases["PS, exponential work, rho=0.6"] = lambda s: shared_processor(0.6, count // 3, s, is_random=True)
    cases["PS, equal work, rho=0.6"] = lambda s: shared_processor(0.6, count // 3, s, is_random=False)
    cases["Little, in flight"] = lambda s: little(count // 4, s)
    confidence = CONFIDENCE ** (1.0 / len(cases))
    seeded = range(args.seed, args.seed + seeds)
    rows = [row_of(name, [case(seed) for seed in seeded], confidence) for name, case in cases.items()]
    ratios: dict[str, float | None] = {
        "worst_error": max(abs(float(str(row["error"]))) for row in rows),
        "worst_against_recursion": max(abs(float(str(row.get("against the recursion", 0.0)))) for row in rows),
        "outside": float(sum(not row["holds"] for row in rows)),
    }
    report("sim_theory", ratios, rows, args)


def row_of(name: str, seen: Sequence[Seen], confidence: float) -> dict[str, object]:
    """Return what a case came to over its seeds."""
    error, half = relative([one.simulated / one.formula - 1.0 for one in seen], confidence)
    row: dict[str, object] = {
        "case": name,
        "simulated": fmean(one.simulated for one in seen),
        "theory": fmean(one.formula for one in seen),
        "error": error,
        "half of its interval": half,
        "holds": abs(error) <= half + DISCRETE,
    }
    if seen[0].recursion is not None:
        exact, narrow = relative([one.simulated / (one.recursion or 1.0) - 1.0 for one in seen], confidence)
        row |= {"against the recursion": exact, "half of that interval": narrow}
        row["holds"] = row["holds"] and abs(exact) <= narrow + DISCRETE
    return row


def relative(differences: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return the mean, and half of its interval."""
    quantile = student_t_quantile((1.0 + confidence) / 2.0, len(differences) - 1)
    return fmean(differences), quantile * stdev(differences) / sqrt(len(differences))


DISCRETE = 0.002
"""Work comes in whole tokens and steps, of which a job has a thousand: theory's jobs are continuous. Who comes waits
for the end of a step, half a token in the mean: 0.17 % of the wait of M/M/8."""


if __name__ == "__main__":
    main()
