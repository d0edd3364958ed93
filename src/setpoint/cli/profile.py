"""`setpoint profile`: fit the step times of an endpoint that only answers HTTP, for `setpoint simulate --step-time`."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, cast

import msgspec
import typer
from rich.console import Console

from setpoint.cli import shared_options as shared
from setpoint.cli.bench_options import one_of, read_headers, read_json_object
from setpoint.cli.simulate_checks import check_writable
from setpoint.errors import ConfigError
from setpoint.loadgen.probe import first_request, identify, learn_words
from setpoint.loadgen.target import Api, EndpointTarget, EngineKind
from setpoint.model import StepShape, chunk_work
from setpoint.planner.endpoint import Limits, Load, Outcome, carry_over_http
from setpoint.planner.endpoint import profile as profile_endpoint
from setpoint.seeds import stream
from setpoint.sim.profiles import EndpointProfile, write_profile


def profile(  # noqa: PLR0913 - the options of a command
    *,
    url: Annotated[str, typer.Argument(help="The endpoint, such as http://127.0.0.1:8000.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("profile.json"),
    seconds: Annotated[float, typer.Option(help="Seconds to spend, one round of loads at least.", min=1.0)] = 60.0,
    slots: Annotated[int, typer.Option(help="Sequences that the engine runs at once.", min=1, max=1024)] = 16,
    prompt_max: Annotated[int, typer.Option(help="Tokens of the longest prompt that is tried.", min=32)] = 1024,
    context: Annotated[int, typer.Option(help="Tokens that a sequence may have.", min=64)] = 2048,
    kv_tokens: Annotated[
        int | None, typer.Option(help="Tokens of its KV cache, to be kept in the file: no answer tells.", min=16)
    ] = None,
    api: shared.ApiName = "chat",
    model: shared.AskedModel = "",
    engine: shared.EngineName = "openai",
    api_key: shared.ApiKey = None,
    header: shared.Headers = None,
    extra_body: shared.ExtraBody = None,
    seed: Annotated[int, typer.Option(help="Of the order of the loads' prompts.", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON on stdout.")] = False,
) -> None:
    """Fit a step-time model of an endpoint from the instants of its tokens under planned loads.

    Examples:
        setpoint profile http://127.0.0.1:8000 --slots 16 --kv-tokens 32768

        setpoint simulate --step-time profile.json --strategy continuous --rate 2

    The endpoint should have nothing else to do meanwhile.
    """
    if prompt_max + 8 > context:
        raise ConfigError(
            f"a prompt of {prompt_max:,} tokens leaves no room for an answer within {context:,}",
            hint="lower --prompt-max, or give --context as the engine was run with",
        )
    check_writable(out=out)
    console = Console(stderr=True)
    target = identify(
        EndpointTarget(
            url=url,
            api=cast("Api", one_of(api, Api, "--api")),
            model=model,
            engine=cast("EngineKind", one_of(engine, EngineKind, "--engine")),
            api_key=api_key,
            extra_body=read_json_object(extra_body, "--extra-body"),
            extra_headers=read_headers(header or ()),
        )
    )
    first_request(target)
    lexicon = learn_words(target)
    started = time.monotonic()
    with console.status("profiling") as status:

        def show(load: Load) -> None:
            status.update(f"profiling, {time.monotonic() - started:.0f} of {seconds:.0f} s: {load.words()}")

        found = profile_endpoint(
            Limits(slots=slots, prompt_max=prompt_max, context_tokens=context),
            carry_over_http(target, lexicon),
            stream(seed, "profile"),
            key=f"{target.model} | {target.engine} at {target.address.authority} over HTTP",
            is_over=lambda: time.monotonic() - started >= seconds,
            on_load=show,
        )
    kept = EndpointProfile(
        model=found.model,
        request_s=found.outside_s,
        slots=found.seen.decodes_max,
        step_tokens_max=max(512, found.seen.chunk_max),
        kv_tokens=kv_tokens,
        context_tokens=context,
        engine=target.engine,
        served_model=target.model,
        made_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        made_by=f"setpoint {version('setpoint')}",
    )
    write_profile(out, kept)
    _show(console, found, kept, time.monotonic() - started)
    console.print(f"[dim]wrote {out}[/]")
    if json:
        typer.echo(msgspec.json.encode(kept).decode())


def _show(console: Console, found: Outcome, kept: EndpointProfile, seconds: float) -> None:
    """Say what the steps take, and how sure that is."""
    model, seen = found.model, found.seen
    console.print(
        f"{kept.served_model} ({kept.engine}): {len(seen.samples)} shapes of steps and {len(seen.gaps):,} single steps "
        f"in {found.rounds} round(s), {seconds:.0f} s"
    )
    decodes = [n for n in (1, 4, 16, 64, 256) if n <= kept.slots]
    console.print(
        "a decode step: "
        + ", ".join(f"{n} at once {1e3 * model.predict(StepShape(n, 256 * n)):.1f} ms" for n in decodes)
    )
    chunk = min(512, kept.step_tokens_max)
    alone_s = model.predict(StepShape(0, 0, chunk, chunk_work(0, chunk), 1))
    console.print(f"a prompt of {chunk} tokens: {1e3 * alone_s:.0f} ms, {chunk / alone_s:,.0f} tokens/s")
    console.print(
        f"{1e3 * kept.request_s:.1f} ms of a request outside of steps; at most {seen.decodes_max} sequences and "
        f"{seen.chunk_max} prompt tokens were seen in one step"
    )
    console.print(
        f"on shapes that the fit did not see it errs by {model.mape:.1%} on average and {found.p95_error:.1%} at P95; "
        f"one step in twenty takes {model.tail_ratio:.2f} times as long as it says, or longer"
    )
