"""The shape of a transformer, and what follows from it: parameters, weights, KV cache.

    attention (GQA)  hidden x head_dim x (2 heads + 2 kv_heads)          a layer
    attention (MLA)  low-rank projections of queries and of one latent that all heads share (DeepSeek-V2, 2405.04434)
    feed-forward     3 x hidden x width when gated, 2 x without          a layer, or an expert
    KV cache         2 x kv_heads x head_dim values a token and layer; MLA: kv_rank + rope_dim; a windowed layer keeps
                     no more than `window` tokens

Biases and norms are below 0.1 % of the parameters and are left out.
"""

import msgspec

from setpoint.errors import ModelError


class LatentAttention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Multi-head latent attention: ranks of the query and KV projections, and the widths of a head's parts.

    `query_rank` 0: queries are projected directly.
    """

    query_rank: int
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int


class Architecture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a decoder-only transformer.

    `ffn`: width of a dense feed-forward layer. `experts` of width `expert_ffn`, `experts_active` of which each token
    visits, in all layers but the first `dense_layers`; `shared_ffn`: width that every token visits beside them.
    `window`: tokens that `windowed_layers` of the layers look back (0: all look back to the start).
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    ffn: int = 0
    tied: bool = False
    gated: bool = True
    experts: int = 0
    experts_active: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0
    window: int = 0
    windowed_layers: int = 0
    latent: LatentAttention | None = None

    def __post_init__(self) -> None:
        """Refuse a shape that no model has (`ModelError`)."""
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocabulary"):
            if getattr(self, field) < 1:
                raise ModelError(f"model {self.name!r}: {field} must be at least 1", hint=_READ)
        if self.kv_heads > self.heads:
            raise ModelError(f"model {self.name!r}: {self.kv_heads} KV heads for {self.heads} heads", hint=_READ)
        if self.experts and not (1 <= self.experts_active <= self.experts and self.expert_ffn > 0):
            raise ModelError(
                f"model {self.name!r}: {self.experts} experts need experts_active in 1..{self.experts} and expert_ffn",
                hint=_READ,
            )
        if not self.experts and self.ffn < 1:
            raise ModelError(f"model {self.name!r}: neither ffn nor experts are given", hint=_READ)
        if not 0 <= self.windowed_layers <= self.layers or min(self.window, self.dense_layers) < 0:
            raise ModelError(f"model {self.name!r}: windowed_layers must be in 0..{self.layers}", hint=_READ)

    @property
    def attention_parameters(self) -> int:
        """The attention parameters of all layers."""
        return self.layers * self._attention_a_layer

    @property
    def _attention_a_layer(self) -> int:
        mla = self.latent
        if mla is None:
            return self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        head = mla.nope_dim + mla.rope_dim
        query = self.heads * head
        queries = mla.query_rank * (self.hidden + query) if mla.query_rank else self.hidden * query
        down = self.hidden * (mla.kv_rank + mla.rope_dim)
        up = mla.kv_rank * self.heads * (mla.nope_dim + mla.value_dim)
        return queries + down + up + self.heads * mla.value_dim * self.hidden

    @property
    def _matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def expert_layers(self) -> int:
        """The layers that have experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def expert_parameters(self) -> int:
        """The parameters of one expert."""
        return self._matrices * self.hidden * self.expert_ffn

    @property
    def experts_parameters(self) -> int:
        """The parameters of all experts of all layers."""
        return self.expert_layers * self.experts * self.expert_parameters

    @property
    def dense_parameters(self) -> int:
        """What every token passes through, in all layers, without experts and vocabulary."""
        dense = (self.layers - self.expert_layers) * self.ffn + self.expert_layers * self.shared_ffn
        router = self.expert_layers * self.hidden * self.experts
        return self.attention_parameters + self._matrices * self.hidden * dense + router

    @property
    def embedding_parameters(self) -> int:
        """One matrix of vocabulary x hidden: the input embedding, or the head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.dense_parameters + self.experts_parameters + self.embedding_parameters * (1 if self.tied else 2)

    @property
    def active_parameters(self) -> int:
        """The parameters that one token's pass involves, both vocabulary matrices counted."""
        return self.parameters - self.expert_layers * (self.experts - self.experts_active) * self.expert_parameters

    @property
    def kv_values_full(self) -> int:
        """KV values that a token adds in the layers that look back to the start."""
        return (self.layers - self._windowed) * self._kv_values_a_layer

    @property
    def kv_values_windowed(self) -> int:
        """KV values that a token adds in the windowed layers, while the window is not full."""
        return self._windowed * self._kv_values_a_layer

    @property
    def _windowed(self) -> int:
        return self.windowed_layers if self.window else 0

    @property
    def _kv_values_a_layer(self) -> int:
        if self.latent is not None:
            return self.latent.kv_rank + self.latent.rope_dim
        return 2 * self.kv_heads * self.head_dim

    def kv_bytes(self, tokens: float, value_bytes: float = 2.0) -> float:
        """Return the bytes that the KV cache of one sequence of `tokens` takes, with `value_bytes` a value."""
        kept = min(tokens, self.window) if self.window else 0.0
        return value_bytes * (self.kv_values_full * tokens + self.kv_values_windowed * kept)

    def kv_bytes_per_token(self, value_bytes: float = 2.0) -> float:
        """Return the bytes that a token adds in a short sequence: the nominal figure."""
        return self.kv_bytes(1.0, value_bytes)


_READ = "compare with the model's config.json, see docs/models-and-hardware.md"
