"""Writing a value to a file that a person named and may read."""

from pathlib import Path

import msgspec

from setpoint.errors import ConfigError


def write_json(path: Path, value: msgspec.Struct, *, option: str) -> None:
    """Write `value` as indented JSON; raises `ConfigError`, which names the `option` that chose the file."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", hint=f"choose another file for {option}") from error
