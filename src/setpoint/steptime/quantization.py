"""How weights are stored and which arithmetic multiplies them.

Weight bytes and compute rate are separate facts: a weight-only format (W4A16) reads a quarter of the bytes and
multiplies in 16 bits; FP8 on a GPU without FP8 units does the same; an activation-quantized format (W8A8, NVFP4)
also multiplies faster. That INT4 wins at small batch and W8A8 at large one then follows, without a special case.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from setpoint.errors import ConfigError
from setpoint.steptime.names import unknown

Precision = Literal["bf16", "fp8", "int8", "fp4"]
Scope = Literal["linear", "ffn", "experts", "all"]
_ONE_BYTE = 8


class Quantization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A format: `bits` a weight (scales counted), and the `compute` precisions that it can multiply in, best first.

    `scope`: what is quantized: the matrices of the layers, those without attention, the experts alone, or the
    vocabulary too. `kv_bits`: bits of a KV value. `unpacked`: the kernel writes the weights out in 16 bits and reads
    them back, at every step.
    """

    name: str
    bits: float
    compute: tuple[Precision, ...] = ("bf16",)
    scope: Scope = "linear"
    kv_bits: float = 16.0
    unpacked: bool = False

    @property
    def attention_bytes(self) -> float:
        """Bytes of a weight of attention."""
        return (16.0 if self.scope in ("experts", "ffn") else self.bits) / 8

    @property
    def dense_bytes(self) -> float:
        """Bytes of a weight of dense feed-forward layers, shared experts and routers."""
        return (16.0 if self.scope == "experts" else self.bits) / 8

    @property
    def expert_bytes(self) -> float:
        """Bytes of a weight of an expert."""
        return self.bits / 8

    @property
    def vocabulary_bytes(self) -> float:
        """Bytes of a weight of the embedding and of the head."""
        return (self.bits if self.scope == "all" else 16.0) / 8

    @property
    def kv_bytes(self) -> float:
        """Bytes of a KV value."""
        return self.kv_bits / 8

    def traffic(self, stored_bytes: float) -> float:
        """Return the bytes moved to use a weight of `stored_bytes`: more when it is unpacked through memory."""
        return stored_bytes + 4.0 if self.unpacked and stored_bytes < 2.0 else stored_bytes  # noqa: PLR2004

    def precision(self, peaks: Mapping[str, float]) -> Precision:
        """Return the first compute precision that hardware with these `peaks` has; 16 bits when it has none."""
        return next((p for p in self.compute if p in peaks), "bf16")


def _gguf(name: str, bits: float) -> Quantization:
    return Quantization(name=name, bits=bits, scope="all")


FORMATS: dict[str, Quantization] = {
    q.name: q
    for q in (
        Quantization(name="bf16", bits=16.0),
        Quantization(name="fp16", bits=16.0),
        Quantization(name="fp8", bits=8.0, compute=("fp8", "bf16")),
        Quantization(name="fp8-ffn", bits=8.0, compute=("fp8", "bf16"), scope="ffn"),
        Quantization(name="w8a8", bits=8.0, compute=("int8", "bf16")),
        Quantization(name="w8a16", bits=8.0),
        Quantization(name="w4a16", bits=4.25),
        Quantization(name="w4a16-gptq", bits=4.25, unpacked=True),
        Quantization(name="fp8-unpacked", bits=8.0, unpacked=True),
        Quantization(name="nvfp4", bits=4.5, compute=("fp4", "bf16")),
        Quantization(name="mxfp4", bits=4.25, compute=("fp4", "bf16"), scope="experts"),
        _gguf("f16", 16.0),
        _gguf("q8_0", 8.5),
        _gguf("q6_k", 6.56),
        _gguf("q5_k_m", 5.7),
        _gguf("q4_k_m", 4.89),
        _gguf("q4_1", 5.0),
        _gguf("q4_0", 4.6),
        _gguf("q3_k_m", 3.9),
    )
}
"""The formats by name; bits a weight of the GGUF types: llama.cpp `tools/quantize/README.md` (Llama-3.1-8B)."""


def quantization(name: str, *, fp8_kv: bool = False) -> Quantization:
    """Return the format called `name` (in any case, `-` or `_`); raises `ConfigError` for one that is not known."""
    key = name.lower()
    found = FORMATS.get(key) or FORMATS.get(key.replace("_", "-")) or FORMATS.get(key.replace("-", "_"))
    if found is None:
        raise unknown(ConfigError, "quantization", name, FORMATS, "see docs/models-and-hardware.md for what each means")
    return msgspec.structs.replace(found, kv_bits=float(_ONE_BYTE)) if fp8_kv else found
