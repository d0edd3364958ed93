"""What the policy is worth inside vLLM: stock vLLM against the plug-in, with the same server flags but the scheduler.

    python benchmarks/vllm_plugin.py --vllm DIR/venv/bin/vllm --model DIR/smollm2            about 50 minutes
    python benchmarks/vllm_plugin.py --vllm DIR/venv/bin/vllm --model DIR/smollm2 --quick    about ten minutes

DIR is a folder with a vLLM that has setpoint installed beside it, and a small model. Each setting has a server of its
own: stock first come first served and stock `priority` (class and deadline in the number), with swept
`--max-num-batched-tokens` and with fewer sequences at once, and the plug-in, untuned, with `qoserve` and with `slack`.
All of them run at once (2.5 GB each), and are asked in turns, one at a time: a shared machine may be twice as fast in
one minute as in another, so that whoever stood a rung apart would be measured on another machine. A rung is offered in
pieces of less than a minute, one contender after the other, each piece with draws of its own. Before each a few
requests that have the server to themselves tell how fast the machine is; the median of the last ones scales targets and
rates, and what is printed is scaled back.

Each setting climbs the same ladders of chat rates, with the same draws, until too few requests are in time: chat
beside a backlog that is never empty, chat alone, and chat alone under tighter targets; then a load with loose targets
beside the backlog, in two rounds, and the three tiers of QoServe. Where there is one class, stock `priority`
does what first come first served does, and `qoserve` is not asked. Rates are shares of the *bound*, at which a stock
server empties a backlog of chat. A setting's capacity is the rate at which attainment, made monotone, crosses 95%.

Ratios (all of `slack`): `over_best_stock`: its chat rate beside the backlog, over the best of all stock settings;
`over_qoserve`: the same over the plug-in with `qoserve`; `of_stock_without_batch`: its chat rate beside the backlog,
over stock's best of chat alone; `alone_over_stock`: chat alone under the tight targets; `loose_attainment`: its
attainment under loose targets less the best of stock; `throughput_of_stock`: tokens a second of all work under loose
targets, over those of the stock setting with most in the same round, the median of the rounds (`throughput_low` and
`throughput_high`: the extremes); `tiers_over_stock`: attainment of all three tiers, over the best of stock;
`same_answers`: share of greedy answers that equal those of a stock server, both with float32 weights and asked beside
other work (`same_answers_stock`: the same of two stock servers). Where a setting fails at the lowest rung, that rung
stands for its capacity. `..._low`, `..._high`: the 90% interval of a ratio of rates, from resampled requests.
`planning_of_step`: time spent planning over the time of the steps. `slowest_over_fastest`: how
much the machine swung.
"""

import argparse
import re
import sys
import time
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import httpx
from contest import GIVEN_UP, scaled_slo, targets
from reporting import arguments, report, say
from vllm_contenders import Contender, Yardstick, ratios, row
from vllm_loads import SEQUENCES, TPOT_TIMES, Client, classes_of, loosened, tightened
from vllm_seen import Load, Piece, Seen, judged
from vllm_server import Setting, plugin, server, stock

from setpoint.loadgen.probe import identify, learn_words
from setpoint.loadgen.target import EndpointTarget
from setpoint.model import Slo
from setpoint.planner.endpoint import Limits, carry_over_http, profile
from setpoint.seeds import stream

T = TypeVar("T")

