"""An endpoint on a virtual clock: trials run on it as on a real one, with the same plans, stop rules and verdicts.

What serves is a function from a plan to records. A run is first served whole and then watched: once a virtual second,
or a hundredth of the run, its progress is shown as a real run's would be; where a rule ends it, what came later is
taken away and what was in flight counts as cancelled.
"""

from collections.abc import Callable, Sequence

import msgspec

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.experiment import Carry
from setpoint.loadgen.health import ClientSamples
from setpoint.loadgen.process import OnProgress, Snapshot
from setpoint.loadgen.run import Run
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import RequestRecord
from setpoint.workload import PlannedRequest

Serve = Callable[[Sequence[PlannedRequest]], list[RequestRecord]]

LOOKS = 100
NOWHERE = EndpointTarget(url="http://virtual.invalid", model="virtual")


def carry_on(serve: Serve) -> Carry:
    """Return what carries plans out on `serve`."""

    def carry(
        plan: Sequence[PlannedRequest],
        options: RunOptions,
        on_progress: OnProgress | None,
        *,
        warmup_s: float | None,
    ) -> Run:
        if options.concurrency is not None:
            plan = _conversations(plan, options.concurrency, options.stagger_s)
        records = sorted(serve(plan), key=lambda record: record.scheduled_at)
        end_s, rule = _watched(records, options.window_s, on_progress)
        kept = [_as_seen(record, end_s) for record in records if record.scheduled_at <= end_s]
        return Run(
            target=NOWHERE,
            options=options,
            start_at=0.0,
            records=kept,
            samples=[ClientSamples(offered=len(kept), sent=len(kept), wall_s=end_s)],
            warmup_s=warmup_s,
            stopped_by=rule,
            planned_until_s=plan[-1].at_s if options.concurrency is None else None,
        )

    return carry


def _conversations(plan: Sequence[PlannedRequest], users: int, stagger_s: float) -> list[PlannedRequest]:
    """Return the requests of a closed loop: each user is a conversation that goes on at once."""
    return [
        msgspec.structs.replace(
            one,
            at_s=stagger_s * index / users if index < users else 0.0,
            session=index % users,
            turn=index // users,
        )
        for index, one in enumerate(plan)
    ]


def _watched(
    records: Sequence[RequestRecord], window_s: float | None, on_progress: OnProgress | None
) -> tuple[float, str | None]:
    """Return when the run ends, and by which rule, if by one."""
    inside = [record for record in records if window_s is None or record.scheduled_at < window_s]
    last_s = max((record.ended_at or record.scheduled_at for record in inside), default=0.0)
    by_end = sorted((record for record in records if record.ended_at is not None), key=lambda one: one.ended_at or 0.0)
    step_s = max(1.0, last_s / LOOKS)
    shown, now = 0, step_s
    while on_progress is not None and now < last_s:
        first = shown
        while shown < len(by_end) and (by_end[shown].ended_at or 0.0) <= now:
            shown += 1
        rule = on_progress(Snapshot(elapsed_s=now, sent=0, ended=shown, in_flight=0, records=by_end[first:shown]))
        if rule is not None:
            return now, rule
        now += step_s
    return last_s, None


def _as_seen(record: RequestRecord, end_s: float) -> RequestRecord:
    if record.ended_at is not None and record.ended_at <= end_s:
        return record
    return msgspec.structs.replace(record, ended_at=end_s, error="cancelled")
