"""The lines of a journal: a header that says which machine it was, then one line for each event that it handled.

    {"setpoint_journal":1,"machine":"replica","strategy":"slack","options":{},"classes":[…],"capacity":{…},…}
    {"e":{"type":"Arrived","at":0.25,"request":{…}},"c":[{"type":"Admit",…},{"type":"RunStep","plan":{…}}]}

`e` is the event as the machine got it, `c` the commands that it answered with, both as JSON. Floats are written so that
they are read back as the same number, so that commands can be compared byte by byte. Every line ends with a line feed:
a last line without one was cut off when the writer died, and is left out; any other line that cannot be read is damage.
A last line of `{"e":…` alone, whole as far as it goes, is an event that the machine did not answer: it failed on it. A
journal begins with a machine that is idle and empty; there is no joining in.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from setpoint.errors import JournalError
from setpoint.model import AnyCommand, AnyEvent, Capacity, ServiceClass

FORMAT = 1
LINE_BYTES_MAX = 16 * 2**20
_MARK = b'{"setpoint_journal":'

Option = int | float | bool | str
MachineKind = Literal["replica", "steered"]


class Header(msgspec.Struct, frozen=True, kw_only=True, rename={"format": "setpoint_journal"}):
    """What a machine was made of: all that is needed to make it again.

    `step_time` is the step-time model that it began with, as that layer writes it; `is_learning`: it went on to learn
    from each step. `engine` names model, hardware and engine build, `made_by` the version of Setpoint: for people.
    """

    format: int = FORMAT
    machine: MachineKind = "replica"
    strategy: str
    options: Mapping[str, Option] = {}
    classes: tuple[ServiceClass, ...]
    capacity: Capacity
    step_time: msgspec.Raw
    is_learning: bool
    engine: str = ""
    made_by: str = ""


class Entry(msgspec.Struct, frozen=True):
    """One event with the commands that answered it, these as they were written; `line` counts from 1, the header."""

    line: int
    event: AnyEvent
    commands: bytes


class _Line(msgspec.Struct, frozen=True):
    e: AnyEvent
    c: msgspec.Raw


class _Unanswered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    e: AnyEvent


class _Version(msgspec.Struct, frozen=True):
    setpoint_journal: int


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Line)
_unanswered_decoder = msgspec.json.Decoder(_Unanswered)


def encode_header(header: Header) -> bytes:
    """Return the first line of a journal."""
    step_time = msgspec.Raw(msgspec.json.format(bytes(header.step_time), indent=-1))
    return _encoder.encode(msgspec.structs.replace(header, step_time=step_time)) + b"\n"


def encode_commands(commands: list[AnyCommand]) -> bytes:
    """Return commands as they stand in a journal."""
    return _encoder.encode(commands)


def encode_entry(event: AnyEvent, commands: list[AnyCommand]) -> bytes:
    """Return the line of one event and the commands that answered it."""
    return b'{"e":%b,"c":%b}\n' % (_encoder.encode(event), _encoder.encode(commands))


def encode_unanswered(event: AnyEvent) -> bytes:
    """Return the end of a journal whose machine was told the event and did not answer."""
    return b'{"e":%b' % _encoder.encode(event)


def read_header(line: bytes) -> Header:
    """Read the first line; raises `JournalError` when it is not that of a journal of this format."""
    if not line.startswith(_MARK):
        raise JournalError("not a journal of Setpoint", hint="give a file that `setpoint serve --journal` wrote")
    if not line.endswith(b"\n"):
        raise JournalError("the journal ends inside its first line", hint="its writer died before the first event")
    try:
        version = msgspec.json.decode(line, type=_Version).setpoint_journal
        if version != FORMAT:
            raise JournalError(
                f"a journal of format {version}, and this is Setpoint for format {FORMAT}",
                hint="replay it with the version of Setpoint that wrote it",
            )
        return msgspec.json.decode(line, type=Header)
    except msgspec.MsgspecError as error:
        raise JournalError(f"line 1 is damaged: {error}", hint="take an undamaged copy of the journal") from error


def read_entries(lines: Iterable[bytes]) -> Iterator[Entry]:
    """Yield the entries of the lines after the header, up to a last line that was cut off.

    Raises `JournalError` with the number of the line at the first that is damaged.
    """
    for number, line in enumerate(lines, start=2):
        if is_cut(line):
            return
        try:
            read = _decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise JournalError(
                f"line {number} is damaged: {error}", hint="what stands before it can still be replayed on its own"
            ) from error
        yield Entry(number, read.e, bytes(read.c))


def read_unanswered(line: bytes) -> AnyEvent | None:
    """Return the event that the machine did not answer, if the last line tells of one."""
    if not is_cut(line):
        return None
    try:
        return _unanswered_decoder.decode(line + b"}").e
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def is_cut(line: bytes) -> bool:
    """Return whether a line lacks its end: the last one of a writer that died."""
    return not line.endswith(b"\n")
