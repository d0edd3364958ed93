"""`setpoint simulate`: what would happen if. The same scheduler on a virtual clock, with a report like that of `bench`.

stdout carries data (`--json`), stderr talk; the last lines say how far to trust the answer.
"""

from pathlib import Path
from typing import Annotated, cast

import msgspec
import typer
from rich.console import Console

from setpoint.cli import shared_options as shared
from setpoint.cli.bench_options import WorkloadOptions, one_of
from setpoint.cli.bench_output import write_outputs
from setpoint.cli.bench_show import show_report
from setpoint.cli.simulate_checks import (
    ENGINES,
    check_names,
    check_writable,
    given_options,
    refuse_contradictions,
)
from setpoint.cli.simulate_options import (
    Sizes,
    parse_options,
    parse_pools,
    read_classes,
    read_faults,
    read_plans,
)
from setpoint.cli.simulate_run import Job, carry_out, make_simulation_report, write_timeline
from setpoint.core.routing import ROUTING
from setpoint.core.strategies import STRATEGIES, make_strategy
from setpoint.errors import ConfigError
from setpoint.metrics import parse_objectives
from setpoint.model.pool import PoolLayout
from setpoint.sim.scenario import Scenario
from setpoint.sim.sources import Wanted, find_source
from setpoint.workload.traces import Form

EXIT_MISSED = 1


