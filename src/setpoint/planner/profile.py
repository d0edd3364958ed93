"""Profiling an engine: which steps to run, and running them.

A pool of sequences with contexts of geometrically spread lengths is prefilled once, in chunks of many sizes: these
steps are the prefill samples. Then probes are run in rounds, each round all of them in a fresh random order, so that a
machine that slows down for a while spoils no single shape: decodes of so many sequences of the pool, short contexts or
long ones; prompt chunks alone; both together. The median over the rounds is the sample of a probe. Rounds go on until
the time given is spent; a machine so slow that the first round does not end in time is fitted to a part of it.

The executor is driven directly, with no scheduler and no server between.
"""

from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from setpoint.chance import Chance, shuffled
from setpoint.engines.api import Executor, Generation, Sampling
from setpoint.model import Capacity, StepShape, chunk_work
from setpoint.planner.fitting import TINY_S, fit_held_out
from setpoint.steptime.model import Sample, StepTimeModel
from setpoint.units import Seconds, Tokens

DECODES = (1, 2, 4, 8, 16, 32, 64)
CHUNKS = (8, 16, 32, 64, 128, 256, 512)
MIXED_DECODES = (2, 8, 16)
MIXED_CHUNKS = (16, 64)
CONTEXT_MIN, CONTEXT_MAX = 24, 2048
POOL_SHARE, POOL_SHARE_MAX = 0.3, 0.45
POOL_MIN = 4
SAMPLES_MIN = 25
"""For a fit that holds a fifth of them out, and a second one of the rest."""
ROUNDS_MAX = 12
ID_FIRST = -1_000_000

Progress = Callable[[float], None]


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One shape to be measured: `decodes` of the pool (those of long context first, or short), and a prompt chunk."""

    decodes: int = 0
    is_long: bool = False
    chunk: int = 0


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured: the fitted model, the samples (medians), the rounds, and the errors on held-out shapes."""

    model: StepTimeModel
    samples: tuple[Sample, ...]
    rounds: int
    seconds: float
    p95_error: float
    is_cut: bool


