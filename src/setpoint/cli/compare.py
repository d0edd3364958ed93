"""`setpoint compare`: what changed between two bench reports, with intervals; its table is data, and goes to stdout."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from setpoint.cli.bench_output import read_report
from setpoint.loadgen.compare import Change
from setpoint.loadgen.compare import compare as compare_reports

EXIT_WORSE = 1
WORDS = {"too_few": "too few", "failures": "never"}
"""What stands in place of a quantile that the sample cannot carry, or that is never reached."""
COLOURS = {"better": "green", "worse": "red", "not shown": "dim", "unknown": "dim"}


def compare(
    *,
    before: Annotated[Path, typer.Argument(help="A report.json of `setpoint bench`, or the folder that holds it.")],
    after: Annotated[Path, typer.Argument(help="The other one.")],
    different_load: Annotated[
        bool, typer.Option("--different-load", help="Compare although the loads differ.")
    ] = False,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit with 1 when a figure is shown to be worse.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the changes as JSON.")] = False,
) -> None:
    """Say what changed between two runs.

    Examples:
        setpoint compare before/report.json after/report.json

        setpoint compare before after --fail-if-worse

    A change counts as shown when the two intervals do not overlap.
    """
    one, other = read_report(before), read_report(after)
    changes = compare_reports(one, other, is_forced=different_load)
    for path, report in ((before, one), (after, other)):
        for fault in {fault for point in report.points for fault in point.health.faults}:
            sys.stderr.write(f"warning: {path} cannot be trusted: {fault}\n")
    if json:
        sys.stdout.buffer.write(msgspec.json.encode(changes) + b"\n")
    else:
        Console().print(_table(changes))
    if fail_if_worse and any(change.direction == "worse" for change in changes):
        raise typer.Exit(EXIT_WORSE)


def _table(changes: list[Change]) -> Table:
    table = Table("", "before", "after", "change", "verdict", box=None)
    for change in changes:
        ratio = "-" if change.change_ratio is None else f"{change.change_ratio:+.1%}"
        table.add_row(
            (f"{change.point + 1}: " if changes[-1].point else "") + change.figure,
            _side(change, change.before, change.before_interval, change.before_support),
            _side(change, change.after, change.after_interval, change.after_support),
            ratio,
            f"[{COLOURS[change.direction]}]{change.direction}[/]",
        )
    return table


def _side(change: Change, value: float | None, interval: tuple[float | None, float | None], support: str) -> str:
    """Return one side of a change; where its quantile cannot be told, why, unless its interval shows the change."""
    if change.direction == "unknown" and support in WORDS:
        return WORDS[support]
    return _cell(change.figure, value, interval)


def _cell(figure: str, value: float | None, interval: tuple[float | None, float | None]) -> str:
    if value is None:
        return "-"
    if "per second" in figure:
        return f"{value:,.2f}"
    scale, unit = (100.0, "%") if figure == "attainment" else (1e3, " ms")
    low, high = interval
    words = f"{value * scale:,.1f}{unit}"
    if low is None and high is None:
        return words
    ends = ["?" if end is None else f"{end * scale:,.1f}" for end in (low, high)]
    return f"{words} [dim]({ends[0]} to {ends[1]})[/]"
