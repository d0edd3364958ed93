"""A bench run on the terminal: a line for each trial or point, one screen at its end. All of it on stderr."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from setpoint.loadgen.report import BenchReport, Point
from setpoint.loadgen.report_words import CURVE_HEAD, curve_rows, load_words, ms_words
from setpoint.loadgen.search import Answer, TrialResult
from setpoint.metrics import ALL_CLASSES, ClassSummary, Latency, Quantile

SHOWN = ("ttft", "tpot", "itl", "e2e", "queue")
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_TOO_FEW = (
    "too few: requests that come close together wait in one queue, so that many are worth few independent ones, here "
    "too few for this percentile; a longer run, or a steadier load, tells more"
)


def show_trial(console: Console, result: TrialResult) -> None:
    """Print one line about a trial of a search."""
    trial = result.trial
    load = f"{trial.users:>6} users" if trial.users is not None else f"{trial.rate or 0.0:>10.2f}/s"
    worst = min(result.judged, key=lambda one: one.margin, default=None)
    words = "" if worst is None else f"{worst.objective.text}: {worst.share:.1%} outside, {worst.verdict}"
    words += " [red]overloaded[/]" if result.is_overloaded else ""
    words += f" [dim](seen enough: {result.stopped_by})[/]" if result.stopped_by in {"met", "missed"} else ""
    words += "" if result.is_valid else f" [yellow]invalid, to be repeated: {'; '.join(result.faults)}[/]"
    told = f"{result.completed_rps:>8.2f}/s done {result.requests:>6} requests {result.spent_s:>5.0f} s"
    console.print(f"  {trial.kind:<8}{load}{told}   {words}", soft_wrap=True)


def show_point(console: Console, point: Point) -> None:
    """Print one line about a run of a sweep."""
    summary = point.summary
    if summary is None:
        console.print(f"  {load_words(point):<12}nothing ended")
        return
    cells = summary.overall.latencies
    told = f"{summary.completed_rps:>8.2f}/s done {summary.output_tokens_per_s:>8,.0f} tokens/s"
    words = f"P50 in ms: TTFT {ms_words(cells['ttft'].at(0.5))}, E2E {ms_words(cells['e2e'].at(0.5))}"
    state = "" if point.verdict == "valid" else f" [yellow]{point.verdict}[/]"
    console.print(f"  {load_words(point):<12}{told}   {words}{state}", soft_wrap=True)


def show_report(console: Console, report: BenchReport) -> None:
    """Print the one screen: the answer, or the curve, or the run."""
    if report.answer is not None:
        _show_answer(console, report.answer)
    elif len(report.points) > 1:
        _show_curve(console, report)
    for point in report.points[-1:] if report.answer is None and len(report.points) == 1 else ():
        _show_point(console, point)
    for note in report.notes:
        console.print(note, style="dim", markup=False)
    if not report.is_lexicon_exact:
        is_told = report.lexicon_source == "usage"
        why = "the server leaves out what it had cached" if is_told else "the server's tokens could not be counted"
        console.print(f"[yellow]prompt lengths are approximate: {why}[/]")


def _show_answer(console: Console, answer: Answer) -> None:
    if answer.estimate is None:
        words = "no answer" if answer.binding is None else "no rate meets the objectives"
        console.print(f"[bold red]{words}[/]: {answer.reason}")
        return
    interval = f"crossing at {answer.estimate:.2f}/s, 90% interval {answer.low:.2f} to {answer.high:.2f}"
    if answer.rate is not None:
        console.print(f"[bold green]highest sustainable rate {answer.rate:.2f} requests/s[/] (confirmed; {interval})")
    else:
        console.print(f"[bold yellow]not confirmed[/]: {answer.reason} ({interval})")
    if answer.binding is not None:
        console.print(f"bound by {answer.binding.text}")


def _show_curve(console: Console, report: BenchReport) -> None:
    table = Table(*CURVE_HEAD, box=None)
    for row in curve_rows(report):
        table.add_row(*row)
    console.print(table)
    knee = report.knee
    if knee is not None:
        points = report.points
        own = "" if knee.share is None else f" ({knee.share:.0%} of the curves drawn again agree)"
        console.print(
            f"[bold]knee at {load_words(points[knee.index])}[/], 90% interval {load_words(points[knee.first])} to "
            f"{load_words(points[knee.last])}{own}; most throughput for its latency at "
            f"{load_words(points[knee.power_index])}"
        )
    for index, point in enumerate(report.points):
        for reason in point.reasons:
            console.print(f"  point {index + 1}, {load_words(point)}: {reason}", style="dim", markup=False)


def _show_point(console: Console, point: Point) -> None:
    summary = point.summary
    if summary is None:
        why = "it was stopped too early" if point.is_partial else "make it longer (--seconds)"
        console.print(f"[red]no request that was due after the warm-up has ended[/]: {why}")
        return
    console.print(
        f"[bold]{summary.requests} requests in {summary.window_s:.1f} s[/] ({load_words(point)}): offered "
        f"{summary.offered_rps:.2f}/s, done {summary.completed_rps:.2f}/s, {summary.output_tokens_per_s:,.0f} output "
        f"and {summary.total_tokens_per_s:,.0f} total tokens/s, {summary.in_flight:.1f} in flight"
    )
    console.print(_latencies(summary.overall.latencies))
    if len(summary.classes) > 2:  # noqa: PLR2004 - two classes, and all together
        console.print(_by_class(summary.classes.values()))
    overall = summary.overall
    shown = [overall.latencies[name] for name in SHOWN]
    if any(q.support == "failures" for one in shown for q in one.quantiles):
        console.print("never: more requests got no answer than this percentile leaves out", style="dim")
    if any(q.support == "too_few" and q.n and q.q < QUANTILES[-1] for one in shown for q in one.quantiles):
        console.print(_TOO_FEW, style="dim")
    if overall.failed:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(overall.errors.items()))
        console.print(f"[red]{overall.failed} failed[/]: {kinds}")
        for kind, detail in sorted(overall.error_details.items()):
            if detail != kind:
                console.print(f"  {kind}, for one: {detail}", markup=False, style="dim")
    for one in point.judged:
        colour = {"met": "green", "missed": "red", "undecided": "yellow"}[one.verdict]
        console.print(
            f"[{colour}]{one.verdict:<9}[/] {one.objective.text}: {one.share:.2%} outside "
            f"({one.low:.2%} to {one.high:.2%}), {one.objective.allowed:.2%} allowed, worth {one.n_test:.0f} requests"
        )
    for words in _doubts(point):
        console.print(words)


def _doubts(point: Point) -> Iterable[str]:
    if point.verdict == "invalid":
        yield f"[bold red]INVALID[/]: the client was not fit to measure: {'; '.join(point.health.faults)}"
    for reason in point.reasons[len(point.health.faults) :]:
        yield f"[yellow]doubtful[/]: {reason}"
    if point.health.is_valid and point.health.workers:
        ceiling = point.health.ceiling_ratio
        own = "" if ceiling is None else f", {ceiling:.1%} of its own ceiling"
        yield (
            f"[dim]client: sends late by {point.health.dispatch_lag_p99_s * 1e3:.1f} ms (P99), "
            f"{point.health.cpu_ratio:.0%} of a core{own}[/]"
        )


def _latencies(latencies: dict[str, Latency]) -> Table:
    table = Table("ms", *[f"P{q * 100:g}" for q in QUANTILES], "mean", box=None)
    for name in SHOWN:
        one = latencies[name]
        if one.count == 0:
            continue
        mean = "-" if one.mean_s is None else f"{one.mean_s * 1e3:,.1f}"
        table.add_row(name.upper(), *[_with_interval(quantile) for quantile in one.quantiles], mean)
    return table


def _by_class(classes: Iterable[ClassSummary]) -> Table:
    """Return a row for each class: what a class was promised, no mean over all of them tells."""
    table = Table("class", "requests", "failed", "TTFT P50", "P95 ms", "TPOT P50", "P95 ms", "attained", box=None)
    for one in classes:
        if one.class_name != ALL_CLASSES:
            cells = [ms_words(one.latencies[name].at(q)) for name in ("ttft", "tpot") for q in (0.5, 0.95)]
            share = "-" if one.attainment is None else f"{one.attainment.value:.1%}"
            table.add_row(one.class_name, f"{one.requests:,}", f"{one.failed:,}", *cells, share)
    return table


def _with_interval(quantile: Quantile) -> str:
    words = ms_words(quantile)
    if quantile.support == "full" and quantile.low is not None and quantile.high is not None:
        words += f" [dim]({quantile.low * 1e3:,.0f}-{quantile.high * 1e3:,.0f})[/]"
    return words
