"""Reads the shape of a model out of what comes with it: a parsed `config.json`, or the parsed header of a GGUF file.

Both are plain mappings here; who opens the file is the shell's business. The keys are those of Hugging Face
`transformers` and of llama.cpp's `gguf` (`constants.py`).
"""

from collections.abc import Mapping
from typing import Any

from setpoint.errors import ModelError
from setpoint.steptime.architecture import Architecture, LatentAttention

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_SHARED_FFN = ("shared_expert_intermediate_size", "share_expert_dim")
_UNGATED = ("gpt2", "gpt_neox", "opt", "phi", "falcon", "starcoder2")
_UNREAD = (
    "block_configs",
    "compress_ratios",
    "hybrid_override_pattern",
    "layers_block_type",
    "linear_attn_config",
    "mamba_num_heads",
)
"""Keys of models whose layers differ in kind (state space, linear attention, searched blocks), which are refused."""


def from_config(config: Mapping[str, Any], *, name: str | None = None) -> Architecture:
    """Return the architecture that a parsed Hugging Face `config.json` describes; raises `ModelError`."""
    text = config.get("text_config")
    tied = config.get("tie_word_embeddings")
    body: Mapping[str, Any] = text if isinstance(text, Mapping) else config
    kind = str(body.get("model_type", config.get("model_type", "unknown")))
    _refuse_hybrid(body, kind)
    hidden, heads = _whole(body, "hidden_size", "n_embd"), _whole(body, "num_attention_heads", "n_head")
    layers = _whole(body, "num_hidden_layers", "n_layer")
    experts = _optional(body, *_EXPERTS)
    expert_ffn = _optional(body, "moe_intermediate_size") or (_whole(body, "intermediate_size") if experts else 0)
    window, windowed = _windows(body, kind, layers)
    return Architecture(
        name=name or str(config.get("_name_or_path") or kind),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_optional(body, "num_key_value_heads") or heads,
        head_dim=_optional(body, "head_dim") or hidden // heads,
        vocabulary=_whole(body, "vocab_size"),
        ffn=_optional(body, "intermediate_size_mlp", "intermediate_size", "n_inner") or 4 * hidden,
        tied=bool(body.get("tie_word_embeddings", tied if tied is not None else kind.startswith("gemma"))),
        gated=kind not in _UNGATED,
        experts=experts,
        experts_active=_optional(body, "num_experts_per_tok") if experts else 0,
        expert_ffn=expert_ffn if experts else 0,
        shared_ffn=_shared(body, kind, expert_ffn) if experts else 0,
        dense_layers=_dense_layers(body, layers) if experts else 0,
        window=window,
        windowed_layers=windowed,
        latent=_latent_of_config(body),
    )


def _refuse_hybrid(body: Mapping[str, Any], kind: str) -> None:
    kinds = body.get("layer_types")
    named = {str(k) for k in kinds} if isinstance(kinds, list) else set()
    if any(body.get(key) for key in _UNREAD) or named & {"linear_attention", "mamba"}:
        raise _hybrid(kind)


def _refuse_state_space(body: Mapping[str, Any], kind: str) -> None:
    if any(key.startswith("ssm.") for key in body):
        raise _hybrid(kind)


def _hybrid(kind: str) -> ModelError:
    return ModelError(
        f"the layers of a {kind} model differ in kind, and cannot be read from its files",
        hint="add an entry by hand (docs/models-and-hardware.md), or profile the engine",
    )


def _dense_layers(body: Mapping[str, Any], layers: int) -> int:
    """Return how many layers of a mixture have no experts: the first ones, those of a list, or all but each n-th."""
    pattern = body.get("moe_layer_freq")
    if isinstance(pattern, list):
        return sum(1 for has_experts in pattern if not has_experts)
    if step := _optional(body, "interleave_moe_layer_step"):
        return layers - layers // step
    return _optional(body, "first_k_dense_replace")


def _shared(body: Mapping[str, Any], kind: str, expert_ffn: int) -> int:
    if kind.startswith("llama4"):
        return expert_ffn
    return _optional(body, *_SHARED_FFN) or _optional(body, "n_shared_experts") * expert_ffn


def _windows(body: Mapping[str, Any], kind: str, layers: int) -> tuple[int, int]:
    """Return (window, how many layers have it); Qwen2's `sliding_window` is off unless `use_sliding_window`."""
    window = _optional(body, "sliding_window", "attention_chunk_size")
    if not window or body.get("use_sliding_window") is False or kind in ("qwen2", "qwen3", "qwen3_moe"):
        return 0, 0
    kinds = body.get("layer_types")
    pattern_of_layers = body.get("hybrid_layer_pattern")
    if isinstance(kinds, list):
        windowed = sum(1 for k in kinds if k != "full_attention")
    elif isinstance(pattern_of_layers, list):
        windowed = sum(1 for is_windowed in pattern_of_layers if is_windowed)
    elif pattern := _optional(body, "sliding_window_pattern"):
        windowed = layers - layers // pattern
    elif kind in ("gpt_oss", "gemma2"):
        windowed = layers - layers // 2
    elif kind.startswith("gemma3"):
        windowed = layers - layers // 6
    elif kind.startswith("llama4"):
        windowed = layers - layers // 4
    else:
        windowed = layers
    return (window, windowed) if windowed else (0, 0)


