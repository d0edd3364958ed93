"""Whether anything is due in the window of a run, found out before any load is offered: the plan is there by then.

A recorded workload at a low rate pauses for long: 4.3 s of the Azure conversations at their own 5.5 requests a second
become 48 s at one every two seconds, and Mooncake's arrivals come in lumps of ten. A run that ends within such a pause
would measure nothing, and only say so at its end.
"""

from collections.abc import Callable, Sequence

from setpoint.errors import WorkloadError
from setpoint.loadgen.experiment import Setup, due_between, filled_s
from setpoint.workload import PlannedRequest

ENOUGH = 10
"""Requests that a run should have for its figures to say a little."""
FASTER, FASTER_MAX = 1.25, 1e4


def refuse_empty(
    plan_until: Callable[[float], Sequence[PlannedRequest]],
    *,
    warmup_s: float,
    seconds: float,
    faster: Callable[[], float | None] = lambda: None,
) -> None:
    """Raise WorkloadError when nothing is due in a window of `seconds`, naming the one in which something is.

    `faster` finds a rate that would do in the same time, where there is one.
    """
    if due_between(plan_until(warmup_s + seconds), warmup_s, warmup_s + seconds):
        return
    first_s = filled_s(plan_until, warmup_s=warmup_s, seconds=seconds)
    enough_s = filled_s(plan_until, warmup_s=warmup_s, seconds=seconds, count=ENOUGH)
    after = f" after the warm-up of {warmup_s:.1f} s" if warmup_s else ""
    rate = faster()
    or_faster = "" if rate is None else f", or --rate {rate:g}"
    raise WorkloadError(
        f"no request is due within {seconds:g} s{after}: the first one comes {first_s:.0f} s into the window",
        hint=f"give --seconds {enough_s:.0f}{or_faster}: {ENOUGH} requests are due then",
    )


def faster_rate(setup: Setup, rps: float, seed: int, *, warmup_s: float, seconds: float) -> float | None:
    """Return a rate at which enough requests are due in a window of `seconds`, `None` where none is found."""
    rate = rps
    while rate < FASTER_MAX * rps:
        rate = float(f"{rate * FASTER:.2g}")
        plan = setup.source.plan(rate, seed, warmup_s + seconds)
        if len(due_between(plan, warmup_s, warmup_s + seconds)) >= ENOUGH:
            return rate
    return None
