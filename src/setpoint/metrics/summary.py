"""A whole run in one value: rates, latencies with intervals, attainment, errors, and whether the window was sound.

The window is cut by time. The population of every latency is the requests *due* in it, finished or not: dropping the
unfinished would keep the survivors only. Token rates count events inside the window, so that a long answer that
straddles an edge is credited for the part that fell inside.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from setpoint.metrics.binomial import share_interval
from setpoint.metrics.histogram import Histogram
from setpoint.metrics.judge import ALL_CLASSES, is_good
from setpoint.metrics.quantile import BATCHES_MAX, Quantile, binomial_ranks, effective_size, estimate
from setpoint.metrics.stationarity import LITTLE_MAX, Overload, Warmup, little_allowed, little_error, mser5, overload
from setpoint.metrics.timeline import RequestRecord
from setpoint.metrics.window import default_window, time_inside, tokens_inside
from setpoint.model import Slo

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
LATENCIES = ("ttft", "ttft_wire", "tpot", "e2e", "queue", "dispatch_lag")


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """The distribution of one duration in seconds; `undefined` requests have none (one-token answers have no TPOT).

    `mean_s` is over finite values only: it says nothing about failures.
    """

    name: str
    count: int
    undefined: int
    mean_s: float | None
    quantiles: tuple[Quantile, ...]

    def at(self, q: float) -> Quantile:
        """Return the quantile `q`, one of those that were asked for."""
        return next(one for one in self.quantiles if abs(one.q - q) < 1e-9)  # noqa: PLR2004 - a rounding error


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A share of requests, with an interval at the effective sample size."""

    value: float
    low: float
    high: float
    n_eff: float


class ClassSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One service class (or all together, under the name `*`). `error_details`: one example of each kind of error."""

    class_name: str
    requests: int
    failed: int
    errors: dict[str, int]
    attainment: Share | None
    good_rps: float
    offered_rps: float
    latencies: dict[str, Latency]
    error_details: dict[str, str] = {}


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run over the window [`start_at`, `end_at`), in the clock of its records."""

    start_at: float
    end_at: float
    warmup: Warmup
    requests: int
    offered_rps: float
    sent_rps: float
    completed_rps: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    in_flight: float
    attainment: Share | None
    good_rps: float
    overload: Overload
    little_error: float | None
    classes: dict[str, ClassSummary]
    little_allowed: float = LITTLE_MAX

    @property
    def is_stationary(self) -> bool:
        """Whether Little's law holds over the window, as far as its edges let it."""
        return self.little_error is None or self.little_error <= self.little_allowed

    @property
    def window_s(self) -> float:
        """The length of the window."""
        return self.end_at - self.start_at

    @property
    def overall(self) -> ClassSummary:
        """All classes together."""
        return self.classes[ALL_CLASSES]


def summarize(
    records: Iterable[RequestRecord],
    slos: Mapping[str, Slo] | None = None,
    *,
    window: tuple[float, float] | None = None,
    quantiles: Sequence[float] = QUANTILES,
    confidence: float = 0.95,
) -> Summary:
    """Return the summary of a run, over `window` or from the end of the warm-up to the last arrival.

    Raises ValueError when there are no records, or none is due in the window.
    """
    ordered = sorted(records, key=lambda record: record.scheduled_at)
    if not ordered:
        message = "no records"
        raise ValueError(message)
    warmup = mser5([record.ttft_s for record in ordered if record.ttft_s is not None])
    start, end = window or default_window(ordered, warmup)
    due = [record for record in ordered if start <= record.scheduled_at < end]
    if not due:
        message = "no request is due in the window"
        raise ValueError(message)
    slos = slos or {}
    names = sorted({record.class_name for record in due})
    groups = {name: [r for r in due if r.class_name == name] for name in names}
    if len(groups) > 1:
        groups[ALL_CLASSES] = due
    span = end - start
    classes = {name: _of_class(name, group, slos, span, quantiles, confidence) for name, group in groups.items()}
    if ALL_CLASSES not in classes:
        classes[ALL_CLASSES] = msgspec.structs.replace(classes[names[0]], class_name=ALL_CLASSES)
    prompt, output = tokens_inside(ordered, start, end)
    in_flight = sum(time_inside(record, start, end) for record in ordered) / span
    return Summary(
        start_at=start,
        end_at=end,
        warmup=warmup,
        requests=len(due),
        offered_rps=len(due) / span,
        sent_rps=sum(1 for r in ordered if r.sent_at is not None and start <= r.sent_at < end) / span,
        completed_rps=sum(1 for r in ordered if not r.is_failed and start <= (r.ended_at or 0.0) < end) / span,
        prompt_tokens_per_s=prompt / span,
        output_tokens_per_s=output / span,
        total_tokens_per_s=(prompt + output) / span,
        in_flight=in_flight,
        attainment=classes[ALL_CLASSES].attainment,
        good_rps=classes[ALL_CLASSES].good_rps,
        overload=overload(ordered, start, end),
        little_error=little_error(ordered, start, end),
        little_allowed=little_allowed(ordered, start, end),
        classes=classes,
    )


