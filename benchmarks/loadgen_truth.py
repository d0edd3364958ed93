"""What the client reports against what a server of known distribution did, at rising rates.

    python benchmarks/loadgen_truth.py [--quick] [--json]

The server is a C program whose own log is the truth: log-normal time to the first token (median 50 ms, sigma 0.5) and
log-normal gaps (median 10 ms, sigma 0.3), 50 tokens an answer. An error counts in units of what is allowed: 1% of the
truth or 1 ms, whichever is more. The client is judged only at rates where it does not convict itself.

Ratios: `worst_p99_error` over TTFT and gaps at those rates, at most 1 is wanted; `limit_events_per_s`, the highest rate
of events that it still vouched for.
"""

from functools import partial
from itertools import pairwise

from known_server import mock_server
from reporting import Row, arguments, report, say

from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.process import measure_in_process
from setpoint.loadgen.run import Run
from setpoint.loadgen.target import EndpointTarget
from setpoint.metrics import rank_quantile
from setpoint.seeds import stream
from setpoint.workload import Fixed, Steady, Traffic, plan_traffic

TOKENS = 50
RATES = (5, 20, 50, 100, 200, 300, 400, 600)
QUANTILES = (0.5, 0.95, 0.99)


def allowed(truth_s: float) -> float:
    """Return the error in seconds that is allowed on a quantity of `truth_s`."""
    return max(0.001, 0.01 * truth_s)


def run_at(rate: float, seconds: float, seed: int) -> tuple[Run, list[tuple[float, list[float]]]]:
    """Return the run of the client and the log of the server, at `rate` requests a second."""
    traffic = Traffic(class_name="chat", prompt=Fixed(20), output=Fixed(TOKENS))
    plan = plan_traffic([traffic], Steady(rate), partial(stream, seed), duration_s=seconds)
    with mock_server(seed=seed) as mock:
        run = measure_in_process(EndpointTarget(url=mock.url, model="mock"), plan, RunOptions(), warmup_s=0.0)
    return run, mock.answers


def compared(run: Run, answers: list[tuple[float, list[float]]]) -> dict[str, float]:
    """Return for TTFT and gaps the truth, the report and the error in units of what is allowed, by quantile."""
    done = [record for record in run.records if record.error is None]
    series = {
        "ttft": (
            [times[0] for _, times in answers],
            [record.ttft_s for record in done if record.ttft_s is not None],
        ),
        "gap": (
            [later - earlier for _, times in answers for earlier, later in pairwise(times)],
            [gap for record in done for gap in record.event_gaps_s()],
        ),
    }
    found: dict[str, float] = {}
    for name, (truth, reported) in series.items():
        truth.sort()
        reported.sort()
        for q in QUANTILES:
            true, said = rank_quantile(truth, q), rank_quantile(reported, q)
            found[f"{name} p{q * 100:g} true ms"] = true * 1e3
            found[f"{name} p{q * 100:g} said ms"] = said * 1e3
            found[f"{name} p{q * 100:g} error"] = abs(said - true) / allowed(true)
    return found


def main() -> None:
    """Measure at each rate and report."""
    args = arguments(__doc__ or "")
    rows: list[Row] = []
    worst, limit = 0.0, 0.0
    for rate in RATES[:4] if args.quick else RATES:
        run, answers = run_at(float(rate), 6.0 if args.quick else 20.0, args.seed)
        health = run.health()
        found = compared(run, answers)
        error = max(value for name, value in found.items() if name.endswith("p99 error"))
        failed = sum(record.is_failed for record in run.records)
        cpu = sum(one.cpu_s for one in run.samples) / max(1, sum(one.events for one in run.samples)) * 1e6
        rows.append(
            {
                "requests/s": rate,
                "events/s": health.events_per_s,
                "vouched": health.is_valid,
                "failed": failed,
                "CPU us/event": cpu,
                "lag p99 ms": health.dispatch_lag_p99_s * 1e3,
            }
            | found
        )
        say(f"  {rate}/s: worst P99 error {error:.2f} of what is allowed; {health.faults or 'vouched'}")
        if health.is_valid:
            worst, limit = max(worst, error), max(limit, health.events_per_s)
    report("loadgen_truth", {"worst_p99_error": worst, "limit_events_per_s": limit}, rows, args)


if __name__ == "__main__":
    main()
