"""The report of a bench run as a page: the curve, the distributions, the timeline, and every doubt that there is."""

from collections.abc import Sequence

from setpoint.dashboard.chart import Panel, Series, Spot, draw
from setpoint.dashboard.report import Figure, Mood, Report, Section, Table, render
from setpoint.loadgen.report import BenchReport, Point
from setpoint.loadgen.report_words import CURVE_HEAD, curve_rows, ms_words
from setpoint.metrics import Quantile, RequestRecord

DISTRIBUTION_POINTS = 100
TIMELINE_SLICES = 60


def render_bench(report: BenchReport, rows: Sequence[tuple[int, RequestRecord]]) -> str:
    """Return the page; `rows` hold requests with the number of their point."""
    sections = []
    if len(report.points) > 1:
        sections.append(Section(title="Throughput against latency", svg=draw([_curve(report)]), table=_table(report)))
    last = len(report.points) - 1
    records = [record for number, record in rows if number == last]
    if records:
        sections.append(Section(title="Distribution", svg=draw([_distribution(records)])))
        sections.append(Section(title="Timeline", svg=draw(_timeline(records, report.points[last]))))
    sections.append(Section(title="Objectives", points=tuple(_judged(report)) or ("none were given",)))
    sections.append(Section(title="Can this be trusted?", points=tuple(_trust(report))))
    verdict, mood = _verdict(report)
    return render(
        Report(
            title="Setpoint bench",
            subtitle=f"{report.target.url}, {report.target.model or 'model not named'}, {report.created_at}",
            verdict=verdict,
            mood=mood,
            figures=tuple(_figures(report)),
            sections=sections,
            footer=f"setpoint {report.version}, {report.machine}",
        )
    )


def _verdict(report: BenchReport) -> tuple[str, Mood]:
    if report.answer is not None:
        if report.answer.rate is None:
            return report.answer.reason, "bad"
        return f"Sustains {report.answer.rate:.2f} requests per second within the objectives.", "good"
    if any(point.verdict == "invalid" for point in report.points):
        return "The client was the bottleneck: these figures say nothing about the server.", "bad"
    if not report.objectives:
        return "Measured; no objectives were given.", "good"
    return ("Every objective is met.", "good") if report.is_met else ("An objective is missed.", "bad")


def _figures(report: BenchReport) -> list[Figure]:
    summary = report.points[-1].summary if report.points else None
    if summary is None:
        return []
    ttft = summary.overall.latencies["ttft"].at(0.95)
    tpot = summary.overall.latencies["tpot"].at(0.95)
    return [
        Figure(label="requests per second", value=f"{summary.completed_rps:.2f}", detail=f"{summary.requests} due"),
        Figure(label="output tokens per second", value=f"{summary.output_tokens_per_s:,.0f}"),
        Figure(label="TTFT P95", value=_ms(ttft), detail=_interval(ttft)),
        Figure(label="TPOT P95", value=_ms(tpot), detail=_interval(tpot)),
    ]


def _curve(report: BenchReport) -> Panel:
    series = []
    for kind, name in (("closed", "users"), ("open", "rate")):
        spots = [
            _spot(point.summary.output_tokens_per_s, point.summary.overall.latencies["ttft"].at(0.95))
            for point in report.points
            if point.summary is not None and point.load.kind == kind
        ]
        kept = tuple(spot for spot in spots if spot is not None)
        if kept:
            series.append(Series(name=f"by {name}", spots=kept, is_accented=kind == "open"))
    limit = min((one.limit_s for one in report.objectives if one.metric == "ttft"), default=None)
    return Panel(
        title="TTFT P95",
        x_label="output tokens per second",
        y_label="ms",
        series=tuple(series),
        target=None if limit is None else limit * 1e3,
        target_label="target",
    )


def _spot(x: float, quantile: Quantile) -> Spot | None:
    if quantile.value is None:
        return None
    return Spot(
        x=x,
        y=quantile.value * 1e3,
        low=None if quantile.low is None else quantile.low * 1e3,
        high=None if quantile.high is None else quantile.high * 1e3,
        is_firm=quantile.support == "full",
    )


def _distribution(records: Sequence[RequestRecord]) -> Panel:
    series = []
    for name in ("ttft", "e2e"):
        values = sorted(value for record in records if (value := getattr(record, f"{name}_s")) is not None)
        if not values:
            continue
        step = max(1, len(values) // DISTRIBUTION_POINTS)
        picked = [(index + 1) / len(records) for index in range(0, len(values), step)]
        spots = tuple(
            Spot(x=max(values[index] * 1e3, 1e-3), y=share * 100.0)
            for share, index in zip(picked, range(0, len(values), step), strict=True)
        )
        series.append(Series(name=name.upper(), spots=spots, is_accented=name == "ttft"))
    return Panel(title="Share of requests within", x_label="ms", y_label="%", series=tuple(series))


def _timeline(records: Sequence[RequestRecord], point: Point) -> list[Panel]:
    end = max(record.scheduled_at for record in records) + 1e-9
    slices: list[list[float]] = [[] for _ in range(TIMELINE_SLICES)]
    for record in records:
        if record.ttft_s is not None:
            slices[min(TIMELINE_SLICES - 1, int(record.scheduled_at / end * TIMELINE_SLICES))].append(record.ttft_s)
    spots = tuple(
        Spot(x=max(0.01, (index + 0.5) * end / TIMELINE_SLICES), y=sum(part) / len(part) * 1e3)
        for index, part in enumerate(slices)
        if part
    )
    panels = [Panel(title="TTFT by arrival", x_label="s", y_label="ms", series=(Series(name="mean", spots=spots),))]
    waiting = tuple(Spot(x=max(0.01, one.at), y=one.waiting or 0.0) for one in point.engine)
    running = tuple(Spot(x=max(0.01, one.at), y=one.running or 0.0) for one in point.engine)
    if running:
        both = (Series(name="running", spots=running, is_accented=True), Series(name="waiting", spots=waiting))
        panels.append(Panel(title="In the engine", x_label="s", y_label="requests", series=both))
    return panels


def _table(report: BenchReport) -> Table:
    strong = () if report.knee is None else (report.knee.index,)
    return Table(head=CURVE_HEAD, rows=tuple(curve_rows(report)), strong=strong)


def _judged(report: BenchReport) -> list[str]:
    return [
        f"{one.objective.text}: {one.verdict}; {one.share:.2%} outside ({one.low:.2%} to {one.high:.2%}), "
        f"{one.objective.allowed:.2%} allowed"
        for point in report.points[-1:]
        for one in point.judged
    ]


def _trust(report: BenchReport) -> list[str]:
    words = [] if report.is_lexicon_exact else ["Prompt lengths are approximate."]
    for number, point in enumerate(report.points):
        words += [f"Point {number + 1} is {point.verdict}: {reason}." for reason in point.reasons]
    return words or ["The client stayed within its limits, and every run was a steady state."]


def _ms(quantile: Quantile) -> str:
    return ms_words(quantile) + (" ms" if quantile.support == "full" else "")


def _interval(quantile: Quantile) -> str:
    if quantile.low is None or quantile.high is None:
        return ""
    return f"{quantile.low * 1e3:,.1f} to {quantile.high * 1e3:,.1f}"
