"""Pure measurement: what happened to each request, whether it kept its promise, and how far a figure can be trusted."""

from setpoint.metrics.histogram import Histogram
from setpoint.metrics.judge import ALL_CLASSES, Miss, attainment, count_met, goodput_rps, is_good, met, misses
from setpoint.metrics.objective import Judged, Objective, judge, slos_of, tightest_s, violations
from setpoint.metrics.quantile import Quantile, effective_size, estimate, rank_quantile, sample_size_min
from setpoint.metrics.slo_text import parse_objectives
from setpoint.metrics.stationarity import Drift, Overload, Warmup, drift, little_allowed, little_error, mser5, overload
from setpoint.metrics.summary import ClassSummary, Latency, Share, Summary, latency, share, summarize
from setpoint.metrics.timeline import ErrorKind, RequestRecord, TokenSource

__all__ = [
    "ALL_CLASSES",
    "ClassSummary",
    "Drift",
    "ErrorKind",
    "Histogram",
    "Judged",
    "Latency",
    "Miss",
    "Objective",
    "Overload",
    "Quantile",
    "RequestRecord",
    "Share",
    "Summary",
    "TokenSource",
    "Warmup",
    "attainment",
    "count_met",
    "drift",
    "effective_size",
    "estimate",
    "goodput_rps",
    "is_good",
    "judge",
    "latency",
    "little_allowed",
    "little_error",
    "met",
    "misses",
    "mser5",
    "overload",
    "parse_objectives",
    "rank_quantile",
    "sample_size_min",
    "share",
    "slos_of",
    "summarize",
    "tightest_s",
    "violations",
]