def pool_contexts(capacity: Capacity, tokens_max: int) -> list[int]:
    """Return the contexts of the pool, one a slot, shortest first: geometric, within `tokens_max` in all."""
    room = min(tokens_max, capacity.kv_blocks * capacity.block_tokens // 2)
    count = max(1, min(capacity.slots - 1, DECODES[-1], room // CONTEXT_MIN))
    longest = min(CONTEXT_MAX, capacity.context_tokens_max // 2)
    while longest > CONTEXT_MIN and sum(_geometric(count, longest)) > room:
        longest = int(longest * 0.9)
    return _geometric(count, max(longest, CONTEXT_MIN))


def design(capacity: Capacity, pool: int) -> list[Probe]:
    """Return the probes for an engine of `capacity` and a pool of `pool` sequences."""
    widths = [n for n in DECODES if n <= pool]
    if pool not in widths:
        widths.append(pool)
    largest = min(capacity.step_tokens_max, capacity.context_tokens_max // 2)
    chunks = [n for n in CHUNKS if n <= largest]
    probes = [Probe(decodes=n, is_long=is_long) for n in widths for is_long in (False, True) if n < pool or not is_long]
    probes += [Probe(chunk=n) for n in chunks]
    probes += [
        Probe(decodes=n, chunk=m)
        for n in MIXED_DECODES
        for m in MIXED_CHUNKS
        if n <= pool and n + m <= largest and capacity.slots > pool
    ]
    return probes


class Profiler:
    """Drives an idle executor of two slots or more, and leaves it empty.

    `clock` in seconds; `chance` draws prompts and the order of probes.
    """

    def __init__(self, executor: Executor, clock: Callable[[], float], chance: Chance, *, key: str) -> None:
        self._executor, self._clock, self._chance, self._key = executor, clock, chance, key
        self._pool: list[tuple[int, int]] = []
        self._next_id = ID_FIRST
        self._free = list(range(executor.capacity.slots))
        self._slot_of: dict[int, int] = {}
        self._prefills: list[Sample] = []
        self._seen: dict[Probe, list[Sample]] = {}
        self.rounds = 0

    def run(self, budget_s: float, on_progress: Progress = lambda _: None) -> Profile:
        """Profile for about `budget_s` seconds; `on_progress` is told the share of them that is spent.

        KeyboardInterrupt ends it early with what was measured, if that suffices for a fit, and is raised again if not.
        """
        start = self._clock()
        is_cut = False
        try:
            self._fill_pool(start, budget_s, on_progress)
            probes = design(self._executor.capacity, len(self._pool))
            while self._goes_on(start, budget_s):
                self._round(probes, lambda: on_progress(min(1.0, (self._clock() - start) / budget_s)), start + budget_s)
        except KeyboardInterrupt:
            is_cut = True
            if len(self._samples()) < SAMPLES_MIN:
                raise
        finally:
            self._release_all()
        return self._profile(self._clock() - start, is_cut=is_cut)

    # ------------------------------------------------------------------------------------------------------- steps

    def _fill_pool(self, start: float, budget_s: float, on_progress: Progress) -> None:
        """Measure the prefill rate on two throw-away prompts, then prefill as much of a pool as time allows."""
        largest = min(128, self._executor.capacity.step_tokens_max, self._executor.capacity.context_tokens_max // 2)
        self._chunk_alone(largest)
        rate = largest / self._chunk_alone(largest)
        for context in pool_contexts(self._executor.capacity, max(256, int(rate * budget_s * POOL_SHARE))):
            request_id = self._open(context)
            done = 0
            while done < context:
                tokens = min(context - done, CHUNKS[self._chance.randrange(len(CHUNKS))])
                tokens = min(tokens, self._executor.capacity.step_tokens_max)
                shape = StepShape(0, 0, tokens, chunk_work(done, tokens), 1)
                self._prefills.append((shape, self._timed([], [(request_id, tokens)])))
                done += tokens
            self._pool.append((request_id, context))
            if len(self._pool) >= POOL_MIN and self._clock() - start > budget_s * POOL_SHARE_MAX:
                break
            on_progress(min(1.0, (self._clock() - start) / budget_s))

    def _goes_on(self, start: float, budget_s: float) -> bool:
        is_wanted = self._clock() - start < budget_s or len(self._samples()) < SAMPLES_MIN
        return is_wanted and self.rounds < ROUNDS_MAX

    def _round(self, probes: Sequence[Probe], tick: Callable[[], None], end: float) -> None:
        for probe in shuffled(probes, self._chance):
            self._seen.setdefault(probe, []).append(self._probe(probe))
            tick()
            if self._clock() > end and len(self._samples()) >= SAMPLES_MIN:
                return
        self.rounds += 1

    def _probe(self, probe: Probe) -> Sample:
        ordered = sorted(range(len(self._pool)), key=lambda i: self._pool[i][1], reverse=probe.is_long)
        chosen = ordered[: probe.decodes]
        context = sum(self._pool[i][1] for i in chosen)
        ids = [self._pool[i][0] for i in chosen]
        request_id = self._open(probe.chunk) if probe.chunk else None
        prefills = [] if request_id is None else [(request_id, probe.chunk)]
        shape = StepShape(len(ids), context, probe.chunk, chunk_work(0, probe.chunk), len(prefills))
        seconds = self._timed(ids, prefills)
        for i in chosen:
            self._pool[i] = (self._pool[i][0], self._pool[i][1] + 1)
        if request_id is not None:
            self._close(request_id)
        return shape, seconds

    def _chunk_alone(self, tokens: int) -> Seconds:
        request_id = self._open(tokens)
        seconds = self._timed([], [(request_id, tokens)])
        self._close(request_id)
        return seconds

    def _timed(self, decodes: list[int], prefills: list[tuple[int, int]]) -> Seconds:
        start = self._clock()
        self._executor.run(decodes, prefills)
        return Seconds(max(self._clock() - start, TINY_S))

    # ------------------------------------------------------------------------------------------------------- holding

    def _open(self, prompt_tokens: int) -> int:
        """Take a prompt of random tokens into a free slot; nothing of it is shared with another."""
        self._next_id -= 1
        prompt = tuple(100 + self._chance.randrange(400) for _ in range(prompt_tokens))
        sampling = Sampling(temperature=0.0, is_eos_ignored=True)
        generation = Generation(prompt=prompt, class_name="", output_tokens_max=Tokens(1024), sampling=sampling)
        self._executor.prepare(self._next_id, generation)
        self._slot_of[self._next_id] = slot = self._free.pop()
        self._executor.admit(self._next_id, slot)
        return self._next_id

    def _close(self, request_id: int) -> None:
        self._executor.release(request_id)
        self._free.append(self._slot_of.pop(request_id))

    def _release_all(self) -> None:
        for request_id in list(self._slot_of):
            self._close(request_id)

    # -------------------------------------------------------------------------------------------------------- fitting

    def _samples(self) -> list[Sample]:
        medians = []
        for samples in self._seen.values():
            middle = median(seconds for _, seconds in samples)
            # the context grows by a token a round: the middle one stands for all
            medians.append((samples[len(samples) // 2][0], Seconds(middle)))
        samples = [*medians, *self._prefills[:: max(1, len(self._prefills) // 40)]]
        if len(samples) >= SAMPLES_MIN:
            return samples
        # an engine so small that it has few shapes: every repeat counts
        return [*(sample for group in self._seen.values() for sample in group), *self._prefills]

    def _profile(self, seconds: float, *, is_cut: bool) -> Profile:
        steps = [sample for group in self._seen.values() for sample in group]
        fitted = fit_held_out(self._samples(), steps, self._chance, key=self._key)
        return Profile(
            model=fitted.model,
            samples=fitted.samples,
            rounds=max(1, self.rounds),
            seconds=seconds,
            p95_error=fitted.p95_error,
            is_cut=is_cut,
        )


def _geometric(count: int, longest: int) -> list[int]:
    if count == 1:
        return [longest]
    growth = (longest / CONTEXT_MIN) ** (1.0 / (count - 1))
    return [round(CONTEXT_MIN * growth**index) for index in range(count)]
