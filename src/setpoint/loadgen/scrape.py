"""The engine's own counters during a run, on the run's clock: who runs, who waits, how full the KV cache is.

| engine | where | running, waiting, KV usage |
|---|---|---|
| vLLM | /metrics | `vllm:num_requests_running`, `vllm:num_requests_waiting`, `vllm:kv_cache_usage_perc` |
| SGLang | /metrics | `sglang:num_running_reqs`, `sglang:num_queue_reqs`, `sglang:token_usage` |
| llama-server | /metrics | `llamacpp:requests_processing`, `llamacpp:requests_deferred`, none |
| TensorRT-LLM | /metrics, JSON drained when read | `numActiveRequests`, `numQueuedRequests`, `kvCacheStats` |
| Setpoint | /metrics | as vLLM, with `setpoint:` in place of `vllm:` |
"""

import re
import threading
import time
from collections.abc import Mapping
from typing import Self

import msgspec

from setpoint.errors import EngineError
from setpoint.loadgen.ask import ask
from setpoint.loadgen.target import EndpointTarget

EVERY_S = 1.0
SAMPLES_MAX = 20_000
OK = 200

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+([-+0-9.eEinfNa]+)")

RUNNING = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
    "trtllm_num_requests_running",
    "setpoint:num_requests_running",
    "lmdeploy:num_requests_running",
    "tgi_batch_current_size",
)
WAITING = (
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
    "trtllm_num_requests_waiting",
    "setpoint:num_requests_waiting",
    "lmdeploy:num_requests_waiting",
    "tgi_queue_size",
)
KV = ("vllm:kv_cache_usage_perc", "sglang:token_usage", "trtllm_kv_cache_utilization", "setpoint:kv_cache_usage_perc")


class EngineSample(msgspec.Struct, frozen=True, kw_only=True):
    """The engine at one instant (seconds of the clock that the reader chose); `None` for what it does not tell."""

    at: float
    running: float | None = None
    waiting: float | None = None
    kv_ratio: float | None = None


def parse_prometheus(text: str) -> dict[str, float]:
    """Return the values of a Prometheus page by name, summed over labels; lines that are none are passed over."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        try:
            value = float(match.group(2))
        except ValueError:
            continue
        values[match.group(1)] = values.get(match.group(1), 0.0) + value
    return values


def sample_of(body: bytes, at: float) -> EngineSample | None:
    """Return what a page of metrics says, Prometheus text or TensorRT-LLM's JSON; `None` when it says nothing known."""
    if body.lstrip()[:1] in {b"[", b"{"}:
        return _of_json(body, at)
    values = parse_prometheus(body.decode("utf-8", "replace"))
    running, waiting = _first(values, RUNNING), _first(values, WAITING)
    if running is None and waiting is None:
        return None
    return EngineSample(at=at, running=running, waiting=waiting, kv_ratio=_first(values, KV))


def _of_json(body: bytes, at: float) -> EngineSample | None:
    try:
        entries = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    last = entries[-1] if isinstance(entries, list) and entries else None
    if not isinstance(last, dict):
        return None
    kv = last.get("kvCacheStats")
    used, most = (kv.get("usedNumBlocks"), kv.get("maxNumBlocks")) if isinstance(kv, dict) else (None, None)
    return EngineSample(
        at=at,
        running=last.get("numActiveRequests"),
        waiting=last.get("numQueuedRequests"),
        kv_ratio=used / most if isinstance(used, int) and isinstance(most, int) and most else None,
    )


def _first(values: Mapping[str, float], names: tuple[str, ...]) -> float | None:
    return next((values[name] for name in names if name in values), None)


class Scraper:
    """Reads the counters once a second from a thread of its own, until it is left; `samples` are in order of time."""

    def __init__(self, target: EndpointTarget, path: str = "/metrics") -> None:
        self.samples: list[EngineSample] = []
        self._target, self._path = target, path
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        """Begin to read."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading."""
        self._is_over.set()
        self._thread.join(EVERY_S * 5)

    def since(self, start_at: float) -> tuple[EngineSample, ...]:
        """Return the samples with instants that count from `start_at` of `time.monotonic`."""
        return tuple(msgspec.structs.replace(one, at=one.at - start_at) for one in self.samples if one.at >= start_at)

    def _watch(self) -> None:
        while not self._is_over.wait(EVERY_S) and len(self.samples) < SAMPLES_MAX:
            try:
                answer = ask(self._target, self._path, timeout_s=EVERY_S * 3)
            except EngineError:
                continue
            sample = sample_of(answer.body, time.monotonic()) if answer.status == OK else None
            if sample is None and not self.samples:
                return
            if sample is not None:
                self.samples.append(sample)
