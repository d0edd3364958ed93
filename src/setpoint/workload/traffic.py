"""Made-up traffic: a mix of service classes, each with its share of the rate, its lengths, prefixes and conversations.

Every draw comes from a stream of its own per class and purpose, so that changing the rate, or one class, leaves the
other numbers as they were. A class with share s sees its k-th arrival when the whole rate has yielded u_k / s, u being
its own process of unit rate.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile

import msgspec

from setpoint.chance import Chance
from setpoint.errors import WorkloadError
from setpoint.workload.arrivals import POISSON, Gaps, Rate
from setpoint.workload.lengths import AnyLengths, Fixed
from setpoint.workload.plan import PlannedRequest

Streams = Callable[[str], Chance]
"""Gives the generator of a name; `functools.partial(setpoint.seeds.stream, seed)` is one."""

PLAN_MAX = 5_000_000


class Traffic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One class of the mix.

    `share` of all arrivals (shares are taken relative to their sum). `prefix_tokens` of each prompt are one of
    `prefixes` shared texts. A conversation has `turns`, each `think_s` (mean of an exponential) after the one before.
    """

    class_name: str
    prompt: AnyLengths
    output: AnyLengths
    share: float = 1.0
    gaps: Gaps = POISSON
    prefix_tokens: int = 0
    prefixes: int = 1
    turns: AnyLengths = Fixed(1)
    think_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not self.share > 0.0:
            raise WorkloadError(
                f"the share of class {self.class_name} must be positive, not {self.share:g}",
                hint="leave a class without a share out",
            )
        if self.prefix_tokens < 0 or self.prefixes < 1 or self.think_s < 0.0:
            raise WorkloadError(
                f"prefixes and think time of class {self.class_name} must not be negative",
                hint="a prefix may have 0 tokens; there is 1 prefix at least",
            )


def plan_traffic(
    mix: Sequence[Traffic], rate: Rate, streams: Streams, *, duration_s: float | None = None, count: int | None = None
) -> list[PlannedRequest]:
    """Return the plan of the first `duration_s` seconds, or of the first `count` arrivals, whichever ends sooner.

    Conversations begin within that limit; their later turns are added to it. Raises WorkloadError when neither limit is
    given, two classes share a name, or the plan would exceed five million requests.
    """
    if duration_s is None and count is None:
        raise WorkloadError("a plan needs an end", hint="give a duration, a number of requests, or both")
    names = [traffic.class_name for traffic in mix]
    if not names or len(set(names)) < len(names):
        raise WorkloadError(
            f"a mix needs one class at least, and each name once, not {names}", hint="give each class a name of its own"
        )
    whole = sum(traffic.share for traffic in mix)
    flows = [_arrivals(traffic, index, traffic.share / whole, rate, streams) for index, traffic in enumerate(mix)]
    merged: Iterator[tuple[float, int]] = heapq.merge(*flows)
    if duration_s is not None:
        merged = takewhile(lambda arrival: arrival[0] < duration_s, merged)
    makers = [_Maker(traffic, streams) for traffic in mix]
    plan: list[PlannedRequest] = []
    for session, (at, index) in enumerate(islice(merged, count)):
        plan.extend(makers[index].make(at, session, first_id=len(plan)))
        if len(plan) > PLAN_MAX:
            raise WorkloadError(f"the plan exceeds {PLAN_MAX:,} requests", hint="shorten it or lower the rate")
    plan.sort(key=lambda one: (one.at_s, one.id))
    return plan


def _arrivals(traffic: Traffic, index: int, share: float, rate: Rate, streams: Streams) -> Iterator[tuple[float, int]]:
    chance = streams(f"{traffic.class_name}/gaps")
    units = 0.0
    while True:
        units += traffic.gaps.draw(chance)
        yield rate.when(units / share), index


class _Maker:
    """Draws the requests of one class, in order of arrival."""

    def __init__(self, traffic: Traffic, streams: Streams) -> None:
        self._traffic = traffic
        self._lengths = streams(f"{traffic.class_name}/lengths")
        self._prefixes = streams(f"{traffic.class_name}/prefixes")
        self._turns = streams(f"{traffic.class_name}/turns")

    def make(self, at: float, session: int, first_id: int) -> Iterator[PlannedRequest]:
        """Yield the turns of one arrival (one, unless it is a conversation)."""
        traffic = self._traffic
        turns = traffic.turns.draw(self._turns)
        prefix = self._prefixes.randrange(traffic.prefixes) if traffic.prefix_tokens else None
        history = 0
        for turn in range(turns):
            prompt, output = traffic.prompt.draw(self._lengths), traffic.output.draw(self._lengths)
            yield PlannedRequest(
                id=first_id + turn,
                at_s=at,
                class_name=traffic.class_name,
                prompt_tokens=history + max(prompt, traffic.prefix_tokens + 1),
                output_tokens=output,
                prefix_id=prefix,
                prefix_tokens=traffic.prefix_tokens,
                session=session if turns > 1 else None,
                turn=turn,
                think_s=self._turns.expovariate(1.0 / traffic.think_s) if turn and traffic.think_s else 0.0,
            )
            history += max(prompt, traffic.prefix_tokens + 1) + output
