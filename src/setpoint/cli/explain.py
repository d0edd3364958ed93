"""`setpoint explain`: why a request was late, from the journal of a simulated run or of a real server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from setpoint.errors import ConfigError, JournalError
from setpoint.journal.format import LINE_BYTES_MAX, Header, read_entries, read_header
from setpoint.model import AnyCommand, AnyEvent, ServiceClass
from setpoint.sim.explain import read_story, tell

_commands = msgspec.json.Decoder(list[AnyCommand])


def explain(
    *,
    run: Annotated[Path, typer.Argument(help="A journal: `setpoint simulate --journal`, `setpoint serve --journal`.")],
    request: Annotated[int, typer.Option("--request", help="The id of the request.")],
    json: Annotated[bool, typer.Option("--json", help="Print the whole story as JSON on stdout.")] = False,
) -> None:
    """Tell what a request waited for, behind whom, and what bound the steps meanwhile.

    Examples:
        setpoint explain journal.jsonl --request 42

        setpoint explain journal.jsonl --request 42 --json
    """
    try:
        with run.open("rb") as file:
            header = read_header(file.readline(LINE_BYTES_MAX))
            story = read_story(_lines(file), request)
    except OSError as error:
        raise ConfigError(f"cannot read {run}: {error.strerror}", hint="name a journal") from error
    if story is None:
        raise JournalError(f"no request {request} came in {run}", hint="ids are in the Arrived events of the journal")
    if json:
        typer.echo(msgspec.json.encode(story).decode())
        return
    for sentence in tell(story, _classes(header)):
        typer.echo(sentence)


def _classes(header: Header) -> dict[str, ServiceClass]:
    return {one.name: one for one in header.classes}


def _lines(file: Iterator[bytes]) -> Iterator[tuple[AnyEvent, list[AnyCommand]]]:
    for entry in read_entries(file):
        yield entry.event, _commands.decode(entry.commands)
