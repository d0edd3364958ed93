"""What the policy is worth inside vLLM: stock vLLM against the plug-in, with the same server flags but the scheduler.

    python benchmarks/vllm_plugin.py --vllm DIR/venv/bin/vllm --model DIR/smollm2            about 50 minutes
    python benchmarks/vllm_plugin.py --vllm DIR/venv/bin/vllm --model DIR/smollm2 --quick    four servers, six minutes

DIR is a folder with a vLLM that has setpoint installed beside it, and a small model. Each setting gets a server of its
own, one after the other: stock first come first served and stock `priority` (class and deadline in the number), both
with swept `--max-num-batched-tokens`, and the plug-in, untuned, with `qoserve` and with `slack`. Each climbs the same
ladders of chat rates, with the same draws, until too few requests meet their targets: chat beside a backlog that is
never empty, chat alone, and chat alone under targets half as long; then one load with loose targets beside the backlog,
and the three tiers of QoServe. Where there is one class, stock `priority` does what first come first served does, which
is therefore not asked again. Rates are shares of the *bound*, at which a stock server empties a backlog of chat;
targets scale with the machine (see `vllm_loads`). A setting's capacity is the rate at which attainment, made monotone,
crosses 95%.

Ratios (all of `slack`): `over_best_stock`: its chat rate beside the backlog, over the best of all stock settings;
`over_qoserve`: the same over the plug-in with `qoserve`; `of_stock_without_batch`: its chat rate beside the backlog,
over stock's best of chat alone; `alone_over_stock`: chat alone under the tight targets; `loose_attainment`: its
attainment under loose targets less the best of stock; `throughput_of_stock`: tokens a second of all work under loose
targets, over stock's best; `tiers_over_stock`: attainment of all three tiers, over the best of stock; `same_answers`:
share of greedy answers that equal those of a stock server, both with float32 weights and asked beside other work
(`same_answers_stock`: the same of two stock servers). Where a setting fails at the lowest rung, that rung stands for
its capacity. `planning_of_step`: time spent planning over the time of the steps.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
from contest import GIVEN_UP, batch_at, capacity_of, scaled_slo, targets
from reporting import arguments, report, say
from vllm_loads import SEQUENCES, TPOT_TIMES, Client, Load, Seen, classes_of, held, loosened, tightened
from vllm_server import Setting, numbers, plugin, server, stock

from setpoint.loadgen.probe import identify, learn_words
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.target import EndpointTarget
from setpoint.model import Slo
from setpoint.planner.endpoint import Limits, carry_over_http, profile
from setpoint.seeds import stream

__all__ = ["Setting", "server"]

BUDGETS = {"priority": (256, 64, 1024), "fcfs": (256, 1024)}
"""Token budgets by policy; the bound is that of the first, which is therefore none that would hold prompts back."""
QUICK_BUDGETS = {"priority": (256,)}
BESIDE = (0.2, 0.4, 0.6, 0.75)
ALONE = (0.5, 0.7)
TIGHTLY = (0.3, 0.5)
LOOSE_AT = 0.3
TIERS_AT = 0.8
RUNG_S, QUICK_RUNG_S = 30.0, 12.0
WARM_UP_S = 20.0
QUESTIONS = tuple(
    f"{verb} {thing}" for verb in ("Tell me about", "Why do people like") for thing in ("rain", "tea", "maps", "dogs")
)
ANSWER_TOKENS = 24


class Outcome(NamedTuple):
    """What one setting did: its ladders, the loose load, the tiers (by name, and `all`), its planning time."""

    beside: list[Seen]
    alone: list[Seen]
    tight: list[Seen]
    loose: Seen
    tiers: dict[str, float]
    planning: float | None


class Yardstick(NamedTuple):
    """What the loads are scaled by: the targets, the bound in chat per second, the tokenizer's words."""

    slo: Slo
    bound: float
    lexicon: Lexicon


def stocks(*, is_quick: bool) -> list[Setting]:
    """Return the stock settings that are compared; the first is the one that gives the yardstick."""
    budgets = QUICK_BUDGETS if is_quick else BUDGETS
    return [sized(stock(policy, budget)) for policy, swept in budgets.items() for budget in swept]


def plugins(slo: Slo) -> list[Setting]:
    """Return the settings of the plug-in that are compared."""
    return [sized(plugin(strategy, classes_of(slo))) for strategy in ("qoserve", "slack")]


