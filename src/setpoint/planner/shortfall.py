"""Why no load meets the targets, and what would: each remedy computed from what was measured, none guessed.

The trial that needs the least loosening is the witness. Its remedies: targets or a percentile that this very trial
meets; the longest prompt whose first token is in time, from the fitted step time and the waiting that was measured; and
weights in a smaller type, whose steps were measured too. A remedy that would not suffice is not offered.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from setpoint.model import ServiceClass, StepShape, chunk_work
from setpoint.planner.decide import round_up
from setpoint.planner.holding import highest, least_scale
from setpoint.planner.trial import ClassTrial, Trial
from setpoint.steptime.model import StepTimeModel

Objective = Literal["ttft", "tpot", "e2e", "failures", "load"]
PROMPT_MIN = 8
BITS: dict[str, float] = {"q8_0": 8.5, "q4_0": 4.5}
"""Bits a weight, scales included (ggml block layouts), of the types that `--quantize` makes."""


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that would meet the targets. `basis`: whether it was seen in a trial or follows from the step time."""

    kind: Literal["target", "percentile", "prompt", "quantization"]
    text: str
    value: float
    basis: Literal["measured", "predicted"]


class Shortfall(msgspec.Struct, frozen=True, kw_only=True):
    """Which target fails, at which load, by how much; latencies in seconds.

    `value_s` is the latency at the percentile of the class, `None` when failed requests reach it.
    """

    class_name: str
    objective: Objective
    percentile: float
    target_s: float | None
    value_s: float | None
    over_ratio: float | None
    strategy: str
    rate_rps: float
    is_met_idle: bool | None
    remedies: tuple[Remedy, ...]


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the engine beside its trials.

    Its step times, the median and the P95 of the prompts of the class, and the step times with weights in `others`.
    """

    model: StepTimeModel
    prompt_typical: int
    prompt_long: int
    others: dict[str, StepTimeModel] = {}


def explain(
    measured: Mapping[str, Sequence[Trial]], classes: Mapping[str, ServiceClass], engine: Engine
) -> Shortfall | None:
    """Return the shortfall of the trial that needs the least loosening, or `None` when nothing usable was measured."""
    found = [(least[1], name, least[0]) for name, one in measured.items() if (least := least_scale(one)) is not None]
    if not found:
        return None
    _, strategy, index = min(found)
    trial = measured[strategy][index]
    worst = trial.worst()
    if worst is None:
        return None
    service_class = classes[worst.class_name]
    objective, target, value = binding(worst, service_class)
    idle = None if target is None else idle_s(engine, objective)
    return Shortfall(
        class_name=worst.class_name,
        objective=objective,
        percentile=service_class.slo.percentile,
        target_s=target,
        value_s=value,
        over_ratio=None if target is None or value is None else value / target - 1.0,
        strategy=strategy,
        rate_rps=trial.rate_rps,
        is_met_idle=None if idle is None or target is None else idle <= target,
        remedies=tuple(_remedies(measured, worst, service_class, engine, objective, trial)),
    )


def binding(one: ClassTrial, service_class: ServiceClass) -> tuple[Objective, float | None, float | None]:
    """Return (objective, target, latency at the percentile) of the objective that exceeds its target the most."""
    slo = service_class.slo
    targets: dict[Objective, float | None] = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "e2e": slo.e2e_s}
    if one.scale is not None and one.scale.value is None:
        return "failures", None, None
    ratios: list[tuple[float, Objective, float, float | None]] = []
    for which, target in targets.items():
        if target is not None:
            value = _at(one, which, slo.percentile)
            ratios.append((math.inf if value is None else value / target, which, target, value))
    if not ratios:
        return "load", None, None
    _, objective, target_s, value_s = max(ratios, key=lambda ratio: ratio[0])
    return objective, target_s, value_s


def _at(one: ClassTrial, which: str, percentile: float) -> float | None:
    near = min(one.latencies[which], key=lambda quantile: abs(quantile.q - percentile))
    return near.value


def idle_s(engine: Engine, objective: Objective) -> float | None:
    """Return the predicted latency on an idle machine of a long prompt's first token, or of one decode step."""
    if objective == "ttft":
        return prefill_s(engine.model, engine.prompt_long)
    if objective == "tpot":
        return engine.model.predict(StepShape(1, engine.prompt_long))
    return None


def prefill_s(model: StepTimeModel, tokens: int) -> float:
    """Return the predicted seconds of a prompt of `tokens` computed in one step of its own."""
    return model.predict(StepShape(0, 0, tokens, chunk_work(0, tokens), 1))


