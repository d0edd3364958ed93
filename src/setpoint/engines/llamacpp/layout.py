"""The C structs that cross into libllama, as one build of llama.cpp lays them out.

llama.cpp promises no stable struct layout: fields come and go between builds. So a layout belongs to exactly one build,
and `native` convicts a library that does not fit before anything is passed to it. `B11549` was written by hand from
`include/llama.h` of the source distribution of xllamacpp 2026.10.11549 (llama.cpp build 11549, version 0.6.0-dev). The
layout of llama-cpp-python is taken from its own module, which its authors keep in step with their build.
"""

import ctypes
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

_i32, _u32, _f32, _bool = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool
_enum, _pointer, _size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t

Field = tuple[str, Any]


class ModelParams(ctypes.Structure):
    """`struct llama_model_params`."""

    _fields_: ClassVar[list[Field]] = [
        ("devices", _pointer),
        ("tensor_buft_overrides", _pointer),
        ("n_gpu_layers", _i32),
        ("split_mode", _enum),
        ("load_mode", _enum),
        ("lazy_mode", _enum),
        ("main_gpu", _i32),
        ("tensor_split", _pointer),
        ("progress_callback", _pointer),
        ("progress_callback_user_data", _pointer),
        ("kv_overrides", _pointer),
        ("vocab_only", _bool),
        ("check_tensors", _bool),
        ("use_extra_bufts", _bool),
        ("no_host", _bool),
        ("no_alloc", _bool),
        ("load_mtp", _bool),
    ]


class ContextParams(ctypes.Structure):
    """`struct llama_context_params`."""

    _fields_: ClassVar[list[Field]] = [
        ("n_ctx", _u32),
        ("n_batch", _u32),
        ("n_ubatch", _u32),
        ("n_seq_max", _u32),
        ("n_rs_seq", _u32),
        ("n_outputs_max", _u32),
        ("n_outputs_max_per_seq", _u32),
        ("n_threads", _i32),
        ("n_threads_batch", _i32),
        ("ctx_type", _enum),
        ("rope_scaling_type", _enum),
        ("pooling_type", _enum),
        ("attention_type", _enum),
        ("flash_attn_type", _enum),
        ("rope_freq_base", _f32),
        ("rope_freq_scale", _f32),
        ("yarn_ext_factor", _f32),
        ("yarn_attn_factor", _f32),
        ("yarn_beta_fast", _f32),
        ("yarn_beta_slow", _f32),
        ("yarn_orig_ctx", _u32),
        ("defrag_thold", _f32),
        ("cb_eval", _pointer),
        ("cb_eval_user_data", _pointer),
        ("type_k", _enum),
        ("type_v", _enum),
        ("moe_cache_size", _size),
        ("abort_callback", _pointer),
        ("abort_callback_data", _pointer),
        ("embeddings", _bool),
        ("offload_kqv", _bool),
        ("no_perf", _bool),
        ("op_offload", _bool),
        ("swa_full", _bool),
        ("kv_unified", _bool),
        ("samplers", _pointer),
        ("n_samplers", _size),
        ("ctx_other", _pointer),
    ]


class Batch(ctypes.Structure):
    """`struct llama_batch`: the arrays have one entry a token."""

    _fields_: ClassVar[list[Field]] = [
        ("n_tokens", _i32),
        ("token", ctypes.POINTER(_i32)),
        ("embd", ctypes.POINTER(_f32)),
        ("pos", ctypes.POINTER(_i32)),
        ("n_seq_id", ctypes.POINTER(_i32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_i32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


@dataclass(frozen=True)
class Layout:
    """The struct classes of one build, and the `llama_version()` that the build must answer (`None`: any)."""

    model_params: type[ctypes.Structure]
    context_params: type[ctypes.Structure]
    batch: type[ctypes.Structure]
    version: str | None = None


B11549 = Layout(ModelParams, ContextParams, Batch, version="0.6.0-dev")


def layout_of_module(module: ModuleType) -> Layout:
    """Return the layout that `llama_cpp.llama_cpp`, the low-level module of llama-cpp-python, declares."""
    return Layout(
        model_params=module.llama_model_params,
        context_params=module.llama_context_params,
        batch=module.llama_batch,
    )
