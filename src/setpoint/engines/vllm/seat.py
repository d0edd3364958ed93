"""The pilot's seat: everything that is read from vLLM's scheduler while it runs, or set in it, and put back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from setpoint.engines.vllm.arrange import Arrangement
from setpoint.engines.vllm.host import Host, HostRequest
from setpoint.units import Blocks

_ADAPTIVE = "adaptive_long_prefill_threshold"


class Seat:
    """One scheduler of vLLM, by what the pilot does in it."""

    def __init__(self, host: Host) -> None:
        """Sit down in `host`, which has passed the check."""
        self._host = host
        self._shown: tuple[tuple[int, ...], list[HostRequest]] = ((), [])
        """Ids that were shown last, and their requests: from step to step they are mostly the same, and may be many."""
        self.is_taking_back = False
        """Whether a preemption that vLLM carries out now is our own."""

    @property
    def is_paused(self) -> bool:
        """Whether vLLM was told to schedule less than everything."""
        return bool(self._host.pause_state.name != "UNPAUSED")

    @property
    def requests(self) -> int:
        """How many requests vLLM knows."""
        return len(self._host.requests)

    def free_blocks(self) -> Blocks:
        """Return the KV blocks that nobody holds."""
        return Blocks(self._host.kv_cache_manager.block_pool.get_num_free_blocks())

    def cached_tokens(self, request: HostRequest) -> int:
        """Return how many leading tokens vLLM would find in its prefix cache now."""
        manager = self._host.kv_cache_manager
        return int(manager.get_computed_blocks(request)[1]) if manager.enable_caching else 0

    def take_back(self, request: HostRequest, at: float) -> None:
        """Have vLLM preempt a running request, outside of its `schedule()`."""
        host = self._host
        host.running = [r for r in host.running if r is not request]
        self.is_taking_back = True
        try:
            host._preempt_request(request, at)  # noqa: SLF001 - vLLM has no other way; it is looked for at start
        finally:
            self.is_taking_back = False

    @contextmanager
    def arranged(self, arrangement: Arrangement, requests: Mapping[int, HostRequest]) -> Iterator[int]:
        """Show vLLM what the arrangement says and put everything back; yields how many are parked.

        The parked keep KV and their slot in the model runner, so the limit of running requests is lowered by them.
        """
        host, config = self._host, self._host.scheduler_config
        is_adaptive = getattr(host, _ADAPTIVE, False)
        kept = host.max_num_scheduled_tokens, host.max_num_active_reqs, config.long_prefill_token_threshold
        if arrangement.running != self._shown[0]:
            self._shown = arrangement.running, [*map(requests.__getitem__, arrangement.running)]
        parked = self._park(self._shown[1])
        host.waiting.show_only([requests[i] for i in arrangement.admitted])
        host.max_num_scheduled_tokens = min(kept[0], arrangement.budget)
        host.max_num_active_reqs = max(0, kept[1] - len(parked))
        config.long_prefill_token_threshold = arrangement.chunk_max
        setattr(host, _ADAPTIVE, False)
        try:
            yield len(parked)
        finally:
            host.waiting.show_all()
            if parked:
                host.running = [*host.running, *parked]
            host.max_num_scheduled_tokens, host.max_num_active_reqs = kept[0], kept[1]
            config.long_prefill_token_threshold = kept[2]
            setattr(host, _ADAPTIVE, is_adaptive)

    def _park(self, shown: Sequence[Any]) -> list[Any]:
        """Leave `shown` in `running`, in that order; return the others."""
        host = self._host
        if len(shown) == len(host.running) and shown == host.running:
            return []
        kept = set(map(id, shown))
        parked = [r for r in host.running if id(r) not in kept]
        host.running = list(shown)
        return parked