def simulate(  # noqa: PLR0913 - the options of a command
    context: typer.Context,
    *,
    model: shared.CatalogModel = None,
    hardware: shared.Hardware = None,
    quantization: shared.Quantization = "bf16",
    fp8_kv: shared.Fp8Kv = False,
    tp: shared.TensorParallel = 1,
    engine: Annotated[str, typer.Option(help=f"Whose overheads: {', '.join(ENGINES)}.")] = "vllm",
    engine_version: Annotated[str, typer.Option(help="Its version, where --calibration has several.")] = "",
    kernel_tables: Annotated[
        bool, typer.Option("--kernel-tables", help="Step times from aiconfigurator-core, where installed.")
    ] = False,
    catalog: shared.CatalogFile = None,
    step_time: Annotated[
        Path | None, typer.Option(help="A file of `setpoint profile` or `tune`, instead of model and hardware.")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Corrections that `setpoint calibrate` wrote.")] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(help="Tokens of KV cache a replica.  [default: what fits]", min=16)
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Sequences that run at once.  [default: 256]", min=1)] = None,
    step_tokens: Annotated[int | None, typer.Option(help="Tokens of a step at most.  [default: 8192]", min=1)] = None,
    context_tokens: Annotated[
        int | None, typer.Option("--context", help="Tokens of a sequence at most.", min=16)
    ] = None,
    strategy: Annotated[str, typer.Option(help=f"Who runs when: {', '.join(STRATEGIES)}.")] = "slack",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the strategy, such as token_budget=512; repeatable.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="A recorded workload; any form that `bench` reads.")] = None,
    trace_form: shared.TraceForm = None,
    lengths: Annotated[
        Path | None, typer.Option(help="Draw lengths from this trace; the arrivals are made up at --rate.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Requests a second: 2.5, ramp:1-8,over=60, diurnal:mean=4; a trace is stretched.")
    ] = None,
    prompt: shared.Prompt = "256",
    output: shared.Output = "128",
    burstiness: shared.Burstiness = 1.0,
    class_: shared.Classes = None,
    mix: Annotated[
        str | None, typer.Option(help="Shares of classes with their usual lengths: chat=0.7,batch=0.3.")
    ] = None,
    turns: shared.Turns = "1",
    think: shared.Think = 0.0,
    prefix: shared.Prefix = 0,
    prefixes: shared.Prefixes = 1,
    prompt_max: shared.PromptMax = None,
    output_max: shared.OutputMax = None,
    length_scale: shared.LengthScale = 1.0,
    requests: Annotated[int | None, typer.Option(help="Stop after so many requests.", min=1)] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds of arrivals.", min=0.1)] = None,
    slo: Annotated[
        str | None,
        typer.Option(help="'chat: ttft_p95<1s, tpot_p95<50ms', or a preset; also what the scheduler aims at."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Classes from this setpoint.toml.", show_default=False)] = None,
    replicas: Annotated[int, typer.Option(help="Replicas behind one door.", min=1, max=1024)] = 1,
    pools: Annotated[
        str | None, typer.Option(help="Separate pools: interactive=2,batch=1; prefill=2,decode=2 hands prompts over.")
    ] = None,
    routing: Annotated[str, typer.Option(help=f"Which replica: {', '.join(ROUTING)}.")] = "least-work",
    prefix_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the KV cache kept for shared prefixes.  [default: 0.3 where there are any]", min=0.0
        ),
    ] = None,
    faults: Annotated[Path | None, typer.Option(help="A schedule of faults (TOML): docs/simulate.md.")] = None,
    drain: Annotated[float, typer.Option(help="Seconds that a run goes on after the last arrival.", min=0.0)] = 120.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.", min=0)] = 0,
    seeds: Annotated[int, typer.Option(help="Runs with successive seeds, over all cores.", min=1, max=1000)] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Spread the runs over a Ray cluster.")] = False,
    timeline: Annotated[Path | None, typer.Option(help="Write the steps for Perfetto or chrome://tracing.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Write every event and command of replica 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report and the requests as files.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Say what would happen, on a virtual clock.

    Examples:
        setpoint simulate --model llama-3.1-8b --hardware h100-sxm --rate 8 --slo "ttft_p95<1s, tpot_p95<50ms"

        setpoint simulate --model llama-3.1-8b --hardware h100-sxm --trace trace.csv.gz --strategy qoserve --json

        setpoint simulate --model llama-3.1-70b --tp 4 --hardware h200 --rate 10 --mix chat=0.7,batch=0.3 --replicas 3

    Exit code 0 when every objective of --slo is met, 1 when one is not, 2 on an error.
    """
    console = Console(stderr=True)
    refuse_contradictions(given_options(context))
    check_names(engine, routing)
    check_writable(timeline=timeline, journal=journal)
    options = parse_options(option or [])
    make_strategy(strategy, **options)
    source = find_source(
        Wanted(
            model=model,
            hardware=hardware,
            quantization=quantization,
            is_fp8_kv=fp8_kv,
            tensor=tp,
            engine=engine,
            engine_version=engine_version,
            step_time=step_time,
            is_tables=kernel_tables,
            catalog=catalog,
            calibration=calibration,
            kv_tokens=kv_tokens,
            slots=slots,
            step_tokens=step_tokens,
            context_tokens=context_tokens,
        )
    )
    objectives = parse_objectives(slo) if slo is not None else ()
    workload = WorkloadOptions(
        prompt=prompt,
        output=output,
        burstiness=burstiness,
        classes=tuple(class_ or ()),
        prefix=prefix,
        prefixes=prefixes,
        turns=turns,
        think_s=think,
        trace=trace,
        trace_form=cast("Form | None", one_of(trace_form, Form, "--trace-form")),
        prompt_max=prompt_max,
        output_max=output_max,
        length_scale=length_scale,
    )
    sizes = Sizes(rate=rate, requests=requests, duration_s=duration, mix=mix, lengths=lengths)
    plans, words = read_plans(workload, sizes, objectives, range(seed, seed + seeds), source.capacity)
    classes = read_classes(config, objectives, plans)
    layout = PoolLayout(pools=parse_pools(pools, replicas, classes), routing=routing)
    has_prefixes = any(one.prefix_blocks or one.prefix_tokens or one.session is not None for one in plans[0])
    scenario = Scenario(
        world=source.step_time,
        belief=source.belief,
        capacity=source.capacity,
        classes=classes,
        strategy=strategy,
        options=options,
        layout=layout,
        faults=read_faults(faults, layout, last_s=max(plan[-1].at_s for plan in plans), drain_s=drain),
        cache_ratio=_cache_ratio(prefix_share, has_prefixes=has_prefixes),
        transfer_s=source.transfer_s,
        request_s=source.request_s,
        drain_s=drain,
    )
    job = Job(scenario=scenario, source=source, plans=plans, words=words, objectives=objectives, first_seed=seed)
    runs = carry_out(job, console, is_ray=ray, is_timed=timeline is not None, journal=journal)
    report, rows = make_simulation_report(job, runs)
    show_report(console, report)
    if timeline is not None:
        console.print(f"[dim]wrote {write_timeline(timeline, runs[0])}[/]")
    if journal is not None:
        console.print(f"[dim]wrote {journal}[/]")
    if out is not None:
        for path in write_outputs(out, report, rows):
            console.print(f"[dim]wrote {path}[/]")
    if json:
        typer.get_binary_stream("stdout").write(msgspec.json.encode(report) + b"\n")
    if objectives and not report.is_met:
        raise typer.Exit(EXIT_MISSED)


def _cache_ratio(share: float | None, *, has_prefixes: bool) -> float:
    default = 0.3
    if share is None:
        return default if has_prefixes else 0.0
    if not 0.0 <= share <= 0.9:  # noqa: PLR2004 - something must be left for the requests
        raise ConfigError(f"--prefix-share {share:g} is not a share", hint="give 0 to 0.9")
    return share
