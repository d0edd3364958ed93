"""What is deployed: a model, in some format, on some hardware, spread in some way."""

import msgspec

from setpoint.errors import ConfigError
from setpoint.steptime.architecture import Architecture
from setpoint.steptime.hardware import Hardware
from setpoint.steptime.quantization import Quantization


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How one replica spreads over GPUs.

    `tensor` ranks share each layer; `pipeline` stages hold consecutive layers. `is_spread`: instead of sharing each
    layer, the ranks share the sequences (attention and dense parts are copied) and divide the experts (vLLM's DP + EP,
    TensorRT-LLM's DEP).
    """

    tensor: int = 1
    pipeline: int = 1
    is_spread: bool = False

    def __post_init__(self) -> None:
        """Refuse less than one rank (`ConfigError`)."""
        if self.tensor < 1 or self.pipeline < 1:
            raise ConfigError(f"{self.tensor} tensor ranks x {self.pipeline} stages", hint="both are at least 1")

    @property
    def gpus(self) -> int:
        """The GPUs of one replica."""
        return self.tensor * self.pipeline

    def kv_shards(self, architecture: Architecture) -> int:
        """Return over how many GPUs of a stage the KV cache of a sequence, or the sequences, are divided."""
        if self.is_spread:
            return self.tensor
        return 1 if architecture.latent else min(self.tensor, architecture.kv_heads)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """One replica: all that its step time and its memory follow from, but for the engine."""

    architecture: Architecture
    hardware: Hardware
    quantization: Quantization
    layout: Layout = Layout()
