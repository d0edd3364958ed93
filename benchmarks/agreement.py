"""Whether another client reports what ours does, on the same engine and load, within the noise of a run.

Our client repeats the load with fresh prompts and arrivals before, between and after the others: how its figures
scatter is the noise, and a drift of the machine falls into it too. A peer agrees on a figure when it lies where 95 of
100 further runs of ours would lie. Each figure of ours is computed with the peer's own kind of quantile.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev

from engine_runs import AT_ONCE, OUTPUT, PROMPT, Engine, latencies_ms, planned, run_ours
from peers import PEERS, Load, Told, offer
from reporting import Row, say

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.run import Run
from setpoint.metrics.binomial import student_t_quantile

NOISE = "± of a further run"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the half-width of where 95 of 100 further values lie (Student's t, normal scatter)."""
    count = len(values)
    half = student_t_quantile(0.975, count - 1.0) * stdev(values) * (1.0 + 1.0 / count) ** 0.5
    return mean(values), half


def figures_of_ours(run: Run, *, is_interpolated: bool) -> dict[str, float]:
    """Return the figures of a run of ours over all its requests, as a peer counts them."""
    records = [record for record in run.records if record.error is None]
    end = max(record.ended_at or 0.0 for record in records)
    start = min(record.sent_at or end for record in records)
    latencies = latencies_ms(records, is_interpolated=is_interpolated)
    return {**latencies, "output tokens/s": sum(record.output_tokens for record in records) / (end - start)}


def figures_of(told: Told) -> dict[str, float]:
    """Return the same figures as a peer told them."""
    assert told.output_tps is not None
    latencies = {
        f"{name} {q} ms": 1e3 * values[q]
        for name, values in (("TTFT", told.ttft_s), ("TPOT", told.tpot_s))
        for q in ("p50", "p95")
    }
    return {**latencies, "output tokens/s": told.output_tps}


def compared(engine: Engine, clients: Mapping[str, Path], load: Load, *, repeats: int, seed: int) -> Iterator[Row]:
    """Offer the load by our client `repeats` times and by each peer in between; yield a row for each figure."""
    runs: list[Run] = []
    told: dict[str, Told] = {}
    waiting = list(clients)
    what = f"{load.streams} users" if load.streams else f"{load.rate:.2f}/s"
    for repeat in range(repeats):
        plan = planned(load.requests, load.rate or AT_ONCE, seed + repeat)
        runs.append(run_ours(engine, plan, RunOptions(concurrency=load.streams, seed=seed + repeat)))
        say(f"  {engine.name}, {what}: our run {repeat + 1} of {repeats}")
        if waiting and (repeat or repeats == 1):
            client = waiting.pop(0)
            say(f"  {engine.name}, {what}: {client}")
            with tempfile.TemporaryDirectory(prefix="setpoint-peer-") as folder:
                told[client] = offer(client, clients[client], load._replace(seed=seed - len(waiting)), Path(folder))[0]
    for client, answer in told.items():
        yield from _rows(engine.name, what, client, answer, runs)


def load_of(engine: Engine, requests: int, tokenizer: Path, *, streams: int | None, rate: float | None) -> Load:
    """Return the load that all clients are to offer."""
    target = engine.target
    return Load(target.url, target.model, requests, PROMPT, OUTPUT, rate, streams, tokenizer=tokenizer, is_chat=False)


def _rows(engine: str, load: str, client: str, told: Told, runs: Sequence[Run]) -> Iterator[Row]:
    mine = [figures_of_ours(run, is_interpolated=PEERS[client].is_interpolated) for run in runs]
    for name, theirs in figures_of(told).items():
        middle, half = interval([one[name] for one in mine])
        say(f"  {engine}, {load}, {name}: ours {middle:.1f} (±{half:.1f}), {client} {theirs:.1f}")
        yield {
            "engine": engine,
            "load": load,
            "peer": client,
            "figure": name,
            "ours": middle,
            NOISE: half,
            "theirs": theirs,
            "theirs/ours": theirs / middle,
            "agrees": abs(theirs - middle) <= half,
            "prompt tokens ours": mean(record.prompt_tokens for run in runs for record in run.records),
            "prompt tokens theirs": told.prompt_tokens,
        }


def ratios(rows: Sequence[Row], clients: Sequence[str]) -> dict[str, float | None]:
    """Return for each peer the share of figures agreed on and the median difference, and the noise."""
    result: dict[str, float | None] = {}
    for client in clients:
        told = [row for row in rows if row.get("peer") == client]
        off = [abs(float(str(row["theirs/ours"])) - 1.0) for row in told]
        result[f"{client}_agrees"] = mean(bool(row["agrees"]) for row in told) if told else None
        result[f"{client}_off"] = median(off) if off else None
    widths = [float(str(row[NOISE])) / float(str(row["ours"])) for row in rows if "peer" in row]
    return result | {"noise": median(widths) if widths else None}
