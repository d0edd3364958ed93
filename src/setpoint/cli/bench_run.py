"""The three ways of `setpoint bench`, carried out: what is run, and in which order."""

import time
from collections.abc import Iterator
from functools import partial

import msgspec
from rich.console import Console

from setpoint.cli.bench_desk import BenchJob, Desk, report_of, so_far
from setpoint.cli.bench_due import refuse_empty
from setpoint.cli.bench_live import Live
from setpoint.cli.bench_options import read_rate
from setpoint.cli.bench_show import show_trial
from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.experiment import TAIL_S, MixSource, run_plan
from setpoint.loadgen.recover import keep_header
from setpoint.loadgen.report import BenchReport, Load, closed_load, relative
from setpoint.loadgen.search import SearchSettings, Trial, TrialResult
from setpoint.loadgen.trials import find_max_rate, result_of, run_trial
from setpoint.metrics import RequestRecord
from setpoint.metrics.knee import Knee, knee_with_interval, slices_of
from setpoint.seeds import stream
from setpoint.workload import AnyRate, PlannedRequest, Steady, plan_traffic

Rows = list[tuple[int, RequestRecord]]

USERS_MAX = 1024
GAIN_MIN = 1.05
FRACTIONS = (0.25, 0.5, 0.7, 0.85, 0.95, 1.05)
CLIMBING = 0.5


def carry_out_bench(job: BenchJob, console: Console) -> tuple[BenchReport, Rows]:
    """Carry out the job; returns the report, and the requests with the number of their point."""
    if job.setup.raw is not None:
        keep_header(job.setup.raw, report_of(job, ()))
    with Live(console) as live:
        desk = Desk(job, live, console)
        report = {"search": _search, "sweep": _sweep, "run": _single}[job.way](desk)
    rows = [(number, relative(one, run.start_at)) for number, (run, _) in enumerate(desk.done) for one in run.records]
    return report, rows


def _single(desk: Desk) -> BenchReport:
    shape, setup = desk.job.shape, desk.job.setup
    text = shape.rate or "1"
    rate = read_rate(text)
    try:
        if shape.users is not None:
            desk.closed(shape.users, shape.run_s)
        elif isinstance(rate, Steady):
            desk.open(rate.rps, shape.run_s)
        else:
            assert isinstance(setup.source, MixSource), "a trace takes a plain rate only"
            plan_until = partial(_plan_until, setup.source, rate, shape.seed)
            refuse_empty(plan_until, warmup_s=shape.warmup_s or 0.0, seconds=shape.run_s)
            plan = plan_until(shape.run_s + TAIL_S)
            mean = sum(one.at_s < shape.run_s for one in plan) / shape.run_s
            load = Load(kind="open", rate_rps=mean, arrivals=text, workload=shape.words, seed=shape.seed)
            options = RunOptions(window_s=shape.run_s, seed=shape.seed)
            go = partial(run_plan, setup, plan, options, desk.live.show, warmup_s=shape.warmup_s)
            desk.tell(f"{text} for {shape.run_s:g} s")
            desk.watch(f"rate {text}", load, go, total_s=shape.run_s)
    except KeyboardInterrupt:
        return so_far(desk, "stopped by hand: this is what had been measured")
    return so_far(desk)


def _plan_until(source: MixSource, rate: AnyRate, seed: int, duration_s: float) -> list[PlannedRequest]:
    return plan_traffic(source.mix, rate, partial(stream, seed), duration_s=duration_s)


def _sweep(desk: Desk) -> BenchReport:
    """Climb the users until throughput hardly grows, look closer about the knee, then offer rates up to that."""
    notes: list[str] = []
    seconds = desk.job.shape.point_s
    try:
        notes += _climb(desk, seconds)
        knee = _knee(desk)
        place = max(0, len(desk.done) - 2) if knee is None else knee.index
        about = desk.done[place][1].load.users or 1
        tried = {point.load.users for _, point in desk.done}
        for users in sorted({max(1, round(about * factor)) for factor in (0.75, 1.5)} - tried):
            desk.closed(users, seconds)
        best = max((point.summary.completed_rps for _, point in desk.done if point.summary is not None), default=0.0)
        for fraction in FRACTIONS if best > 0.0 else ():
            desk.open(fraction * best, seconds)
    except KeyboardInterrupt:
        notes.append("stopped by hand before the sweep had ended")
    desk.done.sort(key=lambda each: (each[1].load.kind, each[1].load.users or 0, each[1].load.rate_rps or 0.0))
    found = _knee(desk)
    if found is None:
        notes.append("no knee is named: that takes five points by users that can be trusted")
    return msgspec.structs.replace(so_far(desk, *notes), knee=found)


def _climb(desk: Desk, seconds: float) -> Iterator[str]:
    """Double the users; yields what must be known of where that ended."""
    users, before = 1, 0.0
    while users <= USERS_MAX:
        _, point = desk.closed(users, seconds)
        if point.summary is None or not point.summary.completed_rps:
            yield f"{users} users had no answer within {seconds:g} s"
            return
        if users == 1:
            desk.job.setup.e2e_s = point.summary.overall.latencies["e2e"].mean_s or desk.job.setup.e2e_s
        if point.summary.completed_rps < GAIN_MIN * before:
            return
        if desk.elapsed_s > CLIMBING * desk.job.shape.budget_s:
            yield f"throughput still grew at {users} users, when half of the time was over: give more --minutes"
            return
        before = point.summary.completed_rps
        users *= 2


def _knee(desk: Desk) -> Knee | None:
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


def _search(desk: Desk) -> BenchReport:
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
        stopped = so_far(desk, "stopped by hand before the search had ended")
        return msgspec.structs.replace(stopped, trials=tuple(trials))
    sent = sum(result.sent for result in trials)
    cost = f"{len(trials)} trials, {sent:,} requests, {desk.elapsed_s / 60.0:.1f} minutes"
    return msgspec.structs.replace(so_far(desk, cost), answer=answer, trials=tuple(trials))
