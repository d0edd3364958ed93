"""Seconds of a step from architecture, hardware, quantization and layout.

Per GPU, for n decodes that read C tokens of context, and p prompt tokens that visit A pairs (T = n + p):

    matrices    read:    weights touched / (bandwidth x mbu); of E experts, k chosen, T tokens touch 1 - (1 - k/E)^T
                compute: 2 x active parameters x T / (peak x mfu); the head counts n + prefills rows only
    KV cache    C x bytes a token / (bandwidth x kv_mbu); a windowed layer reads at most n x window
    attention   4 x layers x heads x head_dim x A / (16-bit peak x attention_mfu)
    collectives 2 a layer: start + bytes / one-way link (Megatron-LM, 1909.08053)
    overheads   a step, a layer, a sequence

Reading and computing the matrices overlap in part: their cost is the Euclidean norm of both, which is never below the
greater one. All else is added. Every term is non-negative and grows with each argument, so the whole is monotone.
Without the overheads a roofline misses half of the time between tokens (docs/models-and-hardware.md).
"""

from math import hypot

from setpoint.model import StepShape
from setpoint.steptime.architecture import Architecture
from setpoint.steptime.efficiency import Calibration, Efficiency
from setpoint.steptime.hardware import Hardware
from setpoint.steptime.setup import Layout, Setup
from setpoint.units import Seconds

_ACTIVATION_BYTES = 2.0


