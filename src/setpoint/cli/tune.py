"""`setpoint tune`: from a model and targets to an operating point, measured on this machine.

Stages: profile the engine's steps, simulate every strategy on what was found, measure each on a real server under
rising load, decide, and write what was found. The terminal gets a table and bars on stdout, everything else on stderr.
"""

import shlex
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from setpoint.cli.tuning.engine_options import EngineOptions, tune_engine
from setpoint.cli.tuning.facts import load_average
from setpoint.cli.tuning.files import write_outputs
from setpoint.cli.tuning.outcome import Run, conclude
from setpoint.cli.tuning.run import NAIVE, Asked, Tuner
from setpoint.cli.tuning.show import show
from setpoint.cli.tuning.talk import Talk
from setpoint.core.strategies import STRATEGIES
from setpoint.errors import ConfigError, EngineError
from setpoint.model import PRESETS, ServiceClass
from setpoint.planner.demand import make_demand, parse_mix
from setpoint.planner.result import encode
from setpoint.planner.search import FULL, QUICK, Time, with_total
from setpoint.settings import EngineSettings
from setpoint.units import Seconds
from setpoint.workload import parse_lengths

_ENGINE = "Another engine's own settings"
SECONDS_MIN = 20.0
"""Of the KV cache: room for 32 conversations of 500 tokens; `setpoint serve` has the same."""
STRATEGIES_QUICK = ("slack", "continuous", "static")
STRATEGIES_FULL = ("slack", "qoserve", "continuous", "static")


