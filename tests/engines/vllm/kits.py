# ruff: noqa: ANN401, ARG002, PLC0415 - vLLM has no types for us, and is imported only where it is
"""The two schedulers under test, the double and the real one, and a loop that runs either as the engine core does."""

import importlib.util
import os
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.engines.vllm.double import DoubleScheduler, Request

from setpoint.engines.vllm.host import TESTED
from setpoint.engines.vllm.pilot import Pilot
from setpoint.engines.vllm.scheduler import steered

EOS = 2
MODEL = os.environ.get("SETPOINT_VLLM_MODEL", "")
HAS_VLLM = bool(MODEL) and importlib.util.find_spec("vllm") is not None
WHY_NOT = "needs vLLM, and SETPOINT_VLLM_MODEL naming the folder of a small model that it can read"

CLASSES = {"chat": {"ttft_ms": 500, "tpot_ms": 50}}


class DoubleEndings:
    """Ends refused requests in the double."""

    version = TESTED[0]

    def end(self, host: Any, request: Any, refusal: str) -> None:
        host.finish_requests(request.request_id, refusal)

    def deliver(self, outputs: dict[int, Any], request: Any, why: str) -> None:
        outputs.setdefault(request.client_index, []).append((request.request_id, [], f"{request.status}: {why}"))


class DoubleKit:
    """Makes doubles."""

    name = "double"

    def config(self, *, depth: int = 1, seqs: int = 8, tokens: int = 128, **options: Any) -> Any:
        return SimpleNamespace(
            additional_config={"setpoint": {"default_class": "chat", "classes": CLASSES, **options}},
            scheduler_config=SimpleNamespace(
                max_num_seqs=seqs,
                max_num_batched_tokens=tokens,
                long_prefill_token_threshold=0,
                enable_chunked_prefill=True,
                async_scheduling=depth > 1,
                policy="fcfs",
            ),
            model_config=SimpleNamespace(max_model_len=512, runner_type="generate"),
            parallel_config=SimpleNamespace(pipeline_parallel_size=1),
            speculative_config=None,
            kv_transfer_config=None,
            device_config=SimpleNamespace(device_type="cpu"),
        )

    def scheduler(self, *, depth: int = 1, blocks: int = 64, base: Any = DoubleScheduler, **limits: Any) -> Any:
        return steered(base, DoubleEndings(), {})(self.config(depth=depth, **limits), blocks=blocks)

    def request(self, name: str, prompt: int, output: int, *, at: float, **xargs: Any) -> Any:
        params = SimpleNamespace(extra_args=xargs or None, eos=EOS)
        return Request(name, list(range(prompt)), output, params, at)

    def sampled(self, output: Any, tokens: dict[str, list[int]]) -> Any:
        return tokens

    def read(self, outputs: Any) -> list[tuple[str, list[int], str | None]]:
        return [piece for pieces in outputs.values() for piece in pieces]


class VllmKit:
    """Makes real schedulers of the vLLM at hand, with room for KV in name only."""

    name = "vllm"

    def scheduler(
        self,
        *,
        depth: int = 1,
        blocks: int = 64,
        seqs: int = 8,
        tokens: int = 128,
        caching: bool = False,
        **options: Any,
    ) -> Any:
        import torch  # type: ignore[import-not-found, unused-ignore] # it comes with vLLM
        from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from setpoint.engines.vllm import SetpointScheduler

        config = VllmConfig(
            model_config=ModelConfig(model=MODEL, dtype="float32", seed=0, max_model_len=512, skip_tokenizer_init=True),
            scheduler_config=SchedulerConfig(
                max_num_seqs=seqs,
                max_num_batched_tokens=tokens,
                max_model_len=512,
                enable_chunked_prefill=True,
                is_encoder_decoder=False,
            ),
            cache_config=CacheConfig(block_size=16, enable_prefix_caching=caching),
            additional_config={"setpoint": {"default_class": "chat", "classes": CLASSES, **options}},
        )
        # a CPU platform switches it off, and no runner of the kind is used here
        config.scheduler_config.async_scheduling = depth > 1
        config.cache_config.num_gpu_blocks = blocks + 1
        spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=1, dtype=torch.float32)
        return SetpointScheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=16,
            hash_block_size=16,
            log_stats=True,
        )

    def request(self, name: str, prompt: int, output: int, *, at: float, **xargs: Any) -> Any:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.request import Request as VllmRequest

        init_none_hash(hash)
        params = SamplingParams(max_tokens=output, extra_args=xargs or None)
        params.update_from_generation_config({}, EOS)
        return VllmRequest(
            request_id=name,
            prompt_token_ids=list(range(10, 10 + prompt)),
            sampling_params=params,
            pooling_params=None,
            arrival_time=at,
            block_hasher=get_request_block_hasher(16, hash),
        )

    def sampled(self, output: Any, tokens: dict[str, list[int]]) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        names = list(tokens)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[tokens[name] for name in names],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def read(self, outputs: Any) -> list[tuple[str, list[int], str | None]]:
        return [
            (
                o.request_id,
                list(o.new_token_ids),
                None if o.finish_reason is None else f"{o.finish_reason}: {o.stop_reason}",
            )
            for per_client in outputs.values()
            for o in per_client.outputs
        ]