class Roofline:
    """A `StepTime` that never learns: predicts from first principles and fitted efficiencies."""

    is_fixed = True

    def __init__(
        self, setup: Setup, efficiency: Efficiency, *, is_streamed: bool = False, tail_ratio: float = 1.5
    ) -> None:
        """Compute what does not depend on the step; `is_streamed`: each token goes to a client at once."""
        a, q, hardware, layout = setup.architecture, setup.quantization, setup.hardware, setup.layout
        e, ranks = efficiency, layout.tensor
        self.setup, self.efficiency, self.is_streamed = setup, efficiency, is_streamed
        self.architecture = a
        self.tail_ratio = tail_ratio
        precision = q.precision(hardware.peaks_tflops)
        reached = e.mfu * hardware.matrix_reach * ranks
        matrix_rate = hardware.peak("bf16" if q.scope == "experts" else precision) * reached
        expert_rate = hardware.peak(precision) * reached * e.expert_mfu
        head_rate = hardware.peak("bf16") * reached
        copies = 1 if layout.is_spread else ranks
        reading = hardware.bandwidth * hardware.memory_reach * e.mbu
        dense = a.dense_parameters - a.attention_parameters
        read = a.attention_parameters * q.traffic(q.attention_bytes) + dense * q.traffic(q.dense_bytes)
        self._experts_read_s = a.experts_parameters * q.traffic(q.expert_bytes) / ranks / reading
        read += a.embedding_parameters * q.traffic(q.vocabulary_bytes)
        self._read_s = read / copies / reading
        active_experts = a.expert_layers * a.experts_active * a.expert_parameters
        self._token_s = 2.0 * a.dense_parameters / matrix_rate + 2.0 * active_experts / expert_rate
        self._row_s = 2.0 * a.embedding_parameters / head_rate
        self._missed_ratio = 1.0 - a.experts_active / a.experts if a.experts else 0.0
        kv_rate = hardware.bandwidth * hardware.memory_reach * e.kv_mbu * layout.kv_shards(a)
        self._context_s = a.kv_values_full * q.kv_bytes / kv_rate
        self._window_s = a.kv_values_windowed * q.kv_bytes / kv_rate
        self._window = a.window
        attention_rate = hardware.peak("bf16") * hardware.matrix_reach * e.attention_mfu * ranks
        pair_s = 4.0 * a.heads * _score_width(a) / attention_rate
        windowed = a.windowed_layers if a.window else 0
        self._pair_s, self._window_pair_s = pair_s * (a.layers - windowed), pair_s * windowed
        self._exchange(layout, hardware, efficiency)
        self._sequence_s = e.sequence_s + (e.stream_s if is_streamed else 0.0)
        self.request_s = e.request_s
        self._step_s = e.step_s + e.layer_s * a.layers + self._hops_s
        self._line_from = self._window if self._window_s else 0
        self._bases: dict[int, float] = {}

    def _exchange(self, layout: Layout, hardware: Hardware, efficiency: Efficiency) -> None:
        """Set the cost of collectives, a step and a token; a pipeline adds one hop between two stages."""
        a, ranks = self.architecture, layout.tensor
        link = hardware.one_way * efficiency.link_share
        width = a.hidden * _ACTIVATION_BYTES
        self._hops_s = (layout.pipeline - 1) * efficiency.hop_s
        self._exchange_s = (layout.pipeline - 1) * width / link
        if ranks == 1:
            return
        if layout.is_spread:
            sent = a.expert_layers * max(1, a.experts_active) / ranks
        else:
            sent = a.layers * 2.0 * (ranks - 1) / ranks
        calls = 2.0 * (a.expert_layers if layout.is_spread else a.layers)
        self._hops_s += calls * efficiency.hop_s
        self._exchange_s += 2.0 * sent * width / link

    def seconds(
        self,
        decodes: int,
        context_tokens: int,
        prefill_tokens: int = 0,
        prefill_work: float = 0.0,
        prefills: int = 0,
        /,
    ) -> float:
        """Return the expected seconds of a step of this shape, zero for an empty one."""
        if prefill_tokens or context_tokens < decodes * self._line_from:
            return self.seconds_of(decodes, context_tokens, prefill_tokens, prefill_work, prefills)
        base_s = self._bases.get(decodes)
        return (self._base(decodes) if base_s is None else base_s) + context_tokens * self._context_s

    def decode_line(self, decodes: int, context_tokens: int) -> tuple[float, float] | None:
        """Return (base, slope) of the time of pure decoding over the context; none while windows are not yet full."""
        return None if context_tokens < decodes * self._line_from else (self._base(decodes), self._context_s)

    def _base(self, decodes: int) -> float:
        """Return the seconds of pure decoding with full windows, before the context that grows on; kept."""
        if decodes not in self._bases:
            windows_s = decodes * self._line_from * self._window_s
            self._bases[decodes] = self.seconds_of(decodes, 0.0) + windows_s if decodes else 0.0
        return self._bases[decodes]

    def seconds_of(
        self, decodes: float, context: float, prefill_tokens: float = 0.0, work: float = 0.0, prefills: float = 0.0
    ) -> float:
        """Return the same for fractions, as a mean field needs."""
        tokens = decodes + prefill_tokens
        if tokens <= 0.0:
            return 0.0
        touched = 1.0 - self._missed_ratio**tokens if self._missed_ratio else 1.0
        read_s = self._read_s + self._experts_read_s * touched
        matrices_s = hypot(read_s, tokens * self._token_s + (decodes + prefills) * self._row_s)
        seconds = matrices_s + tokens * self._exchange_s + self._step_s + decodes * self._sequence_s
        seconds += context * self._context_s + work * self._pair_s
        if self._window:
            seconds += min(context, decodes * self._window) * self._window_s
            seconds += min(work, prefill_tokens * self._window) * self._window_pair_s
        return seconds

    def observe(self, shape: StepShape, seconds: Seconds) -> None:
        """Learn nothing."""


def _score_width(architecture: Architecture) -> float:
    """Return the mean width of the query-key and value products of a head."""
    mla = architecture.latent
    return architecture.head_dim if mla is None else (mla.nope_dim + mla.rope_dim + mla.value_dim) / 2


def roofline(setup: Setup, calibration: Calibration, *, engine: str = "", is_streamed: bool = False) -> Roofline:
    """Return the step time of `setup` under the calibrated efficiencies of `engine` (see `engine_key`)."""
    hardware = setup.hardware
    efficiency = calibration.of(
        engine=engine,
        generation=hardware.generation,
        precision=setup.quantization.precision(hardware.peaks_tflops),
    )
    return Roofline(setup, efficiency, is_streamed=is_streamed)
