"""The steps of a run as a Chrome trace (chrome://tracing, Perfetto): one process a replica, with what bound each step.

Trace Event Format: complete events (`X`) in microseconds. The track `steps` holds the passes, of which many that are
alike are one bar; the track `given up and taken back` what the machine decided beside them. The counters show how many
sequences decode and how many prompt tokens were computed.
"""

import msgspec

from setpoint.model import AnyCommand, Preempt, Reject, Relegate, StepPlan, StepShape
from setpoint.sim.stepping import Watch

EVENTS_MAX = 400_000
_MICRO = 1e6
_STEPS, _DECISIONS = 1, 2


class Timeline(Watch):
    """Collects up to `EVENTS_MAX` events; what comes later is counted, not kept."""

    def __init__(self) -> None:
        """Start empty."""
        self.events: list[dict[str, object]] = []
        self.left_out = 0
        self._known: set[int] = set()

    def ended(self, replica: int, plan: StepPlan, shape: StepShape, ends: tuple[float, float], passes: int) -> None:
        """Add a bar for the passes of a plan."""
        start, end = ends
        bound = plan.bound_by
        link = "to" if bound.kind == "loan" else "of"
        words = bound.kind if bound.request_id is None else f"{bound.kind} {link} {bound.request_id}"
        self._add(
            replica,
            {
                "ph": "X",
                "name": f"{passes} x {shape.decodes} decodes" if not shape.prefill_tokens else _mixed(shape),
                "cat": bound.kind,
                "tid": _STEPS,
                "ts": start * _MICRO,
                "dur": (end - start) * _MICRO,
                "args": {
                    "bound by": words,
                    "decodes": shape.decodes,
                    "context tokens": shape.context_tokens,
                    "prompt tokens": shape.prefill_tokens,
                    "prefills": [list(chunk) for chunk in plan.prefills],
                    "predicted ms": plan.predicted_s * 1e3,
                    "allowed ms": None if plan.cap_s is None else plan.cap_s * 1e3,
                    "passes": passes,
                },
            },
        )
        self._add(
            replica,
            {
                "ph": "C",
                "name": "sequences",
                "ts": start * _MICRO,
                "args": {"decoding": shape.decodes, "in prefill": shape.prefills},
            },
        )

    def commanded(self, replica: int, command: AnyCommand, at: float) -> None:
        """Add a mark for what was refused, relegated or taken back."""
        if isinstance(command, Relegate) and command.is_relegated:
            words = f"relegated {command.request_id}"
        elif isinstance(command, Preempt):
            words = f"preempted {command.request_id}"
        elif isinstance(command, Reject):
            words = f"refused {command.request_id}: {command.reason}"
        else:
            return
        self._add(replica, {"ph": "i", "s": "t", "name": words, "tid": _DECISIONS, "ts": at * _MICRO})

    def encode(self) -> bytes:
        """Return the trace as JSON."""
        trace = {
            "traceEvents": self.events,
            "displayTimeUnit": "ms",
            "otherData": {"events left out beyond the limit": self.left_out},
        }
        return msgspec.json.encode(trace)

    def _add(self, replica: int, event: dict[str, object]) -> None:
        if len(self.events) >= EVENTS_MAX:
            self.left_out += 1
            return
        if replica not in self._known:
            self._known.add(replica)
            self._name(replica, "process_name", None, f"replica {replica}")
            self._name(replica, "thread_name", _STEPS, "steps")
            self._name(replica, "thread_name", _DECISIONS, "given up and taken back")
        self.events.append({"pid": replica, **event})

    def _name(self, replica: int, kind: str, track: int | None, words: str) -> None:
        where = {} if track is None else {"tid": track}
        self.events.append({"ph": "M", "pid": replica, "name": kind, **where, "args": {"name": words}})


def _mixed(shape: StepShape) -> str:
    return f"{shape.prefill_tokens} prompt tokens + {shape.decodes} decodes"
