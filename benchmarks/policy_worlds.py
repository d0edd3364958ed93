"""The worlds in which `policies.py` compares strategies: one engine, and workloads that strain it in different ways.

The engine is the Llama-3-8B on one A100-80 of the published comparisons: 4 ms a step, and the smooth maximum (4-norm)
of memory time (16 GB of weights and 128 KiB a context token at 1.6 TB/s) and compute time (16 GFLOP a token and
attention, at 170 TFLOP/s); 256 sequences, 420,000 KV tokens, steps of up to 4,096 tokens. Every strategy knows the step
time exactly, so that what is compared is the decisions alone.
"""

import csv
import functools
import gzip
from collections.abc import Iterator
from math import hypot, sqrt
from pathlib import Path

import msgspec

from setpoint.model import Capacity, Request, ServiceClass, Slo, StepShape
from setpoint.seeds import stream
from setpoint.sim.replica import Arrival
from setpoint.units import Blocks, Instant, Seconds, Tokens

DATA = Path(__file__).parent / "data"
CAPACITY = Capacity(
    slots=256,
    kv_blocks=Blocks(420_000 // 16),
    block_tokens=Tokens(16),
    step_tokens_max=Tokens(4096),
    context_tokens_max=Tokens(16_384),
)
_WEIGHT_BYTES, _KV_BYTES, _BYTES_PER_S = 16e9, 131_072.0, 1.6e12
_TOKEN_FLOP, _PAIR_FLOP, _FLOP_PER_S = 16e9, 4.0 * 32 * 4096, 170e12
TOKEN_S = _TOKEN_FLOP / _FLOP_PER_S
"""The least seconds that a token can cost: its arithmetic alone."""


class A100:
    """Seconds of a step of Llama-3-8B on one A100-80."""

    is_fixed = True
    tail_ratio = 1.0

    def seconds(
        self,
        decodes: int,
        context_tokens: int,
        prefill_tokens: int = 0,
        prefill_work: float = 0.0,
        prefills: int = 0,
        /,
    ) -> float:
        """Return the seconds of a step of this shape."""
        del prefills
        memory_s = (_WEIGHT_BYTES + _KV_BYTES * context_tokens) / _BYTES_PER_S
        flop = (decodes + prefill_tokens) * _TOKEN_FLOP + _PAIR_FLOP * (prefill_work + context_tokens)
        compute_s = flop / _FLOP_PER_S
        return 0.004 + sqrt(hypot(memory_s * memory_s, compute_s * compute_s))

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn nothing."""


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """One class of a workload: its share of the arrivals."""

    service_class: ServiceClass
    share: float = 1.0


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What arrives and what was promised.

    `lengths`: the Azure trace that they are drawn from. `cv` of the gaps between arrivals (`None`: a piece of the
    recorded trace, stretched to the rate). `miss_max`: the share of requests of each class that may miss. `runs`: how
    many times the usual number of requests a run takes, so that it outlasts the longest deadline several times.
    """

    name: str
    lengths: str
    flows: tuple[Flow, ...]
    miss_max: float
    cv: float | None = 1.0
    is_tight: bool = True
    runs: float = 1.0

    @property
    def classes(self) -> dict[str, ServiceClass]:
        """The service classes by name."""
        return {flow.service_class.name: flow.service_class for flow in self.flows}


def chat(ttft_s: float, tpot_s: float, percentile: float) -> ServiceClass:
    """Return a chat class with these targets."""
    slo = Slo(percentile=percentile, ttft_s=Seconds(ttft_s), tpot_s=Seconds(tpot_s))
    return ServiceClass(name="chat", slo=slo, band=1, queue_max=1_000_000)


def _tight(
    name: str, lengths: str, ttft_s: float, tpot_s: float, percentile: float, cv: float | None = 1.0
) -> Workload:
    flow = Flow(service_class=chat(ttft_s, tpot_s, percentile))
    return Workload(name=name, lengths=lengths, flows=(flow,), miss_max=round(1.0 - percentile, 4), cv=cv)


def _tiers(lengths: str) -> Workload:
    """Return QoServe's three tiers in equal shares; the two completion windows (600 s, 1,800 s) are divided by ten."""
    interactive = ServiceClass(
        name="interactive",
        slo=Slo(percentile=0.99, ttft_s=Seconds(6.0), tpot_s=Seconds(0.05), judged_by="pace"),
        queue_max=1_000_000,
    )
    batches = tuple(
        ServiceClass(
            name=f"within-{window:.0f}s",
            slo=Slo(percentile=0.99, e2e_s=Seconds(window)),
            band=band,
            is_harvest=True,
            queue_max=1_000_000,
            wait_max_s=None,
        )
        for band, window in ((5, 60.0), (9, 180.0))
    )
    flows = tuple(Flow(service_class=c, share=1 / 3) for c in (interactive, *batches))
    return Workload(name=f"tiers {lengths}", lengths=lengths, flows=flows, miss_max=0.01, is_tight=False, runs=2.0)


WORKLOADS: tuple[Workload, ...] = (
    _tiers("conv"),
    _tiers("code"),
    _tight("conv 1s 50ms 5%", "conv", 1.0, 0.05, 0.95),
    _tight("conv 2s 50ms 1%", "conv", 2.0, 0.05, 0.99),
    _tight("conv 1s 30ms 5%", "conv", 1.0, 0.03, 0.95),
    _tight("conv 2s 30ms 1%", "conv", 2.0, 0.03, 0.99),
    _tight("conv 1s 100ms 5%", "conv", 1.0, 0.1, 0.95),
    _tight("conv 2s 100ms 1%", "conv", 2.0, 0.1, 0.99),
    _tight("code 1s 50ms 5%", "code", 1.0, 0.05, 0.95),
    _tight("code 2s 50ms 1%", "code", 2.0, 0.05, 0.99),
    _tight("conv 1s 50ms 5% cv3", "conv", 1.0, 0.05, 0.95, cv=3.0),
    _tight("conv 2s 50ms 1% cv3", "conv", 2.0, 0.05, 0.99, cv=3.0),
    _tight("conv 1s 50ms 5% recorded", "conv", 1.0, 0.05, 0.95, cv=None),
    _tight("conv 2s 50ms 1% recorded", "conv", 2.0, 0.05, 0.99, cv=None),
    _tight("code 2s 50ms 5% recorded", "code", 2.0, 0.05, 0.95, cv=None),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


@functools.cache
def trace(name: str) -> tuple[tuple[float, int, int], ...]:
    """Return (arrival, prompt tokens, output tokens) of every request of the Azure trace `name`."""
    with gzip.open(DATA / f"azure-2023-{name}.csv.gz", "rt", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return tuple(
            (float(r["arrival_s"]), min(8000, int(r["prompt_tokens"])), max(1, int(r["output_tokens"]))) for r in rows
        )


def arrivals(workload: Workload, rate: float, count: int, seed: int, *, first_id: int = 0) -> Iterator[Arrival]:
    """Yield `count` requests at a mean of `rate` a second; other rates see the same draws, faster or slower."""
    rows = trace(workload.lengths)
    classes = stream(seed, "classes")
    names = [flow.service_class.name for flow in workload.flows]
    weights = [flow.share for flow in workload.flows]
    for index, (at, prompt, output) in enumerate(_pattern(workload, rows, count, seed)):
        name = names[0] if len(names) == 1 else classes.choices(names, weights)[0]
        request = Request(
            id=first_id + index,
            class_name=name,
            arrived_at=Instant(at / rate),
            prompt_tokens=Tokens(prompt),
            output_tokens_max=Tokens(output),
        )
        yield Arrival(request, output)


def _pattern(
    workload: Workload, rows: tuple[tuple[float, int, int], ...], count: int, seed: int
) -> Iterator[tuple[float, int, int]]:
    """Yield (arrival at a mean rate of 1, prompt, output)."""
    if workload.cv is None:
        first = stream(seed, "piece").randrange(len(rows) - count)
        piece = rows[first : first + count]
        pace = (count - 1) / (piece[-1][0] - piece[0][0])
        yield from (((at - piece[0][0]) * pace, prompt, output) for at, prompt, output in piece)
        return
    gaps, lengths = stream(seed, "gaps"), stream(seed, "lengths")
    shape = workload.cv**-2
    at = 0.0
    for _ in range(count):
        at += gaps.expovariate(1.0) if workload.cv == 1.0 else gaps.gammavariate(shape, 1.0 / shape)
        _, prompt, output = lengths.choice(rows)
        yield at, prompt, output
