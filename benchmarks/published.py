"""Predicts published measurements from architecture and hardware, on GPUs that the fit never saw.

    python benchmarks/published.py                    one fit a GPU, which it leaves out (some minutes)
    python benchmarks/published.py --quick            five fits, each of which leaves out a fifth of the GPUs
    python benchmarks/published.py --write FILE       also fit on all rows, and write the efficiencies as TOML

Prints the median and the 90th percentile of |ln(predicted / published)|. Weak rows, rows that name no machine and the
TTFT of open loops beyond saturation are apart; no other row is left out.
"""

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

from setpoint.errors import SetpointError
from setpoint.sim import catalog
from setpoint.sim.predict import case, judged, predict
from setpoint.sim.published import Metric, Point, point
from setpoint.steptime.architecture import Architecture
from setpoint.steptime.calibrate import Key, calibration, fit_efficiencies, log_ratio
from setpoint.steptime.efficiency import FIELDS, Calibration, ExpectedError
from setpoint.steptime.hardware import Hardware

POINTS = Path(__file__).parent / "data" / "published-points.csv"
METRICS: tuple[Metric, ...] = ("throughput", "tpot", "ttft", "prefill")
QUICK_FOLDS, QUICK_ROUNDS, ROUNDS = 5, 3, 4
UNKNOWN_ERROR = ExpectedError(throughput=0.0, tpot=0.0, ttft=0.0, values=0)
MISSED = 3.0
"""The |ln| that counts for a row that is predicted not to run at all."""


class Known(NamedTuple):
    """A row with the model and the hardware that it names."""

    point: Point
    architecture: Architecture
    hardware: Hardware


class Error(NamedTuple):
    """One judged value: |ln(predicted / published)|; `is_given` when the offered load already sets it."""

    point: Point
    metric: Metric
    size: float
    is_given: bool


def read(path: Path) -> tuple[list[Known], list[str]]:
    """Return the rows to predict, and the ids of those set apart."""
    known, apart = [], []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found = point(row)
            if found is None:
                apart.append(row["id"])
            else:
                known.append(Known(found, catalog.model(found.model), catalog.hardware(found.hardware)))
    return known, apart


def fitted(rows: Iterable[Known], rounds: int) -> dict[Key, float]:
    """Return the parameters fitted to these rows, from the prior."""
    return fit_efficiencies([case(*row) for row in rows], rounds=rounds)


def errors(rows: Iterable[Known], efficiencies: Calibration) -> list[Error]:
    """Return the errors of every judged value."""
    found = []
    for row in rows:
        predicted = predict(*row, efficiencies)
        for metric in judged(row.point):
            ratio = log_ratio(predicted.get(metric), row.point.values[metric])
            is_given = metric == "throughput" and row.point.kind == "open" and not row.point.is_beyond
            found.append(Error(row.point, metric, MISSED if ratio is None else abs(ratio), is_given))
    return found


def held_out(job: tuple[list[Known], frozenset[str], int]) -> list[Error]:
    """Return the errors on the named GPUs of a fit on all others."""
    rows, names, rounds = job
    values = fitted((row for row in rows if row.point.hardware not in names), rounds)
    seen_not = [row for row in rows if row.point.hardware in names]
    return errors(seen_not, calibration(values, "", UNKNOWN_ERROR))


def folds(rows: Sequence[Known], count: int | None) -> list[frozenset[str]]:
    """Return the GPUs in `count` groups of like size (`None`: one each)."""
    names = sorted({row.point.hardware for row in rows})
    if count is None:
        return [frozenset({name}) for name in names]
    return [frozenset(names[i::count]) for i in range(count)]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value at this share of the sorted values."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary(found: Iterable[Error]) -> dict[str, dict[str, float]]:
    """Return count, median and 90th percentile by metric."""
    sizes: dict[str, list[float]] = defaultdict(list)
    for error in found:
        sizes[error.metric].append(error.size)
    return {
        metric: {
            "values": len(sizes[metric]),
            "median": quantile(sizes[metric], 0.5),
            "p90": quantile(sizes[metric], 0.9),
        }
        for metric in METRICS
        if metric in sizes
    }


