"""Profiles an endpoint that only answers HTTP: planned loads whose steps can be read off the tokens' instants.

Three kinds of load, each small, in rounds until the time is spent (see `setpoint.planner.step_samples` for what is read
off each):

- *lone*: prompts of many lengths, one after the other, on an idle engine;
- *together*: n requests at once with answers of like length, so that for a while exactly n sequences decode: n from 1
  to the slots by doubling, with short prompts and with long ones;
- *beside*: n long answers that are the clock, and prompts of many lengths, one after the other, beside them.

No prompt comes twice, so that a prefix cache has nothing. What the fit has not seen (every fifth sample) gives the
error; single steps against the fit give the tail.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from setpoint.chance import Chance, shuffled
from setpoint.errors import EngineError
from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.process import measure_in_process
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import RequestRecord
from setpoint.model import StepShape
from setpoint.planner.fitting import fit_held_out
from setpoint.planner.step_samples import Seen, outside_s, read_decoding, read_prompts
from setpoint.steptime.learner import FixedStepTime
from setpoint.steptime.model import StepTimeModel
from setpoint.units import Seconds
from setpoint.workload import PlannedRequest

Kind = Literal["lone", "together", "beside"]

PROMPT_MIN = 16
TOGETHER_OUTPUT, TOGETHER_TOKENS = 40, 4096
CLOCK_OUTPUT = 120
PROBE_OUTPUT = 2
SAMPLES_MIN = 26
ROUNDS_MAX = 20
_SHORT, _LONG = 24, 0.4


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How far a profile goes: sequences at once, and tokens of a prompt and of a sequence at most."""

    slots: int = 16
    prompt_max: int = 1024
    context_tokens: int = 2048


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One load: `streams` at once, of which all but one are the clocks of a load of the kind `beside`."""

    kind: Kind
    streams: int
    plan: tuple[PlannedRequest, ...]

    def words(self) -> str:
        """Return the load as a person reads it."""
        if self.kind == "lone":
            return f"{len(self.plan)} prompts on an idle engine"
        if self.kind == "together":
            return f"{self.streams} answers at once behind {self.plan[0].prompt_tokens} prompt tokens each"
        return f"{len(self.plan) - self.streams + 1} prompts beside {self.streams - 1} answers"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a profile found; `outside_s`: seconds of a request outside of steps; `p95_error`: of samples not seen."""

    model: StepTimeModel
    outside_s: float
    seen: Seen
    rounds: int
    p95_error: float


Carry = Callable[[Load, int], Sequence[RequestRecord]]
"""Carries out a load with a seed of its own, and returns what was measured."""


def carry_over_http(target: EndpointTarget, lexicon: Lexicon) -> Carry:
    """Return what carries out loads at an endpoint, from a process of its own."""

    def carry(load: Load, seed: int) -> Sequence[RequestRecord]:
        options = RunOptions(concurrency=load.streams, connections=load.streams, seed=seed)
        return measure_in_process(target, load.plan, options, lexicon=lexicon, warmup_s=0.0).records

    return carry


