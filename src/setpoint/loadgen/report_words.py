"""A bench report in words and rows of cells, for the terminal and for the page alike."""

from setpoint.loadgen.report import BenchReport, Point
from setpoint.metrics import Quantile

CURVE_HEAD = ("load", "done/s", "tokens/s", "TTFT P50 ms", "TTFT P95 ms", "TPOT P95 ms", "E2E P95 ms", "met")
_LATENCIES = (("ttft", 0.5), ("ttft", 0.95), ("tpot", 0.95), ("e2e", 0.95))


def ms_words(quantile: Quantile) -> str:
    """Return a quantile in ms, or why there is none.

    `never`: more requests got no answer than it leaves out; `too few` requests for it; `-`: none at all.
    """
    if quantile.support == "failures":
        return "never"
    if quantile.support == "too_few" or quantile.value is None:
        return "too few" if quantile.n else "-"
    return f"{quantile.value * 1e3:,.1f}"


def load_words(point: Point) -> str:
    """Return the load of a point in words."""
    load = point.load
    return f"{load.users} users" if load.kind == "closed" else f"{load.rate_rps or 0.0:.2f}/s"


def curve_rows(report: BenchReport) -> list[tuple[str, ...]]:
    """Return a row of cells under `CURVE_HEAD` for each point."""
    return [_curve_row(report, index, point) for index, point in enumerate(report.points)]


def _curve_row(report: BenchReport, index: int, point: Point) -> tuple[str, ...]:
    summary = point.summary
    if summary is None:
        return (load_words(point), *["-"] * (len(CURVE_HEAD) - 1))
    mark = " <- knee" if report.knee is not None and report.knee.index == index else ""
    mark += "" if point.verdict == "valid" else f" ({point.verdict})"
    return (
        load_words(point) + mark,
        f"{summary.completed_rps:.2f}",
        f"{summary.output_tokens_per_s:,.0f}",
        *(ms_words(summary.overall.latencies[name].at(q)) for name, q in _LATENCIES),
        "" if not point.judged else "yes" if point.is_met else "no",
    )
