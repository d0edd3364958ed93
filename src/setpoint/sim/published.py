"""What a published measurement says of its set-up, and what the step-time model predicts for it.

A row of `published-points.csv` names a model, a GPU, an engine and a load. Where it leaves something out (the lengths
of a known data set, how an MLPerf submitter cut 72 GPUs into replicas) the tables below say what is assumed.
"""

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from setpoint.steptime.efficiency import engine_key
from setpoint.steptime.quantization import Quantization, quantization
from setpoint.steptime.setup import Layout
from setpoint.steptime.steady import Lengths, Limits

Kind = Literal["single", "static", "finite", "offline", "closed", "open", "server", "disaggregated"]
Metric = Literal["throughput", "tpot", "ttft", "prefill"]

_MLPERF_PROMPTS = {
    "llama-2-70b": 160.0,
    "mixtral-8x7b": 300.0,
    "llama-3.1-8b": 778.0,
    "llama-3.1-405b": 9400.0,
    "deepseek-r1": 800.0,
    "gpt-oss-120b": 1000.0,
}
"""Mean prompt tokens of MLPerf's data sets (OpenOrca; OpenOrca, GSM8K, MBXP; CNN-DailyMail; LongBench and others)."""

_MLPERF_OUTPUTS = {"llama-3.1-8b": 128.3, "gpt-oss-120b": 3000.0, "deepseek-r1": 3850.0}
"""Mean output tokens where the row has none; 8B from tokens over requests of its rows, gpt-oss assumed."""

_MLPERF_TARGETS_S = {
    ("llama-2-70b", "server"): (0.200, 2.0),
    ("llama-2-70b", "interactive"): (0.040, 0.45),
    ("mixtral-8x7b", "server"): (0.200, 2.0),
    ("llama-3.1-8b", "server"): (0.100, 2.0),
    ("llama-3.1-8b", "interactive"): (0.030, 0.5),
    ("llama-3.1-405b", "server"): (0.175, 6.0),
    ("llama-3.1-405b", "interactive"): (0.080, 4.5),
    ("deepseek-r1", "server"): (0.080, 2.0),
}
"""P99 limits on (TPOT, TTFT) of the scenarios (MLPerf Inference rules)."""

_UNLIMITED = float("inf")

_SUITES = {"A": (256.0, 345.0), "B": (256.0, 350.0), "C": (282.0, 353.0), "F": (103.0, 213.0), "G": (256.0, 331.0)}
"""Mean lengths of AccelMark's suites, from the rows that print them."""

_SUITE_REQUESTS = {"A": (100, 300), "B": (100, 200), "C": (100, 300), "F": (200, 300), "G": (100, 300)}
"""Requests of AccelMark's suites: (handed over at once, arriving over time)."""

_CHAT_SPREAD, _CAPPED_SPREAD = 0.8, 0.2
"""Coefficients of variation of ShareGPT-type lengths, and of AccelMark's, whose outputs are cut short at a limit."""

_ACHIEVED_MIN = 0.95
_QUEUED_MS = 1000.0

_CACHED_RATIO = 0.5
"""Assumed share of prompt tokens found in the prefix cache by the multi-turn, shared-prefix runs (group blis-*)."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A published measurement: the set-up, the load, and the values that it prints (seconds, tokens a second).

    `layouts`: the replica layouts to choose from, the best by throughput. `is_beyond`: by its own numbers an open loop
    beyond saturation. `is_separate_test`: prefill and decode were timed apart, from an empty cache.
    """

    id: str
    source: str
    model: str
    hardware: str
    gpus: int
    quantization: Quantization
    engine: str
    layouts: tuple[Layout, ...]
    kind: Kind
    lengths: Lengths
    limits: Limits
    spread: float = 0.0
    requests: int = 1
    concurrency: float = 0.0
    rate: float = 0.0
    targets_s: tuple[float, float] = (_UNLIMITED, _UNLIMITED)
    workers: tuple[int, int] = (0, 0)
    is_separate_test: bool = False
    is_served: bool = False
    is_streamed: bool = False
    is_beyond: bool = False
    values: dict[Metric, float] = {}


