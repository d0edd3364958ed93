"""Reads the catalogs: the models and the hardware that Setpoint knows, and those that the user adds.

The files of the package lie in `setpoint/data`; a user's own file has the same format, and its entries go first. This
is the one place that opens them, so that `setpoint.steptime` stays free of I/O.
"""

import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from setpoint.errors import ConfigError, ModelError, UserError
from setpoint.steptime.architecture import Architecture
from setpoint.steptime.efficiency import Calibration
from setpoint.steptime.hardware import Hardware
from setpoint.steptime.names import unknown

_ADD_MODEL = (
    "give the path of its config.json or .gguf as --model, or add an entry to a TOML file and give that as --catalog: "
    "docs/models-and-hardware.md"
)
_ADD_HARDWARE = "add an entry to a TOML file and give that as --catalog: docs/models-and-hardware.md"
_MODEL_MARK, _HARDWARE_MARK = "layers", "memory_gib"
_NOT_SHAPE = ("source", "date", "aliases", "parameters_b", "active_b")
_T = TypeVar("_T")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A catalog entry: the shape, where it was read, and the published parameter counts (10^9) to check it by."""

    architecture: Architecture
    source: str
    date: str
    parameters_b: float | None = None
    active_b: float | None = None


def model(name: str, *, extra: Path | None = None) -> Architecture:
    """Return the architecture called `name`, from the user's file `extra` or the catalog; raises `ModelError`."""
    known = _named(models(extra=extra))
    entry = known.get(_key(name)) or known.get(_key(name.rsplit("/", 1)[-1]))
    if entry is None:
        raise unknown(ModelError, "model", name, known, _ADD_MODEL)
    return entry.architecture


def hardware(name: str, *, extra: Path | None = None) -> Hardware:
    """Return the hardware called `name`, from the user's file `extra` or the catalog; raises `ConfigError`."""
    known = _named(hardwares(extra=extra))
    entry = known.get(_key(name))
    if entry is None:
        raise unknown(ConfigError, "hardware", name, known, _ADD_HARDWARE)
    return entry


def models(*, extra: Path | None = None) -> dict[tuple[str, ...], Model]:
    """Return every model by its names, the user's first."""
    own: dict[tuple[str, ...], Model] = _own(extra, _MODEL_MARK, _parse_models)
    return own | {names: entry for names, entry in _shipped_models().items() if names not in own}


def hardwares(*, extra: Path | None = None) -> dict[tuple[str, ...], Hardware]:
    """Return every accelerator by its names, the user's first."""
    own: dict[tuple[str, ...], Hardware] = _own(extra, _HARDWARE_MARK, _parse_hardware)
    return own | {names: entry for names, entry in _shipped_hardware().items() if names not in own}


@functools.cache
def calibration() -> Calibration:
    """Return the fitted efficiencies that Setpoint ships with."""
    return read_calibration(_shipped("efficiency.toml"), "efficiency.toml")


def read_calibration(text: str, where: str) -> Calibration:
    """Return the calibration that `text` holds; raises `ConfigError`, which names `where`."""
    return _convert(_table(text, where), Calibration, where)


@functools.cache
def _shipped_models() -> dict[tuple[str, ...], Model]:
    return _parse_models(_table(_shipped("models.toml"), "models.toml"), "models.toml")


@functools.cache
def _shipped_hardware() -> dict[tuple[str, ...], Hardware]:
    return _parse_hardware(_table(_shipped("hardware.toml"), "hardware.toml"), "hardware.toml")


def _shipped(name: str) -> str:
    return (files("setpoint") / "data" / name).read_text(encoding="utf-8")


def _own(path: Path | None, mark: str, parse: Any) -> Any:  # noqa: ANN401 - one of the two parsers, and what it returns
    """Return the entries of the user's file that have the field `mark`: one file may hold models and hardware."""
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="give a TOML file with one table an entry"
        ) from error
    entries = dict(_entries(_table(text, str(path)), str(path)))
    for name, fields in entries.items():
        if not {_MODEL_MARK, _HARDWARE_MARK} & set(fields):
            raise ConfigError(
                f"{path}: {name!r} is neither a model nor hardware: it has no {_MODEL_MARK} and no {_HARDWARE_MARK}",
                hint="see docs/models-and-hardware.md for the fields",
            )
    return parse({name: fields for name, fields in entries.items() if mark in fields}, str(path))


def _table(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{where} is not TOML: {error}", hint="see docs/models-and-hardware.md for an example"
        ) from error


def _parse_models(table: Mapping[str, Any], where: str) -> dict[tuple[str, ...], Model]:
    found: dict[tuple[str, ...], Model] = {}
    for name, fields in _entries(table, where):
        shape = {key: value for key, value in fields.items() if key not in _NOT_SHAPE}
        found[_names(name, fields)] = Model(
            architecture=_convert({**shape, "name": name}, Architecture, f"{where}: {name}"),
            source=str(fields.get("source", where)),
            date=str(fields.get("date", "")),
            parameters_b=fields.get("parameters_b"),
            active_b=fields.get("active_b"),
        )
    return found


def _parse_hardware(table: Mapping[str, Any], where: str) -> dict[tuple[str, ...], Hardware]:
    return {
        _names(name, fields): _convert({**fields, "name": name}, Hardware, f"{where}: {name}")
        for name, fields in _entries(table, where)
    }


def _entries(table: Mapping[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    for name, fields in table.items():
        if not isinstance(fields, dict):
            raise ConfigError(f"{where}: {name!r} is not a table", hint="quote names that hold a dot: ['llama-3.1-8b']")
    return list(table.items())


def _names(name: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    aliases = fields.get("aliases", [])
    return (name, *aliases) if isinstance(aliases, list) else (name,)


def _named(entries: Mapping[tuple[str, ...], _T]) -> dict[str, _T]:
    """Return the entries by each of their names; of two that share one, the first."""
    found: dict[str, _T] = {}
    for names, entry in entries.items():
        for name in names:
            found.setdefault(_key(name), entry)
    return found


def _key(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")


def _convert(fields: Mapping[str, Any], kind: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise ConfigError(f"{where}: {error}", hint="see docs/models-and-hardware.md for the fields") from error
