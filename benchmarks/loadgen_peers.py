"""Measuring clients side by side against the same server: CPU for their work, and the error of what they report.

    python benchmarks/loadgen_peers.py [--peers DIR] [--quick] [--json]

The server is the C program of `loadgen_truth`, whose log is the truth; 50 tokens an answer, open loop. Each client is
run at each rate with few and with many requests: the difference is free of its start-up, and is what requests cost. The
peers are looked for in DIR (each in a virtual environment of its own; `--install` makes them):
GuideLLM 0.8.1 (`DIR/guidellm`) and AIPerf 0.13.0 (`DIR/aiperf`); one that is missing is left out and said so.
An error counts in units of what is allowed: 1% of the truth or 1 ms, whichever is more. Each client is held against its
own definition of TTFT in an open loop that it keeps; P99 is that of the longer run.

Ratios: `best_peer_cpu_over_ours`, CPU seconds per million events of the leanest peer over ours (aim: 8);
`ours_p99_error`, `best_peer_p99_error`: the worst over the rates.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from known_server import mock_server
from reporting import Row, arguments, report, say

from setpoint.loadgen.process import measure_in_process
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import rank_quantile
from setpoint.seeds import stream
from setpoint.workload import Fixed, Steady, Traffic, plan_traffic

TOKENS = 50
RATES = (20, 60, 100)
LIMIT_S = 300.0
PINS = {"guidellm": "guidellm==0.8.1", "aiperf": "aiperf==0.13.0"}

TOKENIZER = """
import sys
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
plain = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(bytes_)}, merges=[]))
plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
plain.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=bytes_[1], pad_token=bytes_[1]).save_pretrained(sys.argv[1])
Path(sys.argv[1], "config.json").write_text('{"model_type": "gpt2"}')
"""
"""Makes a tokenizer of single bytes: the peers want one, and no model is to be had without a network."""

Client = Callable[[str, float, int, Path], float]
"""Offers a rate until so many requests are done; returns the P99 of TTFT in seconds that it reports."""


def ours(url: str, rate: float, count: int, folder: Path) -> float:
    """Run this project's client."""
    traffic = Traffic(class_name="chat", prompt=Fixed(20), output=Fixed(TOKENS))
    plan = plan_traffic([traffic], Steady(rate), partial(stream, 1), count=count)
    run = measure_in_process(EndpointTarget(url=url, model="mock"), plan, warmup_s=0.0, directory=folder)
    return rank_quantile(sorted(record.ttft_s or 0.0 for record in run.records), 0.99)


def guidellm(binary: Path, url: str, rate: float, count: int, folder: Path) -> float:
    """Run GuideLLM."""
    file = folder / "guidellm.json"
    command = [str(binary / "guidellm"), "run", "--disable-console"]
    command += ["--backend", f"kind=openai_http,target={url},model=mock", "--profile", f"kind=poisson,rate={rate}"]
    command += ["--constraint", f"kind=max_requests,count={count}", "--output", f"kind=json,path={file}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens=20,output_tokens={TOKENS}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={tokenizer(binary, folder)}"]
    call(command, folder)
    metrics = json.loads(file.read_text())["benchmarks"][0]["metrics"]
    return float(metrics["time_to_first_token_ms"]["successful"]["percentiles"]["p99"]) / 1e3


def aiperf(binary: Path, url: str, rate: float, count: int, folder: Path) -> float:
    """Run AIPerf."""
    command = [str(binary / "aiperf"), "profile", "--model", "mock", "--url", url, "--endpoint-type", "chat"]
    command += [
        "--streaming",
        "--request-rate",
        str(rate),
        "--arrival-pattern",
        "poisson",
        "--request-count",
        str(count),
    ]
    command += ["--isl", "20", "--osl", str(TOKENS), "--use-server-token-count", "--ui-type", "none"]
    command += ["--tokenizer", tokenizer(binary, folder), "--output-artifact-dir", str(folder), "--workers-max", "1"]
    call(command, folder)
    told = json.loads((folder / "profile_export_aiperf.json").read_text())
    return float(told["time_to_first_token"]["p99"]) / 1e3


