"""What the plug-in takes for granted of vLLM, as types, and the check at start that it is so.

vLLM's scheduler interface is not public and has changed its queues three times in 22 minor versions. So everything that
is used stands here, in one place: `Host` and `HostRequest` name it, and `check` looks whether the scheduler at hand has
it, and whether a feature is switched on whose steps the plug-in cannot tell the truth about. Both end the start with a
message that names the fault, since a scheduler that half fits would serve for hours before it fails.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from setpoint.engines.vllm.queue import PlannedQueue
from setpoint.errors import ConfigError

TESTED = ("0.32.0",)
"""The versions of vLLM that this adapter was tested with; others are tried when the check at start finds no fault."""

_NUMBERS = ("max_num_scheduled_tokens", "max_num_active_reqs", "max_num_running_reqs", "max_model_len", "block_size")
_METHODS = ("schedule", "add_request", "update_from_output", "finish_requests", "make_stats")
_HOOKS = ("_preempt_request", "_free_request")
_QUEUES = ("waiting", "kv_holding_waiting")


class HostRequest(Protocol):
    """The part of `vllm.v1.request.Request` that is read."""

    request_id: str
    client_index: int
    priority: int
    arrival_time: float
    num_computed_tokens: int
    num_prompt_tokens: int
    max_tokens: int
    sampling_params: Any
    pooling_params: Any
    resumable: bool

    @property
    def num_tokens(self) -> int:
        """Return how many tokens of prompt and output are known."""
        ...

    @property
    def num_output_tokens(self) -> int:
        """Return how many output tokens are known."""
        ...


class StepResult(Protocol):
    """The part of `SchedulerOutput` that is read."""

    num_scheduled_tokens: dict[str, int]
    total_num_scheduled_tokens: int


class Host(Protocol):
    """The part of vLLM's scheduler that is read and, for the length of one `schedule()`, set."""

    requests: Mapping[str, HostRequest]
    running: list[Any]
    waiting: Any
    max_num_scheduled_tokens: int
    max_num_active_reqs: int
    max_num_running_reqs: int
    max_model_len: int
    block_size: int
    scheduler_config: Any
    kv_cache_manager: Any
    vllm_config: Any
    pause_state: Any

    def _preempt_request(self, request: Any, timestamp: float) -> None: ...  # noqa: ANN401 - vLLM's own type


def check(host: Any, version: str) -> None:  # noqa: ANN401 - it may be anything: that is what is looked at
    """Raise `ConfigError` when the scheduler lacks what is used, or runs what cannot be steered."""
    faults = [*_missing(host)]
    if faults:
        raise ConfigError(
            f"this vLLM ({version}) is not as the plug-in expects: {'; '.join(faults)}",
            hint=f"use one of the tested versions: {', '.join(TESTED)}; or leave --scheduler-cls out",
        )
    unsupported = [*_unsupported(host)]
    if unsupported:
        raise ConfigError(
            f"setpoint cannot steer this vLLM: {'; '.join(unsupported)}",
            hint="switch that off, or leave --scheduler-cls out",
        )


def _missing(host: Any) -> Iterator[str]:  # noqa: ANN401 - as in `check`
    for name in _NUMBERS:
        if not isinstance(getattr(host, name, None), int):
            yield f"no number {name}"
    for name in (*_METHODS, *_HOOKS):
        if not callable(getattr(host, name, None)):
            yield f"no method {name}()"
    for name in _QUEUES:
        yield from _queue_faults(name, getattr(host, name, None))
    yield from (fault for fault, is_right in _SHAPES.items() if not is_right(host))


_SHAPES: Mapping[str, Callable[[Any], bool]] = {
    "running is not a list": lambda h: isinstance(getattr(h, "running", None), list),
    "requests is not a dict": lambda h: isinstance(getattr(h, "requests", None), dict),
    "no number scheduler_config.long_prefill_token_threshold": lambda h: isinstance(
        getattr(getattr(h, "scheduler_config", None), "long_prefill_token_threshold", None), int
    ),
    "no kv_cache_manager.block_pool.get_num_free_blocks()": lambda h: callable(
        getattr(getattr(getattr(h, "kv_cache_manager", None), "block_pool", None), "get_num_free_blocks", None)
    ),
    "no kv_cache_manager.get_computed_blocks()": lambda h: callable(
        getattr(getattr(h, "kv_cache_manager", None), "get_computed_blocks", None)
    ),
    "a queue skipped_waiting, as before 0.32": lambda h: not hasattr(h, "skipped_waiting"),
    "no pause_state that reads UNPAUSED at start": lambda h: (
        getattr(getattr(h, "pause_state", None), "name", None) == "UNPAUSED"
    ),
}


def _queue_faults(name: str, queue: object) -> Iterator[str]:
    if queue is None:
        yield f"no queue {name}"
        return
    promised: Iterable[str] = set().union(*(getattr(c, "__abstractmethods__", ()) for c in type(queue).__mro__))
    for method in sorted(promised):
        if not hasattr(PlannedQueue, method):
            yield f"{name} has a method {method}() that is not known"


def _unsupported(host: Any) -> Iterator[str]:  # noqa: ANN401 - as in `check`
    config = host.vllm_config
    parallel = config.parallel_config
    if config.speculative_config is not None:
        yield "speculative decoding (a step would yield more tokens than the plan counts)"
    if not host.scheduler_config.enable_chunked_prefill:
        yield "chunked prefill is off (steps are sized by chunks)"
    if getattr(config.model_config, "runner_type", "generate") != "generate":
        yield "a model that does not generate"
    if config.kv_transfer_config is not None:
        yield "a KV connector"
    if getattr(config, "ec_transfer_config", None) is not None:
        yield "an encoder cache connector"
    if parallel.pipeline_parallel_size > 1:
        yield "pipeline parallelism (steps overlap, so that none has a time of its own)"
    if len(host.kv_cache_config.kv_cache_groups) != 1:
        yield "a hybrid model with several kinds of KV cache"
    if getattr(config.model_config, "is_encoder_decoder", False):
        yield "an encoder-decoder model"
