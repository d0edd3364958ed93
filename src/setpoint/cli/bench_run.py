"""The three ways of `setpoint bench`, carried out: what is run, in which order, with what shown meanwhile."""

import time
from functools import partial
from typing import Literal

import msgspec
from rich.console import Console

from setpoint.cli.bench_options import read_rate
from setpoint.cli.bench_show import Live, show_trial
from setpoint.errors import ConfigError
from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.experiment import (
    TAIL_S,
    MixSource,
    Setup,
    carry_out,
    find_max_rate,
    measure_for,
    run_closed,
    run_open,
)
from setpoint.loadgen.report import BenchReport, Load, Point, closed_load, make_report, point_of, relative
from setpoint.loadgen.run import Run
from setpoint.loadgen.scrape import Scraper
from setpoint.loadgen.search import SearchSettings, Trial, TrialResult
from setpoint.metrics import Objective, RequestRecord
from setpoint.metrics.knee import find_knee
from setpoint.seeds import stream
from setpoint.workload import Steady, plan_traffic

Way = Literal["run", "sweep", "search"]
Rows = list[tuple[int, RequestRecord]]

USERS_MAX = 1024
GAIN_MIN = 1.05
FRACTIONS = (0.25, 0.5, 0.7, 0.85, 0.95, 1.05)
CLOSED_RUN_MAX = 1_000_000


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The load of a single run, its length, and what it is called."""

    rate: str | None
    users: int | None
    seconds: float
    warmup_s: float | None
    seed: int
    words: str


class BenchJob(msgspec.Struct, kw_only=True):
    """All that a bench command is to do."""

    setup: Setup
    objectives: tuple[Objective, ...]
    way: Way
    shape: Shape
    version: str


def carry_out_bench(job: BenchJob, console: Console) -> tuple[BenchReport, Rows]:
    """Carry out the job; returns the report, and the requests with the number of their point."""
    with Live(console) as live:
        if job.way == "search":
            return _search(job, console, live)
        runs = _sweep(job, live) if job.way == "sweep" else [_single(job, live)]
    points = tuple(point for _, point in runs)
    rows = [(number, relative(one, run.start_at)) for number, (run, _) in enumerate(runs) for one in run.records]
    report = _report(job, points)
    if job.way == "sweep":
        measured = [point.summary for point in points if point.summary is not None]
        if len(measured) == len(points):
            knee = find_knee(
                [summary.output_tokens_per_s for summary in measured],
                [summary.overall.latencies["e2e"].mean_s or 0.0 for summary in measured],
            )
            report = msgspec.structs.replace(report, knee=knee)
    return report, rows


def _report(job: BenchJob, points: tuple[Point, ...], notes: tuple[str, ...] = ()) -> BenchReport:
    return make_report(
        job.setup.target,
        job.setup.lexicon,
        job.objectives,
        points,
        version=job.version,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        notes=notes,
    )


def _single(job: BenchJob, live: Live) -> tuple[Run, Point]:
    shape, setup = job.shape, job.setup
    if shape.users is not None:
        return _closed(job, live, shape.users, shape.seconds)
    text = shape.rate or "1"
    rate = read_rate(text)
    if isinstance(rate, Steady):
        return _open(job, live, rate.rps, shape.seconds)
    if not isinstance(setup.source, MixSource):
        raise ConfigError("a trace has its own pattern: it takes a plain rate only", hint="give --rate as a number")
    plan = plan_traffic(setup.source.mix, rate, partial(stream, shape.seed), duration_s=shape.seconds + TAIL_S)
    live.begin(f"rate {text}", total_s=shape.seconds)
    options = RunOptions(window_s=shape.seconds, seed=shape.seed)
    with Scraper(setup.target) as scraper:
        run = measure_for(setup, plan, options, live.show, warmup_s=shape.warmup_s)
    mean = sum(one.at_s < shape.seconds for one in plan) / shape.seconds
    load = Load(kind="open", rate_rps=mean, arrivals=text, workload=shape.words, seed=shape.seed)
    return run, point_of(run, load, job.objectives, engine=scraper.since(run.start_at))


def _open(job: BenchJob, live: Live, rps: float, seconds: float) -> tuple[Run, Point]:
    warmup_s = job.setup.warmup_s if job.shape.warmup_s is None else job.shape.warmup_s
    live.begin(f"{rps:.2f}/s", total_s=seconds + warmup_s)
    with Scraper(job.setup.target) as scraper:
        run = run_open(job.setup, rps, seconds, job.shape.seed, live.show, warmup_s=warmup_s)
    load = Load(kind="open", rate_rps=rps, workload=job.shape.words, seed=job.shape.seed)
    return run, point_of(run, load, job.objectives, engine=scraper.since(run.start_at))


def _closed(job: BenchJob, live: Live, users: int, seconds: float) -> tuple[Run, Point]:
    live.begin(f"{users} users", total_s=seconds)
    with Scraper(job.setup.target) as scraper:
        run = run_closed(job.setup, users, _enough(job, users, seconds), job.shape.seed, live.show, seconds=seconds)
    load = closed_load(users, job.shape.words, job.shape.seed)
    return run, point_of(run, load, job.objectives, engine=scraper.since(run.start_at))


def _enough(job: BenchJob, users: int, seconds: float) -> int:
    """Return more requests than `users` can have answered within `seconds`."""
    return min(CLOSED_RUN_MAX, int(users * (20.0 + 8.0 * seconds / max(0.01, job.setup.e2e_s))))


def _sweep(job: BenchJob, live: Live) -> list[tuple[Run, Point]]:
    """Climb the users until throughput hardly grows, then offer rates below and about that throughput."""
    ladder: list[tuple[Run, Point]] = []
    users = 1
    while users <= USERS_MAX:
        ladder.append(_closed(job, live, users, job.shape.seconds))
        if ladder[-1][0].is_partial:
            return ladder
        done = [point.summary.completed_rps if point.summary else 0.0 for _, point in ladder]
        if len(done) > 1 and done[-1] < GAIN_MIN * done[-2]:
            break
        users *= 2
    best = max(point.summary.completed_rps for _, point in ladder if point.summary is not None)
    rates: list[tuple[Run, Point]] = []
    for fraction in FRACTIONS:
        rates.append(_open(job, live, fraction * best, job.shape.seconds))
        if rates[-1][0].is_partial:
            break
    return ladder + rates


def _search(job: BenchJob, console: Console, live: Live) -> tuple[BenchReport, Rows]:
    settings = SearchSettings(objectives=job.objectives, seed=job.shape.seed)
    setup = msgspec.structs.replace(job.setup, trial_s_max=max(job.setup.trial_s_min, job.shape.seconds))
    done: list[TrialResult] = []

    def carry(trial: Trial) -> TrialResult:
        words = f"{trial.users} users" if trial.users is not None else f"{trial.kind} {trial.rate or 0.0:.2f}/s"
        live.begin(words, requests=trial.requests)
        return carry_out(setup, trial, job.objectives, live.show)

    def note(result: TrialResult) -> None:
        done.append(result)
        show_trial(console, result)

    try:
        answer, history = find_max_rate(carry, settings, note)
    except KeyboardInterrupt:
        stopped = ("stopped by hand before the search had ended",)
        return msgspec.structs.replace(_report(job, (), stopped), trials=tuple(done)), []
    return msgspec.structs.replace(_report(job, ()), answer=answer, trials=tuple(history)), []
