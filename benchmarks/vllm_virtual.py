"""vLLM's real schedulers, stock and with the plug-in, on a virtual clock: who attains what, without a model.

    DIR/venv/bin/python benchmarks/vllm_virtual.py --model DIR/smollm2            every contender, some minutes
    DIR/venv/bin/python benchmarks/vllm_virtual.py --model DIR/smollm2 --quick    a minute

It runs in the Python of a vLLM that has setpoint beside it; of the model, only the configuration is read. The loop of
vLLM's engine core (one step in flight, or two as under async scheduling) drives the real `Scheduler` and
`AsyncScheduler`; a step takes what a step-time model of a small model on a CPU says, with 5% of noise, which the
plug-in does not know: it starts from its guess and learns. So nothing of the machine disturbs the comparison, and
nothing but the step times is made up. Loads are those of `vllm_plugin`, and so are the targets, in multiples of what a
mean prompt and a decode take alone.

Ratios: as in `vllm_plugin`, of `slack`, for two steps in flight; `..._sync` for one.
"""

import argparse
from typing import NamedTuple

from contest import GIVEN_UP, capacity_of, scaled_slo
from reporting import arguments, report, say
from vllm_clock import WORLD, Contender, Server, planned
from vllm_loads import TPOT_TIMES, loosened, tightened
from vllm_seen import Load, Seen, held, rungs_of

from setpoint.model import Slo

BUDGETS = (64, 256, 512)
BESIDE = (0.06, 0.12, 0.25, 0.4, 0.55, 0.7, 0.8)
ALONE = (0.3, 0.45, 0.6, 0.75, 0.85, 0.95)
TIGHT = (0.2, 0.3, 0.4, 0.5, 0.6)
LOOSE_AT = 0.3
WARM_UP_S = 30.0


def contenders(*, is_quick: bool) -> list[Contender]:
    """Return what is compared."""
    budgets = BUDGETS[1:2] if is_quick else BUDGETS
    stocks = [
        Contender(f"stock {policy} {budget}", policy, budget) for policy in ("fcfs", "priority") for budget in budgets
    ]
    plugins = [Contender(f"plug-in {name}", strategy={"name": name}) for name in ("qoserve", "slack")]
    return [*stocks, *plugins]


def bound(args: argparse.Namespace) -> float:
    """Return the chat requests per second that a stock scheduler completes of an endless backlog of them."""
    server = Server(Contender("bound", budget=2048), 2, args)
    plan = planned("chat", 1e6, args.seed, None, 400)
    began_at = server.now
    for one in plan:
        server.ask(one, server.now, Slo(percentile=0.95))
    left = len(plan)
    while left:
        left -= len(server.turn(server.now))
    return len(plan) / (server.now - began_at)


class Climbed(NamedTuple):
    """What one contender did."""

    beside: list[Seen]
    alone: list[Seen]
    tight: list[Seen]
    loose: Seen


def climbed(contender: Contender, depth: int, slo: Slo, limit: float, args: argparse.Namespace) -> Climbed:
    """Warm one contender up, and let it climb both ladders and meet the loose targets."""
    server = Server(contender, depth, args)
    seconds = args.seconds or (60.0 if args.quick else 150.0)
    server.run(Load(0.2 * limit, WARM_UP_S, slo), args.seed)

    def climb(shares: tuple[float, ...], slo: Slo, *, has_backlog: bool) -> list[Seen]:
        seen: list[Seen] = []
        for share in shares:
            seen.append(server.run(Load(share * limit, seconds, slo, has_backlog), args.seed))
            if seen[-1].rung.attainment < GIVEN_UP:
                break
        return seen

    beside, alone = climb(BESIDE, slo, has_backlog=True), climb(ALONE, slo, has_backlog=False)
    tight = climb(TIGHT, tightened(slo), has_backlog=False)
    loose = server.run(Load(LOOSE_AT * limit, seconds, loosened(slo)), args.seed)
    pilot = getattr(server.host, "setpoint", None)
    if pilot is not None:
        counts = pilot.numbers.counts
        off = counts["error_s", ""] / counts["measured_s", ""]
        told = {"/".join(key): n for key, n in counts.items() if key[0] in {"fallbacks", "preempted", "relegated"}}
        say(f"  step times predicted {off:.1%} off; {told}")
    return Climbed(beside, alone, tight, loose)


