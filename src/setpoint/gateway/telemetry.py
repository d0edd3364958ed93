"""The numbers of `/metrics`, in the field's style: `setpoint:time_to_first_token_seconds` and its kin, by class.

Fed by the observations of a driver, on the event loop, so that counting costs the engine thread nothing. Buckets are
finer than the field's where this project's targets lie (tens to hundreds of milliseconds).
"""

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from setpoint.engines.observe import DriverStatus, Observation, RequestRecord, StepRecord

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_MS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100, 150, 200, 250, 300, 400, 500, 750)
_S = (1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
SECONDS = (*(ms / 1000.0 for ms in _MS), *(float(s) for s in _S))
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class Telemetry:
    """The metrics of one served model, in a registry of their own."""

    def __init__(self, model_name: str, class_names: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._class_names = tuple(class_names)
        self._series: dict[tuple[object, ...], Any] = {}
        by_class, alone = ("model_name", "class"), ("model_name",)
        seconds = self._histogram
        self._ttft = seconds("time_to_first_token_seconds", "From the arrival to the first token.", by_class)
        self._itl = seconds("inter_token_latency_seconds", "Each gap between two tokens.", by_class)
        self._e2e = seconds("e2e_request_latency_seconds", "From the arrival to the last token.", by_class)
        self._queue = seconds("request_queue_time_seconds", "From the arrival to the first slot.", by_class)
        self._step = seconds("step_time_seconds", "One step, all of it.", alone)
        self._forward = seconds("step_forward_time_seconds", "The forward pass of one step.", alone)
        self._sampling = seconds("step_sampling_time_seconds", "Drawing the tokens of one step.", alone)
        self._predicted = self._counter("step_time_predicted_seconds", "Step time as predicted, summed.", alone)
        self._measured = self._counter("step_time_measured_seconds", "Step time as measured, summed.", alone)
        self._off = self._counter("step_time_error_seconds", "Prediction errors of steps, absolute, summed.", alone)
        self._step_tokens = self._histogram("iteration_tokens", "Tokens computed in one step.", alone, TOKENS)
        self._bound = self._counter("steps", "Steps, by what kept them from being larger.", (*alone, "bound_by"))
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of requests that are over.", by_class)
        self._cached = self._counter("prompt_tokens_cached", "Of these, spared by a shared prefix.", by_class)
        self._output = self._counter("generation_tokens", "Output tokens.", by_class)
        self._over = self._counter("requests", "Requests that are over, by how they ended.", (*by_class, "outcome"))
        self._preempted = self._counter("num_preemptions", "Requests that lost their slot.", by_class)
        self._relegated = self._counter("num_relegations", "Requests given up for a while.", by_class)
        self._running = self._gauge("num_requests_running", "Requests that hold a slot.", by_class)
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait for a slot.", by_class)
        self._kv = self._gauge("kv_cache_usage_perc", "KV blocks in use, from 0 to 1.", alone)
        self._slots = self._gauge("slots", "Sequences that may run at once.", alone)
        self._http = self._counter("http_responses", "HTTP responses.", ("route", "status"))
        self._show_status(DriverStatus())

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"setpoint:{name}", text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(f"setpoint:{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Gauge:
        return Gauge(f"setpoint:{name}", text, labels, registry=self.registry)

    def _of(self, metric: Metric, *labels: str) -> Metric:
        """Return the series of `metric` with these labels behind the model's name; looked up once."""
        key = (id(metric), *labels)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = metric.labels(self._model_name, *labels)
        return series

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)

    def count_response(self, route: str, status: int) -> None:
        """Count one HTTP response."""
        self._http.labels(route, str(status)).inc()

    def observe(self, observation: Observation) -> None:
        """Take one observation of a driver in."""
        for metric, samples in (
            (self._queue, observation.queued),
            (self._ttft, observation.first_tokens),
            (self._itl, observation.gaps),
        ):
            for class_name, seconds in samples:
                self._of(metric, class_name).observe(seconds)
        outputs = (class_name for class_name, _ in (*observation.first_tokens, *observation.gaps))
        for counter, class_names in (
            (self._output, outputs),
            (self._preempted, observation.preempted),
            (self._relegated, observation.relegated),
        ):
            for class_name, count in Tally(class_names).items():
                self._of(counter, class_name).inc(count)
        for record in observation.ended:
            self._count_request(record)
        if observation.step is not None:
            self._count_step(observation.step)
        self._show_status(observation.status)

    def _count_step(self, step: StepRecord) -> None:
        self._of(self._step).observe(step.step_s)
        self._of(self._forward).observe(step.forward_s)
        self._of(self._sampling).observe(step.sampling_s)
        self._of(self._predicted).inc(step.predicted_s)
        self._of(self._measured).inc(step.step_s)
        self._of(self._off).inc(abs(step.predicted_s - step.step_s))
        self._of(self._step_tokens).observe(step.prefill_tokens + step.decode_tokens)
        self._of(self._bound, step.bound_by).inc()

    def _count_request(self, record: RequestRecord) -> None:
        self._of(self._over, record.class_name, record.outcome).inc()
        self._of(self._prompt, record.class_name).inc(record.prompt_tokens)
        self._of(self._cached, record.class_name).inc(record.cached_tokens)
        if record.outcome in ("stop", "length"):
            self._of(self._e2e, record.class_name).observe(record.e2e_s)

    def _show_status(self, status: DriverStatus) -> None:
        for gauge, counts in ((self._running, status.running), (self._waiting, status.waiting)):
            self._show(gauge, counts)
        self._of(self._kv).set(status.kv_blocks_used / status.kv_blocks if status.kv_blocks else 0.0)
        self._of(self._slots).set(status.slots)

    def _show(self, gauge: Gauge, counts: Mapping[str, int]) -> None:
        for class_name in self._class_names:
            self._of(gauge, class_name).set(counts.get(class_name, 0))
