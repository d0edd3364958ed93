"""What the options of `setpoint tune --engine` mean, and the whole of it: from options to the result on the screen."""

import shlex
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.console import Console

from setpoint.cli.tuning.engine import EngineAsk, EngineTuner
from setpoint.cli.tuning.engine_cache import key_of
from setpoint.cli.tuning.engine_facts import (
    build_of,
    cores,
    has_gpu,
    machine_name,
    model_identity,
    room_of,
    with_command,
)
from setpoint.cli.tuning.engine_show import conclude, show_engine, write_engine
from setpoint.cli.tuning.talk import Talk
from setpoint.engines.llamacpp.quantize import quantized_model
from setpoint.engines.llamacpp.starter import resolve_model
from setpoint.errors import ConfigError, EngineError
from setpoint.model import ServiceClass
from setpoint.planner.demand import Demand, describe_lengths
from setpoint.planner.engine_measure import objectives_of
from setpoint.planner.engine_result import EngineTuning, encode
from setpoint.planner.knobs import Engine, custom_engine, filled, narrowed, parse_knob, read_engine, with_variants

MINUTES_MIN, MINUTES_MAX = 1.0, 24 * 60.0
USERS_MAX = 1024


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options as given; see `setpoint tune --help`."""

    engine: str | None
    launch: str | None
    model: str | None
    command: str | None = None
    engine_args: str | None = None
    knobs: tuple[str, ...] = ()
    only: str | None = None
    knobs_file: Path | None = None
    variants: tuple[str, ...] = ()
    minutes: float = 30.0
    users: int = 32
    context: int = 2048
    start_limit: float | None = None
    is_fresh: bool = False
    is_grid: bool = False
    quantize: str | None = None
    seed: int = 0
    price_per_hour: float = 1.0


def tune_engine(
    options: EngineOptions, classes: Mapping[str, ServiceClass], demand: Demand, out: Path, *, as_json: bool
) -> EngineTuning:
    """Tune somebody else's engine, show the result and write it to `out`."""
    console = Console(stderr=True)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    ask, facts = _ask(options, classes, demand)
    facts |= {"command": shlex.join(["setpoint", *sys.argv[1:]]), "started_at": started_at}
    # an end by SIGTERM goes the way of Ctrl-C, so that the engine goes down with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Talk(ask.total_s, console, time.monotonic) as talk:
        tuner = EngineTuner(ask, talk)
        tuner.run()
        if not tuner.history:
            raise EngineError("interrupted before anything was measured", hint="run it again")
        result = conclude(tuner, facts, price_per_hour=options.price_per_hour, seconds=talk.elapsed_s)
    files = write_engine(result, out)
    if as_json:
        sys.stdout.write(encode(result).decode() + "\n")
    else:
        show_engine(result, Console())
    console.print(f"written: {', '.join(str(file) for file in files)}", highlight=False, soft_wrap=True)
    return result


def _ask(
    options: EngineOptions, classes: Mapping[str, ServiceClass], demand: Demand
) -> tuple[EngineAsk, dict[str, str]]:
    if not MINUTES_MIN <= options.minutes <= MINUTES_MAX:
        raise ConfigError(f"--minutes is {options.minutes:g}", hint=f"give at least {MINUTES_MIN:g}")
    if not 1 <= options.users <= USERS_MAX:
        raise ConfigError(f"--users is {options.users}", hint=f"give a number from 1 to {USERS_MAX}")
    engine = engine_of(options)
    model = _model(options, engine)
    extra = tuple(shlex.split(options.engine_args or ""))
    workload = "; ".join(
        f"{one.class_name} {one.share:g}: prompt {describe_lengths(one.prompt)}, answer {describe_lengths(one.output)}"
        for one in demand.traffic
    )
    objectives = objectives_of([classes[name] for name in demand.shares])
    facts = {"build": build_of(engine), "machine": machine_name(), "workload": workload}
    told = (*extra, *options.variants, f"context {options.context}", f"users {options.users}", f"seed {options.seed}")
    key = key_of(
        (
            *(engine.engine, shlex.join(engine.command), facts["build"], facts["machine"], model_identity(model)),
            *(workload, ", ".join(one.text for one in objectives), shlex.join(told)),
            repr([(knob.name, knob.default, knob.labels) for knob in engine.knobs]),
        )
    )
    ask = EngineAsk(
        engine=engine,
        model=model,
        extra=extra,
        classes=classes,
        demand=demand,
        room=room_of(model, options.context),
        names={"context": str(options.context)},
        total_s=60.0 * options.minutes,
        start_limit_s=options.start_limit or engine.start_limit_s,
        users=options.users,
        seed=options.seed,
        key=key,
        is_fresh=options.is_fresh,
        is_grid=options.is_grid,
    )
    return ask, facts


def engine_of(options: EngineOptions) -> Engine:
    """Return the engine with the knobs that are to be turned; raises ConfigError."""
    given = dict(parse_knob(text) for text in options.knobs)
    only = tuple(name.strip() for name in (options.only or "").split(",") if name.strip())
    if options.launch is not None:
        if options.engine is not None:
            raise ConfigError(
                "--engine and --launch: one of them", hint="--launch is for engines that have no name here"
            )
        base = custom_engine(shlex.split(options.launch), ())
    else:
        base = read_engine(options.engine or "", options.knobs_file)
    engine = with_variants(narrowed(base, only, given, has_gpu=has_gpu()), options.variants)
    count = cores()
    return filled(with_command(engine, options.command), {"cores": str(count), "cores_half": str(max(1, count // 2))})


def _model(options: EngineOptions, engine: Engine) -> str:
    if engine.engine == "llama-server":
        path = resolve_model(options.model)
        return str(quantized_model(path, options.quantize) if options.quantize else path)
    if options.model is None and options.launch is None:
        raise ConfigError(f"name the model that {engine.engine} is to load", hint="setpoint tune --engine vllm MODEL")
    return options.model or ""
