"""Where the runs of a bench command are begun, watched, and made points of its report.

Every run becomes a point, whatever it was for, and its requests rows of the files: a search is then not only an answer
but the curve that it saw. Records are on disk from the moment that they end (`loadgen.recover`).
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import msgspec
from rich.console import Console

from setpoint.cli.bench_due import faster_rate, refuse_empty
from setpoint.cli.bench_live import Live
from setpoint.cli.bench_show import show_point
from setpoint.loadgen.experiment import WARMUP_MIN_S, Setup, open_plan, run_closed, run_plan
from setpoint.loadgen.recover import keep_load
from setpoint.loadgen.report import BenchReport, Load, Point, closed_load, make_report, point_of
from setpoint.loadgen.run import Run
from setpoint.loadgen.scrape import Scraper
from setpoint.metrics import Objective

Way = Literal["run", "sweep", "search"]

REQUESTS_OF_LEAST = 4.0
SECONDS_DEFAULT = 60.0
POINT_SHARE, POINT_MIN_S = 1.0 / 16.0, 8.0
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


class Desk:
    """Where runs are begun and become points."""

    def __init__(self, job: BenchJob, live: Live, console: Console) -> None:
        self.job, self.live, self.console = job, live, console
        self.done: list[tuple[Run, Point]] = []
        self.begun_at = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command began to measure."""
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

    def tell(self, words: str, warmup_s: float = 0.0) -> None:
        """Say what a single run is about to do, and how long it can take."""
        if self.job.way != "run":
            return
        limits = self.job.setup.target.limits
        after = f" after a warm-up of {warmup_s:.0f} s" if warmup_s else ""
        self.console.print(
            f"{words}{after}; then what was due in it is waited for: each answer {limits.answer_s:g} s at most to its "
            f"first byte (--timeout) and {limits.total_s:g} s in all; Ctrl-C ends it with what there is",
            style="dim",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def open(self, rps: float, seconds: float) -> tuple[Run, Point]:
        """Offer a rate, after a warm-up that lasts no longer than what is measured."""
        setup, shape = self.job.setup, self.job.shape
        warmup_s = shape.warmup_s if shape.warmup_s is not None else max(WARMUP_MIN_S, min(setup.warmup_s, seconds))
        if self.job.way == "run" and shape.seconds is not None:
            window = {"warmup_s": warmup_s, "seconds": seconds}
            faster = partial(faster_rate, setup, rps, shape.seed, **window)
            refuse_empty(partial(setup.source.plan, rps, shape.seed), **window, faster=faster)
        seconds, plan, options = open_plan(setup, rps, shape.seed, warmup_s=warmup_s, seconds=seconds)
        self.tell(f"{rps:g} requests a second for {seconds:g} s", warmup_s)
        load = Load(kind="open", rate_rps=rps, workload=shape.words, seed=shape.seed)
        go = partial(run_plan, setup, plan, options, self.live.show, warmup_s=warmup_s)
        return self.watch(f"{rps:.2f}/s", load, go, total_s=warmup_s + seconds)

    def closed(self, users: int, seconds: float) -> tuple[Run, Point]:
        """Keep users busy; the plan holds more requests than they can have answered, as few take less than alone."""
        setup, shape = self.job.setup, self.job.shape
        requests = int(users * (10.0 + REQUESTS_OF_LEAST * seconds / max(0.01, setup.e2e_s)))
        go = partial(run_closed, setup, users, requests, shape.seed, self.live.show, seconds=seconds)
        self.tell(f"{users} users for {seconds:g} s")
        return self.watch(f"{users} users", closed_load(users, shape.words, shape.seed), go, total_s=seconds)


def report_of(job: BenchJob, points: tuple[Point, ...], notes: tuple[str, ...] = ()) -> BenchReport:
    """Return the report of `points`."""
    return make_report(
        job.setup.target,
        job.setup.lexicon,
        job.objectives,
        points,
        version=job.version,
        created_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        notes=notes,
    )


def so_far(desk: Desk, *notes: str) -> BenchReport:
    """Return the report of the runs that were done."""
    return report_of(desk.job, tuple(point for _, point in desk.done), notes)
