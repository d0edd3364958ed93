"""Claim of the field: a tuned system serves 2-3x the requests of a naive one for the same money.

    python benchmarks/naive_against_tuned.py [--quick] [--json]

The same machine, the same chat, the same targets (class `standard`: TTFT P95 2 s, TPOT P95 100 ms), by three servers:
llama-server with one request at a time, llama-server as it starts by default (four slots), both with the model file as
it came; and Setpoint at its tuned point: `slack`, 32 slots, the model requantized to the type that batches best. For
each the highest rate of a ladder at which 95 % of the requests meet the targets.

Ratios: `requests_per_hour`, tuned over the better of the naive ones; per dollar it is the same, for the machine is.
"""

from reporting import Row, arguments, report, say
from served import Start, attained, llama_server, mixed, ours

from setpoint.engines.llamacpp.quantize import quantized_model
from setpoint.engines.llamacpp.starter import resolve_model
from setpoint.metrics import rank_quantile
from setpoint.model import PRESETS

RATES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0)
QUICK_RATES = (1.0, 2.0, 4.0, 6.0, 8.0)
PROMISED, GIVEN_UP = 0.95, 0.85
SLO = PRESETS["standard"].slo


def held(start: Start, rates: tuple[float, ...], seconds: float, seed: int, rows: list[Row]) -> float:
    """Return the highest rate that holds; the ladder ends at the first rate that is far from holding."""
    best = 0.0
    with start() as server:
        for rate in rates:
            records = mixed(server, rate, seconds, seed=1000 * seed + round(100 * rate), has_batch=False)
            share = attained(records, SLO)
            ttft = sorted(float("inf") if r.ttft_s is None else r.ttft_s for r in records)
            rows.append(
                {
                    "server": server.name,
                    "chat/s": rate,
                    "requests": len(records),
                    "attained": share,
                    "TTFT P95 ms": 1e3 * rank_quantile(ttft, 0.95) if ttft else None,
                }
            )
            say(f"  {server.name} at {rate}/s: {share:.3f}")
            if share >= PROMISED:
                best = rate
            if share < GIVEN_UP:
                break
    return best


def main() -> None:
    """Climb with each server and report."""
    args = arguments(__doc__ or "")
    rates, seconds = (QUICK_RATES, 4.0) if args.quick else (RATES, 20.0)
    as_it_came = resolve_model(args.model)
    best_type = quantized_model(as_it_came, args.quantize)
    provider = args.provider or "auto"
    servers: dict[str, Start] = {
        "one at a time": lambda: llama_server(as_it_came, slots=1, name="one at a time"),
        "default settings": lambda: llama_server(as_it_came, slots=4, name="default settings"),
        "tuned": lambda: ours(best_type, slots=32, slo=SLO, provider=provider, name="tuned"),
    }
    rows: list[Row] = []
    best = {name: held(start, rates, seconds, args.seed, rows) for name, start in servers.items()}
    naive = max(best["one at a time"], best["default settings"])
    ratios = {
        "requests_per_hour": best["tuned"] / naive if naive else None,
        **{f"{name} requests/hour": 3600.0 * rate for name, rate in best.items()},
    }
    report("naive_against_tuned", ratios, rows, args)


if __name__ == "__main__":
    main()
