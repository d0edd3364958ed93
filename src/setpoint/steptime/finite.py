"""A run of so many requests on one replica, followed from its first step to its last.

Published benchmarks hand over a hundred requests at once, or at a rate for a few seconds: the batch fills, thins out
and ends with the longest answers, so that no steady state describes it. Here prompts are taken in first come, first
served, a budget a step, and the steps between two changes of the batch are advanced at once. Lengths are the quantiles
of a lognormal distribution in a fixed shuffled order: nothing is drawn.
"""

from collections.abc import Sequence
from functools import cache
from heapq import heappop, heappush
from math import exp, log, sqrt
from statistics import NormalDist

import msgspec

from setpoint.steptime.steady import Replica

_GOLDEN = 0.6180339887498949


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What a finite run did: mean output rate, medians of TTFT and TPOT, requests that ran at once at most."""

    output_tokens_per_s: float
    ttft_s: float
    tpot_s: float
    seconds: float
    peak_sequences: int


@cache
def lengths(count: int, mean: float, spread: float, *, stride: float = _GOLDEN) -> tuple[int, ...]:
    """Return `count` lengths of this mean, lognormal with coefficient of variation `spread` (0: all equal)."""
    if spread <= 0.0:
        return (max(1, round(mean)),) * count
    sigma = sqrt(log(1.0 + spread * spread))
    normal = NormalDist()
    values = [exp(sigma * normal.inv_cdf((((i + 1) * stride) % 1.0) * 0.998 + 0.001)) for i in range(count)]
    scale = mean * count / sum(values)
    return tuple(max(1, round(v * scale)) for v in values)


class _State:
    """The batch: who decodes (a heap by the decode at which each ends), sums over it, and the requests not begun."""

    def __init__(self, replica: Replica, prompts: Sequence[int], outputs: Sequence[int], gap_s: float) -> None:
        self.replica = replica
        self.prompts, self.outputs, self.gap_s = prompts, outputs, gap_s
        self.now = 0.0
        self.decoded = 0
        self.ends: list[tuple[int, int]] = []
        self.context = 0.0
        self.held = 0.0
        self.next = 0
        self.left = 0
        self.first: list[float] = [0.0] * len(prompts)
        self.tpots: list[float] = []
        self.peak = 0

    def cost(self, request: int) -> float:
        """Return the KV tokens that a request is charged: its prompt and three quarters of its answer."""
        return self.prompts[request] + 0.75 * self.outputs[request]

    def take_in(self, room: float) -> tuple[int, float, int, list[int]]:
        """Return (tokens, pairs, chunks, requests whose prompt is done) of the prompts taken in at this step."""
        tokens, work, chunks = 0, 0.0, 0
        done: list[int] = []
        budget = self.replica.limits.budget_tokens
        slots = self.replica.limits.sequences_max - len(self.ends)
        while self.next < len(self.prompts) and tokens < budget:
            if not self.left:
                is_first = not self.ends and not done
                charge = self.held + self.cost(self.next)
                if self.next * self.gap_s > self.now or slots <= len(done) or (charge > room and not is_first):
                    break
                self.left, self.held = self.prompts[self.next], charge
            chunk = min(self.left, budget - tokens)
            before = self.prompts[self.next] - self.left
            tokens, chunks, self.left = tokens + chunk, chunks + 1, self.left - chunk
            work += chunk * (before + 0.5 * chunk)
            if not self.left:
                done.append(self.next)
                self.next += 1
        return tokens, work, chunks, done

    def advance(self, steps: int, taken: tuple[int, float, int, list[int]]) -> None:
        """Run `steps` steps, the first of which takes in what was `taken`; then end and begin sequences."""
        tokens, work, chunks, done = taken
        decodes = len(self.ends)
        middle = self.context + decodes * (steps - 1) * 0.5
        self.now += steps * self.replica.step.seconds_of(decodes, middle, tokens, work, chunks)
        self.decoded += steps
        self.context += decodes * steps
        while self.ends and self.ends[0][0] <= self.decoded:
            self.finish(heappop(self.ends)[1])
        for request in done:
            self.first[request] = self.now
            self.context += self.prompts[request]
            heappush(self.ends, (self.decoded + max(1, self.outputs[request] - 1), request))
        self.peak = max(self.peak, len(self.ends))

    def finish(self, request: int) -> None:
        """Let go of a sequence that is done."""
        decodes = max(1, self.outputs[request] - 1)
        self.context -= self.prompts[request] + decodes
        self.held -= self.cost(request)
        self.tpots.append((self.now - self.first[request]) / decodes)

    def steps_alike(self) -> int:
        """Return how many steps pass before the batch changes, at least one."""
        steps = self.ends[0][0] - self.decoded
        if self.next < len(self.prompts):
            wait_s = self.next * self.gap_s - self.now
            if wait_s > 0.0:
                pace = self.replica.step.seconds_of(len(self.ends), self.context)
                steps = min(steps, int(wait_s / pace) + 1)
        return max(1, steps)


def finite_run(replica: Replica, prompts: Sequence[int], outputs: Sequence[int], gap_s: float = 0.0) -> Run | None:
    """Return what a run of these requests does, one arriving every `gap_s`; `None` when not even one fits."""
    if not prompts or not replica.fit.is_fitting:
        return None
    mean = sum(prompts) / len(prompts) + 0.75 * sum(outputs) / len(outputs)
    room = replica.fit.sequences(mean) * mean
    state = _State(replica, prompts, outputs, gap_s)
    while state.ends or state.next < len(prompts):
        taken = state.take_in(room)
        if not taken[0] and not state.ends:
            state.now = state.next * gap_s
            continue
        state.advance(1 if taken[0] else state.steps_alike(), taken)
    waits = [first - i * gap_s for i, first in enumerate(state.first)]
    return Run(
        output_tokens_per_s=sum(outputs) / state.now,
        ttft_s=_median(waits),
        tpot_s=_median(state.tpots),
        seconds=state.now,
        peak_sequences=state.peak,
    )


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])
