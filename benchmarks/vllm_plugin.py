"""What the policy is worth inside vLLM: stock vLLM against the plug-in, with the same server flags but the scheduler.

    python benchmarks/vllm_plugin.py --vllm DIR/venv/bin/vllm --model DIR/smollm2            about 35 minutes
    python benchmarks/vllm_plugin.py --vllm DIR/venv/bin/vllm --model DIR/smollm2 --quick    two servers, three minutes

DIR is a folder with a vLLM that has setpoint installed beside it, and a small model. Each setting gets a server of its
own, one after the other: stock first come first served and stock `priority`, both with swept
`--max-num-batched-tokens`, and the plug-in, untuned, with `qoserve` and with `slack`. Each climbs the same ladders of
chat rates, with the same draws, until too few requests meet their targets: chat beside a backlog that is never empty,
chat alone, and chat alone under targets half as long; then one load with loose targets, beside the backlog. Rates are
shares of the *bound*, at which a stock server empties a backlog of chat; targets scale with the machine (see
`vllm_loads`). Its capacity is the rate at which attainment, made monotone, crosses 95%.

Ratios (all of `slack`): `over_best_stock`: its chat rate beside the backlog, over the best of all stock settings;
`over_qoserve`: the same over the plug-in with `qoserve`; `of_stock_without_batch`: its chat rate beside the backlog,
over stock's best of chat alone; `alone_over_stock`: chat alone under the tight targets; `loose_attainment`: its
attainment under loose targets less the best of stock; `throughput_of_stock`: tokens a second of all work under loose
targets, over stock's best; `same_answers`: share of greedy answers, given beside the backlog, that equal those of a
stock server (of two stock servers: `same_answers_stock`). Where a setting fails at the lowest rung, that rung stands
for its capacity. `planning_of_step`: time spent planning over the time of the steps.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import httpx
from contest import GIVEN_UP, batch_at, capacity_of, scaled_slo, targets
from reporting import arguments, report, say
from vllm_loads import Client, Load, Seen, held, loosened, tightened
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
SEQUENCES = 32
BESIDE = (0.15, 0.3, 0.5, 0.7)
ALONE = (0.45, 0.65, 0.85)
TIGHTLY = (0.3, 0.5, 0.7)
LOOSE_AT = 0.3
RUNG_S, QUICK_RUNG_S = 20.0, 8.0
WARM_UP_S = 8.0
QUESTIONS = tuple(
    f"{verb} {thing}" for verb in ("Tell me about", "Why do people like") for thing in ("rain", "tea", "maps", "dogs")
)
ANSWER_TOKENS = 24


class Outcome(NamedTuple):
    """What one setting did: its ladders, the loose load, its greedy answers, its planning time."""

    beside: list[Seen]
    alone: list[Seen]
    tight: list[Seen]
    loose: Seen
    answers: list[str]
    planning: float | None


class Yardstick(NamedTuple):
    """What the loads are scaled by: the targets, the bound in chat per second, the tokenizer's words."""

    slo: Slo
    bound: float
    lexicon: Lexicon


def settings(*, is_quick: bool) -> list[Setting]:
    """Return what is compared."""
    budgets = QUICK_BUDGETS if is_quick else BUDGETS
    stocks = [stock(policy, budget) for policy, swept in budgets.items() for budget in swept]
    plugins = [plugin(strategy) for strategy in (("slack",) if is_quick else ("qoserve", "slack"))]
    every = ("--max-num-seqs", str(SEQUENCES), "--dtype", "float32")
    return [setting._replace(flags=(*every, *setting.flags)) for setting in (*stocks, *plugins)]


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
    slo = scaled_slo(found.model)
    bound = client.empty(48 if args.quick else 160)
    say(f"bound {bound:.2f} chat/s; targets {targets(slo)}")
    return Yardstick(slo, bound, lexicon)


