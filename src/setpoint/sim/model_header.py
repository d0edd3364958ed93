"""Reads the shape of a model from its own files: a Hugging Face `config.json` (or the folder of it), or a GGUF header.

Of a GGUF file the key-value pairs and the names of the tensors are read, never a weight; long arrays (the vocabulary)
are counted and skipped. The layout is that of the GGUF specification, versions 2 and 3, little-endian.
"""

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

from setpoint.errors import ModelError
from setpoint.steptime.architecture import Architecture
from setpoint.steptime.model_files import from_config, from_gguf

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_ARRAY_KEPT = 1024
_COUNT_MAX = 10_000_000
_TEXT_BYTES_MAX = 16 * 2**20
_HINT = "name a config.json, the folder that holds it, or a .gguf file"


def is_model_path(name: str) -> bool:
    """Return whether `name` means a file or a folder and not an entry of the catalog."""
    return name.endswith((".json", ".gguf")) or Path(name).is_dir()


def read_architecture(name: str) -> Architecture:
    """Return the architecture of the model at the path `name`; raises `ModelError`."""
    path = Path(name)
    try:
        if path.suffix == ".gguf":
            with path.open("rb") as file:
                return _of_gguf(file, path)
        file_path = path / "config.json" if path.is_dir() else path
        config = json.loads(file_path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {name}: {error.strerror}", hint=_HINT) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not JSON: {error}", hint=_HINT) from error
    if not isinstance(config, dict):
        raise ModelError(f"{name} does not describe a model", hint=_HINT)
    return from_config(config, name=_label(path))


def _label(path: Path) -> str:
    return path.resolve().parent.name if path.name == "config.json" else path.stem or path.resolve().name


def _of_gguf(file: BinaryIO, path: Path) -> Architecture:
    try:
        if file.read(4) != _MAGIC:
            raise ModelError(f"{path} is not a GGUF file", hint=_HINT)
        (version,) = _unpack(file, "<I")
        if version not in _VERSIONS:
            raise ModelError(f"{path} is GGUF of version {version}", hint="versions 2 and 3 are read")
        tensors, pairs = _unpack(file, "<QQ")
        header: dict[str, Any] = {}
        vocabulary: int | None = None
        for _ in range(_count(pairs)):
            key = _text(file)
            header[key] = value = _value(file, _unpack(file, "<I")[0])
            if key == "tokenizer.ggml.tokens":
                vocabulary = len(value) if isinstance(value, list) else int(str(value))
        names = {_tensor(file) for _ in range(_count(tensors))}
    except (struct.error, UnicodeDecodeError, KeyError, MemoryError) as error:
        raise ModelError(f"the header of {path} is damaged", hint="take an undamaged copy of the file") from error
    is_tied = "output.weight" not in names if names else None
    return from_gguf(header, tied=is_tied, vocabulary=vocabulary, name=path.stem)


def _value(file: BinaryIO, kind: int) -> object:
    """Return the value that comes next; of an array too long to keep, how many elements it has."""
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _unpack(file, _FORMATS[kind])[0]
    of, count = _unpack(file, "<IQ")
    count = _count(count)
    values = [_value(file, of) for _ in range(min(count, _ARRAY_KEPT))]
    for _ in range(count - len(values)):
        _value(file, of)
    return values if count == len(values) else count


def _tensor(file: BinaryIO) -> str:
    """Return the name of the tensor whose description comes next."""
    name = _text(file)
    (dimensions,) = _unpack(file, "<I")
    file.seek(8 * dimensions + 12, 1)
    return name


def _text(file: BinaryIO) -> str:
    (size,) = _unpack(file, "<Q")
    if size > _TEXT_BYTES_MAX:
        raise struct.error
    return file.read(size).decode("utf-8", errors="replace")


def _count(value: int) -> int:
    if value > _COUNT_MAX:
        raise struct.error
    return value


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
