"""The runs of `setpoint simulate`, carried out, and the report that they make: the schema of `setpoint bench`."""

import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import msgspec
from rich.console import Console

from setpoint.errors import ConfigError
from setpoint.journal import Header, encode_entry, encode_header
from setpoint.loadgen.health import ClientHealth
from setpoint.loadgen.report import BenchReport, Load, Point, Validity, doubts_of
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import Judged, Objective, RequestRecord, Summary, judge, summarize
from setpoint.model import AnyCommand, AnyEvent, Slo
from setpoint.sim.scenario import Outcome, Scenario, bound_rps, check_fit, simulate
from setpoint.sim.sources import Source
from setpoint.sim.spread import spread
from setpoint.sim.timeline import Timeline
from setpoint.steptime.saved import saved
from setpoint.workload import PlannedRequest

Plan = list[PlannedRequest]
Rows = list[tuple[int, RequestRecord]]
REFUSED_MAX = 0.01
_GIVEN_UP = frozenset({"rejected", "expired"})


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """All that a simulate command is to do: one run a plan."""

    scenario: Scenario
    source: Source
    plans: list[Plan]
    words: str
    objectives: tuple[Objective, ...]
    first_seed: int


class Run(msgspec.Struct, kw_only=True):
    """One run: what came of it, how long it took here, and what was watched."""

    seed: int
    outcome: Outcome
    wall_s: float
    bound: float | None = None
    too_long: int = 0
    timeline: Timeline | None = None


class _One(msgspec.Struct, frozen=True):
    scenario: Scenario
    plan: Plan
    seed: int


def carry_out(
    job: Job, console: Console, *, is_ray: bool = False, is_timed: bool = False, journal: Path | None = None
) -> list[Run]:
    """Run every plan, over all cores when there are several."""
    for plan in job.plans:
        check_fit(plan, job.scenario.machine_capacity)
    if not is_timed and journal is None:
        jobs = [_One(job.scenario, plan, job.first_seed + i) for i, plan in enumerate(job.plans)]
        with console.status(f"simulating {sum(map(len, job.plans)):,} requests"):
            return spread(_run, jobs, is_ray=is_ray)
    watch = Timeline() if is_timed else None
    plan = job.plans[0]
    started = time.perf_counter()
    if journal is None:
        outcome = simulate(job.scenario, plan, seed=job.first_seed, watch=watch)
    else:
        outcome = _journaled(job, plan, watch, journal)
    wall_s = time.perf_counter() - started
    return [_with_bound(Run(seed=job.first_seed, outcome=outcome, wall_s=wall_s, timeline=watch), job.scenario, plan)]


def _run(one: _One) -> Run:
    started = time.perf_counter()
    outcome = simulate(one.scenario, one.plan, seed=one.seed)
    run = Run(seed=one.seed, outcome=outcome, wall_s=time.perf_counter() - started)
    return _with_bound(run, one.scenario, one.plan)


def _with_bound(run: Run, scenario: Scenario, plan: Plan) -> Run:
    """Return the run with the bound, which is looked for only when the load may have been beyond it."""
    refused = sum(record.error in _GIVEN_UP for record in run.outcome.records)
    run.too_long = check_fit(plan, scenario.machine_capacity)
    if run.outcome.is_cut or refused > REFUSED_MAX * len(plan):
        run.bound = bound_rps(scenario, plan) * run.outcome.replicas / scenario.layout.replicas
    return run


def _journaled(job: Job, plan: Plan, watch: Timeline | None, path: Path) -> Outcome:
    """Run with every event and command of replica 0 written to `path`."""
    scenario = job.scenario
    header = Header(
        strategy=scenario.strategy,
        options=dict(scenario.options),
        classes=tuple(scenario.classes.values()),
        capacity=scenario.machine_capacity,
        step_time=msgspec.Raw(saved(scenario.belief or scenario.world)),
        is_learning=False,
        engine=f"simulated: {job.source.name}",
        made_by=version("setpoint"),
    )
    try:
        with path.open("wb") as file:
            file.write(encode_header(header))

            def write(event: AnyEvent, commands: list[AnyCommand]) -> None:
                file.write(encode_entry(event, commands))

            return simulate(scenario, plan, seed=job.first_seed, watch=watch, journal=write)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}", hint="choose another place for --journal"
        ) from error


def make_simulation_report(job: Job, runs: Sequence[Run]) -> tuple[BenchReport, Rows]:
    """Return the report of all runs, and the requests with the number of their run."""
    points = tuple(_point(job, run, plan) for run, plan in zip(runs, job.plans, strict=True))
    report = BenchReport(
        version=version("setpoint"),
        created_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        machine=f"simulated; {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        target=EndpointTarget(url=f"simulated:{job.source.name}", model=job.source.name, engine="setpoint"),
        lexicon_source="plan",
        is_lexicon_exact=True,
        objectives=job.objectives,
        points=points,
        notes=tuple(note for note in _notes(job, runs, points) if note),
    )
    return report, [(number, record) for number, run in enumerate(runs) for record in run.outcome.records]


