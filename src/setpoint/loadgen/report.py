"""What a bench run leaves behind: one versioned value, from which every output is made (see docs/bench.md).

Instants count from the start of their run; secrets are gone. `SCHEMA` changes when a field changes its meaning or goes.
"""

import platform
from collections.abc import Iterator
from typing import Literal

import msgspec

from setpoint.loadgen.health import ClientHealth
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.run import Run, without_secrets
from setpoint.loadgen.scrape import EngineSample
from setpoint.loadgen.search import Answer, TrialResult
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import Judged, Objective, RequestRecord, Summary, judge, slos_of, tightest_s
from setpoint.metrics.knee import Knee

SCHEMA = "setpoint.bench/1"

LoadKind = Literal["open", "closed"]
Validity = Literal["valid", "doubtful", "invalid"]
SETTLING_REQUESTS, BACKLOG_REQUESTS = 20, 8


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What was offered, in words that two runs can be compared by. `rate_rps` or `users`, as `kind` says."""

    kind: LoadKind
    rate_rps: float | None = None
    users: int | None = None
    arrivals: str = "poisson"
    workload: str = ""
    seed: int = 0


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One run: its load, what was measured, and whether that can be trusted. `summary` is absent when nothing ended.

    `verdict`: `invalid` where the client was not fit to measure, `doubtful` where the window was no steady state (it
    breaks Little's law, latencies never settled, the run was cut off), with the `reasons`; else `valid`.
    """

    load: Load
    summary: Summary | None
    judged: tuple[Judged, ...]
    health: ClientHealth
    is_partial: bool = False
    stopped_by: str | None = None
    engine: tuple[EngineSample, ...] = ()
    verdict: Validity = "valid"
    reasons: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool:
        """Whether every objective holds at the point estimate, in a run that can be judged at all."""
        is_told = bool(self.summary) and self.verdict != "invalid"
        return is_told and all(one.requests and one.share <= one.objective.allowed for one in self.judged)


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """All of one command. `answer` and `trials`: of a search; `knee`: of a sweep."""

    schema: str = SCHEMA
    version: str
    created_at: str
    machine: str
    target: EndpointTarget
    lexicon_source: str
    is_lexicon_exact: bool
    objectives: tuple[Objective, ...]
    points: tuple[Point, ...]
    knee: Knee | None = None
    answer: Answer | None = None
    trials: tuple[TrialResult, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool:
        """Whether the objectives hold: the search found a rate, or every point meets them."""
        if self.answer is not None:
            return self.answer.rate is not None
        return bool(self.points) and all(point.is_met for point in self.points)


def point_of(
    run: Run,
    load: Load,
    objectives: tuple[Objective, ...],
    *,
    ceiling_eps: float | None = None,
    engine: tuple[EngineSample, ...] = (),
) -> Point:
    """Return the point that a run makes."""
    due = run.due()
    summary = run.summary(slos_of(objectives))
    health = run.health(ttft_limit_s=tightest_s(objectives), ceiling_eps=ceiling_eps)
    is_closed, is_warmup_given = load.kind == "closed", run.warmup_s is not None
    doubts = tuple(doubts_of(summary, is_partial=run.is_partial, is_warmup_given=is_warmup_given, is_closed=is_closed))
    if summary is not None:
        summary = msgspec.structs.replace(
            summary, start_at=summary.start_at - run.start_at, end_at=summary.end_at - run.start_at
        )
    return Point(
        load=load,
        summary=summary,
        judged=tuple(judge(due, objective) for objective in objectives),
        health=health,
        is_partial=run.is_partial,
        stopped_by=run.stopped_by,
        engine=engine,
        verdict="invalid" if health.faults else "doubtful" if doubts else "valid",
        reasons=(*health.faults, *doubts),
    )


def doubts_of(
    summary: Summary | None, *, is_partial: bool = False, is_warmup_given: bool = False, is_closed: bool = False
) -> Iterator[str]:
    """Yield why the window is no steady state, which figures of one would need; a closed loop cannot be overloaded."""
    if is_partial:
        yield "the run was cut off: this is what had been measured"
    if summary is None:
        return
    if summary.overload.is_overloaded and not is_closed:
        yield (
            "overloaded: the backlog grew throughout the window"
            if summary.requests >= BACKLOG_REQUESTS
            else f"too short: {summary.requests} requests do not tell whether the backlog grows"
        )
    if not summary.warmup.is_settled and summary.requests >= SETTLING_REQUESTS and not is_warmup_given:
        yield "latencies never settled: they still drifted at the middle of the run"
    if not summary.is_stationary:
        yield (
            f"not stationary: Little's law is off by {summary.little_error or 0.0:.0%}, "
            f"{summary.little_allowed:.0%} is what the edges of the window allow"
        )


def make_report(  # noqa: PLR0913 - the fields of the report that differ
    target: EndpointTarget,
    lexicon: Lexicon,
    objectives: tuple[Objective, ...],
    points: tuple[Point, ...],
    *,
    version: str,
    created_at: str,
    notes: tuple[str, ...] = (),
) -> BenchReport:
    """Return the report of the points; a search or a sweep adds its own with `msgspec.structs.replace`."""
    return BenchReport(
        version=version,
        created_at=created_at,
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        target=without_secrets(target),
        lexicon_source=lexicon.source,
        is_lexicon_exact=lexicon.is_exact,
        objectives=objectives,
        points=points,
        notes=notes,
    )


def relative(record: RequestRecord, start_at: float) -> RequestRecord:
    """Return the record with instants that count from `start_at`."""

    def since(at: float | None) -> float | None:
        return None if at is None else at - start_at

    return msgspec.structs.replace(
        record,
        scheduled_at=record.scheduled_at - start_at,
        sent_at=since(record.sent_at),
        first_token_at=since(record.first_token_at),
        first_answer_at=since(record.first_answer_at),
        ended_at=since(record.ended_at),
        event_at=[at - start_at for at in record.event_at],
    )


def closed_load(users: int, workload: str, seed: int) -> Load:
    """Return the load of a closed loop."""
    return Load(kind="closed", users=users, arrivals="closed loop", workload=workload, seed=seed)