def loads_of(limits: Limits, chance: Chance) -> list[Load]:
    """Return the loads of one round, the prompts of each in an order of its own.

    They go from both ends to the middle, so that a round that is cut short has seen the extremes.
    """
    ladder = _doubled(1, limits.slots)
    grid = _doubled(PROMPT_MIN, limits.prompt_max)
    long_prompt = max(_SHORT, min(limits.prompt_max, int(_LONG * limits.context_tokens)))
    found = [Load(kind="lone", streams=1, plan=_prompts(shuffled(grid, chance)))]
    clocks = sorted({1, max(1, limits.slots // 4), limits.slots - 1} - {0}) if limits.slots > 1 else []
    for place, count in enumerate(_inwards(ladder)):
        found.append(_together(count, min(_SHORT, long_prompt)))
        if count in {ladder[0], ladder[len(ladder) // 2], ladder[-1]}:
            found.append(_together(count, max(_SHORT, min(long_prompt, TOGETHER_TOKENS // count))))
        if place < len(clocks):
            beside = _inwards(clocks)[place]
            room = limits.context_tokens - _SHORT
            first = [_request(i, _SHORT, min(CLOCK_OUTPUT, room)) for i in range(beside)]
            found.append(Load(kind="beside", streams=beside + 1, plan=(*first, *_probes(grid, beside, chance))))
    return found


def _probes(grid: Sequence[int], first_id: int, chance: Chance) -> tuple[PlannedRequest, ...]:
    return _prompts(shuffled(grid, chance), first_id=first_id)


def _inwards(values: Sequence[int]) -> list[int]:
    """Return the values from both ends to the middle."""
    left = list(values)
    return [left.pop(0 if i % 2 == 0 else -1) for i in range(len(values))]


def read(load: Load, records: Sequence[RequestRecord]) -> Seen:
    """Return what the records of a load tell of steps."""
    if load.kind == "together":
        return read_decoding(records)
    return read_prompts(records, load.streams - 1)


def profile(
    limits: Limits,
    carry: Carry,
    chance: Chance,
    *,
    key: str,
    is_over: Callable[[], bool],
    on_load: Callable[[Load], None] = lambda _: None,
) -> Outcome:
    """Run rounds of loads until `is_over` and enough was seen, and fit; raises `EngineError` when it never is."""
    seen, rounds, seed = Seen(), 0, 0
    while rounds < ROUNDS_MAX and not (is_over() and _is_enough(seen, limits)):
        for load in loads_of(limits, chance):
            seed += 1
            on_load(load)
            records = carry(load, seed)
            _refuse_failure(records)
            seen.add(read(load, records))
            if is_over() and _is_enough(seen, limits):
                break
        rounds += 1
    if not seen.chunk_max:
        seen.add(_alone(seen))
    return _fitted(seen, chance, key, rounds)


def _is_enough(seen: Seen, limits: Limits) -> bool:
    if limits.slots == 1:
        return len(seen.samples) + len(seen.lone) >= SAMPLES_MIN
    return len(seen.samples) >= SAMPLES_MIN and seen.chunk_max > 0


def _alone(seen: Seen) -> Seen:
    """Return lone prompts as steps: on an engine of one sequence none runs beside another, and nothing tells more."""
    shapes = [StepShape(0, 0, tokens, 0.5 * tokens**2, 1) for tokens, _ in seen.lone]
    samples = [(shape, Seconds(seconds)) for shape, (_, seconds) in zip(shapes, seen.lone, strict=True)]
    return Seen(samples=samples, chunk_max=max((tokens for tokens, _ in seen.lone), default=0))


def _fitted(seen: Seen, chance: Chance, key: str, rounds: int) -> Outcome:
    if len(seen.samples) < SAMPLES_MIN or not seen.lone:
        raise EngineError(
            f"only {len(seen.samples)} steps could be read off the tokens, and {SAMPLES_MIN} are the least",
            hint="the server must stream one token an event, and must not refuse: give --slots as it was run with",
        )
    fitted = fit_held_out(seen.samples, seen.gaps, chance, key=key)
    return Outcome(
        model=fitted.model,
        outside_s=outside_s(seen.lone, FixedStepTime(fitted.model), seen.chunk_max),
        seen=seen,
        rounds=rounds,
        p95_error=fitted.p95_error,
    )


def _refuse_failure(records: Sequence[RequestRecord]) -> None:
    failed = [record for record in records if record.is_failed]
    if failed and len(failed) == len(records):
        first = failed[0]
        raise EngineError(
            f"{len(failed)} of {len(records)} requests failed ({first.error}): {first.detail}",
            hint="ask for less at once (--slots), or for shorter prompts (--prompt-max)",
        )


def _together(count: int, prompt: int) -> Load:
    plan = tuple(_request(i, prompt, TOGETHER_OUTPUT) for i in range(count))
    return Load(kind="together", streams=count, plan=plan)


def _prompts(lengths: Sequence[int], first_id: int = 0) -> tuple[PlannedRequest, ...]:
    return tuple(_request(first_id + i, length, PROBE_OUTPUT) for i, length in enumerate(lengths))


def _request(number: int, prompt: int, output: int) -> PlannedRequest:
    return PlannedRequest(id=number, at_s=0.0, prompt_tokens=prompt, output_tokens=output)


def _doubled(least: int, most: int) -> list[int]:
    """Return least, twice that, and so on, and `most` at the end."""
    found = []
    value = least
    while value < most:
        found.append(value)
        value *= 2
    return [*found, most]
