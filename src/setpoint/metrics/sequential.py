"""When a trial has seen enough: Wald's sequential probability ratio test on violations.

The hypotheses stand at 1.5 times the allowed share and at the allowed share over 1.5; between them the test goes on to
the planned end, where the fixed-size test decides. Each request counts for `n_test / n` of an independent one, so that
a backlog, in which neighbours fail together, does not end a trial before its time.
Source: Wald (1945); repeated looks at a fixed-size test would inflate its error, looks at this one do not.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from setpoint.metrics.objective import Objective, violations
from setpoint.metrics.quantile import effective_size
from setpoint.metrics.timeline import RequestRecord

APART = 1.5
REQUESTS_MIN = 50


def look(
    records: Iterable[RequestRecord], objectives: Sequence[Objective], alpha: float = 0.02
) -> Literal["missed", "met"] | None:
    """Return `missed` once one objective is, `met` once all are, `None` while the trial should go on."""
    records = list(records)
    verdicts = [sprt(violations(records, objective), objective.allowed, alpha) for objective in objectives]
    if "missed" in verdicts:
        return "missed"
    return "met" if verdicts and all(verdict == "met" for verdict in verdicts) else None


def sprt(flags: Sequence[float], allowed: float, alpha: float = 0.02) -> Literal["missed", "met"] | None:
    """Return what a series of violations has shown by now, or `None`."""
    n = len(flags)
    if n < REQUESTS_MIN:
        return None
    bad, good = min(0.99, allowed * APART), allowed / APART
    violated = sum(flags)
    evidence = violated * math.log(bad / good) + (n - violated) * math.log((1.0 - bad) / (1.0 - good))
    evidence *= effective_size(flags).n_test / n
    edge = math.log((1.0 - alpha) / alpha)
    if evidence >= edge:
        return "missed"
    return "met" if evidence <= -edge else None