def outcome(url: str, setting: Setting, by: Yardstick, args: argparse.Namespace) -> Outcome:
    """Warm a server up, and offer it every load."""
    say(setting.name)
    client = Client(url, setting, by.lexicon, args.seed)
    seconds = QUICK_RUNG_S if args.quick else RUNG_S
    client.run(Load(0.2 * by.bound, 4.0 if args.quick else WARM_UP_S, by.slo))
    beside = climb(client, by, BESIDE[1:3] if args.quick else BESIDE, seconds, has_backlog=True)
    alone = climb(client, by, ALONE[1:2] if args.quick else ALONE, seconds)
    tight = climb(client, by._replace(slo=tightened(by.slo)), TIGHTLY[1:2] if args.quick else TIGHTLY, seconds)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(answers, url, setting)
        loose = client.run(Load(LOOSE_AT * by.bound, seconds, loosened(by.slo)))
        told = asked.result()
    found = numbers(url)
    steps_s = found.get("setpoint_measured_seconds_total")
    planning = None if not steps_s else found.get("setpoint_planning_seconds_total", 0.0) / steps_s
    return Outcome(beside, alone, tight, loose, told, planning)


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


def answers(url: str, setting: Setting) -> list[str]:
    """Return greedy answers to the same questions, asked all at once."""
    asked: dict[str, object] = {"model": "model", "max_tokens": ANSWER_TOKENS, "temperature": 0.0}
    if setting.strategy is not None:
        asked["vllm_xargs"] = {"setpoint.class": "batch"}

    def answer(question: str) -> str:
        body = asked | {"prompt": question}
        return str(httpx.post(f"{url}/v1/completions", json=body, timeout=300.0).json()["choices"][0]["text"])

    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        return list(pool.map(answer, QUESTIONS))


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
        "chat/s alone": capacity_of([one.rung for one in came.alone]),
        **{f"alone {one.rung.rate:.2f}/s": f"{one.rung.attainment:.3f}" for one in came.alone},
        "chat/s alone, tight": capacity_of([one.rung for one in came.tight]),
        **{f"tight {one.rung.rate:.2f}/s": f"{one.rung.attainment:.3f}" for one in came.tight},
        "loose": came.loose.rung.attainment,
        "tokens/s, loose": came.loose.tokens_per_s,
        "failed": sum(one.failed for one in (*came.beside, *came.alone, *came.tight, came.loose)),
    }


def ratios(found: dict[str, Outcome], by: Yardstick) -> dict[str, float | None]:
    """Return the ratios that the module describes."""
    stocks = {name: came for name, came in found.items() if name.startswith("stock")}
    slack, qoserve = found["plug-in slack"], found.get("plug-in qoserve")
    beside = held(slack.beside)
    first, *others = [came.answers for came in stocks.values()]
    return {
        "over_best_stock": beside / max(held(came.beside) for came in stocks.values()),
        "over_qoserve": None if qoserve is None else beside / held(qoserve.beside),
        "of_stock_without_batch": beside / max(held(came.alone) for came in stocks.values()),
        "alone_over_stock": held(slack.tight) / max(held(came.tight) for came in stocks.values()),
        "loose_attainment": slack.loose.rung.attainment - max(c.loose.rung.attainment for c in stocks.values()),
        "throughput_of_stock": slack.loose.tokens_per_s / max(c.loose.tokens_per_s for c in stocks.values()),
        "same_answers": same(first, slack.answers),
        "same_answers_stock": same(first, others[0]) if others else None,
        "planning_of_step": slack.planning,
        "bound_rps": by.bound,
    }


def same(these: list[str], those: list[str]) -> float:
    """Return the share of answers that are equal."""
    return sum(a == b for a, b in zip(these, those, strict=True)) / len(these)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vllm", default="vllm", help="the vllm command (default: vllm)")
    parser.add_argument("--only", help="settings whose names hold this, beside the first (for trials)")


def main() -> None:
    """Run every setting on a server of its own, and report."""
    args = arguments(__doc__ or "", _options)
    if args.model is None:
        sys.exit("--model: name the folder of a model that vLLM can read")
    found: dict[str, Outcome] = {}
    by: Yardstick | None = None
    for setting in settings(is_quick=args.quick):
        if by is not None and args.only and args.only not in setting.name:
            continue
        with server(args, setting) as url:
            by = by or yardstick(url, args)
            found[setting.name] = outcome(url, setting, by, args)
    assert by is not None, "there is a first setting"
    report("vllm_plugin", ratios(found, by), [row(name, came, by) for name, came in found.items()], args)


if __name__ == "__main__":
    main()
