"""`setpoint serve`: one model behind an OpenAI-compatible API, scheduled by a strategy.

The order of things: settings (file, then options), model, warm-up, then the listener; so that a port that answers is a
server that serves.
"""

import asyncio
import gc
import importlib.metadata
import logging
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from setpoint.cli.step_times import load_step_time, step_time_key
from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import STRATEGIES, make_strategy
from setpoint.engines.driver import Driver
from setpoint.engines.embedded import EmbeddedEngine
from setpoint.engines.journal import JournalFile
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.quantize import quantized_model
from setpoint.engines.llamacpp.starter import resolve_model
from setpoint.engines.llamacpp.text import TextStream
from setpoint.engines.warmup import warm_up
from setpoint.errors import ConfigError, SetpointError
from setpoint.gateway.app import build_app
from setpoint.gateway.server import LOOPBACK, build_server, open_listener
from setpoint.gateway.telemetry import Telemetry
from setpoint.journal import Header
from setpoint.model import Capacity
from setpoint.settings import EngineSettings, Settings, parse_settings
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import StepTimeModel
from setpoint.steptime.model import decode as decode_step_time

DEFAULT_CONFIG = Path("setpoint.toml")
SWITCH_INTERVAL_S = 0.0005
"""How long Python may keep the engine thread waiting for the interpreter: its own 5 ms would show in every token."""

log = logging.getLogger("setpoint")


def serve(  # noqa: PLR0913 - the options of a command
    *,
    model: Annotated[
        str | None, typer.Argument(help="A GGUF file or the name of a model; the starter model if left out.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings; ./setpoint.toml is read if it is there.", show_default=False)
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help=f"Who runs when: {', '.join(STRATEGIES)}.  [default: slack]", show_default=False)
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any.  [default: 8000]")] = None,
    slots: Annotated[int | None, typer.Option(help="Sequences that run at once.  [default: 16]")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of prompt and output of one sequence.  [default: 2048]")
    ] = None,
    kv_layout: Annotated[
        str | None,
        typer.Option(help="per-slot: faster; shared: any one sequence may use it all.  [default: per-slot]"),
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(help="Tokens of KV cache over all sequences.  [default: what slots and context need]")
    ] = None,
    step_tokens: Annotated[
        int | None, typer.Option(help="Tokens that one step computes at most.  [default: 512]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a step.  [default: the physical cores]")] = None,
    gpu_layers: Annotated[
        int | None, typer.Option(help="Layers on the GPU, where the build has one.  [default: 0]")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Convert the model to this type first (such as q4_0, q8_0); kept for next time.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Write every decision to this file, for `setpoint replay`.", show_default=False)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more on stderr.")] = False,
) -> None:
    """Serve a model behind an OpenAI-compatible API, and hold the targets of its classes.

    - `setpoint serve`: the starter model, on this machine alone
    - `setpoint serve model.gguf --quantize q4_0 --slots 16`: a file, converted once
    - `setpoint serve --config setpoint.toml`: what `setpoint tune` found
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    options = {
        "engine": {
            "model": model,
            "slots": slots,
            "context_tokens": context,
            "kv_layout": kv_layout,
            "kv_tokens": kv_tokens,
            "step_tokens_max": step_tokens,
            "threads": threads,
            "gpu_layers": gpu_layers,
            "quantize": quantize,
        },
        "server": {"host": host, "port": port},
    }
    settings = read_settings(config, options, strategy)
    run(settings, journal)


def read_settings(config: Path | None, options: Mapping[str, Mapping[str, Any]], strategy: str | None) -> Settings:
    """Return the settings of the file with the options over them; an option that is `None` was not given.

    Without `config`, ./setpoint.toml is read where there is one. Raises ConfigError with the place of every fault.
    """
    path = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    table: dict[str, Any] = {} if path is None else _read_toml(path)
    for name, values in options.items():
        given = {key: value for key, value in values.items() if value is not None}
        if given:
            section = table.get(name, {})
            table[name] = {**section, **given} if isinstance(section, dict) else section
    if strategy is not None:
        section = table.get("strategy", {})
        same = isinstance(section, dict) and section.get("name", "slack") == strategy
        # the options of another strategy would mean nothing to this one
        table["strategy"] = section if same else {"name": strategy}
    try:
        return parse_settings(table, strategies=STRATEGIES)
    except ConfigError as error:
        place = "the options" if path is None else str(path)
        raise ConfigError(f"{place}: {error.message}", hint=error.hint) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}", hint="leave --config out to serve with the defaults") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="docs/config.md shows a whole file") from error


class LoadedEngine(NamedTuple):
    """A model in memory with the executor over it, and the name that it was asked for by."""

    name: str
    model: Model
    executor: LlamaExecutor


def load_engine(engine: EngineSettings) -> LoadedEngine:
    """Load the model (found, and quantized if asked for) and build an executor over it; the caller closes both."""
    source = resolve_model(engine.model)
    path = source if engine.quantize is None else quantized_model(source, engine.quantize)
    model = Model(path, gpu_layers=engine.gpu_layers or 0)
    sizes: dict[str, Any] = {
        "slots": engine.slots,
        "kv_layout": engine.kv_layout,
        "kv_tokens": engine.kv_tokens,
        "prefix_tokens": engine.prefix_tokens,
        "step_tokens_max": engine.step_tokens_max,
        "context_tokens_max": engine.context_tokens,
        "threads": engine.threads,
    }
    try:
        executor = LlamaExecutor(model, **{name: size for name, size in sizes.items() if size is not None})
    except SetpointError:
        model.close()
        raise
    return LoadedEngine(source.stem, model, executor)


def choose_step_time(settings: EngineSettings, executor: LlamaExecutor) -> StepTimeModel:
    """Return the step-time model to begin with: the file of the settings, what `tune` kept, or what the warm-up shows.

    Only a model that was fitted to this engine counts. The warm-up runs in any case: it brings the memory in.
    """
    key = step_time_key(executor)
    # in a thread that ends: OpenMP counts the workers of every thread that ever computed as a burden on the cores, and
    # lets those of the engine thread sleep at each barrier if they seem too many
    with ThreadPoolExecutor(1) as thread:
        warm = thread.submit(warm_up, executor, time.monotonic, key=key).result()
    kept = load_step_time(key)
    if settings.step_time_file is not None:
        path = Path(settings.step_time_file)
        try:
            named = decode_step_time(path.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"engine.step_time_file: cannot read {path}: {error.strerror}", hint="write it with `setpoint tune`"
            ) from error
        if named.key == key:
            return named
        log.warning("%s was fitted to %s, not to %s: not used", path, named.key, key)
    if kept is None:
        log.info("the step times are learned as they come; `setpoint tune` measures them first")
    return kept or warm


def run(settings: Settings, journal: Path | None = None) -> None:
    """Serve until a signal ends it; with `journal`, keep every event and command there."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    strategy = make_strategy(settings.strategy.name, **settings.strategy.options)
    listener = open_listener(settings.server)
    name, model, executor = load_engine(settings.engine)
    with model, closing(executor), ExitStack() as stack:
        begun = choose_step_time(settings.engine, executor)
        machine = ReplicaMachine(strategy, settings.classes, executor.capacity, LearnedStepTime(begun))
        sink = None
        if journal is not None:
            header = journal_header(settings, executor.capacity, begun)
            sink = stack.enter_context(closing(JournalFile(journal, header)))
        # nothing of what was loaded is ever garbage: the collector need not look at it again
        gc.freeze()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, LoadedEngine(name, model, executor), machine, listener, sink))
    log.info("stopped")


