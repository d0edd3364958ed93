"""Workloads: when requests arrive and how long they are, made up or recorded; pure, and shared with the simulator."""

from setpoint.workload.arrivals import (
    CONSTANT,
    POISSON,
    AnyRate,
    Diurnal,
    Gaps,
    Ramp,
    Rate,
    Stairs,
    Steady,
    arrival_times,
)
from setpoint.workload.lengths import AnyLengths, Empirical, Fixed, Lengths, LogNormal, Uniform, parse_lengths
from setpoint.workload.plan import PlannedRequest
from setpoint.workload.scale import at_rate, clip, mean_rps, renumber, scale_lengths, stretch, window
from setpoint.workload.traces import Form, detect, read_trace
from setpoint.workload.traffic import Streams, Traffic, plan_traffic

__all__ = [
    "CONSTANT",
    "POISSON",
    "AnyLengths",
    "AnyRate",
    "Diurnal",
    "Empirical",
    "Fixed",
    "Form",
    "Gaps",
    "Lengths",
    "LogNormal",
    "PlannedRequest",
    "Ramp",
    "Rate",
    "Stairs",
    "Steady",
    "Streams",
    "Traffic",
    "Uniform",
    "arrival_times",
    "at_rate",
    "clip",
    "detect",
    "mean_rps",
    "parse_lengths",
    "plan_traffic",
    "read_trace",
    "renumber",
    "scale_lengths",
    "stretch",
    "window",
]
