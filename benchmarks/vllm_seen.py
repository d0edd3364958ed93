"""What came of the loads of `vllm_plugin`: pieces put together to rungs, rungs to the rate held, with its interval."""

from collections.abc import Sequence
from random import Random
from statistics import fmean
from typing import NamedTuple, Self

import msgspec
from contest import CHAT_LENGTHS, WARM_UP, Rung, capacity_of

from setpoint.metrics import RequestRecord, met, rank_quantile
from setpoint.model import Slo
from setpoint.seeds import stream

RESAMPLED = 1000
NEVER = float("inf")


class Load(NamedTuple):
    """What is asked of a server: chat at `rate` (0: none) for `seconds`, beside the backlog or not, held to `slo`.

    The first `fill_s`, a tenth at least, do not count. Another `draw` has other arrivals and lengths.
    """

    rate: float
    seconds: float
    slo: Slo
    has_backlog: bool = True
    fill_s: float = 0.0
    draw: int = 0

    @property
    def start_s(self) -> float:
        """When what is seen begins to count."""
        return max(self.fill_s, WARM_UP * self.seconds)


class Piece(NamedTuple):
    """What came of a load at one time: the chat that counts, its targets, tokens per second, requests that failed.

    Everything took `slow` times as long as usual then.
    """

    chat: list[RequestRecord]
    slo: Slo
    tokens_per_s: float
    failed: int
    slow: float = 1.0

    @classmethod
    def of(cls, load: Load, chat: list[RequestRecord], tokens_per_s: float, failed: int) -> Self:
        """Return the piece without what was due in the warm-up."""
        start = min((r.scheduled_at for r in chat), default=0.0) + load.start_s
        return cls([r for r in chat if r.scheduled_at >= start], load.slo, tokens_per_s, failed)

    @property
    def good(self) -> int:
        """How many requests met their targets."""
        return sum(met(r, self.slo) for r in self.chat)

    @property
    def first_in_time(self) -> int:
        """How many had their first token in time."""
        return sum(r.ttft_s is not None and r.ttft_s <= (self.slo.ttft_s or NEVER) for r in self.chat)


class Seen(NamedTuple):
    """What came of a load: the rung, tokens per second of all, and requests that failed."""

    rung: Rung
    tokens_per_s: float
    failed: int
    ttft_p99_s: float
    tpot_p99_s: float
    goodput: float


def judged(load: Load, pieces: Sequence[Piece]) -> Seen:
    """Return what came of a load in all its pieces together, scaled back to how fast the machine usually is."""
    ttft = sorted(NEVER if r.ttft_s is None else r.ttft_s / one.slow for one in pieces for r in one.chat) or [NEVER]
    tpot = sorted(r.tpot_s / one.slow for one in pieces for r in one.chat if r.tpot_s is not None) or [NEVER]
    requests = sum(len(one.chat) for one in pieces)
    attainment = sum(one.good for one in pieces) / max(1, requests)
    tokens_per_s = fmean([one.tokens_per_s * one.slow for one in pieces])
    mean = CHAT_LENGTHS[0].mean + CHAT_LENGTHS[1].mean
    rung = Rung(
        rate=load.rate,
        attainment=attainment,
        ttft_attainment=sum(one.first_in_time for one in pieces) / max(1, requests),
        requests=requests,
        ttft_p95_s=rank_quantile(ttft, 0.95),
        tpot_p95_s=rank_quantile(tpot, 0.95),
        batch_tokens_per_s=max(0.0, tokens_per_s - load.rate * mean) if load.has_backlog else 0.0,
    )
    return Seen(
        rung=rung,
        tokens_per_s=tokens_per_s,
        failed=sum(one.failed for one in pieces),
        ttft_p99_s=rank_quantile(ttft, 0.99),
        tpot_p99_s=rank_quantile(tpot, 0.99),
        goodput=load.rate * attainment,
    )


def rungs_of(seen: Sequence[Seen]) -> list[Rung]:
    """Return the rungs of a ladder."""
    return [one.rung for one in seen]


def held(rungs: Sequence[Rung]) -> float:
    """Return the chat rate held at what was promised; at least the lowest rung, so that ratios stay bounded."""
    return max(capacity_of(rungs), rungs[0].rate)


def ratio_within(these: Sequence[Rung], those: Sequence[Sequence[Rung]], seed: int) -> tuple[float, float]:
    """Return the 90% interval of the rate held by `these` over the best of `those`, from resampled requests.

    Each request of a rung counts for itself: where late ones come in clusters, the interval is too narrow.
    """
    chance = stream(seed, "resampled")
    found = sorted(
        held(_resampled(these, chance)) / max(held(_resampled(rungs, chance)) for rungs in those)
        for _ in range(RESAMPLED)
    )
    return found[RESAMPLED // 20], found[-1 - RESAMPLED // 20]


def _resampled(rungs: Sequence[Rung], chance: Random) -> list[Rung]:
    """Return rungs of as many requests, each in time by chance as often as they were."""
    return [
        msgspec.structs.replace(
            one,
            attainment=sum(chance.random() < one.attainment for _ in range(one.requests)) / max(1, one.requests),
        )
        for one in rungs
    ]