def tokenizer(binary: Path, folder: Path) -> str:
    """Return the folder of a tokenizer that needs no network, made by the peer's own libraries."""
    made = folder / "tokenizer"
    if not made.exists():
        call([str(binary / "python"), "-c", TOKENIZER, str(made)], folder)
    return str(made)


def call(command: list[str], folder: Path) -> None:
    """Run a command to its end; its output goes to a file, which is shown when it fails."""
    log = folder / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            stdout=file,
            stderr=file,
            timeout=LIMIT_S,
            check=False,
        )
    if done.returncode:
        sys.exit(f"error: {command[0]} failed\n{log.read_text()[-2000:]}")


def children_s() -> float:
    """Return the processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cost(client: Client, rate: float, count: int, seed: int) -> tuple[float, float, float]:
    """Return (CPU seconds, reported P99, true P99) of one run; the server's own processor time is not counted."""
    with tempfile.TemporaryDirectory(prefix="setpoint-peer-") as name:
        folder = Path(name)
        with mock_server(seed=seed) as mock:
            before = children_s()
            said = client(mock.url, rate, count, folder)
            used = children_s() - before
        truth = sorted(times[0] for _, times in mock.answers[-count:])
        return used, said, rank_quantile(truth, 0.99)


def measure(name: str, client: Client, rate: float, counts: tuple[int, int], seed: int) -> Row:
    """Return one row: the cost of requests without the start-up, and the error of P99."""
    few, many = counts
    start_s, _, _ = cost(client, rate, few, seed)
    whole_s, said, true = cost(client, rate, many, seed + 1)
    per_request = max(0.0, whole_s - start_s) / (many - few)
    error = abs(said - true) / max(0.001, 0.01 * true)
    say(f"  {name} at {rate}/s: {per_request * 1e3:.2f} CPU s per 1,000, P99 {said * 1e3:.1f} ms ({true * 1e3:.1f})")
    return {
        "client": name,
        "requests/s": rate,
        "CPU s per 1,000 requests": per_request * 1e3,
        "CPU s per million events": per_request / TOKENS * 1e6,
        "start-up CPU s": start_s - few * per_request,
        "P99 said ms": said * 1e3,
        "P99 true ms": true * 1e3,
        "P99 error": error,
    }


def install(folder: Path) -> None:
    """Make the virtual environments of the peers."""
    for name, pin in PINS.items():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(folder / name / "bin" / "pip"), "install", "-q", pin], check=True)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    default = os.environ.get("SETPOINT_PEERS", "peers")
    parser.add_argument("--peers", default=default, help="folder of their environments")
    parser.add_argument("--install", action="store_true", help="make the environments first (about 1 GB)")


def main() -> None:
    """Measure each client at each rate and report."""
    args = arguments(__doc__ or "", options)
    folder = Path(args.peers).absolute()
    if args.install:
        install(folder)
    clients: dict[str, Client] = {"setpoint": ours}
    for name, peer in (("guidellm", guidellm), ("aiperf", aiperf)):
        binary = folder / name / "bin"
        if binary.exists():
            clients[name] = partial(peer, binary)
        else:
            say(f"  {name} is not installed in {folder}: left out (--install makes it)")
    rates, counts = (RATES[-1:], (50, 650)) if args.quick else (RATES, (100, 2100))
    rows = [measure(name, client, rate, counts, args.seed) for rate in rates for name, client in clients.items()]
    report("loadgen_peers", ratios(rows), rows, args)


def ratios(rows: list[Row]) -> dict[str, float | None]:
    """Return the figures that the aims are about."""

    def least(name: str, *, is_ours: bool) -> float | None:
        worst: dict[str, float] = {}
        for row in rows:
            client = str(row["client"])
            if (client == "setpoint") == is_ours:
                worst[client] = max(worst.get(client, 0.0), float(str(row[name])))
        return min(worst.values(), default=None)

    mine, theirs = least("CPU s per million events", is_ours=True), least("CPU s per million events", is_ours=False)
    return {
        "best_peer_cpu_over_ours": theirs / mine if mine and theirs else None,
        "ours_p99_error": least("P99 error", is_ours=True),
        "best_peer_p99_error": least("P99 error", is_ours=False),
    }


if __name__ == "__main__":
    main()
