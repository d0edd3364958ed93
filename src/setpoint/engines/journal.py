"""The file that a journal is written to: buffered, flushed once a second, and ended at its size limit.

A journal can only be replayed from its first line, so it is never rotated: what reaches the limit ends there, with a
warning, and can be replayed up to there. The journal of the run before is kept beside it, as `NAME.previous`.

An event is noted before the machine handles it. Should the machine fail on it, or never return, then the journal ends
with that event alone, so that the failure can be replayed.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from setpoint.errors import ConfigError
from setpoint.journal import Header, encode_entry, encode_header, encode_unanswered
from setpoint.model import AnyCommand, AnyEvent

SIZE_MAX = 4 * 2**30
FLUSH_EVERY_S = 1.0
_BUFFER = 2**18

log = logging.getLogger(__name__)


class JournalSink(Protocol):
    """What an engine tells of its machine: each event, then what it was answered with."""

    def begin(self, event: AnyEvent) -> None:
        """Note an event that the machine is about to handle."""
        ...

    def end(self, commands: list[AnyCommand]) -> None:
        """Note what the machine answered to it."""
        ...

    def close(self) -> None:
        """End the journal: with the event that is noted, when it was not answered."""
        ...


class Recorder:
    """Writes into a sink, if there is one; where that cannot be written it ends, and serving goes on."""

    def __init__(self, sink: JournalSink | None) -> None:
        self._sink = sink

    def begin(self, event: AnyEvent) -> None:
        """Note an event that the machine is about to handle."""
        if self._sink is not None:
            self._guarded(lambda sink: sink.begin(event))

    def end(self, commands: list[AnyCommand]) -> None:
        """Note what the machine answered to it."""
        if self._sink is not None:
            self._guarded(lambda sink: sink.end(commands))

    def close(self) -> None:
        """End the journal, which tells of one machine only."""
        if self._sink is not None:
            self._guarded(lambda sink: sink.close())
            self._sink = None

    def _guarded(self, write: Callable[[JournalSink], None]) -> None:
        assert self._sink is not None
        try:
            write(self._sink)
        except Exception:
            log.exception("the journal cannot be written: it ends here, serving goes on")
            self._sink = None


class JournalFile:
    """A sink that is a file; close it at the end. For one thread."""

    def __init__(self, path: Path, header: Header, *, size_max: int = SIZE_MAX) -> None:
        """Begin a new journal at `path` of at most `size_max` bytes; raises `ConfigError` when it cannot be written."""
        self._path = path
        self._size_max = size_max
        self._is_over = False
        self._begun: AnyEvent | None = None
        self._flush_at = 0.0
        line = encode_header(header)
        self._size = len(line)
        try:
            if path.exists():
                path.replace(path.with_name(path.name + ".previous"))
            self._file = path.open("wb", buffering=_BUFFER)
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise ConfigError(
                f"cannot write the journal {path}: {error.strerror}", hint="name a file in a directory that exists"
            ) from error

    def begin(self, event: AnyEvent) -> None:
        """Note an event that the machine is about to handle."""
        assert self._begun is None, "the event before it was not answered"
        self._begun = event

    def end(self, commands: list[AnyCommand]) -> None:
        """Write the line of the event and its answer; after the limit, nothing."""
        event, self._begun = self._begun, None
        assert event is not None, "no event was noted"
        if self._is_over:
            return
        line = encode_entry(event, commands)
        self._size += len(line)
        if self._size > self._size_max:
            self._is_over = True
            self._file.flush()
            log.warning("the journal %s has reached %d bytes and ends here", self._path, self._size_max)
            return
        self._file.write(line)
        if event.at >= self._flush_at:
            self._file.flush()
            self._flush_at = event.at + FLUSH_EVERY_S

    def close(self) -> None:
        """Write what is still held back, an event without an answer at the end; nothing is written after."""
        if self._begun is not None and not self._is_over:
            self._file.write(encode_unanswered(self._begun))
        self._is_over = True
        self._file.close()
