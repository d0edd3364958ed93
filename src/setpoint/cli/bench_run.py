"""The three ways of `setpoint bench`, carried out: what is run, in which order, with what shown meanwhile.

Every run becomes a point of the report, whatever it was for, and its requests rows of the files: a search is then not
only an answer but the curve that it saw. Records are on disk from the moment that they end (`loadgen.recover`).
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import msgspec
from rich.console import Console

from setpoint.cli.bench_options import read_rate
from setpoint.cli.bench_show import Live, show_point, show_trial
from setpoint.errors import ConfigError
from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.experiment import TAIL_S, MixSource, Setup, open_plan, run_closed, run_plan
from setpoint.loadgen.recover import keep_header, keep_load
from setpoint.loadgen.report import BenchReport, Load, Point, closed_load, make_report, point_of, relative
from setpoint.loadgen.run import Run
from setpoint.loadgen.scrape import Scraper
from setpoint.loadgen.search import SearchSettings, Trial, TrialResult
from setpoint.loadgen.trials import find_max_rate, result_of, run_trial
from setpoint.metrics import Objective, RequestRecord
from setpoint.metrics.knee import Knee, knee_with_interval, slices_of
from setpoint.seeds import stream
from setpoint.workload import Steady, plan_traffic

Way = Literal["run", "sweep", "search"]
Rows = list[tuple[int, RequestRecord]]

USERS_MAX = 1024
GAIN_MIN = 1.05
FRACTIONS = (0.25, 0.5, 0.7, 0.85, 0.95, 1.05)
REQUESTS_OF_LEAST = 2.0
SECONDS_DEFAULT = 60.0
POINT_SHARE, POINT_MIN_S = 1.0 / 16.0, 8.0
CLIMBING = 0.5
REPEATS = 3


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The load of a single run, its length, and what it is called; `budget_s`: about how long a search may take."""

    rate: str | None
    users: int | None
    seconds: float | None
    warmup_s: float | None
    seed: int
    words: str
    budget_s: float = 300.0

    @property
    def run_s(self) -> float:
        """The length of a single run."""
        return self.seconds or SECONDS_DEFAULT

    @property
    def point_s(self) -> float:
        """The length of each run of a sweep."""
        return self.seconds or max(POINT_MIN_S, min(SECONDS_DEFAULT, POINT_SHARE * self.budget_s))


class BenchJob(msgspec.Struct, kw_only=True):
    """All that a bench command is to do. `ceiling_eps`: what the client is capable of, where that was measured."""

    setup: Setup
    objectives: tuple[Objective, ...]
    way: Way
    shape: Shape
    version: str
    ceiling_eps: float | None = None


class _Desk:
    """Where runs are begun and become points."""

    def __init__(self, job: BenchJob, live: Live, console: Console) -> None:
        self.job, self.live, self.console = job, live, console
        self.done: list[tuple[Run, Point]] = []
        self.begun_at = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.begun_at

    def watch(
        self,
        words: str,
        load: Load,
        go: Callable[[], Run],
        *,
        total_s: float | None = None,
    ) -> tuple[Run, Point]:
        """Carry out a run, reading the engine's counters meanwhile; raises KeyboardInterrupt when it was cut off.

        A run of a sweep in which the client stood still is repeated, a few times at most, and only the last one counts.
        """
        setup = self.job.setup
        left = REPEATS if self.job.way == "sweep" else 1
        while True:
            left -= 1
            self.live.begin(words, total_s=total_s)
            keep_load(setup.directory, load)
            with Scraper(setup.target) as scraper:
                run = go()
            engine = scraper.since(run.start_at)
            point = point_of(run, load, self.job.objectives, ceiling_eps=self.job.ceiling_eps, engine=engine)
            if run.is_partial or not point.health.stalled_s or not left:
                break
        self.done.append((run, point))
        if run.is_partial:
            raise KeyboardInterrupt
        if self.job.way == "sweep":
            show_point(self.console, point)
        return run, point

    def open(self, rps: float, seconds: float) -> tuple[Run, Point]:
        """Offer a rate."""
        setup, shape = self.job.setup, self.job.shape
        warmup_s = setup.warmup_s if shape.warmup_s is None else shape.warmup_s
        plan, options = open_plan(setup, rps, warmup_s + seconds, shape.seed)
        load = Load(kind="open", rate_rps=rps, workload=shape.words, seed=shape.seed)
        go = partial(run_plan, setup, plan, options, self.live.show, warmup_s=warmup_s)
        return self.watch(f"{rps:.2f}/s", load, go, total_s=warmup_s + seconds)

    def closed(self, users: int, seconds: float) -> tuple[Run, Point]:
        """Keep users busy; the plan holds more requests than they can have answered, as none takes less than alone."""
        setup, shape = self.job.setup, self.job.shape
        requests = int(users * (10.0 + REQUESTS_OF_LEAST * seconds / max(0.01, setup.e2e_s)))
        go = partial(run_closed, setup, users, requests, shape.seed, self.live.show, seconds=seconds)
        return self.watch(f"{users} users", closed_load(users, shape.words, shape.seed), go, total_s=seconds)


def carry_out_bench(job: BenchJob, console: Console) -> tuple[BenchReport, Rows]:
    """Carry out the job; returns the report, and the requests with the number of their point."""
    if job.setup.raw is not None:
        keep_header(job.setup.raw, _report(job, ()))
    with Live(console) as live:
        desk = _Desk(job, live, console)
        report = {"search": _search, "sweep": _sweep, "run": _single}[job.way](desk)
    rows = [(number, relative(one, run.start_at)) for number, (run, _) in enumerate(desk.done) for one in run.records]
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


def _of(desk: _Desk, *notes: str) -> BenchReport:
    return _report(desk.job, tuple(point for _, point in desk.done), notes)


