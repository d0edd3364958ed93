"""What was measured of an engine, as values that a step time can be held against.

A *published point* is a row: its load is solved in closed form (`setpoint.sim.predict`). A *measured run* is a list of
requests with their instants: the same requests come again on a virtual clock, and quantiles are compared. Both give
ln(predicted / measured) as a function of the correction.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from statistics import median

import msgspec

from setpoint.errors import WorkloadError
from setpoint.metrics import RequestRecord, rank_quantile
from setpoint.model import StepTime
from setpoint.sim.calibrations import Value
from setpoint.sim.predict import WEIGHTS, judged, predict
from setpoint.sim.published import Point
from setpoint.sim.scenario import Scenario, simulate
from setpoint.steptime.architecture import Architecture
from setpoint.steptime.calibrate import log_ratio
from setpoint.steptime.correction import (
    CorrectedSteadyStep,
    CorrectedStepTime,
    Correction,
    Prior,
    fit_correction,
)
from setpoint.steptime.efficiency import Calibration
from setpoint.steptime.hardware import Hardware
from setpoint.steptime.setup import Setup
from setpoint.steptime.steady import StepSeconds
from setpoint.workload import PlannedRequest

QUANTILES = {0.5: 1.0, 0.95: 0.5}
"""The quantiles of TTFT and TPOT that are compared, and what each counts."""

BEYOND_MIN = 3.0
"""A quantile is compared where at least so many requests lie beyond it."""

LEFT_OUT_MIN = 3

Weighted = tuple[str, float, float]
"""Name, measured value, weight."""


class PublishedPoint:
    """A published row; `base` gives the step time of its set-up without a correction."""

    def __init__(
        self, point: Point, architecture: Architecture, hardware: Hardware, calibration: Calibration, base: StepSeconds
    ) -> None:
        """Hold the row against `base`."""
        self._point, self._base = point, base
        self._known = (architecture, hardware, calibration)
        self._metrics = judged(point)
        self._shipped_s = calibration.of(engine=point.engine, generation=hardware.generation).request_s

    @property
    def measured(self) -> list[Weighted]:
        """The values of the row."""
        point = self._point
        return [(f"{point.id} {metric}", point.values[metric], WEIGHTS[metric]) for metric in self._metrics]

    def predicted(self, correction: Correction) -> list[float | None]:
        """Return what is predicted for each value."""

        def source(_setup: Setup, _point: Point) -> StepSeconds:
            return CorrectedSteadyStep(self._base, correction)

        found = predict(self._point, *self._known, source=source)
        if self._point.is_served and "ttft" in found:
            found["ttft"] += correction.request_s - self._shipped_s
        return [found.get(metric) for metric in self._metrics]


class MeasuredRun:
    """The requests of a real run, and the scenario that stands for the engine.

    `users`: the run was a closed loop of so many, and is one here; otherwise requests come when they came.
    """

    def __init__(
        self, name: str, records: Iterable[RequestRecord], scenario: Scenario, *, users: int | None = None
    ) -> None:
        """Take over the requests that were answered; raises `WorkloadError` when there are too few."""
        self._name, self._scenario = name, scenario
        self._records = sorted((r for r in records if not r.is_failed), key=lambda r: (r.scheduled_at, r.id))
        fewest = 5
        if len(self._records) < fewest:
            raise WorkloadError(
                f"{name}: {len(self._records)} answered requests say too little", hint=f"{fewest} are the least"
            )
        self._plan = _closed(self._records, users) if users else _open(self._records)

    @cached_property
    def measured(self) -> list[Weighted]:
        """Output rate, and quantiles of TTFT and TPOT."""
        return [(f"{self._name} {name}", value, weight) for name, value, weight in _figures(self._records)]

    def predicted(self, correction: Correction) -> list[float | None]:
        """Return the same figures of the simulated run."""
        scenario = self._scenario
        corrected = msgspec.structs.replace(
            scenario,
            world=CorrectedStepTime(scenario.world, correction),
            belief=None if scenario.belief is None else CorrectedStepTime(scenario.belief, correction),
            request_s=correction.request_s,
        )
        records = [r for r in simulate(corrected, self._plan).records if not r.is_failed]
        found = {name: value for name, value, _ in _figures(records)} if records else {}
        return [found.get(name) for name, _, _ in _figures(self._records)]


Measurement = PublishedPoint | MeasuredRun


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A correction with what it was fitted to, and the median |ln(predicted / measured)| without it and with it.

    `error_left_out`: the same of each measurement under a fit to the others; `None` with fewer than three.
    """

    correction: Correction
    values: tuple[Value, ...]
    error_before: float
    error_after: float
    error_left_out: float | None