def longest_prompt(model: StepTimeModel, limit_s: float, most: int = 1 << 17) -> int:
    """Return the longest prompt that is predicted to be computed within `limit_s` (0: none), by bisection."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if prefill_s(model, middle) <= limit_s else (low, middle - 1)
    return low


def _remedies(
    measured: Mapping[str, Sequence[Trial]],
    worst: ClassTrial,
    service_class: ServiceClass,
    engine: Engine,
    objective: Objective,
    trial: Trial,
) -> list[Remedy]:
    found = [
        _looser_target(measured, service_class, trial.scale),
        _looser_percentile(worst, service_class),
        _shorter_prompt(worst, service_class, engine) if objective == "ttft" else None,
        _smaller_weights(trial, engine),
    ]
    return [one for one in found if one is not None]


def _looser_target(measured: Mapping[str, Sequence[Trial]], service_class: ServiceClass, scale: float) -> Remedy | None:
    if math.isinf(scale):
        return None
    factor = round_up(scale)
    held = {name: one for name, trials in measured.items() if (one := highest(trials, factor=factor)) is not None}
    if not held:
        return None
    name, best = max(held.items(), key=lambda item: item[1].rate_rps)
    slo = service_class.slo
    parts = [
        f"{label} {target * factor * 1e3:.0f} ms"
        for label, target in (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s))
        if target is not None
    ]
    text = f"targets {factor:g} times as long ({', '.join(parts)}) held at {best.rate_rps:.3g} requests/s with {name}"
    return Remedy(kind="target", text=text, value=factor, basis="measured")


def _looser_percentile(worst: ClassTrial, service_class: ServiceClass) -> Remedy | None:
    if worst.attainment is None:
        return None
    percent = math.floor(worst.attainment.value * 100.0 + 1e-9)
    asked = service_class.slo.percentile * 100.0
    if not 0 < percent < asked:
        return None
    text = f"a promise to {percent} % of the requests instead of {asked:g} % was kept at this load, targets unchanged"
    return Remedy(kind="percentile", text=text, value=percent / 100.0, basis="measured")


def _shorter_prompt(worst: ClassTrial, service_class: ServiceClass, engine: Engine) -> Remedy | None:
    """Take what the measured median has over the predicted one as unavoidable, and the tail ratio as noise."""
    target, typical = service_class.slo.ttft_s, worst.quantile("ttft", 0.5).value
    if target is None or typical is None:
        return None
    overhead = max(0.0, typical - prefill_s(engine.model, engine.prompt_typical))
    longest = longest_prompt(engine.model, (target - overhead) / engine.model.tail_ratio)
    if not PROMPT_MIN <= longest < engine.prompt_long:
        return None
    text = (
        f"prompts of at most {longest} tokens (P95 is {engine.prompt_long}) would have their first token in time at "
        f"this load: {overhead * 1e3:.0f} ms of waiting beside {(target - overhead) * 1e3:.0f} ms of computing"
    )
    return Remedy(kind="prompt", text=text, value=float(longest), basis="predicted")


def _smaller_weights(trial: Trial, engine: Engine) -> Remedy | None:
    """Offer a type whose steps were measured to be so much faster that the targets would be met.

    When every step takes at most `ratio` of its time, so does every latency at the same load, and waiting even less:
    the scale of the witness times the ratio is an upper bound.
    """
    for name, other in engine.others.items():
        ratio = slowest_ratio(engine, other)
        if trial.scale * ratio > 1.0:
            continue
        before, after = (prefill_s(model, engine.prompt_long) * 1e3 for model in (engine.model, other))
        text = (
            f"weights as {name} would bring every latency to {ratio:.0%} or less of what it was: their steps were "
            f"measured too (a prompt of {engine.prompt_long} tokens: {after:.0f} instead of {before:.0f} ms); "
            f"--quantize {name}"
        )
        return Remedy(kind="quantization", text=text, value=ratio, basis="predicted")
    return None


def slowest_ratio(engine: Engine, other: StepTimeModel) -> float:
    """Return the step time of `other` over that of the engine, for the kind of step that gains the least."""
    context = engine.prompt_long
    shapes = [StepShape(n, n * context) for n in (1, 4)]
    shapes += [StepShape(0, 0, n, chunk_work(0, n), 1) for n in (engine.prompt_typical, engine.prompt_long)]
    return max(other.predict(shape) / engine.model.predict(shape) for shape in shapes)


def smaller_types(weight_bits: float) -> list[str]:
    """Return the types of `BITS` that are smaller than weights of so many bits."""
    return [name for name, bits in BITS.items() if bits < weight_bits * 0.95]
