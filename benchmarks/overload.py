"""Past the bound: who is served in time, who is given up, and how long the longest wait is.

    python benchmarks/overload.py [--quick] [--json]

Two interactive classes, half of the arrivals each: `chat` with tight targets and `standard` with three times as much
time, at 0.8 to 2 times the bound. Attainment by class and by quartile of prompt length, under `slack`, `qoserve` and
`continuous`, the last two tuned in the simulator. No request waits for its first token longer than its class allows:
then it is refused, which counts as a miss.

Ratios: attainment of slack over that of qoserve and of continuous, pooled over the loads from the bound upward.
"""

from collections.abc import Sequence
from functools import partial

from contest import (
    CHAT_LENGTHS,
    CHAT_OUTPUT_MAX,
    SLACK,
    Contender,
    bound,
    scaled_slo,
    setting,
    targets,
    tuned,
)
from embedded import Bench, Run, arrivals_of
from reporting import Row, arguments, report, say

from setpoint import seeds
from setpoint.metrics import RequestRecord, attainment
from setpoint.model import ServiceClass, Slo
from setpoint.sim.replica import Arrival
from setpoint.units import Seconds
from setpoint.workload import Steady, Traffic, plan_traffic

LOADS = (0.8, 1.0, 1.2, 1.5, 2.0)
QUICK_LOADS = (1.0, 2.0)
WAIT_MAX_S = 8.0


def classes_of(slo: Slo) -> dict[str, ServiceClass]:
    """Return `chat` with these targets, and `standard` with three times as much time."""
    wide = Slo(
        percentile=slo.percentile, ttft_s=Seconds(3 * (slo.ttft_s or 0.0)), tpot_s=Seconds(3 * (slo.tpot_s or 0.0))
    )
    return {
        "chat": ServiceClass(name="chat", slo=slo, band=1, wait_max_s=Seconds(WAIT_MAX_S)),
        "standard": ServiceClass(name="standard", slo=wide, band=3, wait_max_s=Seconds(WAIT_MAX_S)),
    }


def arrivals(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Return both classes at `rate` together; the same draws at every rate."""
    prompt, output = CHAT_LENGTHS
    mix = [Traffic(class_name=name, prompt=prompt, output=output) for name in ("chat", "standard")]
    plan = plan_traffic(mix, Steady(rate), partial(seeds.stream, seed), duration_s=seconds)
    return arrivals_of(plan, CHAT_OUTPUT_MAX)


def row(
    contender: Contender, load: float, run: Run, judged: Sequence[RequestRecord], classes: dict[str, ServiceClass]
) -> Row:
    """Return attainment by class and quartile, and the longest wait for a first token or a refusal."""
    slos = {name: c.slo for name, c in classes.items()}
    ordered = sorted(judged, key=lambda r: (r.prompt_tokens, r.id))
    size = max(1, len(ordered) // 4)
    quartiles = [ordered[:size], ordered[size : 2 * size], ordered[2 * size : 3 * size], ordered[3 * size :]]
    waits = [(r.ended_at if r.first_token_at is None else r.first_token_at) or run.seconds for r in judged]
    return {
        "strategy": contender.name,
        "load / bound": load,
        "requests": len(judged),
        "attained": attainment(judged, slos),
        **{name: attainment([r for r in judged if r.class_name == name], slos) for name in slos},
        **{f"prompt Q{i + 1}": attainment(q, slos) for i, q in enumerate(quartiles)},
        "refused": sum(r.error is not None for r in judged),
        "longest wait s": max((w - r.scheduled_at for w, r in zip(waits, judged, strict=True)), default=0.0),
    }


def main() -> None:
    """Run all loads under each contender and report."""
    args = arguments(__doc__ or "")
    seconds = 5.0 if args.quick else 20.0
    rows: list[Row] = []
    with Bench(args) as bench:
        model = bench.profile(6.0 if args.quick else 30.0, args.seed)
        slo = scaled_slo(model)
        classes = classes_of(slo)
        experiment = setting(slo, seed=args.seed, has_backlog=False)
        limit = bound(bench, experiment, seconds / 2)
        say(f"bound {limit:.2f} requests/s; chat {targets(slo)}")
        rates = [limit * load for load in (0.8, 1.2)]
        baselines = ("qoserve, best factor", "continuous, best budget")
        capacity = bench.executor.capacity
        tuning_s = 10.0 if args.quick else 60.0
        contenders = [tuned(name, experiment, model, capacity, rates, tuning_s) for name in baselines]
        for load in QUICK_LOADS if args.quick else LOADS:
            for contender in [*contenders, SLACK]:
                run = bench.run(
                    contender.strategy,
                    contender.options,
                    classes,
                    arrivals(limit * load, seconds, args.seed),
                    until_s=seconds + (0.0 if args.quick else WAIT_MAX_S),
                    slots=contender.slots,
                )
                judged = [r for r in run.records if r.scheduled_at >= 0.1 * seconds]
                rows.append(row(contender, load, run, judged, classes))
                say(f"  {contender.name} at {load} of the bound: {rows[-1]['attained']:.3f}")
    report("overload", _ratios(rows), rows, args)


def _ratios(rows: Sequence[Row]) -> dict[str, float]:
    def attained(name: str) -> float:
        kept = [r for r in rows if str(r["strategy"]).startswith(name) and float(str(r["load / bound"])) >= 1.0]
        whole = sum(int(str(r["requests"])) for r in kept)
        return sum(float(str(r["attained"])) * int(str(r["requests"])) for r in kept) / max(1, whole)

    slack = attained("slack")
    return {
        "over_qoserve": slack / max(attained("qoserve"), 1e-9),
        "over_continuous": slack / max(attained("continuous"), 1e-9),
    }


if __name__ == "__main__":
    main()
