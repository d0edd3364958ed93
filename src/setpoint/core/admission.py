"""Who is given up when not everyone can be served in time, and when the refused may come again.

The waiting prefills are jobs on one machine: each has a deadline and some seconds of work. Moore-Hodgson (Moore 1968,
"An n job, one machine sequencing algorithm for minimizing the number of late jobs") keeps the largest number of jobs
in time: go through them in deadline order, adding work; whenever one would be late, give up the largest of those kept.
With weights, those of least worth per second of work go first, until it would not be late (exact for equal weights, a
heuristic otherwise). What would be late even if it were alone is given up before anyone falls for it.
"""

from collections.abc import Sequence as Many
from heapq import heappop, heappush
from typing import NamedTuple


class Job(NamedTuple):
    """A waiting prefill: its id, when it is due, its seconds of work, and what it is worth."""

    id: int
    deadline: float
    work_s: float
    weight: float = 1.0


class Triage(NamedTuple):
    """The outcome: ids kept (in deadline order), ids given up (in the order of their fall), and the spare seconds.

    `spare_s` is by how much everything kept could start later without anyone being late; `None` if nobody is kept.
    """

    kept: tuple[int, ...]
    given_up: tuple[int, ...]
    spare_s: float | None


def moore_hodgson(jobs: Many[Job], now: float) -> Triage:
    """Split `jobs`, given in deadline order, into those that can be done in time from `now` on and the rest."""
    everyone = nobody(jobs, now)
    if everyone.spare_s is None or everyone.spare_s >= 0.0:
        return everyone
    heap: list[tuple[float, float, int]] = []
    given_up: dict[int, None] = {}
    busy_until = now
    for job in jobs:
        if now + job.work_s > job.deadline:
            given_up[job.id] = None
            continue
        heappush(heap, (job.weight / job.work_s if job.work_s > 0.0 else float("inf"), -job.work_s, job.id))
        busy_until += job.work_s
        while busy_until > job.deadline:
            _, negative_work, request_id = heappop(heap)
            busy_until += negative_work
            given_up[request_id] = None
    return Triage(tuple(j.id for j in jobs if j.id not in given_up), tuple(given_up), _spare(jobs, given_up, now))


def own_deadline(jobs: Many[Job], now: float) -> Triage:
    """Give up only those that would be late themselves, each after the ones kept before it (QoServe's rule)."""
    kept: list[int] = []
    given_up: dict[int, None] = {}
    busy_until = now
    for job in jobs:
        if busy_until + job.work_s > job.deadline:
            given_up[job.id] = None
        else:
            kept.append(job.id)
            busy_until += job.work_s
    return Triage(tuple(kept), tuple(given_up), _spare(jobs, given_up, now))


def nobody(jobs: Many[Job], now: float) -> Triage:
    """Give nobody up."""
    return Triage(tuple(j.id for j in jobs), (), _spare(jobs, {}, now))


RELEGATIONS = {"moore-hodgson": moore_hodgson, "own-deadline": own_deadline, "none": nobody}
"""The rules by which requests are given up, by name."""


def _spare(jobs: Many[Job], given_up: dict[int, None], now: float) -> float | None:
    spare: float | None = None
    busy_until = now
    for job in jobs:
        if job.id in given_up:
            continue
        busy_until += job.work_s
        left = job.deadline - busy_until
        if spare is None or left < spare:
            spare = left
    return spare
