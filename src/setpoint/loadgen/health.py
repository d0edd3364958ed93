"""Whether the measurement can be trusted: the client's own limits, held against what it did. Pure.

Past a limit the trial is *invalid*, which is not the same as failed: it says nothing about the server. Limits and
reasons: a late send is the client's doing; an event loop that lags dates answers too late; a worker above 70%
of a core queues by itself (a queue at 0.7 waits 2.3 service times); a client above half of the rate that it reached
against a server that does nothing is too near to its own ceiling. A loop that stood still for a second was not late but
stopped (the machine was suspended, or the process was): the run is worth repeating as it was.
"""

from collections.abc import Sequence

import msgspec

from setpoint.metrics import rank_quantile
from setpoint.metrics.binomial import binomial_tail

LAG_MAX_S, LAG_OF_LIMIT = 0.005, 0.05
LAG_NOTED_S, LAG_NOTED_OF_LIMIT = 0.001, 0.01
LOOP_LAG_MAX_S = 0.010
CPU_MAX = 0.70
SENT_MIN = 0.999
CEILING_MAX = 0.50
STALL_S = 1.0
LAG_QUANTILE, ALPHA = 0.99, 0.05


class ClientSamples(msgspec.Struct, kw_only=True):
    """What one worker saw of itself. Lags in seconds; `reads` are wake-ups with data, `events` content messages."""

    dispatch_lags: list[float] = []
    loop_lags: list[float] = []
    cpu_s: float = 0.0
    wall_s: float = 0.0
    offered: int = 0
    sent: int = 0
    reads: int = 0
    events: int = 0
    connections: int = 0
    is_connection_limited: bool = False


class ClientHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. `faults`: each broken limit as a sentence, none when the measurement stands; `notes`: near ones.

    `cpu_ratio`: of the busiest worker, in cores. `events_a_read`: above 1, messages of one stream were read together
    (the server sent them together, or the client came late). `ceiling_ratio`: share of the calibrated ceiling.
    `stalled_s`: the longest time that a worker stood still, where that was a second or more.
    """

    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()
    workers: int
    dispatch_lag_p99_s: float
    loop_lag_p99_s: float
    cpu_ratio: float
    sent_ratio: float
    events_per_s: float
    events_a_read: float
    ceiling_ratio: float | None
    connections: int
    stalled_s: float = 0.0

    @property
    def is_valid(self) -> bool:
        """Whether the measurement can be trusted."""
        return not self.faults


def _is_shown(lags: Sequence[float], allowed: float) -> bool:
    """Tell whether more than 1% of the lags exceed what is allowed, beyond chance (two late of 100 show nothing)."""
    late = sum(lag > allowed for lag in lags)
    return late > 0 and binomial_tail(late, len(lags), 1.0 - LAG_QUANTILE) <= ALPHA


def judge_client(
    workers: Sequence[ClientSamples], *, ttft_limit_s: float | None = None, ceiling_eps: float | None = None
) -> ClientHealth:
    """Return the verdict over all workers.

    `ttft_limit_s`: the tightest TTFT target, which widens the lag allowed to 5% of it. `ceiling_eps`: events per second
    and worker that the client reached against a null server.
    """
    lags = [one for worker in workers for one in worker.dispatch_lags]
    lag = max((rank_quantile(sorted(one.dispatch_lags), 0.99) for one in workers if one.dispatch_lags), default=0.0)
    loop_lag = max((rank_quantile(sorted(one.loop_lags), 0.99) for one in workers if one.loop_lags), default=0.0)
    cpu = max((one.cpu_s / one.wall_s for one in workers if one.wall_s > 0.0), default=0.0)
    offered = sum(one.offered for one in workers)
    sent_ratio = sum(one.sent for one in workers) / offered if offered else 1.0
    rates = [one.events / one.wall_s for one in workers if one.wall_s > 0.0]
    ceiling = max(rates, default=0.0) / ceiling_eps if ceiling_eps else None
    lag_max = max(LAG_MAX_S, LAG_OF_LIMIT * (ttft_limit_s or 0.0))
    loop_max = max(LOOP_LAG_MAX_S, LAG_OF_LIMIT * (ttft_limit_s or 0.0))
    noted = max(LAG_NOTED_S, LAG_NOTED_OF_LIMIT * (ttft_limit_s or 0.0))
    stalled = max((max(one.loop_lags) for one in workers if one.loop_lags), default=0.0)
    is_stalled = stalled >= STALL_S
    checks = (
        (is_stalled, f"the client stood still for {stalled:.1f} s: was the machine suspended, or the process stopped?"),
        (_is_shown(lags, lag_max), f"sends were late: P99 {lag * 1e3:.1f} ms, at most {lag_max * 1e3:.1f} ms allowed"),
        (
            loop_lag > loop_max,
            f"the client's loop lagged: P99 {loop_lag * 1e3:.1f} ms, {loop_max * 1e3:.0f} ms allowed",
        ),
        (cpu > CPU_MAX, f"a worker used {cpu:.0%} of a core, 70% allowed: use more workers"),
        (sent_ratio < SENT_MIN, f"only {sent_ratio:.2%} of the due requests were sent"),
        ((ceiling or 0.0) > CEILING_MAX, f"the client ran at {ceiling or 0.0:.0%} of its own ceiling, 50% allowed"),
        (any(one.is_connection_limited for one in workers), "the limit on connections was reached"),
    )
    reads = sum(one.reads for one in workers)
    return ClientHealth(
        faults=tuple(words for is_broken, words in checks if is_broken),
        notes=(f"sends were late by up to {lag * 1e3:.1f} ms (P99)",) if noted < lag <= lag_max else (),
        workers=len(workers),
        dispatch_lag_p99_s=lag,
        loop_lag_p99_s=loop_lag,
        cpu_ratio=cpu,
        sent_ratio=sent_ratio,
        events_per_s=sum(rates),
        events_a_read=sum(one.events for one in workers) / reads if reads else 0.0,
        ceiling_ratio=ceiling,
        connections=sum(one.connections for one in workers),
        stalled_s=stalled if is_stalled else 0.0,
    )
