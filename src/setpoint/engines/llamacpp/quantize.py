"""Another number format for a model, made at load and kept.

On processors without special matrix units the format decides how well batches pay: llama.cpp repacks Q4_0 so that one
pass over the weights serves many sequences, and has nothing of the kind for Q4_1. The conversion is the reference one
of the `gguf` package (dequantize, then quantize), so it is the same whichever library runs the model. Going from one
4-bit format to another loses quality twice; `docs` and the planner say how much on the user's own prompts.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from setpoint.engines.llamacpp.starter import models_dir
from setpoint.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

FORMATS: Final = ("q4_0", "q8_0", "f16")
_HEADER_BYTES: Final = 1 << 20
_LARGE_BYTES: Final = 1 << 30


def quantized_model(source: Path, form: str, *, cache: Path | None = None) -> Path:
    """Return a GGUF file with the model of `source` in the format `form`, made when it is not kept already.

    It is known again by the head of the source file, its size and its time of change. In `q4_0` the embeddings and the
    output matrix become Q8_0; vectors, and matrices whose rows do not fill blocks, keep a float format. Raises
    ConfigError for an unknown format, ModelError when the source cannot be read or the result not be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"{form!r} is not a format that Setpoint quantizes to", hint=f"choose {', '.join(FORMATS)}")
    cache = cache or models_dir()
    target = cache / f"{source.stem}.{_fingerprint(source)}.{form}.gguf"
    if target.is_file():
        return target
    partial = target.with_suffix(f".partial-{os.getpid()}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _convert(source, partial, form)
        partial.replace(target)
    except OSError as error:
        raise ModelError(
            f"cannot write the {form} model to {cache}: {error.strerror or error}",
            hint="free some space, or set XDG_CACHE_HOME to a folder with more",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _fingerprint(source: Path) -> str:
    try:
        facts = source.stat()
        with source.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError as error:
        raise ModelError(f"cannot read {source}: {error.strerror}") from error
    return hashlib.sha256(head + f"{facts.st_size}/{facts.st_mtime_ns}".encode()).hexdigest()[:12]


def _convert(source: Path, target: Path, form: str) -> None:
    import gguf  # noqa: PLC0415 - heavy, and needed only when a model is converted

    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{source} is not a GGUF file that can be read: {error}", hint="fetch it again") from error
    if "split.count" in reader.fields:
        raise ModelError(f"{source} is one part of a split model", hint="merge the parts with llama-gguf-split first")
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    _copy_metadata(reader, writer, form)
    plan = [(tensor, _wanted(tensor, form)) for tensor in reader.tensors]
    for tensor, wanted in plan:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        raw_shape = gguf.quant_shape_to_byte_shape(shape, wanted) if gguf_is_quantized(wanted) else shape
        dtype = np.dtype({gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}.get(
            wanted, np.uint8))  # fmt: skip
        writer.add_tensor_info(tensor.name, raw_shape, dtype, int(np.prod(raw_shape)) * dtype.itemsize, wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(int(tensor.n_bytes) for tensor, _ in plan)
    done = 0
    for tensor, wanted in plan:
        writer.write_tensor_data(_data(tensor, wanted))
        done += int(tensor.n_bytes)
        if total >= _LARGE_BYTES and sys.stderr.isatty():
            sys.stderr.write(f"\rQuantizing to {form}: {100 * done // total}%" + ("\n" if done == total else ""))
    writer.close()


def gguf_is_quantized(kind: "GGMLQuantizationType") -> bool:
    """Return whether values of this type are packed in blocks."""
    return kind.name not in {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}


def _wanted(tensor: Any, form: str) -> "GGMLQuantizationType":  # noqa: ANN401 - gguf's ReaderTensor
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

    if len(tensor.shape) == 1 or not tensor.name.endswith(".weight") or "_norm" in tensor.name:
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[form.upper()]
    if form == "q4_0" and tensor.name in {"token_embd.weight", "output.weight"}:
        wanted = GGMLQuantizationType.Q8_0
    return wanted if int(tensor.shape[0]) % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _data(tensor: Any, wanted: "GGMLQuantizationType") -> "np.ndarray[Any, Any]":  # noqa: ANN401
    from gguf import quants  # noqa: PLC0415

    if tensor.tensor_type == wanted:
        return np.asarray(tensor.data)
    converted: np.ndarray[Any, Any] = quants.quantize(quants.dequantize(tensor.data, tensor.tensor_type), wanted)
    return converted


def _copy_metadata(reader: "GGUFReader", writer: "GGUFWriter", form: str) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFValueType, LlamaFileType  # noqa: PLC0415

    file_type = LlamaFileType.MOSTLY_F16 if form == "f16" else LlamaFileType[f"MOSTLY_{form.upper()}"]
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in {"general.architecture", "general.file_type"}:
            continue
        kind = field.types[0]
        sub_kind = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_kind)
    writer.add_file_type(file_type)
    if "general.quantization_version" not in reader.fields:
        writer.add_quantization_version(GGML_QUANT_VERSION)
