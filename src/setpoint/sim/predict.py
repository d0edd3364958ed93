"""Predicts a published point: the solver that fits its load, over the roofline of its set-up."""

from collections.abc import Callable

import msgspec

from setpoint.sim.published import Metric, Point
from setpoint.steptime.architecture import Architecture
from setpoint.steptime.calibrate import Case, log_ratio
from setpoint.steptime.efficiency import Calibration
from setpoint.steptime.finite import finite_run, lengths
from setpoint.steptime.hardware import Hardware
from setpoint.steptime.memory import fit
from setpoint.steptime.roofline import roofline
from setpoint.steptime.setup import Setup
from setpoint.steptime.steady import Estimate, Replica, StepSeconds, disaggregated

Predicted = dict[Metric, float]
Source = Callable[[Setup, Point], StepSeconds | None]
"""Gives the step time of a set-up, or `None` where it has none."""

_AT_CAPACITY = 0.85
"""A load nearer than this to the predicted capacity is within the model's own error of it: taken as at capacity."""

_MEAN_OF_P99 = 0.88
"""A P99 limit on TPOT allows this share of it as the mean (MLPerf rows that sit at their limit)."""

_OTHER_STRIDE = 0.7548776662466927
"""Shuffles prompts otherwise than outputs, so that the two are not correlated (plastic number)."""


WEIGHTS: dict[Metric, float] = {"throughput": 1.0, "tpot": 1.0, "ttft": 0.7, "prefill": 0.3}
"""How much each metric counts in a fit."""


def predict(
    point: Point,
    architecture: Architecture,
    hardware: Hardware,
    calibration: Calibration,
    *,
    source: Source | None = None,
) -> Predicted:
    """Return the predicted value of every metric that the load has; empty when the model does not fit.

    The step time comes from `source`, by default the roofline under `calibration`.

    Of several possible layouts the one with the highest throughput is taken, as a submitter would.
    """
    best: Predicted = {}
    efficiency = calibration.of(engine=point.engine, generation=hardware.generation)
    for layout in point.layouts:
        setup = Setup(architecture=architecture, hardware=hardware, quantization=point.quantization, layout=layout)
        if source is not None:
            step = source(setup, point)
        else:
            step = roofline(setup, calibration, engine=point.engine, is_streamed=point.is_streamed)
        found = {} if step is None else _with_step(point, setup, step)
        if found.get("throughput", 0.0) > best.get("throughput", 0.0):
            best = found
    if point.is_served and "ttft" in best:
        best["ttft"] += efficiency.request_s
    return best


def _with_step(point: Point, setup: Setup, step: StepSeconds) -> Predicted:
    layout, room = setup.layout, fit(setup)
    if point.kind == "single":
        return _single(point, Replica(step=step, fit=room, limits=point.limits))
    if not room.is_fitting:
        return {}
    share = msgspec.structs.replace(room, kv_room_bytes=room.kv_room_bytes / layout.pipeline)
    replica = Replica(step=step, fit=share, limits=point.limits)
    replicas = point.gpus // layout.gpus * layout.pipeline
    if point.kind in ("static", "finite"):
        return _finite(point, replica, replicas)
    if point.kind == "disaggregated":
        prefills, decodes = point.workers
        return _of(disaggregated(replica, prefills, replica, decodes, point.lengths, point.concurrency), 1)
    return _steady(point, replica, replicas)


def _single(point: Point, replica: Replica) -> Predicted:
    """Return the values of one request at a time; tests of prefill and decode apart start from an empty cache."""
    prompt, output = point.lengths.prompt_tokens, point.lengths.output_tokens
    context = output / 2 if point.is_separate_test else point.lengths.held
    tpot_s = replica.step.seconds_of(1.0, context)
    chunks = max(1.0, prompt / point.limits.budget_tokens)
    chunk = prompt / chunks
    ttft_s = chunks * replica.step.seconds_of(0.0, 0.0, chunk, chunk * prompt / 2, 1.0)
    throughput = 1.0 / tpot_s if point.is_separate_test else output / (ttft_s + (output - 1) * tpot_s)
    return {"throughput": throughput, "tpot": tpot_s, "ttft": ttft_s, "prefill": prompt / ttft_s}


def _finite(point: Point, replica: Replica, replicas: int) -> Predicted:
    each = max(1, round(point.requests / replicas))
    prompts = lengths(each, point.lengths.prompt_tokens, point.spread, stride=_OTHER_STRIDE)
    outputs = lengths(each, point.lengths.output_tokens, point.spread)
    gap_s = replicas / point.rate if point.rate else 0.0
    run = finite_run(replica, prompts, outputs, gap_s)
    if run is None:
        return {}
    return {"throughput": run.output_tokens_per_s * replicas, "tpot": run.tpot_s, "ttft": run.ttft_s}


def _steady(point: Point, replica: Replica, replicas: int) -> Predicted:
    if point.kind == "offline":
        return _of(replica.saturated(point.lengths), replicas)
    if point.kind == "closed":
        return _of(replica.closed_loop(point.lengths, point.concurrency / replicas), replicas)
    if point.kind == "open":
        return _of(replica.open_loop(point.lengths, point.rate / replicas), replicas)
    tpot_s, ttft_s = point.targets_s
    best = replica.within(point.lengths, _MEAN_OF_P99 * tpot_s, ttft_s)
    if not point.rate or point.rate / replicas >= _AT_CAPACITY * best.requests_per_s:
        return _of(best, replicas)
    offered = replica.open_loop(point.lengths, point.rate / replicas)
    return {**_of(offered, replicas), "throughput": best.output_tokens_per_s * replicas}


def _of(estimate: Estimate, replicas: int) -> Predicted:
    if estimate.output_tokens_per_s <= 0.0:
        return {}
    return {
        "throughput": estimate.output_tokens_per_s * replicas,
        "tpot": estimate.tpot_s,
        "ttft": estimate.ttft_s,
    }


def judged(point: Point) -> tuple[Metric, ...]:
    """Return the metrics of a point by which a prediction is judged: no TTFT of an open loop beyond saturation."""
    return tuple(metric for metric in point.values if not (metric == "ttft" and point.is_beyond))


def case(point: Point, architecture: Architecture, hardware: Hardware) -> Case:
    """Return the point as `fit_efficiencies` takes it; what is the same number twice (1 / TPOT) counts once."""
    metrics = tuple(m for m in judged(point) if not (m == "tpot" and point.is_separate_test))

    def residuals(calibration: Calibration) -> list[float | None]:
        predicted = predict(point, architecture, hardware, calibration)
        return [log_ratio(predicted.get(metric), point.values[metric]) for metric in metrics]

    return Case(
        residuals,
        tuple(WEIGHTS[metric] for metric in metrics),
        point.engine,
        hardware.generation,
        point.quantization.precision(hardware.peaks_tflops),
    )
