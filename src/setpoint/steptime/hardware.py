"""A catalog entry for an accelerator: dense peaks, bandwidth, memory, link, prices, each with a source.

Vendors print peaks with 2:4 sparsity, and third parties copy them as dense. On a part with tensor cores the dense FP8
peak is twice the BF16 one and the dense FP4 peak four times (six on B300): an entry that breaks the rule is refused.
"""

from typing import Literal

import msgspec

from setpoint.errors import ConfigError

Generation = Literal["turing", "ampere", "ada", "hopper", "blackwell", "cdna3", "cdna4", "xe", "apple", "cpu"]
_TOLERANCE = 0.04
_FP8_RATIOS = (2.0,)
_FP4_RATIOS = (4.0, 6.0)


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a GPU costs: an input with a provider, a date and a way to buy it, never a constant."""

    usd_per_hour: float
    provider: str
    date: str
    kind: Literal["on-demand", "spot", "reserved", "community", "index"] = "on-demand"
    source: str
    verified: bool = True


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator.

    `peaks_tflops`: dense peak by precision (`bf16` always; `fp8`, `int8`, `fp4` where there are units for it).
    `bandwidth_gb_s`: of its memory, in 10^9 bytes a second. `memory_gib`: as sold, which is in binary units; engines
    see 1-6 % less. `matrix_reach`, `memory_reach`: the share of the peak, and of the bandwidth, that its best kernels
    were measured to reach, over that of H100 (0.93 and 0.92). `link_gb_s`: of its link to its peers, both directions
    added. `verified` is false when a figure comes from memory, not from a source.
    """

    name: str
    generation: Generation
    memory_gib: float
    bandwidth_gb_s: float
    peaks_tflops: dict[str, float]
    link_gb_s: float
    link: str
    watts: float
    source: str
    date: str
    verified: bool = True
    matrix_reach: float = 1.0
    memory_reach: float = 1.0
    aliases: tuple[str, ...] = ()
    aiconfigurator: str | None = None
    prices: tuple[Price, ...] = ()

    def __post_init__(self) -> None:
        """Refuse figures that cannot be (`ConfigError`)."""
        if "bf16" not in self.peaks_tflops:
            raise ConfigError(f"hardware {self.name!r}: peaks_tflops has no bf16", hint=_HOW)
        figures = [
            self.memory_gib,
            self.bandwidth_gb_s,
            self.link_gb_s,
            self.watts,
            self.matrix_reach,
            self.memory_reach,
            *self.peaks_tflops.values(),
        ]
        if not all(figure > 0 for figure in figures) or not all(p.usd_per_hour > 0 for p in self.prices):
            raise ConfigError(f"hardware {self.name!r}: every figure must be above zero", hint=_HOW)
        if odd := set(self.peaks_tflops) - {"bf16", "fp8", "int8", "fp4"}:
            raise ConfigError(f"hardware {self.name!r}: unknown precision {sorted(odd)}", hint=_HOW)
        if not self.source or not self.date:
            raise ConfigError(f"hardware {self.name!r}: source and date are missing", hint=_HOW)
        self._check_ratio("fp8", _FP8_RATIOS)
        self._check_ratio("fp4", _FP4_RATIOS)

    def _check_ratio(self, precision: str, ratios: tuple[float, ...]) -> None:
        peak = self.peaks_tflops.get(precision)
        if peak is None:
            return
        ratio = peak / self.peaks_tflops["bf16"]
        if not any(abs(ratio / r - 1.0) <= _TOLERANCE for r in ratios):
            allowed = " or ".join(f"{r:g}" for r in ratios)
            raise ConfigError(
                f"hardware {self.name!r}: dense {precision} is {ratio:.2f} x bf16, and should be {allowed} x",
                hint="is one of the two a figure with sparsity? Halve it",
            )

    @property
    def bandwidth(self) -> float:
        """Bytes a second of its memory."""
        return self.bandwidth_gb_s * 1e9

    @property
    def memory(self) -> float:
        """Bytes of memory."""
        return self.memory_gib * 2.0**30

    @property
    def one_way(self) -> float:
        """Bytes a second to its peers, one direction: what an all-reduce sees."""
        return self.link_gb_s * 0.5e9

    def peak(self, precision: str) -> float:
        """Return the dense operations a second at `precision`; those of 16 bits when it has no such units."""
        return self.peaks_tflops.get(precision, self.peaks_tflops["bf16"]) * 1e12


_HOW = "see docs/models-and-hardware.md for the fields of an entry"
