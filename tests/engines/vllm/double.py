# ruff: noqa: ANN401, ARG002, C901, D105, FBT001, FBT002 - a double has the signatures of what it stands for
"""A double of vLLM's scheduler (0.32): the attributes and the two loops of `schedule()` that the plug-in relies on.

It keeps vLLM's order (running first, then the waiting), its budget and cap, its block allocation and its preemption of
the last running request, and, when `is_async`, its placeholders: what was scheduled counts as computed at once and the
tokens come later. Tests that run on both say whether it is a faithful double.
"""

import itertools
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class RequestQueue(ABC):
    """The abstract methods of vLLM's own class, of which the plug-in must know each."""

    @abstractmethod
    def add_request(self, request: Any) -> None: ...
    @abstractmethod
    def pop_request(self) -> Any: ...
    @abstractmethod
    def peek_request(self) -> Any: ...
    @abstractmethod
    def prepend_request(self, request: Any) -> None: ...
    @abstractmethod
    def prepend_requests(self, requests: Any) -> None: ...
    @abstractmethod
    def remove_request(self, request: Any) -> None: ...
    @abstractmethod
    def remove_requests(self, requests: Any) -> None: ...


class FCFSRequestQueue(deque[Any], RequestQueue):
    def add_request(self, request: Any) -> None:
        self.append(request)

    def pop_request(self) -> Any:
        return self.popleft()

    def peek_request(self) -> Any:
        return self[0]

    def prepend_request(self, request: Any) -> None:
        self.appendleft(request)

    def prepend_requests(self, requests: Any) -> None:
        self.extendleft(requests)

    def remove_request(self, request: Any) -> None:
        self.remove(request)

    def remove_requests(self, requests: Any) -> None:
        for request in list(requests):
            if request in self:
                self.remove(request)


@dataclass(eq=False)
class Request:
    request_id: str
    prompt: list[int]
    max_tokens: int
    sampling_params: Any
    arrival_time: float
    priority: int = 0
    client_index: int = 0
    pooling_params: Any = None
    resumable: bool = False
    status: str = "WAITING"
    stop_reason: str | None = None
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0
    num_preemptions: int = 0
    num_stale: int = 0
    num_in_flight: int = 0
    blocks: int = 0
    is_ready: bool = True
    output: list[int] = field(default_factory=list)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def num_output_tokens(self) -> int:
        return len(self.output)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    def __lt__(self, other: "Request") -> bool:
        return (self.priority, self.arrival_time) < (other.priority, other.arrival_time)


@dataclass
class SchedulerOutput:
    num_scheduled_tokens: dict[str, int]
    total_num_scheduled_tokens: int


class Pool:
    def __init__(self, blocks: int) -> None:
        self.free = blocks

    def get_num_free_blocks(self) -> int:
        return self.free


