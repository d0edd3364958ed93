"""The six loads of the fidelity benchmark, and how a measured run is compared with a predicted one.

| load | what |
|---|---|
| light, knee, overload | chat at 0.3, 0.75 and 1.3 times the bound |
| bursty | the same at half the bound, gaps with CV 3 |
| two classes | chat beside batch requests, together at 0.7 times the bound |
| long prompts | prompts of 200 to 800 tokens at half the bound |

The bound is that of the simulator, from the profile. Every request is followed to its end on both sides.
"""

from collections.abc import Sequence
from functools import partial
from math import isfinite
from statistics import median

import msgspec

from setpoint.metrics import RequestRecord, rank_quantile
from setpoint.model import PRESETS, ServiceClass, Slo
from setpoint.seeds import stream
from setpoint.sim.scenario import Scenario, bound_rps
from setpoint.units import Seconds
from setpoint.workload import Gaps, LogNormal, PlannedRequest, Steady, Traffic, Uniform, plan_traffic

CHAT = ServiceClass(name="chat", slo=Slo(ttft_s=Seconds(1.0), tpot_s=Seconds(0.1)), queue_max=100_000)
CLASSES = {"chat": CHAT, "batch": PRESETS["batch"]}
PROMPT, OUTPUT = LogNormal(70.0, 0.8, 8, 512), LogNormal(48.0, 0.6, 4, 160)
QUANTILES = (0.5, 0.95, 0.99)
BEYOND_MIN = 2.0
"""A quantile is compared where at least so many requests lie beyond it, or where it is the median."""

REQUESTS_MIN = 3

Row = dict[str, object]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One load: its traffic, and its rate as a share of the bound of that traffic."""

    name: str
    mix: tuple[Traffic, ...]
    share: float


def chat_traffic(*, cv: float = 1.0, share: float = 1.0) -> Traffic:
    """Return the usual chat."""
    return Traffic(class_name="chat", prompt=PROMPT, output=OUTPUT, share=share, gaps=Gaps(cv=cv))


BATCH_TRAFFIC = Traffic(class_name="batch", prompt=Uniform(100, 300), output=Uniform(40, 120), share=0.4)
LONG_TRAFFIC = Traffic(class_name="chat", prompt=Uniform(200, 800), output=OUTPUT)
LOADS = (
    Load(name="light", mix=(chat_traffic(),), share=0.3),
    Load(name="knee", mix=(chat_traffic(),), share=0.75),
    Load(name="overload", mix=(chat_traffic(),), share=1.3),
    Load(name="bursty", mix=(chat_traffic(cv=3.0),), share=0.5),
    Load(name="two classes", mix=(chat_traffic(share=0.6), BATCH_TRAFFIC), share=0.7),
    Load(name="long prompts", mix=(LONG_TRAFFIC,), share=0.5),
)


def plan_of(load: Load, scenario: Scenario, seconds: float, seed: int) -> tuple[list[PlannedRequest], float]:
    """Return the requests of one run, three at least, and their rate, which a very slow engine may find above it."""
    sample = _plan(load, 10.0, seed, seconds=60.0)
    rate = max(load.share * bound_rps(scenario, sample), REQUESTS_MIN / (2.0 * seconds))
    plan = _plan(load, rate, seed, seconds=seconds)
    return (plan if len(plan) >= REQUESTS_MIN else _plan(load, rate, seed, count=REQUESTS_MIN)), rate


def _plan(
    load: Load, rate: float, seed: int, *, seconds: float | None = None, count: int | None = None
) -> list[PlannedRequest]:
    return plan_traffic(load.mix, Steady(rate), partial(stream, seed, load.name), duration_s=seconds, count=count)


def compared(engine: str, load: str, measured: Sequence[RequestRecord], foreseen: Sequence[RequestRecord]) -> list[Row]:
    """Return a row for throughput and each quantile of TTFT and TPOT of chat: measured, predicted, relative error."""
    rows = [_row(engine, load, "output tokens/s", _throughput(measured), _throughput(foreseen))]
    for which in ("ttft", "tpot"):
        ours, theirs = _values(foreseen, which), _values(measured, which)
        fewest = min(len(ours), len(theirs))
        for q in QUANTILES:
            if fewest and (q <= 0.5 or fewest * (1.0 - q) >= BEYOND_MIN):
                figures = (1e3 * rank_quantile(theirs, q), 1e3 * rank_quantile(ours, q))
                rows.append(_row(engine, load, f"{which.upper()} P{q * 100:g} ms", *figures))
    return rows


def _row(engine: str, load: str, figure: str, measured: float, foreseen: float) -> Row:
    is_sound = measured > 0.0 and isfinite(measured) and isfinite(foreseen)
    return {
        "engine": engine,
        "load": load,
        "figure": figure,
        "measured": measured,
        "predicted": foreseen,
        "error": foreseen / measured - 1.0 if is_sound else None,
    }


def _throughput(records: Sequence[RequestRecord]) -> float:
    """Return output tokens a second from the first arrival to the last end."""
    ends = [r.ended_at for r in records if r.ended_at is not None]
    if not ends:
        return 0.0
    span = max(ends) - min(r.scheduled_at for r in records)
    return sum(r.output_tokens for r in records) / span if span > 0.0 else 0.0


def _values(records: Sequence[RequestRecord], which: str) -> list[float]:
    """Return the durations of the chat requests in order; one that never came is infinite, an undefined one absent."""
    found = []
    for record in records:
        if record.class_name == "chat":
            value: float | None = float("inf") if record.is_failed else getattr(record, f"{which}_s")
            if value is not None:
                found.append(value)
    return sorted(found)


MARKS = {"throughput": "tokens/s", "p50": "P50", "p95": "P95", "p99": "P99"}


def errors(rows: Sequence[Row], engine: str) -> dict[str, float | None]:
    """Return the median over the loads of the absolute relative error, by kind of figure."""
    found: dict[str, float | None] = {}
    for name, mark in MARKS.items():
        sizes = [
            abs(error)
            for row in rows
            if row["engine"] == engine and mark in str(row["figure"]) and isinstance(error := row["error"], float)
        ]
        found[name] = median(sizes) if sizes else None
    return found