def grouped(found: Sequence[Error], of: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return the summary by `hardware` or by `source`."""
    groups: dict[str, list[Error]] = defaultdict(list)
    for error in found:
        groups[getattr(error.point, of)].append(error)
    return {name: summary(groups[name]) for name in sorted(groups)}


def table(title: str, groups: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return a text table: median / 90th percentile (values) by group and metric."""
    lines = [f"{title:28}" + "".join(f"{metric:>22}" for metric in METRICS)]
    for name, metrics in groups.items():
        cells = [
            f"{m['median']:.2f} / {m['p90']:.2f} ({m['values']:.0f})" if (m := metrics.get(metric)) else ""
            for metric in METRICS
        ]
        lines.append(f"{name:28}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def report(found: Sequence[Error], apart: Sequence[str], rows: int) -> dict[str, Any]:
    """Return everything as one value, with the figures that others compare under `ratios`."""
    total = summary(found)
    free = summary(error for error in found if not error.is_given)
    return {
        "rows": rows,
        "rows_apart": list(apart),
        "total": total,
        "throughput_not_set_by_load": free["throughput"],
        "by_source": grouped(found, "source"),
        "by_gpu": grouped(found, "hardware"),
        "ratios": {f"median_error_{metric}": total[metric]["median"] for metric in ("throughput", "tpot", "ttft")},
    }


def as_toml(values: Mapping[Key, float], fitted_on: str, expected: ExpectedError) -> str:
    """Return a calibration as the TOML that `setpoint.sim.catalog` reads."""
    found = calibration(values, fitted_on, expected)
    lines = [
        "# From benchmarks/published.py --write. expected_error: median |ln(predicted / published)|, GPUs held out",
        f"fitted_on = {json.dumps(fitted_on)}",
        "",
        "[expected_error]",
        *(f"{name} = {getattr(expected, name):.3g}" for name in ("throughput", "tpot", "ttft", "values")),
        "",
        "[base]",
        *(f"{field} = {getattr(found.base, field):.4g}" for field in FIELDS),
    ]
    for title in ("engines", "generations", "precisions"):
        for name, factors in getattr(found, title).items():
            body = ", ".join(f"{field} = {factor:.3f}" for field, factor in factors.items())
            lines += ["", f"[{title}.{json.dumps(name)}]", *body.split(", ")]
    return "\n".join(lines) + "\n"


def show(result: Mapping[str, Any]) -> None:
    """Print the tables."""
    print("|ln(predicted / published)| on GPUs that the fit never saw: median / 90th percentile (values)\n")
    print(
        table("all", {"": result["total"], "not set by the load": {"throughput": result["throughput_not_set_by_load"]}})
    )
    print("\n" + table("by source", result["by_source"]))
    print("\n" + table("by GPU", result["by_gpu"]))
    print(f"\n{result['rows']} rows; set apart (weak, or no machine named): {' '.join(result['rows_apart'])}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="?", type=Path, default=POINTS, help="table of published points (CSV)")
    parser.add_argument("--quick", action="store_true", help="five folds of GPUs (a minute or two)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--write", type=Path, metavar="FILE", help="fit on all rows too, and write the efficiencies")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    options = parser.parse_args()
    rows, apart = read(options.points)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    jobs = [(rows, names, rounds) for names in folds(rows, QUICK_FOLDS if options.quick else None)]
    found: list[Error] = []
    with Pool(options.jobs) as pool:
        for i, part in enumerate(pool.imap_unordered(held_out, jobs), start=1):
            found += part
            print(f"\r{i}/{len(jobs)} fits", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    result = report(found, apart, len(rows))
    if options.write:
        total = result["total"]
        expected = ExpectedError(
            throughput=total["throughput"]["median"],
            tpot=total["tpot"]["median"],
            ttft=total["ttft"]["median"],
            values=len(found),
        )
        text = as_toml(fitted(rows, ROUNDS), f"{len(rows)} rows of {options.points.name}", expected)
        options.write.write_text(text, encoding="utf-8")
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    try:
        main()
    except SetpointError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