def token(name: str, index: int) -> int:
    """Return the token that the fake model gives: a function of the request and the place alone."""
    return 10 + (hash((len(name), sum(name.encode()), index)) % 900)


class Engine:
    """Runs a scheduler with a fake model on a virtual clock, up to `depth` steps ahead."""

    def __init__(
        self, scheduler: Any, kit: Any, *, depth: int = 1, before: Callable[[Any], None] | None = None
    ) -> None:
        self.scheduler = scheduler
        self.kit = kit
        self.depth = depth
        self.before = before
        self.now = 100.0
        self.made: dict[str, int] = {}
        self.ends_at: dict[str, int] = {}
        self.prompts: dict[str, int] = {}
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, str] = {}
        self.steps: list[dict[str, int]] = []
        self.flying: deque[tuple[Any, dict[str, list[int]]]] = deque()
        pilot: Pilot = scheduler.setpoint
        pilot._parts = pilot._parts._replace(clock=lambda: self.now, wall=lambda: self.now)

    def ask(self, name: str, prompt: int = 20, output: int = 5, *, stops_at: int | None = None, **xargs: Any) -> Any:
        """Send a request; `stops_at`: after how many tokens the model ends by itself."""
        self.made[name], self.tokens[name], self.prompts[name] = 0, [], prompt
        if stops_at is not None:
            self.ends_at[name] = stops_at
        request = self.kit.request(
            name, prompt, output, at=self.now, **{k.replace("_", ".", 1): v for k, v in xargs.items()}
        )
        self.scheduler.add_request(request)
        return request

    def begin(self) -> dict[str, int]:
        """Schedule one step."""
        output = self.scheduler.schedule()
        step = dict(output.num_scheduled_tokens)
        sampled = {name: self._sample(name) for name in step}
        self.flying.append((output, sampled))
        if step:
            self.steps.append(step)
        return step

    def _sample(self, name: str) -> list[int]:
        request = self.scheduler.requests[name]
        if request.num_computed_tokens < self.prompts[name] + self.made[name]:
            return []
        self.made[name] += 1
        return [EOS if self.made[name] == self.ends_at.get(name) else token(name, self.made[name] - 1)]

    def end(self) -> None:
        """Let the oldest step end."""
        output, sampled = self.flying.popleft()
        self.now += 0.005 + 0.001 * output.total_num_scheduled_tokens
        outputs = self.scheduler.update_from_output(output, self.kit.sampled(output, sampled))
        for name, tokens, reason in self.kit.read(outputs or {}):
            self.tokens[name] += tokens
            if reason is not None:
                assert name not in self.reasons, f"{name} ended before: {self.reasons[name]}, now {reason}"
                self.reasons[name] = reason

    def run(self, steps: int = 3000) -> "Engine":
        """Run until nobody is left."""
        for _ in range(steps):
            if self.before is not None:
                self.before(self)
            while self.scheduler.requests and len(self.flying) < self.depth and self.begin():
                pass
            if self.flying:
                self.end()
            if not self.scheduler.requests and not self.flying:
                return self
        raise AssertionError(f"after {steps} steps there is still {list(self.scheduler.requests)}")

    def drain(self) -> None:
        """End all that is under way."""
        while self.flying:
            self.end()

    def is_exact(self, name: str, tokens: int) -> bool:
        """Return whether a request got just the first `tokens` tokens of the fake model, each once."""
        expected = [token(name, i) for i in range(tokens)]
        if name in self.ends_at:
            expected = [*expected[: self.ends_at[name] - 1], EOS]
        return self.tokens[name] == expected
