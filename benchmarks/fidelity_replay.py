"""The journal of a real run, held against the core and against the simulator.

*Same commands*: the machine made again, given the same events with the step seconds that were measured, must answer
with the same bytes. *Divergence*: the same requests on a virtual clock with predicted step seconds; what is compared is
the steps (how many, how long in all, how far each single step was foreseen) and the requests (when each ended, and in
which order).
"""

from collections.abc import Sequence
from itertools import combinations
from statistics import median

import msgspec

from setpoint.journal import Header, encode_entry, encode_header, replay
from setpoint.metrics import RequestRecord, rank_quantile
from setpoint.model import AnyCommand, AnyEvent, Capacity, RunStep, ServiceClass, StepFinished, StepPlan, StepShape
from setpoint.steptime.learner import FixedStepTime, restored
from setpoint.steptime.model import StepTimeModel, encode

PAIRS_OF = 400
"""The order of ends is compared over all pairs of so many requests at most."""


class Recorder:
    """Keeps the events and commands of a machine, as a journal does."""

    def __init__(self) -> None:
        """Start empty."""
        self.entries: list[tuple[AnyEvent, list[AnyCommand]]] = []

    def __call__(self, event: AnyEvent, commands: list[AnyCommand]) -> None:
        """Keep one line."""
        self.entries.append((event, commands))

    def steps(self) -> list[tuple[StepPlan, float]]:
        """Return every step plan that was run, with its seconds; repeats of one plan are one step each."""
        found: list[tuple[StepPlan, float]] = []
        plan: StepPlan | None = None
        for event, commands in self.entries:
            if isinstance(event, StepFinished) and plan is not None:
                found += [(plan, seconds) for seconds in event.step_seconds]
                plan = None
            plan = next((command.plan for command in commands if isinstance(command, RunStep)), plan)
        return found

    def longest_s(self) -> float:
        """Return the longest step, or time between two events while a step ran."""
        return max((seconds for _, seconds in self.steps()), default=0.0)


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay found. `order_ratio`: pairs of requests that ended in the same order; errors are relative."""

    is_identical: bool
    events: int
    steps: int
    steps_predicted: int
    busy_error: float
    step_error_p50: float
    step_error_p95: float
    end_error_s_p50: float
    order_ratio: float

    def words(self) -> str:
        """Return it in a sentence."""
        return (
            f"journal of the knee: {self.events} events and {self.steps} steps, replayed "
            f"{'with identical commands' if self.is_identical else 'with OTHER commands'}; on predicted step times "
            f"{self.steps_predicted} steps, {self.busy_error:+.1%} busy time, a single step missed by "
            f"{self.step_error_p50:.1%} (median) and {self.step_error_p95:.1%} (P95), the median request ended "
            f"{self.end_error_s_p50:.2f} s off, and {self.order_ratio:.1%} of pairs ended in the same order"
        )


def replayed(
    measured: tuple[Recorder, Sequence[RequestRecord]],
    expected: tuple[Recorder, Sequence[RequestRecord]],
    *,
    strategy: str,
    classes: dict[str, ServiceClass],
    capacity: Capacity,
    model: StepTimeModel,
) -> Replayed:
    """Compare a real run with its replay, and with its prediction."""
    (real, records), (foreseen, foreseen_records) = measured, expected
    header = Header(
        strategy=strategy,
        classes=tuple(classes.values()),
        capacity=capacity,
        step_time=msgspec.Raw(encode(model)),
        is_learning=True,
        engine="embedded",
    )
    lines = [encode_header(header), *(encode_entry(event, commands) for event, commands in real.entries)]
    found = replay(lines, restored)
    steps, predicted = real.steps(), foreseen.steps()
    single = sorted(_step_errors(real, model))
    busy_s = sum(seconds for _, seconds in steps)
    ends, own = _ends(records), _ends(foreseen_records)
    both = sorted(set(ends) & set(own))
    return Replayed(
        is_identical=found.is_identical,
        events=found.events,
        steps=len(steps),
        steps_predicted=len(predicted),
        busy_error=sum(seconds for _, seconds in predicted) / busy_s - 1.0 if busy_s else 0.0,
        step_error_p50=rank_quantile(single, 0.5) if single else 0.0,
        step_error_p95=rank_quantile(single, 0.95) if single else 0.0,
        end_error_s_p50=median([abs(ends[i] - own[i]) for i in both]) if both else 0.0,
        order_ratio=_order(ends, own, both[:PAIRS_OF]),
    )


def _step_errors(real: Recorder, model: StepTimeModel) -> list[float]:
    """Return |predicted / measured - 1| of every measured step, by the profile alone."""
    known = FixedStepTime(model)
    contexts: dict[int, int] = {}
    found = []
    for plan, seconds in real.steps():
        work = 0.0
        for request_id, tokens in plan.prefills:
            before = contexts.get(request_id, 0)
            work += tokens * (before + 0.5 * tokens)
            contexts[request_id] = before + tokens
        context = sum(contexts.get(i, 0) for i in plan.decodes)
        for request_id in plan.decodes:
            contexts[request_id] = contexts.get(request_id, 0) + 1
        tokens = sum(count for _, count in plan.prefills)
        shape = StepShape(len(plan.decodes), context, tokens, work, len(plan.prefills))
        found.append(abs(known.seconds(*shape) / max(seconds, 1e-6) - 1.0))
    return found


def _ends(records: Sequence[RequestRecord]) -> dict[int, float]:
    return {r.id: r.ended_at for r in records if r.ended_at is not None}


def _order(ends: dict[int, float], own: dict[int, float], both: Sequence[int]) -> float:
    pairs = list(combinations(both, 2))
    alike = sum((ends[a] < ends[b]) == (own[a] < own[b]) for a, b in pairs)
    return alike / len(pairs) if pairs else 1.0
