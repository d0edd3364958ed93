"""The command line: thin shells around the layers below. stdout is data, stderr is talk.

A command is a function in the module that `COMMANDS` names, and is imported only when it is the one asked for, so that
`setpoint --help` loads no engine and no plotting library. Every error that Setpoint raises on purpose ends here: as one
sentence and a hint on stderr, with exit code 2.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, NamedTuple

import typer

from setpoint.errors import SetpointError

EXIT_ERROR = 2
"""A mistake of the caller, or an engine that failed; 1 is kept for an answer of "no" (a target that is not met)."""


class Command(NamedTuple):
    """Where a command lives, and what the list of commands says of it."""

    module: str
    function: str
    summary: str


COMMANDS: dict[str, Command] = {
    "serve": Command("setpoint.cli.serve", "serve", "Serve a model behind an OpenAI-compatible API."),
    "tune": Command("setpoint.cli.tune", "tune", "Find the operating point that meets the targets at least cost."),
    "bench": Command(
        "setpoint.cli.bench", "bench", "Measure an endpoint: a run, a curve, or the highest rate within the SLOs."
    ),
    "replay": Command("setpoint.cli.replay", "replay_file", "Run the scheduler again over a journal, and compare."),
    "simulate": Command("setpoint.cli.simulate", "simulate", "Say what would happen if, on a virtual clock."),
    "profile": Command("setpoint.cli.profile", "profile", "Fit the step times of an endpoint that only answers HTTP."),
    "calibrate": Command("setpoint.cli.calibrate", "calibrate_source", "Correct step times by what was measured."),
    "explain": Command("setpoint.cli.explain", "explain", "Tell why a request was late, from a journal."),
    "compare": Command("setpoint.cli.compare", "compare", "Say what changed between two runs, with intervals."),
}


def build(arguments: Sequence[str]) -> typer.Typer:
    """Return the application with the command that `arguments` name imported, and the others known by name only."""
    app = typer.Typer(
        name="setpoint",
        help="Find the best operating point between throughput and latency of model inference, and hold it.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(_root)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, command in COMMANDS.items():
        callback = getattr(import_module(command.module), command.function) if name == chosen else _absent
        app.command(name, short_help=command.summary)(callback)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a target is not met, 2 an error, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(_guarded(lambda: build(arguments)(args=list(arguments), prog_name="setpoint")))


def _guarded(call: Callable[[], object]) -> int:
    try:
        call()
    except SetpointError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return EXIT_ERROR
    return 0


def _version(is_wanted: bool) -> None:  # noqa: FBT001 - the signature that Typer calls
    if is_wanted:
        from importlib.metadata import version  # noqa: PLC0415 - only needed to answer --version

        sys.stdout.write(f"setpoint {version('setpoint')}\n")
        raise typer.Exit


def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version


def _absent() -> None:
    raise AssertionError("a command that was not named was called")
