"""A plan made to fit another machine: time stretched, lengths clipped or scaled, a part cut out.

Whoever scales a recorded workload says so beside the figure: `describe` gives the words.
"""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from setpoint.errors import WorkloadError
from setpoint.workload.plan import PlannedRequest

Plan = list[PlannedRequest]


def mean_rps(plan: Sequence[PlannedRequest]) -> float:
    """Return the mean rate of arrivals in requests per second: gaps over span. Raises WorkloadError below two."""
    span = max(one.at_s for one in plan) - min(one.at_s for one in plan) if plan else 0.0
    if span <= 0.0:
        raise WorkloadError(
            "a workload of fewer than two instants has no rate", hint="give a trace of two requests at least"
        )
    return (len(plan) - 1) / span


def stretch(plan: Iterable[PlannedRequest], factor: float) -> Plan:
    """Return the plan with all times multiplied by `factor` (2 halves the rate); think times are people's own."""
    if not factor > 0.0:
        raise WorkloadError(
            f"time can only be stretched by a positive factor, not {factor:g}", hint="2 halves the rate"
        )
    return [replace(one, at_s=one.at_s * factor) for one in plan]


def at_rate(plan: Sequence[PlannedRequest], rps: float) -> Plan:
    """Return the plan stretched to a mean rate of `rps` requests per second."""
    if not rps > 0.0:
        raise WorkloadError(f"the rate must be positive, not {rps:g}", hint="give requests a second, such as 2.5")
    return stretch(plan, mean_rps(plan) / rps)


def clip(plan: Iterable[PlannedRequest], *, prompt_max: int | None = None, output_max: int | None = None) -> Plan:
    """Return the plan with longer prompts and answers cut to the maximum."""
    return [
        _resized(one, min(one.prompt_tokens, prompt_max or one.prompt_tokens), _least(one, output_max)) for one in plan
    ]


def scale_lengths(plan: Iterable[PlannedRequest], *, prompt: float = 1.0, output: float = 1.0) -> Plan:
    """Return the plan with prompt and answer lengths multiplied, rounded, and kept at 1 or more."""
    if not (prompt > 0.0 and output > 0.0):
        raise WorkloadError("lengths can only be scaled by positive factors", hint="0.5 halves them")
    return [
        _resized(one, max(1, round(one.prompt_tokens * prompt)), max(1, round(one.output_tokens * output)))
        for one in plan
    ]


def window(plan: Iterable[PlannedRequest], *, start_s: float = 0.0, end_s: float | None = None) -> Plan:
    """Return the requests due in [start, end), with times that count from the start."""
    kept = [one for one in plan if one.at_s >= start_s and (end_s is None or one.at_s < end_s)]
    return [replace(one, at_s=one.at_s - start_s) for one in kept]


def renumber(plan: Iterable[PlannedRequest]) -> Plan:
    """Return the plan in order of time, with ids from 0."""
    return [replace(one, id=number) for number, one in enumerate(sorted(plan, key=lambda one: one.at_s))]


def _least(one: PlannedRequest, output_max: int | None) -> int:
    return min(one.output_tokens, output_max or one.output_tokens)


def _resized(one: PlannedRequest, prompt_tokens: int, output_tokens: int) -> PlannedRequest:
    ratio = prompt_tokens / one.prompt_tokens if one.prompt_tokens else 1.0
    blocks = one.prefix_blocks[: -(-prompt_tokens // one.block_tokens)]
    prefix = min(prompt_tokens, round(one.prefix_tokens * ratio))
    return replace(
        one, prompt_tokens=prompt_tokens, output_tokens=output_tokens, prefix_blocks=blocks, prefix_tokens=prefix
    )