def _single(desk: _Desk) -> BenchReport:
    shape, setup = desk.job.shape, desk.job.setup
    text = shape.rate or "1"
    rate = read_rate(text)
    try:
        if shape.users is not None:
            desk.closed(shape.users, shape.run_s)
        elif isinstance(rate, Steady):
            desk.open(rate.rps, shape.run_s)
        elif isinstance(setup.source, MixSource):
            plan = plan_traffic(setup.source.mix, rate, partial(stream, shape.seed), duration_s=shape.run_s + TAIL_S)
            mean = sum(one.at_s < shape.run_s for one in plan) / shape.run_s
            load = Load(kind="open", rate_rps=mean, arrivals=text, workload=shape.words, seed=shape.seed)
            options = RunOptions(window_s=shape.run_s, seed=shape.seed)
            go = partial(run_plan, setup, plan, options, desk.live.show, warmup_s=shape.warmup_s)
            desk.watch(f"rate {text}", load, go, total_s=shape.run_s)
        else:
            raise ConfigError("a trace has its own pattern: it takes a plain rate only", hint="give --rate as a number")
    except KeyboardInterrupt:
        return _of(desk, "stopped by hand: this is what had been measured")
    return _of(desk)


def _sweep(desk: _Desk) -> BenchReport:
    """Climb the users until throughput hardly grows, look closer about the knee, then offer rates up to that."""
    notes: tuple[str, ...] = ()
    seconds, budget_s = desk.job.shape.point_s, desk.job.shape.budget_s
    try:
        _climb(desk, seconds, budget_s)
        knee = _knee(desk)
        place = max(0, len(desk.done) - 2) if knee is None else knee.index
        about = desk.done[place][1].load.users or 1
        tried = {point.load.users for _, point in desk.done}
        for users in sorted({max(1, round(about * factor)) for factor in (0.75, 1.5)} - tried):
            desk.closed(users, seconds)
        best = max(point.summary.completed_rps for _, point in desk.done if point.summary is not None)
        for fraction in FRACTIONS:
            desk.open(fraction * best, seconds)
    except KeyboardInterrupt:
        notes = ("stopped by hand before the sweep had ended",)
    desk.done.sort(key=lambda each: (each[1].load.kind, each[1].load.users or 0, each[1].load.rate_rps or 0.0))
    return msgspec.structs.replace(_of(desk, *notes), knee=_knee(desk))


def _climb(desk: _Desk, seconds: float, budget_s: float) -> None:
    users, before = 1, 0.0
    while users <= USERS_MAX and len(desk.done) * seconds < CLIMBING * budget_s:
        _, point = desk.closed(users, seconds)
        if point.summary is None:
            return
        if users == 1:
            desk.job.setup.e2e_s = point.summary.overall.latencies["e2e"].mean_s or desk.job.setup.e2e_s
        if point.summary.completed_rps < GAIN_MIN * before:
            return
        before = point.summary.completed_rps
        users *= 2


def _knee(desk: _Desk) -> Knee | None:
    """Return the knee of the curve by users; that by rate ends in overload, where latency grows with the run."""
    curve = sorted(
        (point.load.users or 0, index)
        for index, (_, point) in enumerate(desk.done)
        if point.load.kind == "closed" and point.verdict != "invalid"
    )
    slices = []
    for _, index in curve:
        run = desk.done[index][0]
        window = run.window()
        if window is None:
            return None
        slices.append(slices_of(run.records, *window))
    knee = knee_with_interval(slices, stream(desk.job.shape.seed, "knee"))
    if knee is None:
        return None
    places = {"index": knee.index, "first": knee.first, "last": knee.last, "power_index": knee.power_index}
    return msgspec.structs.replace(knee, **{name: curve[place][1] for name, place in places.items()})


def _search(desk: _Desk) -> BenchReport:
    job, setup = desk.job, desk.job.setup
    settings = SearchSettings(objectives=job.objectives, seed=job.shape.seed, budget_s=job.shape.budget_s)
    if job.shape.seconds is not None:
        setup.trial_s_max = max(setup.trial_s_min, job.shape.seconds)
    trials: list[TrialResult] = []

    def carry(trial: Trial) -> TrialResult:
        begun_at = time.monotonic()
        load = Load(kind="open", rate_rps=trial.rate, workload=job.shape.words, seed=trial.seed)
        if trial.users is not None:
            load = closed_load(trial.users, job.shape.words, trial.seed)
        what = f"{trial.users} users" if trial.users is not None else f"{trial.kind} {trial.rate or 0.0:.2f}/s"
        words = f"{desk.elapsed_s / 60.0:.1f} of about {job.shape.budget_s / 60.0:g} min, {what}"
        go = partial(run_trial, setup, trial, job.objectives, desk.live.show)
        run, _ = desk.watch(words, load, go, total_s=trial.seconds_max)
        spent_s = time.monotonic() - begun_at
        result = result_of(trial, run, job.objectives, spent_s=spent_s, ceiling_eps=job.ceiling_eps)
        if trial.users == 1 and result.mean_e2e_s:
            setup.e2e_s = result.mean_e2e_s
        trials.append(result)
        show_trial(desk.console, result)
        return result

    try:
        answer, _ = find_max_rate(carry, settings)
    except KeyboardInterrupt:
        stopped = _of(desk, "stopped by hand before the search had ended")
        return msgspec.structs.replace(stopped, trials=tuple(trials))
    sent = sum(result.sent for result in trials)
    cost = f"{len(trials)} trials, {sent:,} requests, {desk.elapsed_s / 60.0:.1f} minutes"
    return msgspec.structs.replace(_of(desk, cost), answer=answer, trials=tuple(trials))
