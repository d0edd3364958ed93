"""What is left for the KV cache beside the weights; "does not fit" is an answer, not an error."""

import msgspec

from setpoint.steptime.architecture import Architecture
from setpoint.steptime.quantization import Quantization
from setpoint.steptime.setup import Setup

UTILIZATION = 0.9
"""The share of memory that an engine takes (vLLM's `gpu_memory_utilization`)."""

RESERVE_BYTES = 1.5 * 2**30
"""Activations, runtime and communication buffers on each GPU."""


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a model fits on one replica, and what is left.

    `weight_bytes`: on each GPU. `kv_room_bytes`: for the KV cache of the whole replica, each value counted once; zero
    when nothing is left. `short_bytes`: what each GPU lacks to hold weights and reserve. `kv_tokens`: tokens of short
    sequences that the room takes (a window makes long ones cheaper: see `sequences`).
    """

    architecture: Architecture
    value_bytes: float
    weight_bytes: float
    kv_room_bytes: float
    short_bytes: float

    @property
    def is_fitting(self) -> bool:
        """Whether weights, reserve and at least one token of KV cache fit."""
        return self.kv_tokens > 0

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV cache that the room takes, at the nominal cost of a token."""
        return int(self.kv_room_bytes / self.architecture.kv_bytes_per_token(self.value_bytes))

    def sequences(self, tokens: float) -> float:
        """Return how many sequences of `tokens` fit at once."""
        return self.kv_room_bytes / self.architecture.kv_bytes(max(1.0, tokens), self.value_bytes)


def weight_bytes(architecture: Architecture, quantization: Quantization) -> float:
    """Return the bytes of all weights, once."""
    vocabulary = architecture.embedding_parameters * (1 if architecture.tied else 2)
    return (
        architecture.attention_parameters * quantization.attention_bytes
        + (architecture.dense_parameters - architecture.attention_parameters) * quantization.dense_bytes
        + architecture.experts_parameters * quantization.expert_bytes
        + vocabulary * quantization.vocabulary_bytes
    )


def fit(setup: Setup, *, utilization: float = UTILIZATION, reserve_bytes: float = RESERVE_BYTES) -> Fit:
    """Return what is left on each replica when an engine takes the share `utilization` of the memory."""
    architecture, quantization, layout = setup.architecture, setup.quantization, setup.layout
    total = weight_bytes(architecture, quantization)
    experts = architecture.experts_parameters * quantization.expert_bytes
    copied = total - experts if layout.is_spread else 0.0
    each = (copied + (total - copied) / layout.tensor) / layout.pipeline
    left = setup.hardware.memory * utilization - each - reserve_bytes
    return Fit(
        architecture=architecture,
        value_bytes=quantization.kv_bytes,
        weight_bytes=each,
        kv_room_bytes=max(0.0, left) * layout.kv_shards(architecture) * layout.pipeline,
        short_bytes=max(0.0, -left),
    )
