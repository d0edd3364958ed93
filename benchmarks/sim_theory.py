"""The simulator against queueing theory, where theory is exact.

    python benchmarks/sim_theory.py [--quick] [--json]

Each case is made of the real machine and the real loop, with lengths and step times chosen so that a textbook model
holds: one slot and one step a request is a single server; c slots that never slow each other down are c servers; many
slots that share a fixed speed share the processor. Every figure is a mean over independent seeds with its 99 %
interval (Student's t), which has to hold the value of theory.

| case | made of | theory |
|---|---|---|
| M/M/1 | one slot, exponential prompts | wait = rho / (mu - lambda) |
| M/D/1 | one slot, equal prompts | wait = rho / (2 (mu - lambda)) (Pollaczek-Khinchine) |
| M/M/c | c slots, exponential outputs, steps of equal length | wait = C(c, a) / (c mu - lambda) (Erlang C) |
| PS | steps that take as long as sequences decode | time in system = work / (1 - rho), whatever the distribution |
| Little | each of these | mean in flight = rate x mean time in system |

Ratios: `worst_error`, the largest relative error of a mean; `outside`, cases whose interval misses theory.
"""

from collections.abc import Callable
from math import factorial, sqrt
from statistics import fmean, stdev

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


Lengths = Callable[[int], list[tuple[int, int]]]


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
    records = sorted(ReplicaSimulator(machine, world).run(arrivals), key=lambda record: record.id)
    return records[int(WARM_UP * len(records)) :]


def exponential(mean: float, count: int, seed: int) -> list[int]:
    """Return whole numbers of at least 1, near exponential."""
    chance = stream(seed, "lengths")
    return [max(1, round(chance.expovariate(1.0 / mean))) for _ in range(count)]


def in_system(records: list[RequestRecord]) -> float:
    """Return the mean seconds in the system."""
    return fmean((record.ended_at or 0.0) - record.scheduled_at for record in records)


def single_server(rho: float, count: int, seed: int, *, is_random: bool) -> tuple[float, float]:
    """Return (simulated, theoretical) mean wait of M/M/1 or M/D/1: one slot, all the work in the prompt."""
    prompts = exponential(MEAN_TOKENS, count, seed) if is_random else [MEAN_TOKENS] * count
    mean = fmean(prompts) * TOKEN_S
    rate = rho / mean
    records = run(Linear(prompt=TOKEN_S), 1, rate, [(p, 1) for p in prompts], seed)
    wait = in_system(records) - fmean(r.prompt_tokens for r in records) * TOKEN_S
    second = fmean((p * TOKEN_S) ** 2 for p in prompts)
    return wait, rate * second / (2.0 * (1.0 - rho))


def many_servers(servers: int, rho: float, count: int, seed: int) -> tuple[float, float]:
    """Return the same of M/M/c: every step takes as long however many decode, so that slots do not slow each other."""
    outputs = exponential(MEAN_TOKENS, count, seed)
    mean = fmean(outputs) * TOKEN_S
    rate = rho * servers / mean
    records = run(Linear(fixed=TOKEN_S), servers, rate, [(1, o) for o in outputs], seed)
    wait = in_system(records) - fmean(r.output_tokens for r in records) * TOKEN_S
    offered = rho * servers
    erlangs = [offered**k / factorial(k) for k in range(servers)]
    last = offered**servers / factorial(servers) / (1.0 - rho)
    return wait, last / (sum(erlangs) + last) * mean / (servers * (1.0 - rho))


def shared_processor(rho: float, count: int, seed: int, *, is_random: bool) -> tuple[float, float]:
    """Return (simulated, theoretical) mean time in system where all who decode share a fixed speed."""
    outputs = exponential(MEAN_TOKENS, count, seed) if is_random else [MEAN_TOKENS] * count
    mean = fmean(outputs) * TOKEN_S
    records = run(Linear(decode=TOKEN_S), 10_000, rho / mean, [(1, o) for o in outputs], seed)
    return in_system(records), mean / (1.0 - rho)


def little(count: int, seed: int) -> tuple[float, float]:
    """Return (mean in flight as an integral over time, rate x mean time in system) of a shared processor."""
    outputs = exponential(MEAN_TOKENS, count, seed)
    records = run(Linear(decode=TOKEN_S), 10_000, 0.7 / (fmean(outputs) * TOKEN_S), [(1, o) for o in outputs], seed)
    instants = sorted([(r.scheduled_at, 1) for r in records] + [(r.ended_at or 0.0, -1) for r in records])
    area, here, before = 0.0, 0, instants[0][0]
    for at, change in instants:
        area += here * (at - before)
        here, before = here + change, at
    span = instants[-1][0] - instants[0][0]
    return area / span, len(records) / span * in_system(records)


def main() -> None:
    """Run every case and print it."""
    args = arguments("The simulator against queueing theory.")
    count, seeds = (4000, 6) if args.quick else (30_000, 10)
    cases: dict[str, Callable[[int], tuple[float, float]]] = {}
    for rho in (0.3, 0.6, 0.8):
        cases[f"M/M/1 rho={rho}"] = lambda s, rho=rho: single_server(rho, count, s, is_random=True)  # type: ignore[misc]
        cases[f"M/D/1 rho={rho}"] = lambda s, rho=rho: single_server(rho, count, s, is_random=False)  # type: ignore[misc]
    for servers in (2, 8):
        cases[f"M/M/{servers} rho=0.8"] = lambda s, c=servers: many_servers(c, 0.8, count, s)  # type: ignore[misc]
    cases["PS, exponential work, rho=0.6"] = lambda s: shared_processor(0.6, count // 3, s, is_random=True)
    cases["PS, equal work, rho=0.6"] = lambda s: shared_processor(0.6, count // 3, s, is_random=False)
    cases["Little, in flight"] = lambda s: little(count // 4, s)
    rows = []
    for name, case in cases.items():
        pairs = [case(seed) for seed in range(args.seed, args.seed + seeds)]
        differences = [simulated / theory - 1.0 for simulated, theory in pairs]
        half = student_t_quantile((1.0 + CONFIDENCE) / 2.0, seeds - 1) * stdev(differences) / sqrt(seeds)
        error = fmean(differences)
        rows.append(
            {
                "case": name,
                "simulated": fmean(simulated for simulated, _ in pairs),
                "theory": fmean(theory for _, theory in pairs),
                "error": error,
                "half of the 99 % interval": half,
                "holds": abs(error) <= half + DISCRETE,
            }
        )
    ratios = {
        "worst_error": max(abs(float(row["error"])) for row in rows),  # type: ignore[arg-type]
        "outside": float(sum(not row["holds"] for row in rows)),
    }
    report("sim_theory", ratios, rows, args)


DISCRETE = 0.002
"""Work comes in whole tokens and steps, of which a job has a thousand: theory's jobs are continuous."""


if __name__ == "__main__":
    main()