def _point(job: Job, run: Run, plan: Plan) -> Point:
    records = sorted(run.outcome.records, key=lambda record: (record.scheduled_at, record.id))
    slos = {name: one.slo for name, one in job.scenario.classes.items()}
    faults = job.scenario.faults
    # a spike brings requests that were not planned
    times = [r.scheduled_at for r in records] if faults.spike else [one.at_s for one in plan]
    # what goes wrong is the question then, so that nothing of it is cut off as warm-up
    whole = (times[0], times[-1] + 1e-9) if faults.spike or not faults.is_empty else None
    summary = _summary(records, slos, whole)
    start, end = (summary.start_at, summary.end_at) if summary else (0.0, float("inf"))
    due = [record for record in records if start <= record.scheduled_at < end]
    judged: tuple[Judged, ...] = tuple(judge(due, objective) for objective in job.objectives)
    span = times[-1] - times[0]
    rate = (len(times) - 1) / span if span > 0.0 else None
    load = Load(kind="open", rate_rps=rate, arrivals="as planned", workload=job.words, seed=run.seed)
    doubts = tuple(doubts_of(summary))
    verdict: Validity = "doubtful" if doubts else "valid"
    return Point(load=load, summary=summary, judged=judged, health=_HEALTH, verdict=verdict, reasons=doubts)


def _summary(
    records: Sequence[RequestRecord], slos: dict[str, Slo], window: tuple[float, float] | None
) -> Summary | None:
    is_answered = any(record.first_token_at is not None for record in records)
    return summarize(records, slos, window=window) if is_answered else None


def _notes(job: Job, runs: Sequence[Run], points: Sequence[Point]) -> list[str]:
    steps = sum(run.outcome.steps for run in runs)
    requests = sum(len(run.outcome.records) for run in runs)
    wall_s = max(1e-9, sum(run.wall_s for run in runs))
    first = runs[0].outcome
    scenario = job.scenario
    room = scenario.machine_capacity
    mean = "" if _is_constant(first, scenario) else f" ({first.replicas:.2f} in the mean)"
    deployed = f"{scenario.layout.replicas} replica(s){mean}, strategy {scenario.strategy}"
    held = f"{room.kv_blocks * room.block_tokens:,} KV tokens and {room.slots} slots each"
    speed = f"in {wall_s:.1f} s of computing ({requests / wall_s:,.0f} requests/s)"
    state = f"busy {first.busy_ratio:.0%}, {first.preemptions} preemptions"
    notes = [
        f"simulated {job.source.name}: {deployed}, {held}",
        f"{requests:,} requests and {steps:,} steps {speed}; {state}",
    ]
    if first.hit_ratio is not None:
        notes.append(f"prefix cache: {first.hit_ratio:.1%} of the prompt tokens were there already")
    notes += [_doubt(run, point) for run, point in zip(runs, points, strict=True)]
    notes.append(f"how far to trust this: {job.source.trust}")
    return notes


def _is_constant(outcome: Outcome, scenario: Scenario) -> bool:
    return abs(outcome.replicas - scenario.layout.replicas) < 5e-3  # noqa: PLR2004 - half of the last digit shown


def _doubt(run: Run, point: Point) -> str:
    """Return what has to be said of a run whose load was not carried, in words; empty where it was."""
    words = []
    if run.too_long:
        words.append(f"{run.too_long:,} requests are longer than a replica can hold and were refused")
    words += run.outcome.missed
    if run.bound is not None and point.load.rate_rps is not None:
        words += _bound_words(run, run.bound, point.load.rate_rps, point.summary)
    if run.outcome.is_cut:
        left = sum(record.ended_at is None for record in run.outcome.records)
        words.append(f"the run was ended at {run.outcome.ended_at:,.0f} s with {left:,} requests unfinished")
    return f"seed {run.seed}: {'; '.join(words)}" if words else ""


def _bound_words(run: Run, bound: float, rate: float, summary: Summary | None) -> Iterator[str]:
    """Yield what the bound says of a run; it is a rate of all that came, of which a strategy may do the shorter part.

    Who is refused for its length leaves shorter requests behind, of which more end in a second than the bound says.
    """
    records = run.outcome.records
    given_up = sum(record.error in _GIVEN_UP for record in records)
    hits = "" if not run.outcome.hit_ratio else ", were no prefix kept,"
    yield (
        f"{_state(is_over=rate > bound, given_up=given_up)}: offered {rate:.2f}/s, an unlimited backlog of such "
        f"requests{hits} would be worked off at {bound:.2f}/s, long ones and all"
    )
    if given_up:
        yield f"{given_up:,} requests ({given_up / len(records):.0%}) were refused or expired"
    whole = fmean(record.prompt_tokens for record in records)
    done = [record.prompt_tokens for record in records if not record.is_failed]
    if summary and summary.completed_rps > bound and done and fmean(done) < whole:
        yield (
            f"more than that were done, {summary.completed_rps:.2f}/s, since those answered have prompts of "
            f"{fmean(done):,.0f} tokens in the mean, and all {whole:,.0f}"
        )


def _state(*, is_over: bool, given_up: int) -> str:
    if is_over:
        return "the queue grew without limit" + (", but for those given up" if given_up else "")
    if given_up:
        return "the load can be carried, but not at all times: it came in bursts, or a fault took replicas away"
    return "the load can be carried, but the run ended before the last answers (--drain)"


def write_timeline(path: Path, run: Run) -> Path:
    """Write the steps of a run as a Chrome trace."""
    assert run.timeline is not None
    try:
        path.write_bytes(run.timeline.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", hint="choose another place") from error
    return path


_HEALTH = ClientHealth(
    faults=(),
    notes=("a virtual clock: nothing was sent",),
    workers=0,
    dispatch_lag_p99_s=0.0,
    loop_lag_p99_s=0.0,
    cpu_ratio=0.0,
    sent_ratio=1.0,
    events_per_s=0.0,
    events_a_read=1.0,
    ceiling_ratio=None,
    connections=0,
)