FEW = SEQUENCES // 4
STOCKS = (
    ("priority", 256, SEQUENCES),
    ("priority", 64, SEQUENCES),
    ("priority", 1024, SEQUENCES),
    ("priority", 256, FEW),
    ("fcfs", 256, SEQUENCES),
)
"""Policy, token budget and sequences at once of the stock settings.

The bound is that of the first, whose budget is therefore none that would hold prompts back.
"""
BESIDE = (0.1, 0.4, 0.7, 0.9)
ALONE = (0.5, 0.7, 0.9)
TIGHTLY = (0.35, 0.45, 0.55, 0.65)
QUICK_RUNGS = 2
LOOSE_AT = 0.3
LOOSE_ROUNDS, LOOSE_S, LOOSE_FILL_S = 2, 50.0, 20.0
"""Rounds, seconds of each, and seconds after which its tokens count: an empty server is filled with prompts first."""
PARTS = ("beside", "alone", "tight", "loose", "tiers", "answers")
"""What can be left out."""
TIERS_AT = 0.8
RUNG_S, QUICK_RUNG_S = 25.0, 12.0
PIECE_S = 40.0
RUNG_REQUESTS = 30
"""Where a rung would have fewer, it lasts up to twice as long."""
WARM_UP_S = 15.0
QUESTIONS = tuple(
    f"{verb} {thing}" for verb in ("Tell me about", "Why do people like") for thing in ("rain", "tea", "maps", "dogs")
)
ANSWER_TOKENS = 24


def stocks(*, is_quick: bool) -> list[Setting]:
    """Return the stock settings that are compared; the first is the one that gives the yardstick."""
    return [stock(*one) for one in (STOCKS[:1] if is_quick else STOCKS)]


def plugins(slo: Slo) -> list[Setting]:
    """Return the settings of the plug-in that are compared."""
    return [plugin(strategy, classes_of(slo), SEQUENCES) for strategy in ("qoserve", "slack")]


def yardstick(url: str, args: argparse.Namespace) -> Yardstick:
    """Profile a stock server over HTTP, and let it empty a backlog of chat."""
    target = identify(EndpointTarget(url=url, engine="vllm", api="completions"))
    lexicon = learn_words(target)
    client = Client(url, stock("fcfs", 0, 0), lexicon, args.seed)
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
    before = client.beat()
    bound = client.empty(48 if args.quick else 160)
    beat_s = 0.5 * (before + client.beat())
    slo = scaled_slo(found.model, tpot_times=TPOT_TIMES)
    say(f"bound {bound:.2f} chat/s; targets {targets(slo)}; a request alone {1e3 * beat_s:.0f} ms")
    return Yardstick(slo, bound, beat_s, lexicon)


def contest(
    contenders: list[Contender], by: Yardstick, parts: Container[str], seconds: float, *, is_quick: bool
) -> None:
    """Offer every load that is among `parts` to all, in turns, each for `seconds`."""
    rungs = QUICK_RUNGS if is_quick else None
    single = [one for one in contenders if one.is_for_chat_alone]
    for one in contenders:
        offered(one, by, Load(0.2 * by.bound, WARM_UP_S, by.slo))
    if "beside" in parts:
        climb([(one, one.beside) for one in contenders], by, BESIDE[:rungs], Load(0.0, seconds, by.slo))
    if "alone" in parts:
        climb([(one, one.alone) for one in single], by, ALONE[:rungs], Load(0.0, seconds, by.slo, has_backlog=False))
    if "tight" in parts:
        tight = Load(0.0, seconds, tightened(by.slo), has_backlog=False)
        climb([(one, one.tight) for one in single], by, TIGHTLY[:rungs], tight)
    loose = Load(LOOSE_AT * by.bound, LOOSE_S, loosened(by.slo), fill_s=LOOSE_FILL_S)
    for turn in range((1 if is_quick else LOOSE_ROUNDS) if "loose" in parts else 0):
        for one in turned(contenders, turn):
            one.loose.append(judged(loose, [offered(one, by, loose)]))
    for one in [one for one in contenders if one.is_for_chat_alone or not one.is_stock] if "tiers" in parts else []:
        slow = by.slowness(one.client)
        one.tiers = one.client.tiers(TIERS_AT * by.bound / slow, seconds, loosened(by.slo, slow))


