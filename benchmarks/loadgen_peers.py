"""Measuring clients side by side against the same server: CPU for their work, the rate that they hold, their error.

    python benchmarks/loadgen_peers.py [--peers DIR] [--install] [--quick] [--json]

The server is the C program of `loadgen_truth`, whose log is the truth; 50 tokens an answer, Poisson arrivals, 20 s a
rate, each client as its own command. The peers are looked for in DIR, each in a virtual environment of its own
(`--install` makes them): GuideLLM 0.8.1, AIPerf 0.13.0, inference-perf 0.7.0 (wants Python 3.12), `vllm bench serve`
0.32 (`SETPOINT_VLLM_ENV` names its environment) and SGLang's client in Rust, 0.5.23. One that is missing is left out
and said so; `--quick` leaves out GuideLLM and inference-perf, whose starts alone take too long.

*CPU* is that of all processes of a client while the server wrote the events from 15% to 90% of all: no start, no
report. An *error* counts in units of what `loadgen_truth` allows: 1% of the truth or 1 ms, whichever is more; each
client is held against its own definition of TTFT and its own kind of quantile. A rate is *held* while the requests came
at 90% of it at least, and P50 and P99 are right within 10% or 5 ms; a client that does not hold a rate is not asked for
a higher one.

Ratios: `best_peer_cpu_over_ours`, CPU per event of the leanest Python peer over ours, the least over the rates (aim:
8); `ours_cpu_over_rust`, ours over SGLang's, the most over the rates (aim: 2); `ours_rate_held`, `best_peer_rate_held`;
`ours_p99_error`, `best_peer_p99_error`, the worst over the rates that all were asked for.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

from known_server import mock_server
from peers import PEERS, Load, Told, found, install, offer
from reporting import Row, arguments, report, say
from watched import Usage, run_watched

from setpoint.metrics import rank_quantile

TOKENS = 50
RATES = (20.0, 60.0, 100.0, 200.0, 400.0, 600.0)
QUICK_RATE, QUICK_S, SECONDS = 100.0, 3.0, 20.0
STEADY = (0.15, 0.90)
OURS = "setpoint"
SLOW = ("guidellm", "inference-perf")
SENT_MIN, OFF_MAX, OFF_MAX_S = 0.9, 0.10, 0.005
"""What it takes to hold a rate: the share of it that arrived, and how far P50 and P99 of TTFT may be off."""
Answered = tuple[float, list[float]]
"""When a request had arrived, and after how many seconds each token of its answer was written."""


class Seen(NamedTuple):
    """What the server's log says of one run: TTFT of each answer, when requests came, when events were written."""

    ttft_s: list[float]
    arrived_at: list[float]
    written_at: list[float]

    def ttft_quantile_s(self, q: float, *, is_interpolated: bool) -> float:
        """Return the true quantile, as the client that is held against it would have computed it."""
        if is_interpolated:
            return quantiles(self.ttft_s, n=100, method="inclusive")[round(100 * q) - 1]
        return rank_quantile(self.ttft_s, q)


def ours(load: Load, folder: Path) -> tuple[Told, Usage]:
    """Run this project's command line as a user does."""
    command = [
        *(sys.executable, "-c", "from setpoint.cli import main; main()", "bench", load.url, "--json"),
        *("--rate", str(load.rate), "--seconds", str(load.requests / (load.rate or 1.0)), "--warmup", "0"),
        *("--prompt", str(load.prompt_tokens), "--output", str(load.output_tokens), "--seed", str(load.seed)),
        *("--out", str(folder / "told")),
    ]
    usage = run_watched(command, folder, {}, 300.0)
    summary = json.loads((folder / "told" / "report.json").read_text())["points"][0]["summary"]
    measured = summary["classes"]["standard"]
    said = {f"p{one['q'] * 100:g}": one["value"] for one in measured["latencies"]["ttft"]["quantiles"]}
    return Told(requests=summary["requests"], ttft_s=said), usage


def watch(client: str, binary: Path | None, load: Load) -> tuple[Told, Usage, Seen]:
    """Let a client offer a load to a server of its own; return what it said, what it used, and what was so."""
    with tempfile.TemporaryDirectory(prefix="setpoint-peer-") as name:
        folder = Path(name)
        with mock_server(seed=load.seed) as mock:
            load = load._replace(url=mock.url)
            told, usage = ours(load, folder) if binary is None else offer(client, binary, load, folder)
        answers = reported(sorted(mock.answers), told.requests, is_ours=binary is None)
    at = [arrived for arrived, _ in answers]
    written = sorted(arrived + offset for arrived, times in answers for offset in times)
    return told, usage, Seen(sorted(times[0] for _, times in answers), at, written)


def reported(answers: Sequence[Answered], requests: int, *, is_ours: bool) -> Sequence[Answered]:
    """Return the answers, in order of arrival, that the client reports on: not those to what it asked beforehand.

    Our client goes on sending while the last requests of its window are answered, and does not count these further
    ones; what it asks beforehand is told by its length.
    """
    if is_ours:
        return [one for one in answers if len(one[1]) == TOKENS][:requests]
    return answers[-requests:]


