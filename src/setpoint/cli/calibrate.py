"""`setpoint calibrate`: correct step times by what was measured, and keep the correction under the engine's version."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from setpoint.cli import shared_options as shared
from setpoint.cli.measurements import RunOfFile, read_points, read_runs
from setpoint.cli.simulate_checks import ENGINES, check_names, given_options, refuse_contradictions
from setpoint.cli.simulate_options import parse_options
from setpoint.core.strategies import STRATEGIES, Option, make_strategy
from setpoint.errors import ConfigError
from setpoint.model import PRESETS, ServiceClass, Slo
from setpoint.sim import catalog
from setpoint.sim.calibrations import Book, Entry, Value, read_book, write_book
from setpoint.sim.measured import (
    MeasuredRun,
    Measurement,
    PublishedPoint,
    base_in_steady_state,
    calibrate,
)
from setpoint.sim.published import Point
from setpoint.sim.scenario import Scenario
from setpoint.sim.sources import Source, Wanted, find_source
from setpoint.steptime.correction import prior_of
from setpoint.steptime.roofline import roofline
from setpoint.steptime.setup import Setup


def calibrate_source(  # noqa: PLR0913 - the options of a command
    context: typer.Context,
    *,
    measured: Annotated[
        list[Path], typer.Argument(help="Folders of `setpoint bench --out`, or CSV tables of published points.")
    ],
    into: Annotated[Path, typer.Option(help="The file of corrections to write, or to add to.")],
    model: shared.CatalogModel = None,
    hardware: shared.Hardware = None,
    quantization: shared.Quantization = "bf16",
    fp8_kv: shared.Fp8Kv = False,
    tp: shared.TensorParallel = 1,
    engine: Annotated[str, typer.Option(help=f"What was measured: {', '.join(ENGINES)}.")] = "vllm",
    engine_version: Annotated[str, typer.Option(help="Its version, such as 0.10.2: nothing holds for another.")] = "",
    kernel_tables: Annotated[bool, typer.Option("--kernel-tables", help="Correct the kernel tables.")] = False,
    catalog_file: shared.CatalogFile = None,
    step_time: Annotated[Path | None, typer.Option(help="Correct a file of `setpoint profile` or `tune`.")] = None,
    kv_tokens: Annotated[int | None, typer.Option(help="Tokens of KV cache that the engine had.", min=16)] = None,
    slots: Annotated[int | None, typer.Option(help="Sequences that it ran at once.", min=1)] = None,
    step_tokens: Annotated[int | None, typer.Option(help="Tokens of a step at most.", min=1)] = None,
    strategy: Annotated[str, typer.Option(help=f"How it schedules: {', '.join(STRATEGIES)}.")] = "continuous",
    option: Annotated[list[str] | None, typer.Option(help="An option of the strategy; repeatable.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the correction as JSON on stdout.")] = False,
) -> None:
    """Correct a roofline, kernel tables or a fit by published points or measured runs of one engine version.

    Examples:
        setpoint calibrate results/ --model llama-3.1-8b --hardware h100-sxm --engine-version 0.10.2 --into mine.json

        setpoint calibrate points.csv --model llama-3.1-70b --tp 4 --hardware h100-sxm --engine trtllm --into mine.json

        setpoint simulate --model llama-3.1-8b --hardware h100-sxm --calibration mine.json --rate 8
    """
    refuse_contradictions(given_options(context) - {"engine_version"})
    check_names(engine, "least-work")
    options = parse_options(option or [])
    make_strategy(strategy, **options)
    wanted = Wanted(
        model=model,
        hardware=hardware,
        quantization=quantization,
        is_fp8_kv=fp8_kv,
        tensor=tp,
        engine=engine,
        engine_version=engine_version,
        step_time=step_time,
        is_tables=kernel_tables,
        catalog=catalog_file,
        kv_tokens=kv_tokens,
        slots=slots,
        step_tokens=step_tokens,
    )
    book = read_book(into, is_new_allowed=True)
    console = Console(stderr=True)
    source = _of_version(wanted, measured)
    measurements = _read(measured, source, strategy, options)
    with console.status(f"fitting to {sum(len(one.measured) for one in measurements)} measured values"):
        fitted = calibrate(measurements, prior_of(source.step_time, request_s=source.request_s))
    entry = Entry(
        key=source.key,
        correction=fitted.correction,
        values=fitted.values,
        error_before=fitted.error_before,
        error_after=fitted.error_after,
        error_left_out=fitted.error_left_out,
        made_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        made_by=f"setpoint {version('setpoint')}",
    )
    _keep(console, into, book, entry)
    if json:
        typer.echo(msgspec.json.encode(entry).decode())


def _of_version(wanted: Wanted, paths: list[Path]) -> Source:
    """Return the source under the version that was told, or that the rows of a table name; raises `ConfigError`."""
    source = find_source(wanted)
    if wanted.engine_version:
        return source
    if wanted.step_time is None:
        for path in paths:
            if path.suffix == ".csv" and (found := read_points(path, source.key)[1]):
                return find_source(msgspec.structs.replace(wanted, engine_version=found))
    raise ConfigError(
        "nothing says which version of the engine was measured",
        hint="give --engine-version: a correction holds for no other",
    )


def _read(paths: list[Path], source: Source, strategy: str, options: dict[str, Option]) -> list[Measurement]:
    """Return what the files hold of this source."""
    measurements: list[Measurement] = []
    for path in paths:
        if path.suffix != ".csv":
            measurements += [_run(run, source, strategy, options) for run in read_runs(path)]
            continue
        if source.setup is None:
            raise ConfigError(
                "a published point is of a model on a GPU, not of a fit", hint="give --model and --hardware"
            )
        measurements += [_published(one, source, source.setup) for one in read_points(path, source.key)[0]]
    return measurements


def _published(one: Point, source: Source, setup: Setup) -> PublishedPoint:
    shipped = catalog.calibration()
    step_time = source.step_time
    if source.key.source == "roofline":
        # what streaming costs is in it where the row was streamed only
        step_time = roofline(setup, shipped, engine=one.engine, is_streamed=one.is_streamed)
    return PublishedPoint(one, setup.architecture, setup.hardware, shipped, base_in_steady_state(step_time))


def _run(run: RunOfFile, source: Source, strategy: str, options: dict[str, Option]) -> MeasuredRun:
    names = {record.class_name for record in run.records}
    scenario = Scenario(
        world=source.step_time,
        belief=source.belief,
        capacity=source.capacity,
        classes={name: PRESETS.get(name, ServiceClass(name=name, slo=Slo())) for name in names},
        strategy=strategy,
        options=options,
        request_s=source.request_s,
    )
    return MeasuredRun(run.name, run.records, scenario, users=run.users)


def _keep(console: Console, into: Path, book: Book, entry: Entry) -> None:
    """Write the book, and say what the correction is worth."""
    write_book(into, book.with_entry(entry))
    table = Table("measured", "value", "before", "after", title=entry.key.words(), box=None, title_justify="left")
    for value in entry.values:
        table.add_row(value.name, f"{value.measured:.4g}", _against(value, value.before), _against(value, value.after))
    console.print(table)
    c = entry.correction
    console.print(
        f"step time x {c.scale:.3f} + {1e3 * c.step_s:.3f} ms a step + {1e6 * c.sequence_s:.1f} us a sequence "
        f"+ {1e6 * c.token_s:.2f} us a prompt token; {1e3 * c.request_s:.1f} ms a request outside of steps"
    )
    console.print(
        f"median error {entry.error_before:.1%} before, {entry.error_after:.1%} after, on the values fitted to"
        + (
            "; measure two more loads to see how far it holds"
            if entry.error_left_out is None
            else f"; {entry.error_left_out:.1%} on each measurement under a fit to the others"
        )
    )
    if entry.error_left_out is not None and entry.error_left_out > entry.error_before:
        console.print("[yellow]these measurements contradict each other: no correction misses them by less[/]")
    console.print(f"[dim]wrote {into}[/]")


def _against(value: Value, predicted: float | None) -> str:
    return "-" if predicted is None else f"{predicted:.4g} ({predicted / value.measured - 1.0:+.0%})"