def climb(ladders: list[tuple[Contender, list[Seen]]], by: Yardstick, shares: tuple[float, ...], load: Load) -> None:
    """Offer `load` at rising rates to all in turns, until too few requests meet their targets; add what was seen."""
    for share in shares:
        rate = share * by.bound
        seconds = max(load.seconds, min(2.0 * load.seconds, RUNG_REQUESTS / rate))
        turns = max(1, round(seconds / PIECE_S))
        rung = load._replace(rate=rate, seconds=seconds / turns)
        going = [(one, seen) for one, seen in ladders if not seen or seen[-1].rung.attainment >= GIVEN_UP]
        pieces: list[list[Piece]] = [[] for _ in going]
        for turn in range(turns):
            for (one, _), its in turned([*zip(going, pieces, strict=True)], turn):
                its.append(offered(one, by, rung._replace(draw=turn)))
        for (_, seen), its in zip(going, pieces, strict=True):
            seen.append(judged(rung, its))


def turned(those: list[T], turn: int) -> list[T]:
    """Return them with another one first at each turn."""
    first = turn % max(1, len(those))
    return those[first:] + those[:first]


def offered(one: Contender, by: Yardstick, load: Load) -> Piece:
    """Offer a load, scaled to the machine as it is now; return what came of it."""
    slow = by.slowness(one.client)
    piece = one.client.run(load._replace(rate=load.rate / slow, slo=loosened(load.slo, slow)))
    return piece._replace(slow=slow)


def answers(setting: Setting, by: Yardstick, args: argparse.Namespace) -> list[str]:
    """Return the greedy answers of a server of its own to the same questions, asked all at once beside other work.

    The weights are float32: with fewer bits the sums depend on who else is in the step, whatever the scheduler.
    """
    asked: dict[str, object] = {"model": "model", "max_tokens": ANSWER_TOKENS, "temperature": 0.0}
    exact = setting._replace(flags=(*setting.flags, "--dtype", "float32"))
    with server(args, exact) as url, ThreadPoolExecutor(1 + len(QUESTIONS)) as pool:

        def answer(question: str) -> str:
            body = asked | {"prompt": question}
            return str(httpx.post(f"{url}/v1/completions", json=body, timeout=300.0).json()["choices"][0]["text"])

        client = Client(url, setting, by.lexicon, args.seed)
        beside = pool.submit(client.run, Load(0.1 * by.bound, 15.0, loosened(by.slo)))
        time.sleep(3.0)
        found = list(pool.map(answer, QUESTIONS))
        beside.result()
    return found


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vllm", default="vllm", help="the vllm command (default: vllm)")
    parser.add_argument("--only", default="", help="settings beside the first whose names this expression finds")
    parser.add_argument("--rung", type=float, help="seconds of a rung (default: 25, quick: 12)")
    parser.add_argument("--parts", default=",".join(PARTS), help="what is offered (default: %(default)s)")


def main() -> None:
    """Run every setting on a server of its own, and report."""
    args = arguments(__doc__ or "", _options)
    if args.model is None:
        sys.exit("--model: name the folder of a model that vLLM can read")
    parts = {*filter(None, args.parts.split(","))}
    if not parts <= {*PARTS}:
        sys.exit(f"--parts: choose from {','.join(PARTS)}")
    first, *others = stocks(is_quick=args.quick)
    with ExitStack() as servers:
        url = servers.enter_context(server(args, first))
        by = yardstick(url, args)
        plain = stock("fcfs", 256, SEQUENCES)
        asked = {"stock": plain, "stock again": plain, "plug-in": plugins(by.slo)[-1]}
        said = {name: answers(one, by, args) for name, one in asked.items()} if "answers" in parts else {}
        wanted = [one for one in (*others, *plugins(by.slo)) if re.search(args.only, one.name)]
        urls = {first: url} | {one: servers.enter_context(server(args, one)) for one in wanted}
        contenders = [Contender(one, where, Client(where, one, by.lexicon, args.seed)) for one, where in urls.items()]
        contest(contenders, by, parts, args.rung or (QUICK_RUNG_S if args.quick else RUNG_S), is_quick=args.quick)
        found = ratios(contenders, by, said, args.seed)
    report("vllm_plugin", found, [row(one, by) for one in contenders], args)


if __name__ == "__main__":
    main()