def measure(client: str, binary: Path | None, load: Load) -> dict[str, Any]:
    """Return one row: what a client's work cost at a rate, and how right it was."""
    told, usage, seen = watch(client, binary, load)
    count = len(seen.written_at)
    start, end = (seen.written_at[min(count - 1, int(share * count))] for share in STEADY)
    per_event_s = usage.between_s(start, end) / (count * (STEADY[1] - STEADY[0]))
    sent = (len(seen.arrived_at) - 1) / (seen.arrived_at[-1] - seen.arrived_at[0])
    is_interpolated = client != OURS and PEERS[client].is_interpolated
    true = {q: seen.ttft_quantile_s(q, is_interpolated=is_interpolated) for q in (0.5, 0.99)}
    said = {q: told.ttft_s[f"p{q * 100:g}"] for q in true}
    off = {q: abs(said[q] - true[q]) for q in true}
    assert load.rate is not None
    is_held = sent >= SENT_MIN * load.rate and all(off[q] <= max(OFF_MAX_S, OFF_MAX * true[q]) for q in true)
    row = {
        "client": client,
        "requests/s": load.rate,
        "sent/s": sent,
        "CPU s per 1,000 requests": per_event_s * TOKENS * 1e3,
        "CPU s per million events": per_event_s * 1e6,
        "other CPU s": usage.total_s - usage.between_s(start, end) / (STEADY[1] - STEADY[0]),
        "P50 said ms": said[0.5] * 1e3,
        "P50 true ms": true[0.5] * 1e3,
        "P99 said ms": said[0.99] * 1e3,
        "P99 true ms": true[0.99] * 1e3,
        "P99 error": off[0.99] / max(0.001, 0.01 * true[0.99]),
        "held": is_held,
    }
    say(
        f"  {client} at {load.rate:g}/s: {per_event_s * 1e6:.1f} CPU us an event, "
        f"P99 {said[0.99] * 1e3:.1f} ms ({true[0.99] * 1e3:.1f}), {'held' if is_held else 'not held'}"
    )
    return row


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """Return the figures that the aims are about."""
    cpu = {
        (str(row["client"]), float(str(row["requests/s"]))): _number(row, "CPU s per million events") for row in rows
    }
    rates = sorted({rate for _, rate in cpu})
    python = [name for name, peer in PEERS.items() if peer.is_python]
    leanest = {
        rate: min(found) for rate in rates if (found := [cpu[name, rate] for name in python if (name, rate) in cpu])
    }
    rust = {rate: cpu["sglang-rust", rate] for rate in rates if ("sglang-rust", rate) in cpu}
    held = partial(_best_held, rows)
    clients = {client for client, _ in cpu}
    common = [rate for rate in rates if all((client, rate) in cpu for client in clients)]
    errors: dict[str, float] = {}
    for row in rows:
        if row["requests/s"] in common:
            name = str(row["client"])
            errors[name] = max(errors.get(name, 0.0), _number(row, "P99 error"))
    return {
        "best_peer_cpu_over_ours": min((leanest[rate] / cpu[OURS, rate] for rate in leanest), default=None),
        "ours_cpu_over_rust": max((cpu[OURS, rate] / rust[rate] for rate in rust), default=None),
        "ours_rate_held": held((OURS,)),
        "best_peer_rate_held": held(PEERS),
        "ours_p99_error": errors.get(OURS),
        "best_peer_p99_error": min((worst for name, worst in errors.items() if name != OURS), default=None),
    }


def _best_held(rows: Sequence[Row], clients: Iterable[str]) -> float | None:
    names = set(clients)
    return max((_number(row, "requests/s") for row in rows if row["held"] and row["client"] in names), default=None)


def _number(row: Row, name: str) -> float:
    return float(str(row[name]))


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    default = os.environ.get("SETPOINT_PEERS", "peers")
    parser.add_argument("--peers", default=default, help="folder of their environments (default: SETPOINT_PEERS)")
    parser.add_argument("--install", action="store_true", help="make the environments first (about 2 GB)")
    parser.add_argument("--only", action="append", choices=(OURS, *PEERS), help="measure only these; repeatable")


def main() -> None:
    """Measure each client at rising rates and report."""
    args = arguments(__doc__ or "", options)
    folder = Path(args.peers).absolute()
    if args.install:
        install(folder)
    wanted = args.only or [name for name in (OURS, *PEERS) if not (args.quick and name in SLOW)]
    clients: dict[str, Path | None] = {OURS: None} if OURS in wanted else {}
    clients |= found(folder, tuple(name for name in PEERS if name in wanted))
    if args.quick and not args.only:
        say(f"  {' and '.join(SLOW)} take too long to start: left out of --quick")
    rates, seconds = ((QUICK_RATE,), QUICK_S) if args.quick else (RATES, SECONDS)
    rows: list[dict[str, Any]] = []
    for client, binary in clients.items():
        for rate in rates:
            load = Load("", "mock", round(rate * seconds), 20, TOKENS, rate=rate, seed=args.seed)
            rows.append(measure(client, binary, load))
            if not rows[-1]["held"]:
                break
    rows.sort(key=lambda row: row["requests/s"])
    report("loadgen_peers", ratios(rows), rows, args)


if __name__ == "__main__":
    main()