def tune(  # noqa: PLR0913 - the options of a command
    *,
    model: Annotated[
        str | None, typer.Argument(help="A GGUF file or the name of a model; the starter model if left out.")
    ] = None,
    target: Annotated[str, typer.Option(help=f"The class to tune for: {', '.join(PRESETS)}.")] = "chat",
    mix: Annotated[
        str | None, typer.Option(help="Shares of all arrivals, such as chat=0.7,batch=0.3.  [default: the target]")
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            help=f"Which to compare, of {', '.join(STRATEGIES)}.  [default: {','.join(STRATEGIES_FULL)}; "
            f"with --quick {','.join(STRATEGIES_QUICK)}]"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Under 3 minutes, with wider intervals.")] = False,
    seconds: Annotated[
        float | None, typer.Option(help="Time for everything, in seconds.  [default: 840; with --quick 150]")
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="Convert the weights first: q4_0, q8_0 or f16.")] = None,
    price_per_hour: Annotated[float, typer.Option(help="What this machine costs an hour, in any currency.")] = 1.0,
    ttft_ms: Annotated[float | None, typer.Option(help="TTFT target of the target class, in ms.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="TPOT target of the target class, in ms.")] = None,
    percentile: Annotated[
        float | None, typer.Option(help="Share of requests that must meet them, 0.5 to 0.999.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Prompt tokens: 256, uniform:100-500 or lognormal:mean=200,cv=0.8,max=2048.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Answer tokens, written like --prompt.")] = None,
    slots: Annotated[int | None, typer.Option(help="Sequences that run at once.  [default: 16]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the engine.  [default: physical cores]")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("setpoint-results"),
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="Tune another engine's own settings: llama-server, vllm or sglang.", rich_help_panel=_ENGINE),
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(help="Command line of any other, with {port} and {model}; --knob.", rich_help_panel=_ENGINE),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time for everything, in minutes.", rich_help_panel=_ENGINE)] = 30.0,
    command: Annotated[
        str | None, typer.Option(help="The engine's command, where it is not on the path.", rich_help_panel=_ENGINE)
    ] = None,
    engine_args: Annotated[
        str | None, typer.Option(help="Arguments of every start, such as '--enforce-eager'.", rich_help_panel=_ENGINE)
    ] = None,
    knob: Annotated[
        list[str] | None,
        typer.Option(help="Values of a knob (slots=4,8) or a flag (--batch=1,2), repeatable.", rich_help_panel=_ENGINE),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Only these knobs, such as slots,batch.", rich_help_panel=_ENGINE)
    ] = None,
    knobs: Annotated[
        Path | None, typer.Option(help="A file of knobs instead of the one that comes with.", rich_help_panel=_ENGINE)
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Other weights of the same model to try, repeatable.", rich_help_panel=_ENGINE),
    ] = None,
    users: Annotated[int, typer.Option(help="Users of the busiest load.", rich_help_panel=_ENGINE)] = 32,
    context: Annotated[
        int, typer.Option(help="Tokens that a sequence may have, prompt and answer.", rich_help_panel=_ENGINE)
    ] = 2048,
    start_limit: Annotated[
        float | None, typer.Option(help="Seconds until the engine must be ready.", rich_help_panel=_ENGINE)
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget evaluations of earlier runs.", rich_help_panel=_ENGINE)
    ] = False,
    grid: Annotated[
        bool,
        typer.Option("--grid", help="Measure every setting, however long it takes; no check.", rich_help_panel=_ENGINE),
    ] = False,
) -> None:
    """Find the operating point that meets the targets at the highest load, on this machine.

    Examples:
        setpoint tune --quick

        setpoint tune model.gguf --target chat --price-per-hour 0.4

        setpoint tune --mix chat=0.7,batch=0.3 --strategies slack,continuous --json

        setpoint tune --engine vllm MODEL --minutes 60 --ttft-ms 500
    """
    classes = classes_of(target, {"ttft_ms": ttft_ms, "tpot_ms": tpot_ms, "percentile": percentile})
    if not 0.0 <= price_per_hour < float("inf"):
        raise ConfigError(f"--price-per-hour is {price_per_hour:g}", hint="give a price of 0 or more")
    if engine is not None or launch is not None:
        options = EngineOptions(
            engine=engine,
            launch=launch,
            model=model,
            command=command,
            engine_args=engine_args,
            knobs=tuple(knob or ()),
            only=only,
            knobs_file=knobs,
            variants=tuple(variant or ()),
            minutes=minutes,
            users=users,
            context=context,
            start_limit=start_limit,
            is_fresh=fresh,
            is_grid=grid,
            quantize=quantize,
            seed=seed,
            price_per_hour=price_per_hour,
        )
        demand = make_demand(
            parse_mix(mix, classes) if mix is not None else {target: 1.0},
            target=target,
            context_tokens=context,
            prompt=None if prompt is None else parse_lengths(prompt),
            output=None if output is None else parse_lengths(output),
        )
        _make_folder(out)
        tune_engine(options, classes, demand, out, as_json=as_json)
        return
    asked = Asked(
        engine=EngineSettings(
            model=model,
            slots=_positive("slots", slots),
            threads=_positive("threads", threads),
            quantize=quantize,
        ),
        classes=classes,
        shares=parse_mix(mix, classes) if mix is not None else {target: 1.0},
        target=target,
        strategies=strategies_of(strategies, is_quick=quick),
        prompt=None if prompt is None else parse_lengths(prompt),
        output=None if output is None else parse_lengths(output),
        time=time_of(seconds, is_quick=quick),
        seed=seed,
    )
    if target not in asked.shares:
        raise ConfigError(f"the target class {target} has no share in the mix", hint="add it, or change --target")
    _make_folder(out)
    _run(asked, out, price_per_hour=price_per_hour, is_quick=quick, as_json=as_json)


def _run(asked: Asked, out: Path, *, price_per_hour: float, is_quick: bool, as_json: bool) -> None:
    console = Console(stderr=True)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with Talk(asked.time.total_s, console, time.monotonic) as talk:
        tuner = Tuner(asked, talk, load_average())
        found = tuner.run()
        if found.is_cut:
            talk.say("interrupted: what was measured is kept, and the results below come from it alone")
        if found.profile is None:
            raise EngineError("interrupted before anything was measured", hint="run it again")
        run = Run(
            command=shlex.join(["setpoint", *sys.argv[1:]]),
            started_at=started_at,
            seconds=talk.elapsed_s,
            is_quick=is_quick,
            price_per_hour=price_per_hour,
        )
        result = conclude(asked, found, run, tuner.point)
        files = write_outputs(result, asked, out)
    if as_json:
        sys.stdout.write(encode(result).decode() + "\n")
    else:
        show(result, Console())
    console.print(f"written: {', '.join(str(file) for file in files)}", highlight=False, soft_wrap=True)


def classes_of(target: str, changes: Mapping[str, float | None]) -> dict[str, ServiceClass]:
    """Return the classes with the targets of `target` changed; raises ConfigError for what makes no sense."""
    if target not in PRESETS:
        raise ConfigError(f"unknown class {target!r}", hint=f"choose one of {', '.join(PRESETS)}")
    if PRESETS[target].is_harvest:
        raise ConfigError(
            f"{target} has no latency targets to tune for", hint="tune for another class, and give it a share in --mix"
        )
    slo = PRESETS[target].slo
    given: dict[str, Any] = {}
    for name in ("ttft_ms", "tpot_ms"):
        value = changes.get(name)
        if value is not None:
            if not 0.0 < value < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} is {value:g}", hint="give milliseconds above 0")
            given[name.removesuffix("_ms") + "_s"] = Seconds(value / 1000.0)
    share = changes.get("percentile")
    if share is not None:
        if not 0.5 <= share <= 0.999:  # noqa: PLR2004 - beyond it no sample of minutes says anything
            raise ConfigError(f"--percentile is {share:g}", hint="give a share of requests, such as 0.95")
        given["percentile"] = share
    changed = msgspec.structs.replace(PRESETS[target], slo=msgspec.structs.replace(slo, **given))
    return {**PRESETS, target: changed}


def strategies_of(text: str | None, *, is_quick: bool) -> tuple[str, ...]:
    """Return the strategies to compare; raises ConfigError for an unknown one or when only baselines are named."""
    if text is None:
        return STRATEGIES_QUICK if is_quick else STRATEGIES_FULL
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in STRATEGIES:
            raise ConfigError(f"unknown strategy {name!r}", hint=f"choose from {', '.join(STRATEGIES)}")
    if all(name in NAIVE for name in names):
        raise ConfigError(
            f"{' and '.join(names)} alone: there is nothing to choose from",
            hint="add slack or continuous to compare with",
        )
    return names


def time_of(seconds: float | None, *, is_quick: bool) -> Time:
    """Return how the time is divided; raises ConfigError when there is too little of it."""
    time_plan = QUICK if is_quick else FULL
    if seconds is None:
        return time_plan
    if not SECONDS_MIN <= seconds <= 24 * 3600.0:
        raise ConfigError(f"--seconds is {seconds:g}", hint=f"give at least {SECONDS_MIN:.0f}")
    return with_total(time_plan, seconds)


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and not 1 <= value <= 256:  # noqa: PLR2004 - what the engine can hold
        raise ConfigError(f"--{name} is {value}", hint="give a number from 1 to 256")
    return value


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {out}: {error.strerror}", hint="choose another folder with --out"
        ) from error
