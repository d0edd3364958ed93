"""The numbers of the plug-in on vLLM's own `/metrics`: vLLM loads this class by entry point where that is served.

The scheduler lives in the engine's process, whose Prometheus registry nobody scrapes. Its numbers come with the stats
of each step (`setpoint.engines.vllm.numbers`) and are set here, in the registry of the process that vLLM exports, with
the label `engine`. Custom loggers come before vLLM's own, so that what is taken out of the stats here is unseen there.
A logger that raises would end the server, so any fault ends the numbers instead, and is logged.
"""

import logging
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge
from vllm.v1.metrics.loggers import StatLoggerBase

from setpoint.engines.vllm.numbers import COUNTERS, GAUGES, PREFIX, Number, unpack

_LABELS = {
    "steps": ("bound",),
    "fallbacks": ("reason",),
    "preempted": ("by",),
    "relegated": ("class_name",),
    "refused": ("reason",),
    "finished": ("class_name",),
    "missed": ("class_name", "objective"),
}

log = logging.getLogger(__name__)


def _full(name: str) -> str:
    return f"setpoint_{name.removesuffix('_s')}_seconds" if name.endswith("_s") else f"setpoint_{name}"


def _metrics() -> dict[str, Any]:
    """Return the metrics by name: those of this process, made at the first call."""
    known: dict[str, Any] | None = getattr(REGISTRY, "setpoint_vllm", None)
    if known is None:
        known = {n: Gauge(_full(n), h, ("engine",), multiprocess_mode="mostrecent") for n, h in GAUGES.items()}
        known |= {n: Counter(_full(n), h, ("engine", *_LABELS.get(n, ()))) for n, h in COUNTERS.items()}
        REGISTRY.setpoint_vllm = known  # type: ignore[attr-defined] # a registry lives as long as its process
    return known


class SetpointStatLogger(StatLoggerBase):  # type: ignore[misc] # vLLM has no types for us
    """Sets the metrics of one engine; does nothing where the scheduler is not ours."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:  # noqa: ANN401, ARG002 - vLLM's own signature
        self._engine = str(engine_index)
        self._seen: dict[tuple[str, str], float] = {}
        self._is_broken = False

    def record(self, scheduler_stats: Any, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401 - as above
        """Take our numbers out of the stats, and set them."""
        table = getattr(scheduler_stats, "num_kv_fetch_reqs_by_stage", None)
        if not table:
            return
        numbers = unpack(table)
        for key in [key for key in table if key.startswith(PREFIX)]:
            del table[key]
        if not numbers or self._is_broken:
            return
        try:
            self._set(numbers)
        except Exception:
            log.exception("the metrics of setpoint end here; serving goes on")
            self._is_broken = True

    def _set(self, numbers: list[Number]) -> None:
        metrics = _metrics()
        for name, label, value in numbers:
            metric = metrics[name].labels(self._engine, *(label.split("/") if label else ()))
            if name in GAUGES:
                metric.set(value)
                continue
            seen = self._seen.get((name, label), 0.0)
            metric.inc(max(0.0, value - seen))
            self._seen[name, label] = max(seen, value)

    def log_engine_initialized(self) -> None:
        """Say nothing: the scheduler itself has said that it steers."""
