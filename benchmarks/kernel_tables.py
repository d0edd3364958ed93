"""Compares the kernel tables of aiconfigurator-core with the roofline, on the published rows that have both.

    python benchmarks/kernel_tables.py [--json]

Needs `pip install 'setpoint[aiconfigurator]'`. Both get the same solvers; the tables once bare, once with the shipped
overhead of the engine on top. The roofline's efficiencies were fitted on all rows, these among them; its error on GPUs
that the fit never saw is what benchmarks/published.py prints.
"""

import argparse
import json
import sys
from typing import Any

from published import POINTS, Known, quantile, read

from setpoint.errors import SetpointError
from setpoint.sim import catalog
from setpoint.sim.aiconfigurator import BACKENDS, KernelTables, Overhead, assumed_overhead
from setpoint.sim.predict import Source, judged, predict
from setpoint.sim.published import Point
from setpoint.steptime.calibrate import log_ratio
from setpoint.steptime.setup import Setup


def tables(setup: Setup, backend: str, overhead: Overhead) -> KernelTables | None:
    """Return the tables, or `None` where there are none; each is loaded once."""
    key = (setup.architecture.name, setup.hardware.name, setup.quantization, setup.layout, backend, overhead)
    if key not in _LOADED:
        try:
            _LOADED[key] = KernelTables(setup, backend=backend, overhead=overhead)
        except SetpointError:
            _LOADED[key] = None
    return _LOADED[key]


_LOADED: dict[tuple[object, ...], KernelTables | None] = {}


def source(*, is_bare: bool) -> Source:
    """Return what gives a step time from the tables."""

    def find(setup: Setup, point: Point) -> KernelTables | None:
        backend = point.engine.removesuffix("-v0")
        if backend not in BACKENDS:
            return None
        return tables(setup, backend, Overhead() if is_bare else assumed_overhead(catalog.calibration(), point.engine))

    return find


def errors(rows: list[Known], step: Source | None) -> dict[tuple[str, str], float]:
    """Return |ln(predicted / published)| by row and metric, where there is a prediction."""
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        predicted = predict(*row, catalog.calibration(), source=step)
        for metric in judged(row.point):
            ratio = log_ratio(predicted.get(metric), row.point.values[metric])
            if ratio is not None:
                found[row.point.id, metric] = abs(ratio)
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rows, _ = read(POINTS)
    rows = [row for row in rows if row.hardware.aiconfigurator]
    named = {"tables": source(is_bare=True), "tables + overhead": source(is_bare=False), "roofline": None}
    found = {name: errors(rows, step) for name, step in named.items()}
    shared = set.intersection(*(set(each) for each in found.values()))
    result: dict[str, Any] = {}
    for name, each in found.items():
        for metric in ("throughput", "tpot", "ttft"):
            sizes = [each[key] for key in shared if key[1] == metric]
            median, p90 = quantile(sizes, 0.5), quantile(sizes, 0.9)
            result.setdefault(name, {})[metric] = {"values": len(sizes), "median": median, "p90": p90}
    if options.json:
        print(json.dumps(result))
        return
    print("|ln(predicted / published)|: median / 90th percentile (values)")
    for name, metrics in result.items():
        cells = "".join(f"  {m} {v['median']:.2f} / {v['p90']:.2f} ({v['values']})" for m, v in metrics.items())
        print(f"{name:20}{cells}")


if __name__ == "__main__":
    try:
        main()
    except SetpointError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