def calibrate(measurements: Sequence[Measurement], prior: Prior) -> Fitted:
    """Return the correction that fits the measurements best."""
    correction = _fit(measurements, prior)
    measured = _measured(measurements)
    before, after = _predicted(measurements, prior.center), _predicted(measurements, correction)
    return Fitted(
        correction=correction,
        values=tuple(
            Value(name=name, measured=value, before=b, after=a)
            for (name, value, _), b, a in zip(measured, before, after, strict=True)
        ),
        error_before=_error(measured, before),
        error_after=_error(measured, after),
        error_left_out=_left_out(measurements, prior) if len(measurements) >= LEFT_OUT_MIN else None,
    )


def _fit(measurements: Sequence[Measurement], prior: Prior) -> Correction:
    measured = _measured(measurements)

    def residuals(correction: Correction) -> list[float | None]:
        predicted = _predicted(measurements, correction)
        return [log_ratio(p, m) for p, (_, m, _) in zip(predicted, measured, strict=True)]

    return fit_correction(residuals, [weight for _, _, weight in measured], prior)[0]


def _left_out(measurements: Sequence[Measurement], prior: Prior) -> float:
    """Return the error of each measurement under a fit to all the others."""
    predicted: list[float | None] = []
    for one in measurements:
        correction = _fit([other for other in measurements if other is not one], prior)
        predicted += one.predicted(correction)
    return _error(_measured(measurements), predicted)


def _measured(measurements: Sequence[Measurement]) -> list[Weighted]:
    return [value for one in measurements for value in one.measured]


def _predicted(measurements: Sequence[Measurement], correction: Correction) -> list[float | None]:
    return [value for one in measurements for value in one.predicted(correction)]


def _error(measured: Sequence[Weighted], predicted: Sequence[float | None]) -> float:
    found = [log_ratio(p, value) for (_, value, _), p in zip(measured, predicted, strict=True)]
    return median([float("inf") if ratio is None else abs(ratio) for ratio in found])


def base_in_steady_state(step_time: StepTime) -> StepSeconds:
    """Return a step time as the closed-form solvers ask: with fractions of sequences."""
    own = getattr(step_time, "seconds_of", None)
    return _Whole(step_time) if own is None else step_time  # type: ignore[return-value] # it has the method


class _Whole:
    """Asks a step time, which is linear between whole numbers, for fractions of them."""

    def __init__(self, base: StepTime) -> None:
        self._base = base

    def seconds_of(
        self, decodes: float, context: float, prefill_tokens: float = 0.0, work: float = 0.0, prefills: float = 0.0
    ) -> float:
        if decodes + prefill_tokens <= 0.0:
            return 0.0
        return self._base.seconds(decodes, context, prefill_tokens, work, prefills)  # type: ignore[arg-type]


def _figures(records: Sequence[RequestRecord]) -> list[Weighted]:
    first = min(r.scheduled_at for r in records)
    span = max(r.ended_at or 0.0 for r in records) - first
    found = [("output tokens/s", sum(r.output_tokens for r in records) / span, 1.0)] if span > 0.0 else []
    for name in ("ttft", "tpot"):
        values = sorted(v for r in records if (v := getattr(r, f"{name}_s")) is not None and v > 0.0)
        for q, weight in QUANTILES.items():
            if values and (q <= 0.5 or len(values) * (1.0 - q) >= BEYOND_MIN):  # noqa: PLR2004 - the median
                found.append((f"{name} p{q * 100:g} s", rank_quantile(values, q), weight))
    return found


def _open(records: Sequence[RequestRecord]) -> list[PlannedRequest]:
    first = records[0].scheduled_at
    return [_planned(record, number, record.scheduled_at - first) for number, record in enumerate(records)]


def _closed(records: Sequence[RequestRecord], users: int) -> list[PlannedRequest]:
    """Return a conversation for each user, without thinking, whose turns share nothing."""
    return [
        msgspec.structs.replace(_planned(record, number, 0.0), session=number % users, turn=number // users)
        for number, record in enumerate(records)
    ]


def _planned(record: RequestRecord, number: int, at_s: float) -> PlannedRequest:
    return PlannedRequest(
        id=number,
        at_s=at_s,
        class_name=record.class_name,
        prompt_tokens=max(1, record.prompt_tokens - record.cached_tokens),
        output_tokens=max(1, record.output_tokens),
    )