def sized(setting: Setting, *more: str) -> Setting:
    """Return a setting with the flags that all share."""
    return setting._replace(flags=("--max-num-seqs", str(SEQUENCES), *more, *setting.flags))


def yardstick(url: str, args: argparse.Namespace) -> Yardstick:
    """Profile a stock server over HTTP, and let it empty a backlog of chat."""
    target = identify(EndpointTarget(url=url, engine="vllm", api="completions"))
    lexicon = learn_words(target)
    client = Client(url, stock("fcfs", 0), lexicon, args.seed)
    client.empty(16)
    over_at = time.monotonic() + (15.0 if args.quick else 40.0)
    found = profile(
        Limits(slots=16, prompt_max=512, context_tokens=2048),
        carry_over_http(target, lexicon),
        stream(args.seed, "profile"),
        key="vllm over HTTP",
        is_over=lambda: time.monotonic() > over_at,
        on_load=lambda load: say(f"profiling: {load.words()}"),
    )
    slo = scaled_slo(found.model, tpot_times=TPOT_TIMES)
    bound = client.empty(48 if args.quick else 160)
    say(f"bound {bound:.2f} chat/s; targets {targets(slo)}")
    return Yardstick(slo, bound, lexicon)


def outcome(url: str, setting: Setting, by: Yardstick, args: argparse.Namespace) -> Outcome:
    """Warm a server up, and offer it every load."""
    say(setting.name)
    client = Client(url, setting, by.lexicon, args.seed)
    seconds = QUICK_RUNG_S if args.quick else RUNG_S
    client.run(Load(0.2 * by.bound, QUICK_RUNG_S if args.quick else WARM_UP_S, by.slo))
    beside = climb(client, by, BESIDE[:2] if args.quick else BESIDE, seconds, has_backlog=True)
    alone: list[Seen] = []
    tight: list[Seen] = []
    if setting.policy == "priority" or setting.strategy is not None:
        alone = climb(client, by, ALONE[:1] if args.quick else ALONE, seconds)
        tight = climb(client, by._replace(slo=tightened(by.slo)), TIGHTLY[:1] if args.quick else TIGHTLY, seconds)
    loose = client.run(Load(LOOSE_AT * by.bound, seconds, loosened(by.slo)))
    tiers = client.tiers(TIERS_AT * by.bound, seconds, by.slo)
    found = numbers(url)
    steps_s = found.get("setpoint_measured_seconds_total")
    planning = None if not steps_s else found.get("setpoint_planning_seconds_total", 0.0) / steps_s
    return Outcome(beside, alone, tight, loose, tiers, planning)


def climb(
    client: Client, by: Yardstick, shares: tuple[float, ...], seconds: float, *, has_backlog: bool = False
) -> list[Seen]:
    """Offer rising rates, until too few requests meet their targets."""
    seen: list[Seen] = []
    for share in shares:
        seen.append(client.run(Load(share * by.bound, seconds, by.slo, has_backlog)))
        if seen[-1].rung.attainment < GIVEN_UP:
            break
    return seen


def answers(setting: Setting, by: Yardstick, args: argparse.Namespace) -> list[str]:
    """Return the greedy answers of a server of its own to the same questions, asked all at once beside other work.

    The weights are float32: with fewer bits the sums depend on who else is in the step, whatever the scheduler.
    """
    asked: dict[str, object] = {"model": "model", "max_tokens": ANSWER_TOKENS, "temperature": 0.0}
    with server(args, sized(setting, "--dtype", "float32")) as url, ThreadPoolExecutor(1 + len(QUESTIONS)) as pool:

        def answer(question: str) -> str:
            body = asked | {"prompt": question}
            return str(httpx.post(f"{url}/v1/completions", json=body, timeout=300.0).json()["choices"][0]["text"])

        client = Client(url, setting, by.lexicon, args.seed)
        beside = pool.submit(client.run, Load(0.1 * by.bound, 15.0, loosened(by.slo)))
        time.sleep(3.0)
        found = list(pool.map(answer, QUESTIONS))
        beside.result()
    return found


