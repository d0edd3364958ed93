"""Measuring one strategy: a server of its own, and open-loop trials at the rates that the search asks for."""

import contextlib
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.process import Snapshot, measure_in_process
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.run import Run
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import RequestRecord, summarize
from setpoint.model import ServiceClass
from setpoint.planner.demand import Demand
from setpoint.planner.predict import plan_of
from setpoint.planner.trial import Trial, make_trial

WARMUP_RATIO, WARMUP_MIN_S = 0.1, 1.0
TAIL_RATIO, TAIL_MIN_S = 0.5, 8.0
FLOODED_RATIO = 6.0
CLIENT_SHARE = 0.1
"""A client that is late by less than this share of the TTFT target can be believed."""
SENT_MIN = 0.98


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all trials of a run. `slots`: of the server, against which a flood is judged."""

    demand: Demand
    classes: Mapping[str, ServiceClass]
    lexicon: Lexicon
    slots: int
    seed: int


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder for settings and logs, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="setpoint-tune-") as folder:
        yield Path(folder)


def run_trial(  # noqa: PLR0913 - the trial, and who looks on
    stage: Stage,
    url: str,
    *,
    strategy: str,
    rate_rps: float,
    window_s: float,
    draws: int,
    tick: Callable[[], None],
) -> tuple[Trial | None, bool]:
    """Measure one trial; return it (`None` when nothing can be said) and whether Ctrl-C has ended it."""
    warmup = max(WARMUP_MIN_S, WARMUP_RATIO * window_s)
    whole = warmup + window_s
    tail = max(TAIL_MIN_S, TAIL_RATIO * window_s)
    # the same arrivals and lengths at every rate and for every strategy (a repeated rate gets fresh ones), but never
    # the same words: the server would have them in its cache of prefixes
    seed = stage.seed + draws
    plan = plan_of(stage.demand, rate_rps, seed, whole + tail)
    target = EndpointTarget(url=url, engine="setpoint", is_length_forced=True)

    def watch(snapshot: Snapshot) -> str | None:
        tick()
        if snapshot.in_flight > FLOODED_RATIO * stage.slots:
            return "flooded"
        return "time" if snapshot.elapsed_s > whole + tail else None

    words = zlib.crc32(f"{strategy}/{rate_rps!r}/{seed}".encode())
    options = RunOptions(window_s=whole, connections=8, seed=words)
    run = measure_in_process(target, plan, options, lexicon=stage.lexicon, on_progress=watch)
    return _to_trial(stage, run, strategy, rate_rps, seed, (warmup, whole)), run.is_partial


def _to_trial(
    stage: Stage, run: Run, strategy: str, rate_rps: float, seed: int, inside: tuple[float, float]
) -> Trial | None:
    start, end = run.start_at + inside[0], run.start_at + inside[1]
    if run.is_partial:
        # what was in flight at Ctrl-C says nothing, and what came after it was never sent
        cut = [one.scheduled_at for one in run.records if one.error in ("cancelled", "unsent")]
        end = min([end, *cut])
    elif run.stopped_by == "flooded":
        end = min(end, max((one.scheduled_at for one in run.records if one.sent_at is not None), default=end))
    due = _due(run.records, start, end)
    if not due or end <= start:
        return None
    slos = {name: one.slo for name, one in stage.classes.items()}
    limit = min((slo.ttft_s for slo in slos.values() if slo.ttft_s is not None), default=0.2)
    return make_trial(
        summarize(run.records, slos, window=(start, end)),
        due,
        stage.classes,
        strategy=strategy,
        rate_rps=rate_rps,
        seed=seed,
        faults=client_faults(run, limit),
        is_cut=run.is_partial,
    )


def client_faults(run: Run, ttft_limit_s: float) -> list[str]:
    """Return what makes the client unfit to be believed: being late by more than a small share of the TTFT target.

    What is late is then the client's own part of a latency, so that an engine may look a little worse than it is, never
    better. The limits of a client for any target at all (`judge_client`) are stricter than a small machine can keep.
    """
    allowed = CLIENT_SHARE * ttft_limit_s
    health = run.health(ttft_limit_s=ttft_limit_s)
    checks = (
        (health.dispatch_lag_p99_s > allowed, f"sends were {health.dispatch_lag_p99_s * 1e3:.0f} ms late at P99"),
        (health.loop_lag_p99_s > allowed, f"its event loop was {health.loop_lag_p99_s * 1e3:.0f} ms late at P99"),
        (health.sent_ratio < SENT_MIN, f"only {health.sent_ratio:.0%} of the requests were sent"),
    )
    return [words for is_broken, words in checks if is_broken]


def _due(records: Sequence[RequestRecord], start: float, end: float) -> list[RequestRecord]:
    inside = [record for record in records if start <= record.scheduled_at < end]
    return sorted(inside, key=lambda record: record.scheduled_at)
