"""`setpoint bench`: probe an endpoint, offer load, say what came of it and whether it can be believed.

Three ways: one run at a rate or a number of users; `--sweep`, the curve from one user to saturation; and
`--find-max-rate`, the highest rate within the objectives. stdout carries data (`--json`), stderr talk.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, cast

import msgspec
import typer
from rich.console import Console

from setpoint.cli import shared_options as shared
from setpoint.cli.bench_desk import BenchJob, Shape, Way
from setpoint.cli.bench_live import awaiting
from setpoint.cli.bench_options import (
    WorkloadOptions,
    one_of,
    read_class,
    read_headers,
    read_json_object,
    read_rate,
    read_source,
    refuse_made_up,
)
from setpoint.cli.bench_output import Rows, write_outputs
from setpoint.cli.bench_raw import kept_records, recovered
from setpoint.cli.bench_run import carry_out_bench
from setpoint.cli.bench_show import show_report
from setpoint.errors import ConfigError
from setpoint.loadgen.ceiling import ceiling
from setpoint.loadgen.experiment import SAMPLE_REQUESTS, Setup, Source, expected_e2e_s
from setpoint.loadgen.probe import LEARN_S, first_request, identify, learn_words
from setpoint.loadgen.prompts import UNFORCED, Lexicon
from setpoint.loadgen.report import BenchReport
from setpoint.loadgen.target import Api, EndpointTarget, EngineKind, Limits
from setpoint.metrics import RequestRecord, parse_objectives
from setpoint.workload import Steady
from setpoint.workload.traces import Form

EXIT_MISSED = 1
STALL_MAX_S = 60.0


def bench(  # noqa: PLR0913 - the options of a command
    *,
    url: Annotated[str | None, typer.Argument(help="The endpoint, such as http://127.0.0.1:8000.")] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Requests per second: 2.5, ramp:1-8,over=60, diurnal:mean=4,period=600, stairs:30x2,30x4."),
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Users in a closed loop, in place of --rate.", min=1)] = None,
    find_max_rate: Annotated[
        bool, typer.Option("--find-max-rate", help="Search the highest rate within --slo.")
    ] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Draw the curve from one user to saturation.")] = False,
    slo: Annotated[
        str | None,
        typer.Option(help="'chat: ttft_p95<200ms, tpot_p95<50ms', or a preset: chat, voice, mlperf:llama2-70b, ..."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Length of a run in seconds: 60 if left out; --minutes decides in a search or a sweep.", min=0.5
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="About how long a search or a sweep may take.", min=0.2)] = 5.0,
    warmup: Annotated[
        float | None,
        typer.Option(help="Seconds cut at the start; three answers long, or found by MSER-5, if left out.", min=0.0),
    ] = None,
    prompt: shared.Prompt = "256",
    output: shared.Output = "128",
    burstiness: shared.Burstiness = 1.0,
    class_: shared.Classes = None,
    prefix: shared.Prefix = 0,
    prefixes: shared.Prefixes = 1,
    turns: shared.Turns = "1",
    think: shared.Think = 0.0,
    trace: Annotated[
        Path | None, typer.Option(help="A recorded workload (Azure, BurstGPT, Mooncake, ShareGPT, JSONL of prompts).")
    ] = None,
    trace_form: shared.TraceForm = None,
    prompt_max: shared.PromptMax = None,
    output_max: shared.OutputMax = None,
    length_scale: shared.LengthScale = 1.0,
    api: shared.ApiName = "chat",
    model: shared.AskedModel = "",
    engine: shared.EngineName = "openai",
    api_key: shared.ApiKey = None,
    header: shared.Headers = None,
    extra_body: shared.ExtraBody = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Ask for whole answers.")] = False,
    natural_length: Annotated[
        bool, typer.Option("--natural-length", help="Let answers end by themselves, not at the planned length.")
    ] = False,
    ca_file: Annotated[Path | None, typer.Option(help="A certificate authority of your own.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Trust any certificate.")] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for the first byte (for each further one: 60 at most).", min=0.1)
    ] = 120.0,
    workers: Annotated[int, typer.Option(help="Processes that send.", min=1, max=256)] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Send from the machines of a Ray cluster.")] = False,
    seed: Annotated[int, typer.Option(help="Of arrivals, lengths and words.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the report and the requests as files.")] = None,
    recover_from: Annotated[
        Path | None,
        typer.Option("--recover", help="Make the report of a run that was cut off, from the folder it kept."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Measure an endpoint.

    Examples:
        setpoint bench http://127.0.0.1:8000 --rate 2 --slo chat

        setpoint bench http://127.0.0.1:8000 --find-max-rate --slo "ttft_p95<200ms, tpot_p95<50ms"

        setpoint bench http://127.0.0.1:11434 --api ollama-chat --sweep --out results

    Exit code 0 when every objective of --slo is met, 1 when one is not, 2 on an error.
    """
    console = Console(stderr=True)
    if recover_from is not None:
        report, rows = recovered(recover_from)
        _deliver(console, report, rows, out=out or recover_from, is_json=json)
        return
    if url is None:
        raise ConfigError("there is no endpoint to measure", hint="setpoint bench http://127.0.0.1:8000 --rate 2")
    objectives = parse_objectives(slo) if slo is not None else ()
    way = _way(rate=rate, concurrency=concurrency, is_search=find_max_rate, is_sweep=sweep)
    if way == "search" and not objectives:
        raise ConfigError("--find-max-rate needs to know what must hold", hint='add --slo "ttft_p95<200ms"')
    options = WorkloadOptions(
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
    refuse_made_up(options)
    source, words = read_source(options, objectives)
    if rate is not None and not isinstance(read_rate(rate), Steady) and trace is not None:
        raise ConfigError("a trace has its own pattern: it takes a plain rate only", hint="give --rate as a number")
    target = EndpointTarget(
        url=url,
        api=cast("Api", one_of(api, Api, "--api")),
        model=model,
        engine=cast("EngineKind", one_of(engine, EngineKind, "--engine")),
        api_key=api_key,
        is_streaming=not no_stream,
        is_length_forced=not natural_length,
        extra_body=read_json_object(extra_body, "--extra-body"),
        extra_headers=read_headers(header or ()),
        classes={text.split()[0]: read_class(text, options)[1] for text in class_ or ()},
        limits=Limits(answer_s=timeout, stall_s=min(STALL_MAX_S, timeout)),
        ca_file=str(ca_file) if ca_file is not None else None,
        is_tls_checked=not insecure,
    )
    target, first, lexicon = _probed(target, console)
    console.print(f"[dim]{target.engine} at {target.url}, model {target.model}; {words}; words by {lexicon.source}[/]")
    _warn_of_lengths(console, target, source, lexicon)
    setup = Setup(target=target, source=source, lexicon=lexicon, workers=workers, is_on_ray=ray)
    setup.e2e_s = expected_e2e_s(source, first)
    shape = Shape(
        rate=rate,
        users=concurrency,
        seconds=seconds,
        warmup_s=warmup,
        seed=seed,
        words=words,
        budget_s=minutes * 60.0,
    )
    release = version("setpoint")
    with awaiting(console, "measuring what this client is capable of, once on each machine: about 5 s"):
        ceiling_eps = ceiling(release)
    job = BenchJob(setup=setup, objectives=objectives, way=way, shape=shape, version=release, ceiling_eps=ceiling_eps)
    with kept_records(out, console) as setup.raw:
        report, rows = carry_out_bench(job, console)
        _deliver(console, report, rows, out=out, is_json=json)
    if objectives and not report.is_met:
        raise typer.Exit(EXIT_MISSED)


def _probed(target: EndpointTarget, console: Console) -> tuple[EndpointTarget, RequestRecord, Lexicon]:
    """Return the target with its engine and model known, its first answer, and the words of the prompts."""
    with awaiting(console, f"asking {target.url} what it serves (10 s at most)"):
        target = identify(target)
    with awaiting(console, f"waiting for a first answer ({target.limits.answer_s:g} s at most: --timeout)"):
        first = first_request(target)
    with awaiting(console, f"counting the tokens of the prompts' words (about {LEARN_S:g} s at most)"):
        lexicon = learn_words(target)
    return target, first, lexicon


def _warn_of_lengths(console: Console, target: EndpointTarget, source: Source, lexicon: Lexicon) -> None:
    """Say where prompts or answers will not be as long as they were asked for."""
    shortest = min(
        (one.prompt_tokens for one in source.plan(1.0, 0, SAMPLE_REQUESTS) if one.text is None), default=None
    )
    if shortest is not None and shortest <= lexicon.overhead_tokens:
        words = f"the chat template alone has {lexicon.overhead_tokens} tokens, so that no prompt has {shortest}"
        console.print(f"[yellow]{words}[/] (--api completions adds none)")
    if target.is_length_forced and target.engine in UNFORCED and "ignore_eos" not in target.extra_body:
        words = "answers may end before their planned length: this engine cannot be told to go on"
        console.print(f"[dim]{words}[/]")


def _deliver(console: Console, report: BenchReport, rows: Rows, *, out: Path | None, is_json: bool) -> None:
    show_report(console, report)
    if out is not None:
        for path in write_outputs(out, report, rows):
            console.print(f"[dim]wrote {path}[/]")
    if is_json:
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


def _way(*, rate: str | None, concurrency: int | None, is_search: bool, is_sweep: bool) -> Way:
    chosen = [name for name, given in (("search", is_search), ("sweep", is_sweep)) if given]
    if len(chosen) + (rate is not None) + (concurrency is not None) > 1:
        raise ConfigError("--rate, --concurrency, --find-max-rate and --sweep exclude each other", hint="choose one")
    if not chosen and rate is None and concurrency is None:
        raise ConfigError("there is no load to offer", hint="give --rate, --concurrency, --sweep or --find-max-rate")
    return cast("Way", chosen[0] if chosen else "run")
