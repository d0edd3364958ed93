"""The contenders of `vllm_plugin`, the yardstick that they are held to, and what is printed of them."""

from dataclasses import dataclass, field
from statistics import median

from contest import Rung, batch_at, capacity_of
from vllm_loads import Client
from vllm_seen import Seen, held, ratio_within, rungs_of
from vllm_server import Setting, numbers

from setpoint.loadgen.prompts import Lexicon
from setpoint.model import Slo

BEATS = 5
"""How many of the last beats tell how fast the machine is: each alone is off by a tenth and more."""


@dataclass
class Contender:
    """A setting with its server, and what it did: its ladders, the loose load, the tiers (by name, and `all`)."""

    setting: Setting
    url: str
    client: Client
    beside: list[Seen] = field(default_factory=list)
    alone: list[Seen] = field(default_factory=list)
    tight: list[Seen] = field(default_factory=list)
    loose: list[Seen] = field(default_factory=list)
    tiers: dict[str, float] = field(default_factory=dict)

    @property
    def is_stock(self) -> bool:
        """Whether it is vLLM as it comes."""
        return self.setting.strategy is None

    @property
    def is_for_chat_alone(self) -> bool:
        """Whether it is asked where there is one class."""
        return self.setting.policy == "priority" or self.setting.strategy == "slack"

    @property
    def loose_tokens_per_s(self) -> float:
        """The throughput under loose targets, the median of the rounds; 0 without any."""
        return median([one.tokens_per_s for one in self.loose] or [0.0])

    @property
    def loose_attainment(self) -> float:
        """The attainment under loose targets, of all rounds."""
        rungs = rungs_of(self.loose)
        return sum(r.attainment * r.requests for r in rungs) / max(1, sum(r.requests for r in rungs))

    def planning(self) -> float | None:
        """Return the share of the step time that was spent on planning."""
        found = numbers(self.url)
        steps_s = found.get("setpoint_measured_seconds_total")
        return None if not steps_s else found.get("setpoint_planning_seconds_total", 0.0) / steps_s


@dataclass
class Yardstick:
    """What the loads are scaled by: targets, bound in chat per second, and the beat that went with them."""

    slo: Slo
    bound: float
    beat_s: float
    lexicon: Lexicon
    beats_s: list[float] = field(default_factory=list)

    def slowness(self, client: Client) -> float:
        """Return how much longer everything takes now."""
        self.beats_s.append(client.beat())
        return median(self.beats_s[-BEATS:]) / self.beat_s


def row(came: Contender, by: Yardstick) -> dict[str, object]:
    """Return what is printed of a setting."""
    return {
        "setting": came.setting.name,
        **(_beside(came.beside, by) if came.beside else {}),
        "chat/s alone": capacity_of(rungs_of(came.alone)) if came.alone else None,
        **{f"alone {one.rung.rate:.2f}/s": _shares(one.rung) for one in came.alone},
        "chat/s alone, tight": capacity_of(rungs_of(came.tight)) if came.tight else None,
        **{f"tight {one.rung.rate:.2f}/s": _shares(one.rung) for one in came.tight},
        "loose": came.loose_attainment if came.loose else None,
        "tokens/s, loose": came.loose_tokens_per_s if came.loose else None,
        **{f"{name}, tiers" if name == "chat" else name: share for name, share in came.tiers.items()},
        "failed": sum(one.failed for one in (*came.beside, *came.alone, *came.tight, *came.loose)),
    }


def _beside(seen: list[Seen], by: Yardstick) -> dict[str, object]:
    rungs = rungs_of(seen)
    rate = capacity_of(rungs)
    worst = max(seen, key=lambda one: one.rung.rate if one.rung.rate <= max(rate, rungs[0].rate) else -1.0)
    return {
        "chat/s beside batch": rate,
        "of bound": rate / by.bound,
        "batch tokens/s there": batch_at(rungs, rate),
        "TTFT P95/P99 ms": f"{1e3 * worst.rung.ttft_p95_s:.0f}/{1e3 * worst.ttft_p99_s:.0f}",
        "TPOT P95/P99 ms": f"{1e3 * worst.rung.tpot_p95_s:.0f}/{1e3 * worst.tpot_p99_s:.0f}",
        "goodput/s": max(one.goodput for one in seen),
        **{f"{rung.rate:.2f}/s": _shares(rung) for rung in rungs},
    }


def _shares(rung: Rung) -> str:
    return f"{rung.attainment:.3f} of {rung.requests}, TTFT {rung.ttft_attainment:.3f}"


def ratios(
    contenders: list[Contender], by: Yardstick, said: dict[str, list[str]], seed: int
) -> dict[str, float | None]:
    """Return the ratios that the module describes; `said`: the greedy answers."""
    plain = [one for one in contenders if one.is_stock]
    single = [one for one in plain if one.is_for_chat_alone]
    plugged = {one.setting.strategy: one for one in contenders if not one.is_stock}
    slack = plugged["slack"]
    beside = held(rungs_of(slack.beside)) if slack.beside else None
    busiest = max(plain, key=lambda one: one.loose_tokens_per_s)
    throughput = [a.tokens_per_s / b.tokens_per_s for a, b in zip(slack.loose, busiest.loose, strict=True)]
    found: dict[str, float | None] = {}
    if beside is not None:
        found |= _over("over_best_stock", slack.beside, [one.beside for one in plain], seed)
        found["over_qoserve"] = beside / held(rungs_of(plugged["qoserve"].beside)) if "qoserve" in plugged else None
    if slack.alone and beside is not None:
        found["of_stock_without_batch"] = beside / max(held(rungs_of(one.alone)) for one in single)
    if slack.tight:
        found |= _over("alone_over_stock", slack.tight, [one.tight for one in single], seed)
    if throughput:
        found["loose_attainment"] = slack.loose_attainment - max(one.loose_attainment for one in plain)
        found["throughput_of_stock"] = median(throughput)
        found["throughput_low"], found["throughput_high"] = min(throughput), max(throughput)
    if slack.tiers:
        found["tiers_over_stock"] = slack.tiers["all"] / max(one.tiers["all"] for one in single)
    if said:
        found["same_answers"] = same(said["stock"], said["plug-in"])
        found["same_answers_stock"] = same(said["stock"], said["stock again"])
    found["planning_of_step"] = slack.planning()
    found["bound_rps"] = by.bound
    found["slowest_over_fastest"] = max(by.beats_s) / min(by.beats_s)
    return found


def _over(name: str, ours: list[Seen], theirs: list[list[Seen]], seed: int) -> dict[str, float]:
    """Return the ratio of the rate held to the best of theirs, and its interval."""
    mine, others = rungs_of(ours), [rungs_of(one) for one in theirs]
    low, high = ratio_within(mine, others, seed)
    return {name: held(mine) / max(held(one) for one in others), f"{name}_low": low, f"{name}_high": high}


def same(these: list[str], those: list[str]) -> float:
    """Return the share of answers that are equal."""
    return sum(a == b for a, b in zip(these, those, strict=True)) / len(these)
