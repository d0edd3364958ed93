"""Setpoint against llama-server: same model file, threads, slots and libllama, same load from the same client.

    python benchmarks/against_llama_server.py [--quick] [--json]

llama-server is the one in the `xllamacpp` wheel; Setpoint runs on the shared library of that very wheel. Throughput:
output tokens per second with 1, 4, 16 and 32 requests kept in flight. Goodput: chat requests per second that meet
their targets (TTFT 1 s, TPOT 100 ms) beside 16 batch requests kept in flight.

Ratios, ours over theirs: `throughput_1`, `throughput_4`, `throughput_16`, `throughput_32`, `goodput`.
"""

from reporting import Row, arguments, report, say
from served import Server, Start, attained, good_rps, llama_server, mixed, ours, throughput

from setpoint.engines.llamacpp.quantize import quantized_model
from setpoint.engines.llamacpp.starter import resolve_model
from setpoint.model import Slo
from setpoint.units import Seconds

STREAMS = (1, 4, 16, 32)
RATES = (0.5, 1.0, 2.0)
SLO = Slo(percentile=0.95, ttft_s=Seconds(1.0), tpot_s=Seconds(0.1))


def measure(server: Server, seed: int, rows: list[Row], *, is_quick: bool) -> dict[str, float]:
    """Return the throughput at each number of streams, and the goodput pooled over the chat rates."""
    found: dict[str, float] = {}
    for streams in STREAMS:
        rate = found[f"throughput_{streams}"] = throughput(
            server, streams, 2.0 if is_quick else 12.0, seed=1000 * seed + streams
        )
        rows.append({"server": server.name, "load": f"{streams} streams", "output tokens/s": rate})
        say(f"  {server.name}, {streams} streams: {rate:.0f} tokens/s")
    found["goodput"] = 0.0
    seconds = 6.0 if is_quick else 20.0
    for rps in RATES[1:2] if is_quick else RATES:
        records = mixed(server, rps, seconds, seed=1000 * seed + round(100 * rps))
        share, good = attained(records, SLO), good_rps(records, SLO, seconds)
        found["goodput"] += good
        batch = sum(r.output_tokens for r in records if r.class_name == "batch") / seconds
        load = f"chat {rps}/s beside batch"
        rows.append(
            {"server": server.name, "load": load, "output tokens/s": batch, "chat attained": share, "good chat/s": good}
        )
        say(f"  {server.name}, {load}: {share:.3f} attained")
    return found


def main() -> None:
    """Measure one server after the other, and report."""
    args = arguments(__doc__ or "")
    model = quantized_model(resolve_model(args.model), args.quantize)
    servers: list[Start] = [lambda: ours(model, slots=32, slo=SLO), lambda: llama_server(model, slots=32)]
    found: dict[str, dict[str, float]] = {}
    rows: list[Row] = []
    for start in servers:
        with start() as server:
            found[server.name] = measure(server, args.seed, rows, is_quick=args.quick)
    names = [*(f"throughput_{streams}" for streams in STREAMS), "goodput"]
    ratios: dict[str, float | None] = {
        name: found["setpoint"][name] / theirs if (theirs := found["llama-server"][name]) else None for name in names
    }
    report("against_llama_server", ratios, rows, args)


if __name__ == "__main__":
    main()
