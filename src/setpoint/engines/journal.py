"""The file that a journal is written to: buffered, flushed once a second, and ended at its size limit.

A journal can only be replayed from its first line, so it is never rotated: what reaches the limit ends there, with a
warning, and can be replayed up to there. The journal of the run before is kept beside it, as `NAME.previous`.
"""

import logging
from pathlib import Path

from setpoint.errors import ConfigError
from setpoint.journal import Header, encode_entry, encode_header
from setpoint.model import AnyCommand, AnyEvent

SIZE_MAX = 4 * 2**30
FLUSH_EVERY_S = 1.0
_BUFFER = 2**18

log = logging.getLogger(__name__)


class JournalFile:
    """A sink of events and commands; call it with each, and close it at the end. For one thread."""

    def __init__(self, path: Path, header: Header, *, size_max: int = SIZE_MAX) -> None:
        """Begin a new journal at `path` of at most `size_max` bytes; raises `ConfigError` when it cannot be written."""
        self._path = path
        self._size_max = size_max
        self._is_full = False
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

    def __call__(self, event: AnyEvent, commands: list[AnyCommand]) -> None:
        """Write one line; after the limit, nothing."""
        if self._is_full:
            return
        line = encode_entry(event, commands)
        self._size += len(line)
        if self._size > self._size_max:
            self._is_full = True
            self._file.flush()
            log.warning("the journal %s has reached %d bytes and ends here", self._path, self._size_max)
            return
        self._file.write(line)
        if event.at >= self._flush_at:
            self._file.flush()
            self._flush_at = event.at + FLUSH_EVERY_S

    def close(self) -> None:
        """Write what is still held back; no call follows."""
        self._file.close()
