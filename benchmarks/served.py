"""Two servers under the same client: ours and the llama-server of the `xllamacpp` wheel, each a process of its own.

Both get the same model file, threads and slots. The measuring client is a third process. The client asks for answers
of a planned length, so that both generate the same tokens. Every run has a seed of its own: prompts that a server has
seen before would come from its cache.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from setpoint import seeds
from setpoint.cli.tuning.server import serving
from setpoint.engines.launch import free_port
from setpoint.engines.llamacpp.context import physical_cores
from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.probe import learn_words
from setpoint.loadgen.process import measure_in_process
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.target import EndpointTarget, EngineKind
from setpoint.metrics import RequestRecord, met
from setpoint.model import PRESETS, ServiceClass, Slo
from setpoint.settings import EngineSettings, ServerSettings, Settings, StrategySettings
from setpoint.workload import Fixed, LogNormal, PlannedRequest, Steady, Traffic, plan_traffic

CONTEXT_TOKENS = 1024
START_S = 120.0
CHAT = Traffic(class_name="chat", prompt=LogNormal(64, 0.7, 8, 384), output=LogNormal(40, 0.7, 4, 128))
BATCH = Traffic(class_name="batch", prompt=LogNormal(128, 0.7, 16, 512), output=LogNormal(96, 0.5, 16, 256))
BATCH_STREAMS = 16
"""Batch requests that a closed loop keeps in flight: the backlog as a server behind HTTP sees it."""


class Server(msgspec.Struct, frozen=True):
    """A server under test: its name in the report, where it is, and which dialect it speaks."""

    name: str
    url: str
    engine: EngineKind
    lexicon: Lexicon

    @classmethod
    def at(cls, name: str, url: str, engine: EngineKind) -> "Server":
        """Return the server at `url`, whose way to count tokens is learned first, so that lengths come out exact."""
        return cls(name, url, engine, learn_words(EndpointTarget(url=url, engine=engine)))


Start = Callable[[], contextlib.AbstractContextManager[Server]]
"""Starts a server, which ends with the `with` statement."""


@contextlib.contextmanager
def ours(
    model: Path, *, slots: int, slo: Slo, provider: str = "xllamacpp", strategy: str = "slack", name: str = "setpoint"
) -> Iterator[Server]:
    """Serve `model` with Setpoint on the libllama of `provider`."""
    chat = ServiceClass(name="chat", slo=slo, band=1)
    settings = Settings(
        server=ServerSettings(default_class="chat"),
        engine=EngineSettings(
            model=str(model),
            slots=slots,
            kv_tokens=slots * CONTEXT_TOKENS,
            context_tokens=CONTEXT_TOKENS,
            threads=physical_cores(),
        ),
        strategy=StrategySettings(name=strategy),
        classes={**PRESETS, "chat": chat},
    )
    os.environ["SETPOINT_LLAMA"] = provider
    with tempfile.TemporaryDirectory() as folder, serving(settings, Path(folder)) as url:
        yield Server.at(name, url, "setpoint")


@contextlib.contextmanager
def llama_server(model: Path, *, slots: int, name: str = "llama-server") -> Iterator[Server]:
    """Serve `model` with llama-server."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py"))]
    process = subprocess.Popen(
        [*command, str(model), str(port), str(slots), str(slots * CONTEXT_TOKENS), str(physical_cores())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _await(f"{url}/health", process)
        yield Server.at(name, url, "llama-server")
    finally:
        process.terminate()
        process.wait(30.0)


def throughput(server: Server, streams: int, seconds: float, seed: int = 1) -> float:
    """Return the output tokens per second of `streams` requests kept in flight, warm-up left out."""
    traffic = Traffic(class_name="batch", prompt=Fixed(64), output=Fixed(64))
    plan = plan_traffic([traffic], Steady(1000.0), partial(seeds.stream, seed), count=max(400, 40 * streams))
    records = _measure(server, plan, RunOptions(concurrency=streams, window_s=seconds, seed=seed), seconds)
    first = min(r.scheduled_at for r in records)
    start, end = first + 0.2 * seconds, first + seconds
    return sum(_tokens_within(r, start, end) for r in records) / (end - start)


def mixed(server: Server, rate: float, seconds: float, seed: int = 1, *, has_batch: bool = True) -> list[RequestRecord]:
    """Return the records of chat at `rate`, beside `BATCH_STREAMS` batch requests kept in flight."""
    streams = partial(seeds.stream, seed)
    chat = plan_traffic([CHAT], Steady(rate), streams, duration_s=seconds)
    batch = plan_traffic([BATCH], Steady(1000.0), streams, count=2000)
    found: list[list[RequestRecord]] = []
    beside = RunOptions(concurrency=BATCH_STREAMS, window_s=seconds, seed=seed + 1)
    thread = threading.Thread(target=lambda: found.append(_measure(server, batch, beside, seconds)))
    if has_batch:
        thread.start()
        time.sleep(min(3.0, 0.1 * seconds))
    records = _measure(server, chat, RunOptions(window_s=seconds, seed=seed), seconds)
    if has_batch:
        thread.join()
    return [*records, *(r for group in found for r in group)]


def good_rps(records: Sequence[RequestRecord], slo: Slo, seconds: float) -> float:
    """Return the chat requests per second that met `slo`."""
    return sum(met(r, slo) for r in records if r.class_name == "chat") / seconds


def attained(records: Sequence[RequestRecord], slo: Slo) -> float:
    """Return the share of chat requests that met `slo`."""
    chat = [r for r in records if r.class_name == "chat"]
    return sum(met(r, slo) for r in chat) / max(1, len(chat))


def _measure(
    server: Server, plan: Sequence[PlannedRequest], options: RunOptions, seconds: float
) -> list[RequestRecord]:
    target = EndpointTarget(url=server.url, engine=server.engine)
    started = time.monotonic()
    limit = seconds + 1.0

    def watch(_snapshot: object) -> str | None:
        return "the window is over" if time.monotonic() - started > limit + 2.0 else None

    return measure_in_process(target, plan, options, lexicon=server.lexicon, warmup_s=0.0, on_progress=watch).records


def _tokens_within(record: RequestRecord, start: float, end: float) -> float:
    """Return the tokens that came within the window; an event counts as the mean of its request, or one if cut off."""
    events = sum(start <= at < end for at in record.event_at)
    return events * (1.0 if record.is_failed else record.output_tokens / max(1, len(record.event_at)))


def _await(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2.0):  # noqa: S310 - our own loopback server
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"no answer at {url}")
