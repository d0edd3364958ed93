"""How fast the simulator is, how its time grows, and what it keeps in memory.

    python benchmarks/simulator_speed.py [--quick] [--json]

Llama-3.1-8B on one H100 (the roofline of the catalog), lengths drawn from the Azure conversation trace, Poisson
arrivals at a light, a moderate and a high load, under `slack` and `continuous`. An *iteration* is a forward pass that
was simulated, however many of them were advanced at a time. Single-threaded; processor time, so that other work on
the machine counts little.

Peers: their own event loops, measured on 2 shared cores without a GPU (see docs/validation.md): Vidur's (its
predictor replaced by a formula) 242 requests and 4,800 iterations a second, 411 and 8,200 with its metrics off; BLIS
300 to 600 requests and 2,000 to 5,000 iterations. None of them is run here.

Ratios: `iterations_per_s` and `requests_per_s` of `slack` at the light load, 10,000 requests; `over_vidur_requests`,
`over_vidur_iterations`: those over Vidur's at its best; `growth`: processor time for the largest number of requests
over that for 10,000, divided by the ratio of the numbers (1.0 is linear); `peak_mib_small`, `peak_mib`: what runs of
10,000 and 100,000 requests at the moderate load kept at their peak (200 and 2,000 with `--quick`); both are about the
same, since memory is bounded by what is in flight.
"""

import argparse
import time
import tracemalloc
from collections.abc import Iterator

import msgspec
from policy_worlds import trace
from reporting import arguments, report, say

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.model import Request, ServiceClass, Slo
from setpoint.seeds import stream
from setpoint.sim.replica import Arrival, ReplicaSimulator
from setpoint.sim.sources import Wanted, find_source
from setpoint.units import Instant, Seconds, Tokens

VIDUR_REQUESTS, VIDUR_ITERATIONS = 411.0, 8_200.0
LOADS = {"light": 2.0, "moderate": 8.0, "high": 14.0}
CHAT = ServiceClass(name="chat", slo=Slo(ttft_s=Seconds(1.0), tpot_s=Seconds(0.05)))


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """One run: its load and size, and what it took."""

    strategy: str
    load: str
    rate_rps: float
    requests: int
    iterations: int
    cpu_s: float
    requests_per_s: float
    iterations_per_s: float


def arrivals(rate: float, count: int, seed: int) -> Iterator[Arrival]:
    """Yield `count` requests one by one; nothing is kept."""
    rows = trace("conv")
    gaps, lengths = stream(seed, "gaps"), stream(seed, "lengths")
    at = 0.0
    for number in range(count):
        at += gaps.expovariate(rate)
        _, prompt, output = rows[int(lengths.random() * len(rows))]
        request = Request(
            id=number,
            class_name="chat",
            arrived_at=Instant(at),
            prompt_tokens=Tokens(prompt),
            output_tokens_max=Tokens(output),
        )
        yield Arrival(request, output)


def run(strategy: str, load: str, count: int, seed: int) -> Speed:
    """Simulate `count` requests and time it; records are counted and dropped."""
    source = find_source(Wanted(model="llama-3.1-8b", hardware="h100-sxm"))
    world = source.step_time
    rate = LOADS[load]
    trace("conv")
    simulator = ReplicaSimulator(ReplicaMachine(make_strategy(strategy), {"chat": CHAT}, source.capacity, world), world)
    started = time.process_time()
    ended = sum(1 for _ in simulator.run(arrivals(rate, count, seed)))
    cpu_s = time.process_time() - started
    assert ended == count, "every request ends"
    return Speed(
        strategy=strategy,
        load=load,
        rate_rps=rate,
        requests=count,
        iterations=simulator.steps,
        cpu_s=cpu_s,
        requests_per_s=count / cpu_s,
        iterations_per_s=simulator.steps / cpu_s,
    )


def peak_mib(count: int, seed: int) -> float:
    """Return the memory that a run of `count` requests takes at its peak, beyond what stood there before."""
    trace("conv")
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    run("slack", "moderate", count, seed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - before) / 2**20


def extend(parser: argparse.ArgumentParser) -> None:
    """Add the option of this benchmark."""
    parser.add_argument("--most", type=int, default=None, help="requests of the largest run (default: 1,000,000)")


def main() -> None:
    """Time everything and print it."""
    args = arguments("Speed of the simulator.", extend)
    base = 2_000 if args.quick else 10_000
    sizes = [base // 10, base, args.most or (10_000 if args.quick else 1_000_000)]
    rows = [run(strategy, load, base, args.seed) for strategy in ("slack", "continuous") for load in LOADS]
    growth = []
    for size in sizes:
        say(f"{size:,} requests")
        growth.append(run("slack", "light", size, args.seed))
    small = next(row for row in growth if row.requests == base)
    large = growth[-1]
    light = next(row for row in rows if row.strategy == "slack" and row.load == "light")
    ratios = {
        "iterations_per_s": light.iterations_per_s,
        "requests_per_s": light.requests_per_s,
        "over_vidur_requests": light.requests_per_s / VIDUR_REQUESTS,
        "over_vidur_iterations": light.iterations_per_s / VIDUR_ITERATIONS,
        "growth": large.cpu_s / small.cpu_s / (large.requests / small.requests),
        "peak_mib_small": peak_mib(base // 10 if args.quick else base, args.seed),
        "peak_mib": peak_mib(base if args.quick else 10 * base, args.seed),
    }
    report("simulator_speed", ratios, [msgspec.to_builtins(row) for row in (*rows, *growth)], args)


if __name__ == "__main__":
    main()
