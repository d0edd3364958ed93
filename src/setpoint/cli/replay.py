"""`setpoint replay`: prove that the core decides today as it did when a journal was written."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from setpoint.errors import JournalError
from setpoint.journal import Divergence, ReplayReport, Unanswered, replay
from setpoint.journal.format import LINE_BYTES_MAX
from setpoint.steptime.saved import restored

EXIT_DIFFERENT = 1
_SHOWN = 100


def replay_file(
    *,
    file: Annotated[Path, typer.Argument(help="A journal, as `setpoint serve --journal` writes it.", metavar="FILE")],
    is_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Run the scheduler again over a journal, and compare its commands with the recorded ones, byte for byte.

    Exit code 0: identical. 1: different, and the first difference is shown. 2: not a journal, or a damaged one.

    Examples:
        setpoint replay journal.jsonl

        setpoint replay journal.jsonl --json
    """
    try:
        report = replay(_lines(file), restored)
    except JournalError as error:
        raise JournalError(f"{file}: {error.message}", hint=error.hint) from error
    if is_json:
        fields = {"is_identical": report.is_identical, **msgspec.to_builtins(report)}
        sys.stdout.write(json.dumps(fields) + "\n")
    else:
        sys.stdout.write(_text(report))
    if not report.is_identical:
        raise typer.Exit(EXIT_DIFFERENT)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(LINE_BYTES_MAX):
                if len(line) == LINE_BYTES_MAX and not line.endswith(b"\n"):
                    raise JournalError("a line is longer than any that a journal has", hint="is this the right file?")
                yield line
    except OSError as error:
        raise JournalError(f"cannot be read: {error.strerror}", hint="name a file that exists") from error


def _text(report: ReplayReport) -> str:
    counts = f"{report.events} events over {report.span_s:.3f} s, {report.steps} steps, {report.commands} commands"
    lines = [f"{counts} (strategy {report.strategy})"]
    if report.is_cut:
        lines.append("the last line was cut off and is left out")
    if report.unanswered is not None:
        lines.append(_unanswered(report.unanswered))
    if report.divergence is None:
        lines.append("identical: every command came out as it was recorded")
    else:
        lines += _difference(report.divergence)
        lines.append(f"written by {report.made_by or 'an unknown version'}")
    return "\n".join(lines) + "\n"


def _unanswered(last: Unanswered) -> str:
    where = f"line {last.line} ({last.event} at {last.at!r}) was not answered when it was written"
    return f"{where}: the scheduler fails on it with {last.error}" if last.error else f"{where}; here it is answered"


def _difference(divergence: Divergence) -> list[str]:
    """Show both sides from shortly before the first byte that differs."""
    recorded, replayed = divergence.recorded, divergence.replayed
    common = next(
        (i for i, (a, b) in enumerate(zip(recorded, replayed, strict=False)) if a != b),
        min(len(recorded), len(replayed)),
    )
    start = max(0, common - _SHOWN // 2)
    return [
        f"different at line {divergence.line} ({divergence.event} at {divergence.at!r}), byte {common}:",
        f"  recorded  {recorded[start : start + _SHOWN]}",
        f"  replayed  {replayed[start : start + _SHOWN]}",
    ]