def row(name: str, depth: int, came: Climbed, limit: float) -> dict[str, object]:
    """Return what is printed of a contender."""
    return {
        "scheduler": name,
        "in flight": depth,
        "chat/s beside": capacity_of(rungs_of(came.beside)),
        "of bound": capacity_of(rungs_of(came.beside)) / limit,
        **{f"{one.rung.rate:.2f}": f"{one.rung.attainment:.2f} {one.tokens_per_s:.0f}" for one in came.beside},
        "chat/s alone": capacity_of(rungs_of(came.alone)),
        **{f"alone {one.rung.rate:.2f}": f"{one.rung.attainment:.2f}" for one in came.alone},
        "chat/s alone, tight": capacity_of(rungs_of(came.tight)),
        **{f"tight {one.rung.rate:.2f}": f"{one.rung.attainment:.2f}" for one in came.tight},
        "loose": came.loose.rung.attainment,
        "tokens/s, loose": came.loose.tokens_per_s,
    }


def compared(found: dict[str, Climbed]) -> dict[str, float]:
    """Return the ratios of one depth."""
    stocks = [came for name, came in found.items() if name.startswith("stock")]
    slack, qoserve = found["plug-in slack"], found["plug-in qoserve"]
    return {
        "over_best_stock": held(rungs_of(slack.beside)) / max(held(rungs_of(came.beside)) for came in stocks),
        "over_qoserve": held(rungs_of(slack.beside)) / held(rungs_of(qoserve.beside)),
        "of_stock_without_batch": held(rungs_of(slack.beside)) / max(held(rungs_of(came.alone)) for came in stocks),
        "alone_over_stock": held(rungs_of(slack.tight)) / max(held(rungs_of(came.tight)) for came in stocks),
        "loose_attainment": slack.loose.rung.attainment - max(came.loose.rung.attainment for came in stocks),
        "throughput_of_stock": slack.loose.tokens_per_s / max(came.loose.tokens_per_s for came in stocks),
    }


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="contenders whose names hold this (for trials)")
    parser.add_argument("--seconds", type=float, help="virtual length of one rung (default: 150, quick: 60)")
    parser.add_argument("--depth", type=int, help="steps in flight (default: 1 and 2)")
    parser.add_argument("--journal", help="a file for the plug-in's journal (for trials)")


def main() -> None:
    """Let every contender climb, and report."""
    args = arguments(__doc__ or "", _options)
    if args.model is None:
        raise SystemExit("--model: name the folder of a model that vLLM can read")
    slo, limit = scaled_slo(WORLD, tpot_times=TPOT_TIMES), bound(args)
    say(f"bound {limit:.2f} chat/s; TTFT {slo.ttft_s:.3f} s, TPOT {slo.tpot_s:.3f} s")
    rows: list[dict[str, object]] = []
    ratios: dict[str, float | None] = {"bound_rps": limit}
    for depth in (args.depth,) if args.depth else (1, 2):
        found: dict[str, Climbed] = {}
        for contender in contenders(is_quick=args.quick):
            if not args.only or args.only in contender.name:
                found[contender.name] = climbed(contender, depth, slo, limit, args)
                rows.append(row(contender.name, depth, found[contender.name], limit))
                say(", ".join(f"{key} {value}" for key, value in rows[-1].items()))
        if not args.only:
            tail = "_sync" if depth == 1 else ""
            ratios |= {name + tail: value for name, value in compared(found).items()}
    report("vllm_virtual", ratios, rows, args)


if __name__ == "__main__":
    main()
