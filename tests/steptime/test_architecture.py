"""Shapes from the catalog, a config.json or a GGUF header give the published parameter counts and KV sizes."""

from pathlib import Path

import msgspec
import pytest

from setpoint.errors import ConfigError, ModelError
from setpoint.sim import catalog
from setpoint.steptime.model_files import from_config, from_gguf

KIB = 1024
KV_KIB_A_TOKEN = {
    "smollm2-135m": 22.5,
    "llama-3.2-1b": 32,
    "llama-3.2-3b": 112,
    "llama-3.1-8b": 128,
    "llama-3.3-70b": 320,
    "llama-3.1-405b": 504,
    "qwen2.5-7b": 56,
    "qwen2.5-32b": 256,
    "qwen2.5-72b": 320,
    "qwen3-8b": 144,
    "qwen3-32b": 256,
    "qwen3-30b-a3b": 96,
    "qwen3-235b-a22b": 188,
    "mixtral-8x7b": 128,
    "deepseek-v3": 68.6,
    "gpt-oss-20b": 48,
    "gpt-oss-120b": 72,
    "gemma-3-27b": 496,
}
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_hidden_layers": 61,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "head_dim": 128,
    "vocab_size": 129280,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "vocab_size": 201088,
}
SMOLLM_HEADER = {
    "general.architecture": "llama",
    "general.name": "SmolLM2 135M",
    "llama.block_count": 30,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "tokenizer.ggml.tokens": ["token"] * 49152,
}


@pytest.mark.parametrize("entry", catalog.models().values(), ids=lambda entry: entry.architecture.name)
def test_a_catalog_entry_has_the_published_parameters(entry: catalog.Model) -> None:
    shape = entry.architecture
    assert entry.source
    assert entry.date
    assert entry.parameters_b is not None
    assert shape.parameters / 1e9 == pytest.approx(entry.parameters_b, rel=0.005)
    if entry.active_b is not None:
        assert shape.active_parameters / 1e9 == pytest.approx(entry.active_b, rel=0.005)
    elif not shape.experts:
        assert shape.active_parameters == shape.parameters


@pytest.mark.parametrize(("name", "kib"), KV_KIB_A_TOKEN.items())
def test_a_token_takes_the_published_bytes_of_kv_cache(name: str, kib: float) -> None:
    assert catalog.model(name).kv_bytes_per_token() / KIB == pytest.approx(kib, rel=0.001)


def test_behind_a_window_only_the_global_layers_grow() -> None:
    gemma = catalog.model("gemma-3-27b")
    assert gemma.kv_bytes(5000) / KIB == pytest.approx(80 * 5000 + 416 * 1024)
    oss = catalog.model("gpt-oss-120b")
    assert (oss.kv_bytes(129) - oss.kv_bytes(128)) / KIB == pytest.approx(36)


def test_fp8_halves_the_kv_cache() -> None:
    shape = catalog.model("llama-3.1-8b")
    assert shape.kv_bytes(1000, 1.0) == shape.kv_bytes(1000) / 2


def test_a_config_gives_the_catalog_shape() -> None:
    assert from_config(LLAMA_8B, name="llama-3.1-8b") == catalog.model("llama-3.1-8b")


def test_latent_attention_shared_and_dense_layers_are_read() -> None:
    assert from_config(DEEPSEEK, name="deepseek-v3") == catalog.model("deepseek-r1")


def test_windowed_layers_are_counted_from_the_layer_types() -> None:
    shape = from_config(GPT_OSS, name="gpt-oss-120b")
    assert (shape.window, shape.windowed_layers) == (128, 18)
    assert shape.parameters == catalog.model("gpt-oss-120b").parameters


def test_the_window_of_a_qwen_config_is_off() -> None:
    shape = from_config({**LLAMA_8B, "model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False})
    assert shape.windowed_layers == 0


def test_experts_in_every_second_layer_are_counted() -> None:
    maverick = {
        **LLAMA_8B,
        "model_type": "llama4_text",
        "hidden_size": 5120,
        "num_attention_heads": 40,
        "num_hidden_layers": 48,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 128,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "vocab_size": 202048,
    }
    shape = from_config(maverick)
    assert shape.dense_layers == 24
    assert shape.parameters / 1e9 == pytest.approx(400, rel=0.01)


@pytest.mark.parametrize(
    "mark", [{"hybrid_override_pattern": "ME*E"}, {"layer_types": ["linear_attention", "full_attention"]}]
)
def test_a_model_whose_layers_differ_in_kind_is_refused_rather_than_guessed(mark: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="differ in kind"):
        from_config({**LLAMA_8B, **mark})
    with pytest.raises(ModelError, match="differ in kind"):
        from_gguf({**SMOLLM_HEADER, "llama.ssm.conv_kernel": 4})


def test_a_multimodal_config_is_read_through_its_text_part() -> None:
    shape = from_config({"model_type": "mllama", "text_config": LLAMA_8B})
    assert shape.parameters == catalog.model("llama-3.1-8b").parameters


def test_a_gguf_header_gives_the_shape() -> None:
    shape = from_gguf(SMOLLM_HEADER, tied=True, name="smollm2-135m")
    assert shape == catalog.model("smollm2-135m")


def test_a_gguf_header_without_what_matters_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no general\.architecture"):
        from_gguf({})
    with pytest.raises(ModelError, match="no embedding_length"):
        from_gguf({"general.architecture": "llama"})
    with pytest.raises(ModelError, match="vocabulary"):
        from_gguf({k: v for k, v in SMOLLM_HEADER.items() if k != "tokenizer.ggml.tokens"})


def test_a_config_of_something_else_is_refused_with_a_hint() -> None:
    with pytest.raises(ModelError, match="hidden_size") as caught:
        from_config({"model_type": "resnet"})
    assert "config.json" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers"),
        ({"kv_heads": 64}, "KV heads"),
        ({"experts": 8}, "experts_active"),
        ({"ffn": 0}, "neither"),
        ({"windowed_layers": 33}, "windowed_layers"),
    ],
)
def test_a_shape_that_no_model_has_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        msgspec.structs.replace(catalog.model("llama-3.1-8b"), **change)


def test_an_unknown_model_is_answered_with_what_was_meant_and_how_to_add_it() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'llama-3\.1-80b'") as caught:
        catalog.model("llama-3.1-80b")
    assert "did you mean llama-3.1-8" in (caught.value.hint or "")
    assert "docs/models-and-hardware.md" in (caught.value.hint or "")


def test_a_name_is_found_in_any_case_and_behind_an_organisation() -> None:
    assert catalog.model("meta-llama/Llama-3.1-8B-Instruct") is catalog.model("llama_3.1_8b")


def test_a_misspelt_field_of_an_entry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[mine]\nlayer = 3\n")
    with pytest.raises(ConfigError, match="layer"):
        catalog.model("mine", extra=path)