def point(row: Mapping[str, str]) -> Point | None:
    """Return what a row says; `None` when it is marked weak or names no machine."""
    if "weak row" in row["notes"] or not row["gpu"]:
        return None
    hardware, gpus = _hardware(row)
    kind = _kind(row)
    lengths, spread, requests = _workload(row, kind)
    model = row["model"].lower()
    scenario = row["load"].removeprefix("mlperf-")
    return Point(
        id=row["id"],
        source=row["source_group"],
        model=model,
        hardware=hardware,
        gpus=gpus,
        quantization=_quantization(row),
        engine=engine_key(row["engine"], _version(row)),
        layouts=_layouts(row, gpus, kind),
        kind=kind,
        lengths=lengths,
        limits=_limits(row, kind, requests),
        spread=spread,
        requests=requests,
        concurrency=_number(row["concurrency"]),
        rate=_number(row["request_rate_rps"]),
        targets_s=_MLPERF_TARGETS_S.get((model, scenario), (_UNLIMITED, _UNLIMITED)),
        workers=_workers(row["parallelism"]),
        is_separate_test=row["engine"] == "llama.cpp",
        is_served=row["engine"] != "llama.cpp" and (kind not in ("static", "offline")) and bool(_ttft(row)),
        is_streamed=not row["load"].startswith("mlperf") and bool(_ttft(row)),
        is_beyond=_is_beyond(row),
        values=_values(row),
    )


def _values(row: Mapping[str, str]) -> dict[Metric, float]:
    found: dict[Metric, float] = {}
    tpot = _first(row, "tpot_p50_ms", "tpot_mean_ms", "itl_p50_ms", "itl_mean_ms")
    ttft = _ttft(row)
    if value := _number(row["output_tok_s"]):
        found["throughput"] = value
    if tpot:
        found["tpot"] = tpot / 1e3
    if ttft:
        found["ttft"] = ttft / 1e3
    if value := _number(row["prefill_tok_s"]):
        found["prefill"] = value
    return found


def _kind(row: Mapping[str, str]) -> Kind:
    load = row["load"]
    if "prefill +" in row["parallelism"]:
        return "disaggregated"
    if load in ("mlperf-server", "mlperf-interactive"):
        return "server"
    if load == "mlperf-offline":
        return "offline"
    if load == "offline-max":
        return "finite" if row["source_group"] in ("accelmark", "rocm-vllm") else "offline"
    if load.startswith("open-loop"):
        return "open" if row["source_group"].startswith("blis") else "finite"
    kinds: dict[str, Kind] = {"static-batch": "static", "closed-loop": "closed", "single-stream": "single"}
    return kinds.get(load, "finite")


def _workload(row: Mapping[str, str], kind: Kind) -> tuple[Lengths, float, int]:
    """Return the mean lengths, their spread and the number of requests of a finite run."""
    prompt, output = _number(row["input_len"]), _number(row["output_len"])
    spread, requests = 0.0, 1
    if suite := re.search(r"suite ([A-G])", row["notes"]):
        defaults = _SUITES[suite[1]]
        prompt, output = prompt or defaults[0], output or defaults[1]
        spread = _CAPPED_SPREAD
        requests = _SUITE_REQUESTS[suite[1]][row["load"].startswith("open-loop")] if kind == "finite" else 1
    elif row["load"].startswith("mlperf"):
        prompt = _MLPERF_PROMPTS[row["model"].lower()]
        output = output or _MLPERF_OUTPUTS[row["model"].lower()]
    elif kind == "finite":
        listed = re.search(r"(\d+) prompts", row["notes"])
        requests = int(listed[1]) if listed else round(_number(row["concurrency"])) or 1000
        spread = _CHAT_SPREAD if "ShareGPT" in row["notes"] or row["load"] == "open-loop poisson" else 0.0
    elif kind == "static":
        requests = round(_number(row["concurrency"]))
    cached = _CACHED_RATIO * prompt if row["source_group"].startswith("blis") else 0.0
    return Lengths(prompt_tokens=prompt, output_tokens=output, cached_tokens=cached), spread, requests