def _of_class(
    name: str,
    due: Sequence[RequestRecord],
    slos: Mapping[str, Slo],
    span: float,
    quantiles: Sequence[float],
    confidence: float,
) -> ClassSummary:
    latencies = {which: latency(due, which, quantiles, confidence) for which in LATENCIES}
    latencies["itl"] = _gaps(due, "itl", quantiles, confidence)
    latencies["event_gap"] = _gaps(due, "event_gap", quantiles, confidence)
    flags = [float(is_good(record, slos)) for record in due]
    return ClassSummary(
        class_name=name,
        requests=len(due),
        failed=sum(1 for record in due if record.is_failed),
        errors=dict(Counter(record.error or "cut" for record in due if record.is_failed)),
        attainment=share(flags, confidence),
        good_rps=sum(flags) / span,
        offered_rps=len(due) / span,
        latencies=latencies,
        error_details={record.error or "cut": record.detail for record in reversed(due) if record.is_failed},
    )


def share(flags: Sequence[float], confidence: float = 0.95) -> Share:
    """Return the share of ones among `flags` (in order of arrival), with its interval at the effective size."""
    value = sum(flags) / len(flags)
    size = effective_size(flags, confidence)
    low, high = share_interval(value * size.n_test, size.n_test, confidence)
    return Share(value=value, low=low, high=high, n_eff=size.n_eff)


def durations(records: Iterable[RequestRecord], which: str) -> tuple[list[float], int]:
    """Return the durations called `which` of records in order (failed: infinity), and how many are undefined.

    Where no record tells its queue time, the server tells none: the failed have none either.
    """
    records = list(records)
    if which == "queue" and all(record.queue_s is None for record in records):
        return [], len(records)
    values: list[float] = []
    undefined = 0
    for record in records:
        if record.is_failed and which != "dispatch_lag":
            values.append(math.inf)
            continue
        value: float | None = getattr(record, f"{which}_s")
        if value is None:
            undefined += 1
        else:
            values.append(value)
    return values, undefined


def latency(
    records: Iterable[RequestRecord],
    which: str,
    quantiles: Sequence[float] = QUANTILES,
    confidence: float = 0.95,
) -> Latency:
    """Return the distribution of the duration called `which` (`ttft`, `tpot`, `e2e`, ...) of records in order."""
    values, undefined = durations(records, which)
    finite = [value for value in values if not math.isinf(value)]
    ordered = sorted(values)
    return Latency(
        name=which,
        count=len(values),
        undefined=undefined,
        mean_s=math.fsum(finite) / len(finite) if finite else None,
        quantiles=tuple(estimate(values, q, confidence=confidence, ordered=ordered) for q in quantiles),
    )


def _gaps(due: Sequence[RequestRecord], which: str, quantiles: Sequence[float], confidence: float) -> Latency:
    """Pool the gaps of all requests; their intervals come from batches of requests, as gaps of one are dependent."""
    kept = [record for record in due if record.event_at and not record.is_failed]
    batches = [Histogram() for _ in range(min(BATCHES_MAX, max(1, len(kept))))]
    for index, record in enumerate(kept):
        gaps = record.itl_s() if which == "itl" else record.event_gaps_s()
        batches[index * len(batches) // len(kept)].extend(gaps)
    pool = Histogram()
    for batch in batches:
        pool.merge(batch)
    return Latency(
        name=which,
        count=pool.count,
        undefined=len(due) - len(kept),
        mean_s=pool.total / pool.count if pool.count else None,
        quantiles=tuple(_gap_quantile(pool, batches, q, len(kept), confidence) for q in quantiles),
    )


def _gap_quantile(pool: Histogram, batches: Sequence[Histogram], q: float, n: int, confidence: float) -> Quantile:
    value = pool.quantile(q)
    if value is None:
        return Quantile(q=q, value=None, low=None, high=None, n=0, n_eff=0.0, support="too_few")
    shares = [batch.share_above(value) for batch in batches if batch.count]
    spread = sum((one - (1.0 - q)) ** 2 for one in shares) / max(1, len(shares) - 1) / len(shares)
    n_eff = min(float(pool.count), q * (1.0 - q) / spread) if spread > 0.0 else float(n)
    low, high = binomial_ranks(q, n_eff, confidence)
    return Quantile(
        q=q,
        value=value,
        low=None if low is None else pool.quantile(max(0.0, low / n_eff)),
        high=None if high is None else pool.quantile(min(1.0, high / n_eff)),
        n=pool.count,
        n_eff=n_eff,
        support="full" if high is not None else "too_few",
    )