def row(name: str, came: Outcome, by: Yardstick) -> dict[str, object]:
    """Return what is printed of a setting."""
    rungs = [one.rung for one in came.beside]
    rate = capacity_of(rungs)
    worst = max(came.beside, key=lambda one: one.rung.rate if one.rung.rate <= max(rate, rungs[0].rate) else -1.0)
    return {
        "setting": name,
        "chat/s beside batch": rate,
        "of bound": rate / by.bound,
        "batch tokens/s there": batch_at(rungs, rate),
        "TTFT P95/P99 ms": f"{1e3 * worst.rung.ttft_p95_s:.0f}/{1e3 * worst.ttft_p99_s:.0f}",
        "TPOT P95/P99 ms": f"{1e3 * worst.rung.tpot_p95_s:.0f}/{1e3 * worst.tpot_p99_s:.0f}",
        "goodput/s": max(one.goodput for one in came.beside),
        **{f"{r.rate:.2f}/s": f"{r.attainment:.3f} of {r.requests}" for r in rungs},
        "chat/s alone": capacity_of([one.rung for one in came.alone]) if came.alone else None,
        **{f"alone {one.rung.rate:.2f}/s": f"{one.rung.attainment:.3f}" for one in came.alone},
        "chat/s alone, tight": capacity_of([one.rung for one in came.tight]) if came.tight else None,
        **{f"tight {one.rung.rate:.2f}/s": f"{one.rung.attainment:.3f}" for one in came.tight},
        "loose": came.loose.rung.attainment,
        "tokens/s, loose": came.loose.tokens_per_s,
        **{f"{name}, tiers" if name == "chat" else name: share for name, share in came.tiers.items()},
        "failed": sum(one.failed for one in (*came.beside, *came.alone, *came.tight, came.loose)),
    }


def ratios(found: dict[str, Outcome], by: Yardstick, said: dict[str, list[str]]) -> dict[str, float | None]:
    """Return the ratios that the module describes; `said`: the greedy answers."""
    plain = [came for name, came in found.items() if name.startswith("stock")]
    slack, qoserve = found["plug-in slack"], found.get("plug-in qoserve")
    beside = held(slack.beside)
    return {
        "over_best_stock": beside / max(held(came.beside) for came in plain),
        "over_qoserve": None if qoserve is None else beside / held(qoserve.beside),
        "of_stock_without_batch": beside / max(held(came.alone) for came in plain if came.alone),
        "alone_over_stock": held(slack.tight) / max(held(came.tight) for came in plain if came.tight),
        "loose_attainment": slack.loose.rung.attainment - max(came.loose.rung.attainment for came in plain),
        "throughput_of_stock": slack.loose.tokens_per_s / max(came.loose.tokens_per_s for came in plain),
        "tiers_over_stock": slack.tiers["all"] / max(came.tiers["all"] for came in plain),
        "same_answers": same(said["stock"], said["plug-in"]),
        "same_answers_stock": same(said["stock"], said["stock again"]),
        "planning_of_step": slack.planning,
        "bound_rps": by.bound,
    }


def same(these: list[str], those: list[str]) -> float:
    """Return the share of answers that are equal."""
    return sum(a == b for a, b in zip(these, those, strict=True)) / len(these)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vllm", default="vllm", help="the vllm command (default: vllm)")
    parser.add_argument("--only", help="settings whose names hold this, beside the first: 'slack', say (for trials)")


def main() -> None:
    """Run every setting on a server of its own, and report."""
    args = arguments(__doc__ or "", _options)
    if args.model is None:
        sys.exit("--model: name the folder of a model that vLLM can read")
    found: dict[str, Outcome] = {}
    first, *others = stocks(is_quick=args.quick)
    with server(args, first) as url:
        by = yardstick(url, args)
        found[first.name] = outcome(url, first, by, args)
    plain = stock("fcfs", 256)
    asked = {"stock": plain, "stock again": plain, "plug-in": plugin("slack", classes_of(by.slo))}
    said = {name: answers(setting, by, args) for name, setting in asked.items()}
    say(f"same answers: {same(said['stock'], said['plug-in'])}, stock again {same(said['stock'], said['stock again'])}")
    for setting in (*others, *plugins(by.slo)):
        if args.only is None or args.only in setting.name:
            with server(args, setting) as url:
                found[setting.name] = outcome(url, setting, by, args)
    report("vllm_plugin", ratios(found, by, said), [row(name, came, by) for name, came in found.items()], args)


if __name__ == "__main__":
    main()