def _limits(row: Mapping[str, str], kind: Kind, requests: int) -> Limits:
    sequences, budget = {"vllm": (256, 8192), "trtllm": (2048, 8192), "llamacpp": (1, 512), "sglang": (512, 8192)}.get(
        engine_key(row["engine"], _version(row)), (256, 4096)
    )
    if listed := re.search(r"max_num_seqs (\d+)", row["notes"]):
        sequences = int(listed[1])
    if listed := re.search(r"max_num_batched_tokens (\d+)", row["notes"]):
        budget = int(listed[1])
    if row["load"].startswith("mlperf"):
        sequences = 2048
    if kind == "static":
        sequences = max(sequences, requests)
    return Limits(sequences_max=sequences, budget_tokens=budget)


def _quantization(row: Mapping[str, str]) -> Quantization:
    precision, notes = row["precision"].lower(), row["notes"]
    name = precision.split(" ")[0].split("/")[0]
    name = {"uint4": "w4a16", "int4": "w4a16", "int8": "w8a8", "fp4": "nvfp4"}.get(name, name)
    if name == "nvfp4" and "gpt-oss" in row["model"]:
        name = "mxfp4"
    if "quantization=gptq" in notes and name == "w4a16":
        name = "w4a16-gptq"
    if name == "fp8" and row["gpu"].startswith("MI") and ("FP8-meta" in notes or "meta-llama" in notes):
        name = "fp8-unpacked"
    elif name == "fp8" and "meta" in notes and "405B" in row["model"]:
        name = "fp8-ffn"
    is_nvidia = "tensorrt" in row["source_group"] or "TensorRT" in row["engine"]
    return quantization(name, fp8_kv="fp8 kv" in precision or (is_nvidia and name in ("fp8", "nvfp4")))


def _hardware(row: Mapping[str, str]) -> tuple[str, int]:
    """Return the catalog's name and how many; a dual card counts as two."""
    count = int(row["gpu_count"])
    name = row["gpu"].lower().removeprefix("cpu intel ").removeprefix("apple-").removeprefix("intel-").replace(" ", "-")
    if name.endswith("-dual"):
        return name.removesuffix("-dual"), 2 * count
    return re.sub(r"-\d+c$", "", name), count


def _layouts(row: Mapping[str, str], gpus: int, kind: Kind) -> tuple[Layout, ...]:
    text = row["parallelism"]
    if kind == "disaggregated":
        return (Layout(tensor=2),)
    if "layer split" in text:
        return (Layout(pipeline=gpus),)
    if found := re.fullmatch(r"DEP(\d+)", text):
        return (Layout(tensor=int(found[1]), is_spread=True),)
    if found := re.fullmatch(r"TP(\d+)(?:PP(\d+))?", text):
        return (Layout(tensor=int(found[1]), pipeline=int(found[2] or 1)),)
    if gpus == 1:
        return (Layout(),)
    shared = [Layout(tensor=n) for n in (1, 2, 4, 8) if gpus % n == 0]
    is_mixture = any(part in row["model"] for part in ("DeepSeek", "gpt-oss", "Mixtral"))
    spread = [Layout(tensor=n, is_spread=True) for n in (4, 8, 16, 36, 72) if gpus % n == 0] if is_mixture else []
    return tuple(shared + spread)


def _workers(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+) prefill \+ (\d+) decode", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _version(row: Mapping[str, str]) -> str:
    return row["engine_version"].removeprefix("vLLM ")


def _is_beyond(row: Mapping[str, str]) -> bool:
    """Return whether an open loop ran beyond saturation, where TTFT grows with the length of the run.

    By its own numbers: the rate achieved fell short of the one offered; or, where only one of them is printed, the P99
    of TTFT is over a second.
    """
    if not row["load"].startswith("open-loop"):
        return False
    achieved = _number(row["achieved_rps"])
    if achieved:
        return achieved < _ACHIEVED_MIN * _number(row["request_rate_rps"])
    return _number(row["ttft_p99_ms"]) > _QUEUED_MS


def _ttft(row: Mapping[str, str]) -> float:
    return _first(row, "ttft_p50_ms", "ttft_mean_ms")


def _first(row: Mapping[str, str], *columns: str) -> float:
    return next((value for column in columns if (value := _number(row[column]))), 0.0)


def _number(text: str) -> float:
    return float(text) if text.strip() else 0.0
