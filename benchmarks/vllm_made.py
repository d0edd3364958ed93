"""vLLM's schedulers and requests without a model: KV in name only, and whatever tokens are made up."""

import importlib
from typing import Any, NamedTuple

STEP_TOKENS = 2048
CONTEXT_MAX = 1024
BLOCK_TOKENS = 16
EOS = 2


def made_request(name: str, prompt: list[int], output: int, *, at: float, asked: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return a request of vLLM that arrives at `at`; `asked`: its `vllm_xargs`."""
    sampling = importlib.import_module("vllm.sampling_params")
    utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
    digest = importlib.import_module("vllm.utils.hashing").sha256
    utils.init_none_hash(digest)
    params = sampling.SamplingParams(max_tokens=output, extra_args=asked or None)
    params.update_from_generation_config({}, EOS)
    return importlib.import_module("vllm.v1.request").Request(
        request_id=name,
        prompt_token_ids=prompt,
        sampling_params=params,
        pooling_params=None,
        arrival_time=at,
        block_hasher=utils.get_request_block_hasher(BLOCK_TOKENS, digest),
    )


class Made(NamedTuple):
    """A scheduler to be made: `running` sequences at once, `depth` steps in flight, `blocks` of KV.

    With `options` it is the plug-in's, otherwise the stock one.
    """

    model: str
    running: int
    depth: int
    blocks: int
    budget: int = STEP_TOKENS
    policy: str = "fcfs"
    options: dict[str, Any] | None = None


def made_scheduler(made: Made) -> Any:  # noqa: ANN401
    """Return a scheduler of vLLM with KV in name only."""
    config = importlib.import_module("vllm.config")
    cache = importlib.import_module("vllm.v1.kv_cache_interface")
    vllm_config = config.VllmConfig(
        model_config=config.ModelConfig(
            model=made.model, dtype="float32", seed=0, max_model_len=CONTEXT_MAX, skip_tokenizer_init=True
        ),
        scheduler_config=config.SchedulerConfig(
            max_num_seqs=made.running,
            max_num_batched_tokens=made.budget,
            max_model_len=CONTEXT_MAX,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            policy=made.policy,
        ),
        cache_config=config.CacheConfig(block_size=BLOCK_TOKENS, enable_prefix_caching=True),
        additional_config={} if made.options is None else {"setpoint": made.options},
    )
    # a CPU platform switches it off; no runner of the kind is used here
    vllm_config.scheduler_config.async_scheduling = made.depth > 1
    vllm_config.cache_config.num_gpu_blocks = made.blocks + 1
    float32 = importlib.import_module("torch").float32
    spec = cache.FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=float32)
    groups = [cache.KVCacheGroupSpec(["layer"], spec)]
    grammars = importlib.import_module("vllm.v1.structured_output").StructuredOutputManager(vllm_config)
    return _class(is_stock=made.options is None, depth=made.depth)(
        vllm_config=vllm_config,
        kv_cache_config=cache.KVCacheConfig(num_blocks=made.blocks + 1, kv_cache_tensors=[], kv_cache_groups=groups),
        structured_output_manager=grammars,
        block_size=BLOCK_TOKENS,
        hash_block_size=BLOCK_TOKENS,
        log_stats=True,
    )


def _class(*, is_stock: bool, depth: int) -> Any:  # noqa: ANN401
    if not is_stock:
        return importlib.import_module("setpoint.engines.vllm").SetpointScheduler
    if depth > 1:
        return importlib.import_module("vllm.v1.core.sched.async_scheduler").AsyncScheduler
    return importlib.import_module("vllm.v1.core.sched.scheduler").Scheduler
