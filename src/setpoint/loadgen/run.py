"""One run: what was asked, what came back, and whether the client can be believed."""

from collections.abc import Mapping

import msgspec

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.health import ClientHealth, ClientSamples, judge_client
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import RequestRecord, Summary, mser5, summarize
from setpoint.model import Slo

SECRET = "(hidden)"  # noqa: S105 - the word that stands in for one


class Run(msgspec.Struct, kw_only=True):
    """The records of one run, with instants on `time.monotonic`; `start_at` is the run's zero.

    `is_partial`: it was stopped by hand. `stopped_by`: the rule that ended it early, if one did. `warmup_s`: cut at the
    start; `None` lets MSER-5 find it. `planned_until_s`: the last arrival that an open loop had planned.
    """

    target: EndpointTarget
    options: RunOptions
    start_at: float
    records: list[RequestRecord]
    samples: list[ClientSamples]
    warmup_s: float | None = None
    is_partial: bool = False
    stopped_by: str | None = None
    planned_until_s: float | None = None

    def health(self, *, ttft_limit_s: float | None = None, ceiling_eps: float | None = None) -> ClientHealth:
        """Return the verdict on the client."""
        return judge_client(self.samples, ttft_limit_s=ttft_limit_s, ceiling_eps=ceiling_eps)

    def window(self) -> tuple[float, float] | None:
        """Return the instants between which requests count as due, or `None` when nothing is left.

        It ends with the window of the options or the last arrival, and before the first request that was cut off: what
        remains is complete, so that slow answers are not the ones left out.
        """
        due = sorted(record.scheduled_at for record in self.records)
        if not due:
            return None
        start = self.start_at + self.warmup_s if self.warmup_s is not None else due[0]
        mean_gap = (due[-1] - due[0]) / max(1, len(due) - 1)
        if mean_gap <= 0.0:
            mean_gap = max((record.ended_at or due[-1]) for record in self.records) - due[-1]
        end = due[-1] + max(mean_gap, 1e-9)
        if self.options.window_s is not None:
            is_whole = not self.is_partial and self.stopped_by is None
            is_quiet = (
                is_whole and (self.planned_until_s or 0.0) >= self.options.window_s
            )  # no load was due: none missing
            planned_end = self.start_at + self.options.window_s
            end = planned_end if is_quiet else min(end, planned_end)
        cut = [record.scheduled_at for record in self.records if record.error == "cancelled"]
        end = min([end, *cut])
        if self.warmup_s is None:
            start = self._settled_from(end) or start
        return (start, end) if start < end else None

    def due(self) -> list[RequestRecord]:
        """Return the requests due in the window, in order of time."""
        window = self.window()
        if window is None:
            return []
        due = [record for record in self.records if window[0] <= record.scheduled_at < window[1]]
        return sorted(due, key=lambda record: record.scheduled_at)

    def summary(self, slos: Mapping[str, Slo] | None = None) -> Summary | None:
        """Return the summary over the window, or `None` when no request is due in it."""
        window = self.window()
        if window is None or not any(window[0] <= record.scheduled_at < window[1] for record in self.records):
            return None
        return summarize(self.records, slos, window=window)

    def _settled_from(self, end: float) -> float | None:
        ordered = sorted(self.records, key=lambda record: record.scheduled_at)
        answered = [r for r in ordered if r.ttft_s is not None and r.scheduled_at < end]
        warmup = mser5([record.ttft_s for record in answered if record.ttft_s is not None])
        return answered[warmup.dropped].scheduled_at if warmup.is_settled and warmup.dropped else None


def without_secrets(target: EndpointTarget) -> EndpointTarget:
    """Return the target as it may be written to a file."""
    headers = {
        name: SECRET if "auth" in name.lower() or "key" in name.lower() else value
        for name, value in target.extra_headers.items()
    }
    key = SECRET if target.api_key else None
    return msgspec.structs.replace(target, api_key=key, extra_headers=headers)