class KVCacheManager:
    enable_caching = False

    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_pool = Pool(blocks)
        self.block_size = block_size

    def get_computed_blocks(self, request: Request) -> tuple[Any, int, int]:
        return None, 0, 0

    def allocate(self, request: Request, tokens: int) -> bool:
        needed = -(-(request.num_computed_tokens + tokens) // self.block_size) - request.blocks
        if needed > self.block_pool.free:
            return False
        self.block_pool.free -= max(0, needed)
        request.blocks += max(0, needed)
        return True

    def release(self, request: Request) -> None:
        self.block_pool.free += request.blocks
        request.blocks = 0


class DoubleScheduler:
    """See the module."""

    def __init__(self, vllm_config: Any, *, blocks: int = 64, block_size: int = 16) -> None:
        self.vllm_config = vllm_config
        self.scheduler_config = vllm_config.scheduler_config
        self.kv_cache_config = SimpleNamespace(kv_cache_groups=[object()])
        self.kv_cache_manager = KVCacheManager(blocks, block_size)
        self.block_size = block_size
        self.max_model_len = vllm_config.model_config.max_model_len
        self.max_num_running_reqs = self.max_num_active_reqs = self.scheduler_config.max_num_seqs
        self.max_num_scheduled_tokens = self.scheduler_config.max_num_batched_tokens
        self.adaptive_long_prefill_threshold = False
        self.pause_state = SimpleNamespace(name="UNPAUSED")
        self.requests: dict[str, Request] = {}
        self.running: list[Request] = []
        self.waiting: Any = FCFSRequestQueue()
        self.kv_holding_waiting: Any = FCFSRequestQueue()
        self.is_async = bool(self.scheduler_config.async_scheduling)

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.waiting.add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        budget = 0 if self.pause_state.name == "PAUSED_ALL" else self.max_num_scheduled_tokens
        eligible = len(self.running) + len(self.waiting)
        cap = self.scheduler_config.long_prefill_token_threshold if eligible > 1 else 0
        scheduled: dict[str, int] = {}
        is_preempting = False
        for index in itertools.count():
            if index >= len(self.running) or budget < 1:
                break
            request = self.running[index]
            if (
                request.num_output_placeholders > 0
                and request.num_computed_tokens + 2 - request.num_output_placeholders
                >= request.num_prompt_tokens + request.max_tokens
            ):
                continue
            tokens = request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
            tokens = min(tokens if not 0 < cap < tokens else cap, budget)
            if tokens < 1:
                continue
            while not self.kv_cache_manager.allocate(request, tokens):
                victim = self.running.pop()
                is_preempting = True
                self._preempt_request(victim, 0.0)
                if victim is request:
                    break
            if request.status != "RUNNING":
                break
            scheduled[request.request_id] = tokens
            budget -= tokens
        if not is_preempting and self.pause_state.name == "UNPAUSED":
            self._admit(scheduled, budget, cap)
        total = sum(scheduled.values())
        assert total <= self.max_num_scheduled_tokens
        assert len(self.running) <= self.max_num_running_reqs
        for name, tokens in scheduled.items():
            request = self.requests[name]
            request.num_computed_tokens += tokens
            request.num_in_flight += tokens
            if self.is_async and request.num_computed_tokens >= request.num_tokens + request.num_output_placeholders:
                request.num_output_placeholders += 1
        return SchedulerOutput(scheduled, total)

    def _admit(self, scheduled: dict[str, int], budget: int, cap: int) -> None:
        skipped: list[Request] = []
        while self.waiting and budget > 0 and len(self.running) < self.max_num_active_reqs:
            request = self.waiting.peek_request()
            if not request.is_ready or request.num_stale:
                skipped.insert(0, self.waiting.pop_request())
                continue
            tokens = request.num_tokens - request.num_computed_tokens
            tokens = min(tokens if not 0 < cap < tokens else cap, budget)
            if not self.kv_cache_manager.allocate(request, tokens):
                break
            assert self.waiting.pop_request() is request
            request.status = "RUNNING"
            self.running.append(request)
            scheduled[request.request_id] = tokens
            budget -= tokens
        self.waiting.prepend_requests(skipped)

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        assert request.status == "RUNNING"
        self.kv_cache_manager.release(request)
        request.status = "PREEMPTED"
        request.num_computed_tokens = 0
        request.num_output_placeholders = 0
        request.num_stale = request.num_in_flight
        request.num_preemptions += 1
        self.waiting.prepend_request(request)

    def update_from_output(self, output: SchedulerOutput, sampled: dict[str, list[int]]) -> dict[int, list[Any]]:
        outputs: dict[int, list[Any]] = {0: []}
        for name, tokens in output.num_scheduled_tokens.items():
            request = self.requests.get(name)
            if request is None:
                continue
            request.num_in_flight -= tokens
            is_stale = request.num_stale > 0
            request.num_stale = max(0, request.num_stale - tokens)
            new = sampled[name]
            if not new:
                continue
            request.output += new
            if self.is_async and not is_stale:
                request.num_output_placeholders -= 1
            is_last = len(request.output) >= request.max_tokens
            reason = "length" if is_last else "stop" if new[-1] == request.sampling_params.eos else None
            if reason is not None:
                if request in self.running:
                    self.running.remove(request)
                self.waiting.remove_requests([request])
                request.status = "FINISHED"
                self._free_request(request)
            outputs[0].append((name, new, reason))
        return outputs

    def finish_requests(self, request_ids: Any, finished_status: str) -> list[Request]:
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        finished = [self.requests[i] for i in ids if i in self.requests]
        for request in finished:
            if request in self.running:
                self.running.remove(request)
            self.waiting.remove_requests([request])
            request.status = finished_status
            self._free_request(request)
        return finished

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> None:
        self.kv_cache_manager.release(request)
        del self.requests[request.request_id]

    def make_stats(self) -> Any:
        return SimpleNamespace(num_kv_fetch_reqs_by_stage={"waiting": 0})

    def shutdown(self) -> None:
        """Nothing to end."""
