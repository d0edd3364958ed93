"""The loads of `vllm_plugin`: chat that arrives by a Poisson process, beside a backlog that is never empty, or alone.

Lengths are those of `contest`; the TTFT target is some times what a mean prompt takes alone, the TPOT target some times
a decode alone, both as a short profile over HTTP finds them on this machine. The backlog is a client that keeps twice
as many batch requests in flight as the server has sequences. What of a run counts is chat that was due after the
warm-up; tokens are the server's own count between two instants of the run.

The three tiers are those of QoServe: one with chat's targets, two that want the whole answer by a deadline. That is
here 20 and 60 TTFT targets instead of 100 and 300, since a run must outlast the longest.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from statistics import median

import msgspec
from contest import BATCH_LENGTHS, BATCH_OUTPUT_MAX, CHAT_LENGTHS, CHAT_OUTPUT_MAX, WARM_UP
from reporting import say
from vllm_seen import Load, Piece
from vllm_server import Setting, tokens_done

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.process import Snapshot, measure_in_process
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.target import ClassTargets, EndpointTarget
from setpoint.metrics import RequestRecord, met
from setpoint.model import Slo
from setpoint.seeds import stream
from setpoint.units import Seconds
from setpoint.workload import PlannedRequest
from setpoint.workload.arrivals import Steady
from setpoint.workload.traffic import Traffic, plan_traffic

SEQUENCES = 32
"""Sequences that a server may run at once."""
IN_FLIGHT = 2 * SEQUENCES
"""Batch requests that the client of the backlog keeps in flight: there is always one that waits."""
BACKLOG = 4000
LOOSE = 5.0
"""How much longer the loose targets are than the usual ones."""
TIGHT = 0.7
TPOT_TIMES = 3.0
TIERS = {"tier 2": 20.0, "tier 3": 60.0}
"""The lower tiers, with what their end-to-end targets are in TTFT targets of the first."""
BEAT = 200, 16
"""Tokens of prompt and answer of the request that tells how fast the machine is."""
BANDS = {"chat": 0, "tier 2": 1, "tier 3": 2, "batch": 9}
WAIT_MAX_S = 20.0
"""After this the plug-in refuses a chat request; the stock server has no such limit, and needs none to miss."""


def loosened(slo: Slo, times: float = LOOSE) -> Slo:
    """Return targets `times` as long: as they stand, those that any sane order meets."""
    assert slo.ttft_s is not None, "the chat of this benchmark has both"
    assert slo.tpot_s is not None, "as above"
    return msgspec.structs.replace(slo, ttft_s=Seconds(times * slo.ttft_s), tpot_s=Seconds(times * slo.tpot_s))


def tightened(slo: Slo) -> Slo:
    """Return targets that leave little room even where chat is alone."""
    return loosened(slo, TIGHT)


class Client:
    """Asks one server; every run has words of its own, so that no prefix cache has them."""

    def __init__(self, url: str, setting: Setting, lexicon: Lexicon, seed: int) -> None:
        """Ask the server at `url`, in the way in which `setting` wants to be told of classes."""
        self._url = url
        self._setting = setting
        self._lexicon = lexicon
        self._seed = seed
        self._runs = count(1)

    def run(self, load: Load) -> Piece:
        """Offer `load`; return what came of it."""
        number = next(self._runs)
        is_over = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            batch = pool.submit(self._batch, load, number, is_over) if load.has_backlog else None
            watch = pool.submit(self._tokens_per_s, load)
            try:
                chat = self._chat(load, number) if load.rate else self._idle(load.seconds)
                tokens_per_s = watch.result()
            finally:
                is_over.set()
            failed = sum(r.is_failed for r in chat) + (batch.result() if batch is not None else 0)
        piece = Piece.of(load, chat, tokens_per_s, failed)
        if load.rate:
            shares = f"{piece.good} of {len(piece.chat)} in time"
            say(f"  {self._setting.name} at {load.rate:.2f}/s: {shares}, {tokens_per_s:.0f} tokens/s")
        return piece

    def beat(self) -> float:
        """Return the seconds that a request takes which has the server to itself: how fast the machine is now."""
        one = PlannedRequest(id=0, at_s=0.0, prompt_tokens=BEAT[0], output_tokens=BEAT[1], class_name="chat")
        plan = [msgspec.structs.replace(one, id=i) for i in range(3)]
        options = RunOptions(concurrency=1, seed=1000 * next(self._runs) + 700)
        # with targets that bind nobody: the plug-in remembers the tightest that it has seen
        target = self._target(Slo(ttft_s=Seconds(600.0), tpot_s=Seconds(60.0)))
        records = measure_in_process(target, plan, options, lexicon=self._lexicon).records
        return median([r.ended_at - r.scheduled_at for r in records if r.ended_at is not None])

    def tiers(self, rate: float, seconds: float, slo: Slo) -> dict[str, float]:
        """Offer the three tiers, a third of `rate` each; return the attainment of each, and of all."""
        slos = tiers_of(slo)
        plan = sorted(
            [one for name in slos for one in _planned(name, rate / len(slos), self._seed, seconds=seconds)],
            key=lambda one: one.at_s,
        )
        plan = [msgspec.structs.replace(one, id=i) for i, one in enumerate(plan)]
        options = RunOptions(seed=1000 * next(self._runs))
        records = measure_in_process(self._target(slo), plan, options, lexicon=self._lexicon).records
        start = min(r.scheduled_at for r in records) + WARM_UP * seconds
        judged = [(r.class_name, met(r, slos[r.class_name])) for r in records if r.scheduled_at >= start]
        found = {name: _share([good for whose, good in judged if whose == name]) for name in slos}
        found["all"] = _share([good for _, good in judged])
        say(f"  {self._setting.name}, tiers at {rate:.2f}/s: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))
        return found

    def empty(self, chat: int) -> float:
        """Return the chat requests per second at which `chat` of them, all there from the start, are done."""
        plan = _planned("chat", 1e6, self._seed, total=chat)
        records = measure_in_process(self._target(None), plan, RunOptions(), lexicon=self._lexicon).records
        ended = [r.ended_at for r in records if r.ended_at is not None]
        return len(ended) / (max(ended) - min(r.scheduled_at for r in records))

    def _chat(self, load: Load, number: int) -> list[RequestRecord]:
        plan = _planned("chat", load.rate, self._seed, draw=load.draw, seconds=load.seconds)
        options = RunOptions(seed=1000 * number)
        return measure_in_process(self._target(load.slo), plan, options, lexicon=self._lexicon).records

    def _batch(self, load: Load, number: int, is_over: threading.Event) -> int:
        """Keep the backlog in flight until `is_over`; return how many failed, those that were cut off apart."""

        def ends(_: Snapshot) -> str | None:
            return "the chat is over" if is_over.is_set() else None

        plan = _planned("batch", 1.0, self._seed, total=BACKLOG)
        options = RunOptions(concurrency=IN_FLIGHT, seed=1000 * number + 500)
        target = self._target(load.slo)
        records = measure_in_process(target, plan, options, lexicon=self._lexicon, on_progress=ends).records
        return sum(r.is_failed and r.error not in {None, "cancelled"} for r in records)

    def _idle(self, seconds: float) -> list[RequestRecord]:
        time.sleep(seconds)
        return []

    def _tokens_per_s(self, load: Load) -> float:
        """Return the tokens a second that the server computes from the end of the warm-up on."""
        time.sleep(max(1.0, load.start_s))
        began_at, before = time.monotonic(), tokens_done(self._url)
        time.sleep(max(1.0, (1.0 - 0.5 * WARM_UP) * load.seconds - load.start_s))
        return (tokens_done(self._url) - before) / (time.monotonic() - began_at)

    def _target(self, slo: Slo | None) -> EndpointTarget:
        """Return the endpoint; stock `priority` wants a number, the plug-in class and targets, `fcfs` neither."""
        told = {} if slo is None else tiers_of(slo)
        classes = {}
        if self._setting.policy == "priority":
            classes = {name: ClassTargets.of(told.get(name, Slo()), band) for name, band in BANDS.items()}
        elif self._setting.strategy is not None:
            classes = {name: ClassTargets() for name in BANDS} | {"chat": ClassTargets.of(told.get("chat", Slo()))}
        return EndpointTarget(url=self._url, api="completions", model="model", engine="vllm", classes=classes)


def tiers_of(slo: Slo) -> dict[str, Slo]:
    """Return the targets of the three tiers, those of the first being `slo`."""
    assert slo.ttft_s is not None, "the chat of this benchmark has both"
    whole = {name: Slo(percentile=slo.percentile, e2e_s=Seconds(times * slo.ttft_s)) for name, times in TIERS.items()}
    return {"chat": slo, **whole}


def classes_of(slo: Slo) -> dict[str, object]:
    """Return the classes as somebody would configure the plug-in who knows these targets."""
    assert slo.ttft_s is not None, "as above"
    assert slo.tpot_s is not None, "as above"
    ends = {name: {"e2e_s": one.e2e_s} for name, one in tiers_of(slo).items() if one.e2e_s is not None}
    return {"chat": {"ttft_ms": 1e3 * slo.ttft_s, "tpot_ms": 1e3 * slo.tpot_s, "wait_max_s": WAIT_MAX_S}, **ends}


def _share(good: Sequence[bool]) -> float:
    return sum(good) / max(1, len(good))


def _planned(
    name: str, rate: float, seed: int, *, draw: int = 0, seconds: float | None = None, total: int | None = None
) -> list[PlannedRequest]:
    (prompt, output), longest = (
        (BATCH_LENGTHS, BATCH_OUTPUT_MAX) if name == "batch" else (CHAT_LENGTHS, CHAT_OUTPUT_MAX)
    )
    traffic = Traffic(class_name=name, prompt=prompt, output=output)
    plan = plan_traffic([traffic], Steady(rate), partial(stream, seed, draw), duration_s=seconds, count=total)
    return [msgspec.structs.replace(one, output_tokens=min(one.output_tokens, longest)) for one in plan]
