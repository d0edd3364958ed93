"""Corrections that were fitted to measurements, kept in a file under what they hold for.

The key names everything that the numbers depend on: the source of the step times, the model, the hardware, the format
of the weights, the ranks, the engine and its version. The age of an engine moves results more than many a choice of
hardware, so that nothing is ever taken for another version.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from setpoint.errors import ConfigError
from setpoint.sim.files import write_json
from setpoint.steptime.correction import Correction
from setpoint.steptime.quantization import Quantization

SCHEMA = "setpoint.calibration/1"
SourceKind = Literal["roofline", "kernel-tables", "fit"]


class Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a correction holds for; a fit has no hardware and no quantization of its own, its `model` is its key."""

    source: SourceKind
    model: str
    hardware: str = ""
    quantization: str = ""
    tensor: int = 1
    engine: str = ""
    version: str = ""

    def words(self) -> str:
        """Return the key as a person reads it."""
        where = f" {self.quantization} on {self.tensor} x {self.hardware}" if self.hardware else ""
        engine = f", {self.engine or 'engine'} {self.version}" if self.version else ""
        return f"{self.model}{where} ({self.source}{engine})"


def format_words(quantization: Quantization) -> str:
    """Return the format of weights and KV cache as it stands in a key."""
    return quantization.name + (" with fp8 KV" if quantization.kv_bytes == 1.0 else "")


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """One measured value with what was predicted for it, without the correction and with it (`None`: nothing)."""

    name: str
    measured: float
    before: float | None
    after: float | None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A correction, what it holds for, and the values that it was fitted to; errors are medians of |ln(ratio)|.

    `error_left_out`: of each measurement under a fit to the others, where there are enough.
    """

    key: Key
    correction: Correction
    values: tuple[Value, ...]
    error_before: float
    error_after: float
    error_left_out: float | None = None
    made_at: str = ""
    made_by: str = ""


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """All entries of a file, one a key."""

    schema: str = SCHEMA
    entries: tuple[Entry, ...] = ()

    def with_entry(self, entry: Entry) -> "Book":
        """Return the book with `entry` in the place of what its key had before."""
        kept = tuple(one for one in self.entries if one.key != entry.key)
        return msgspec.structs.replace(self, entries=(*kept, entry))


def read_book(path: Path, *, is_new_allowed: bool = False) -> Book:
    """Return the book in a file; raises `ConfigError`. `is_new_allowed`: an absent file is an empty book."""
    try:
        book = msgspec.json.decode(path.read_bytes(), type=Book)
    except FileNotFoundError as error:
        if is_new_allowed:
            return Book()
        raise ConfigError(f"there is no file {path}", hint="`setpoint calibrate --into FILE` writes one") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="is the path right?") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a calibration: {error}", hint="write it with `setpoint calibrate`") from error
    if book.schema != SCHEMA:
        raise ConfigError(f"{path} is a calibration of another version", hint="write it anew")
    return book


def write_book(path: Path, book: Book) -> None:
    """Write the book; raises `ConfigError` when that cannot be done."""
    write_json(path, book, option="--into")


def find_entry(book: Book, key: Key, path: Path) -> Entry:
    """Return the entry of `key`; a key without a version takes the only one there is. Raises `ConfigError`."""
    alike = [one for one in book.entries if msgspec.structs.replace(one.key, version=key.version) == key]
    if key.version:
        alike = [one for one in alike if one.key.version == key.version]
    if len(alike) == 1:
        return alike[0]
    if alike:
        versions = ", ".join(sorted(one.key.version for one in alike))
        raise ConfigError(
            f"{path} has {len(alike)} calibrations of {key.words()}",
            hint=f"give --engine-version, one of {versions}",
        )
    raise ConfigError(f"{path} has no calibration of {key.words()}", hint=_known(book.entries))


def _known(entries: Sequence[Entry]) -> str:
    if not entries:
        return "it is empty: write one with `setpoint calibrate --into`"
    return "it has those of " + "; ".join(one.key.words() for one in entries)