def journal_header(settings: Settings, capacity: Capacity, step_time: StepTimeModel) -> Header:
    """Return the first line of the journal of a server: all that its machine was made of."""
    return Header(
        strategy=settings.strategy.name,
        options=settings.strategy.options,
        classes=tuple(settings.classes.values()),
        capacity=capacity,
        step_time=msgspec.Raw(msgspec.json.encode(step_time)),
        is_learning=True,
        engine=step_time.key,
        made_by=importlib.metadata.version("setpoint"),
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's, where it is installed: tokens then cost less of the processor that the engine needs."""
    try:
        uvloop = import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(
    settings: Settings,
    loaded: LoadedEngine,
    machine: ReplicaMachine,
    listener: socket.socket,
    journal_sink: JournalFile | None,
) -> None:
    model, executor = loaded.model, loaded.executor
    name = settings.server.model_name or loaded.name
    telemetry = Telemetry(name, list(settings.classes))
    driver = Driver(
        handle=machine.handle,
        executor=executor,
        text_stream=lambda generation: TextStream(model, generation.stop),
        observer=telemetry,
        journal_sink=journal_sink,
        requests_max=settings.server.requests_max,
    )
    context_tokens = executor.capacity.context_tokens_max
    engine = EmbeddedEngine(model, driver, model_name=name, context_tokens=context_tokens)
    app = build_app(engine, settings, telemetry)

    def announce() -> None:
        host, port = listener.getsockname()[:2]
        if settings.server.host not in LOOPBACK and not settings.keys:
            log.warning("anyone who reaches %s may use this server: set API keys under [keys]", host)
        log.info(
            "serving %s at http://%s:%d/v1 (strategy %s, %d slots, context %d)",
            name,
            f"[{host}]" if ":" in host else host,
            port,
            settings.strategy.name,
            executor.capacity.slots,
            context_tokens,
        )

    server = build_server(app, settings.server, lambda: driver.drain(settings.server.drain_timeout_s), announce)
    async with driver:
        await server.serve(sockets=[listener])