def _latent_of_config(body: Mapping[str, Any]) -> LatentAttention | None:
    if not _optional(body, "kv_lora_rank"):
        return None
    return LatentAttention(
        query_rank=_optional(body, "q_lora_rank"),
        kv_rank=_whole(body, "kv_lora_rank"),
        rope_dim=_whole(body, "qk_rope_head_dim"),
        nope_dim=_whole(body, "qk_nope_head_dim"),
        value_dim=_whole(body, "v_head_dim"),
    )


def from_gguf(
    header: Mapping[str, Any], *, tied: bool | None = None, vocabulary: int | None = None, name: str | None = None
) -> Architecture:
    """Return the architecture that the key-value pairs of a GGUF header describe; raises `ModelError`.

    `tied`: whether the file lacks the tensor `output.weight` (default: untied). `vocabulary`: number of tokens, when
    the header holds neither `vocab_size` nor the token list.
    """
    kind = header.get("general.architecture")
    if not isinstance(kind, str):
        raise ModelError("the GGUF header has no general.architecture", hint="is this the first file of a split model?")
    body = {key.removeprefix(f"{kind}."): value for key, value in header.items() if key.startswith(f"{kind}.")}
    _refuse_state_space(body, kind)
    hidden, heads = _whole(body, "embedding_length"), _whole(body, "attention.head_count")
    layers, experts = _whole(body, "block_count"), _optional(body, "expert_count")
    expert_ffn = _optional(body, "expert_feed_forward_length") or (
        _whole(body, "feed_forward_length") if experts else 0
    )
    shared_ffn = _optional(body, "expert_shared_feed_forward_length")
    window = _optional(body, "attention.sliding_window")
    return Architecture(
        name=name or str(header.get("general.name") or kind),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=min(heads, _optional(body, "attention.head_count_kv") or heads),
        head_dim=_optional(body, "attention.key_length") or hidden // heads,
        vocabulary=_vocabulary(header, body, vocabulary),
        ffn=_optional(body, "feed_forward_length") or 4 * hidden,
        tied=bool(tied),
        gated=kind not in ("gpt2", "gptneox", "starcoder2", "falcon", "phi2"),
        experts=experts,
        experts_active=_optional(body, "expert_used_count") if experts else 0,
        expert_ffn=expert_ffn,
        shared_ffn=(shared_ffn or _optional(body, "expert_shared_count") * expert_ffn) if experts else 0,
        dense_layers=_optional(body, "leading_dense_block_count") if experts else 0,
        window=window,
        windowed_layers=_windowed_of_gguf(kind, layers) if window else 0,
        latent=_latent_of_gguf(body, hidden // heads),
    )


def _windowed_of_gguf(kind: str, layers: int) -> int:
    """Return how many layers have the window: the pattern is in llama.cpp's code, not in the header."""
    period = {"gemma3": 6, "gpt-oss": 2, "gemma2": 2, "llama4": 4, "cohere2": 4}.get(kind)
    return layers - layers // period if period else layers


def _vocabulary(header: Mapping[str, Any], body: Mapping[str, Any], given: int | None) -> int:
    tokens = header.get("tokenizer.ggml.tokens")
    size = given or _optional(body, "vocab_size") or (len(tokens) if isinstance(tokens, (list, tuple)) else 0)
    if not size:
        raise ModelError("the GGUF header names no vocabulary size", hint="pass the number of tokens")
    return size


def _latent_of_gguf(body: Mapping[str, Any], head: int) -> LatentAttention | None:
    if not _optional(body, "attention.kv_lora_rank"):
        return None
    rope = _optional(body, "rope.dimension_count")
    keys = _optional(body, "attention.key_length_mla", "attention.key_length") or head
    return LatentAttention(
        query_rank=_optional(body, "attention.q_lora_rank"),
        kv_rank=_whole(body, "attention.kv_lora_rank"),
        rope_dim=rope,
        nope_dim=keys - rope,
        value_dim=_optional(body, "attention.value_length_mla", "attention.value_length") or head,
    )


def _whole(body: Mapping[str, Any], *keys: str) -> int:
    found = _optional(body, *keys)
    if not found:
        raise ModelError(
            f"the model's configuration has no {' or '.join(keys)}",
            hint="give a decoder-only language model's config.json or GGUF header",
        )
    return found


def _optional(body: Mapping[str, Any], *keys: str) -> int:
    """Return the first of `keys` that is a positive whole number, or 0; of a list per layer, its largest."""
    for key in keys:
        value = body.get(key)
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
            value = max(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
