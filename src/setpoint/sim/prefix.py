"""The prefix cache of one replica: blocks of prompt tokens that later prompts may begin with.

A share of the KV cache is set aside for it (the machine is told the rest), so that a hit costs no one else a block. On
arrival a request pins the leading blocks that are there; its own become available when its prefill is complete, and
stay until they are the least recently used ones that nobody pins. Of one prefix the tail goes first. Engines that let
the cache use every free block hit somewhat more often while they are empty.

The blocks of a plan are told apart by number: those that the plan itself names, and ranges beyond them for
conversations and for prefixes that have a number only.
"""

from collections import OrderedDict
from collections.abc import Sequence

from setpoint.workload import PlannedRequest

BLOCK_TOKENS = 16
"""Tokens of a block where the plan names none."""
_SESSION_BLOCKS = 1_000_000
_SESSIONS_FROM, _PREFIXES_FROM = 10**13, 2 * 10**13


class PrefixCache:
    """Blocks by id, at most `tokens_max` tokens in all."""

    def __init__(self, tokens_max: int) -> None:
        """Start empty."""
        self.tokens_max = tokens_max
        self.tokens = 0
        self.hit_tokens = 0
        self.asked_tokens = 0
        self._blocks: OrderedDict[int, int] = OrderedDict()
        self._pins: dict[int, int] = {}
        self._pinned_by: dict[int, tuple[int, ...]] = {}

    def match(self, prefix: Sequence[int]) -> int:
        """Return how many leading blocks are there."""
        found = 0
        for block in prefix:
            if block not in self._blocks:
                break
            found += 1
        return found

    def pin(self, request_id: int, prefix: Sequence[int], block_tokens: int, prompt_tokens: int) -> int:
        """Keep what is there of the prefix until `release`; return the prompt tokens that need not be computed."""
        held = tuple(prefix[: self.match(prefix)])
        if held:
            self._pinned_by[request_id] = held
        for block in held:
            self._pins[block] = self._pins.get(block, 0) + 1
        self._touch(held)
        cached = min(len(held) * block_tokens, prompt_tokens - 1)
        self.hit_tokens += cached
        self.asked_tokens += prompt_tokens
        return cached

    def insert(self, prefix: Sequence[int], block_tokens: int) -> None:
        """Take in the blocks of a prompt that was computed, as far as there is room beside what is pinned."""
        for block in prefix:
            if block not in self._blocks:
                if not self._make_room(block_tokens):
                    break
                self._blocks[block] = block_tokens
                self.tokens += block_tokens
        self._touch(prefix)

    def release(self, request_id: int) -> None:
        """Unpin what the request held."""
        for block in self._pinned_by.pop(request_id, ()):
            self._pins[block] -= 1
            if not self._pins[block]:
                del self._pins[block]

    def _touch(self, prefix: Sequence[int]) -> None:
        for block in reversed(prefix):
            if block in self._blocks:
                self._blocks.move_to_end(block)

    def _make_room(self, tokens: int) -> bool:
        while self.tokens + tokens > self.tokens_max:
            victim = next((block for block in self._blocks if block not in self._pins), None)
            if victim is None:
                return False
            self.tokens -= self._blocks.pop(victim)
        return True


def prefix_of(planned: PlannedRequest) -> tuple[tuple[int, ...], int]:
    """Return (ids of the leading blocks that others may share, tokens of a block) of a request."""
    if planned.prefix_blocks:
        whole = planned.prompt_tokens // planned.block_tokens
        return planned.prefix_blocks[:whole], planned.block_tokens
    if planned.session is not None:
        return session_blocks(planned, with_answer=False), BLOCK_TOKENS
    if planned.prefix_id is not None and planned.prefix_tokens:
        first = _PREFIXES_FROM + planned.prefix_id * _SESSION_BLOCKS
        return tuple(range(first, first + planned.prefix_tokens // BLOCK_TOKENS)), BLOCK_TOKENS
    return (), BLOCK_TOKENS


def session_blocks(planned: PlannedRequest, *, with_answer: bool) -> tuple[int, ...]:
    """Return the blocks of a turn: a conversation only grows, so the same place is always the same block."""
    assert planned.session is not None
    first = _SESSIONS_FROM + planned.session * _SESSION_BLOCKS
    tokens = planned.prompt_tokens + (planned.output_tokens if with_answer else 0)
    return tuple(range(first, first + tokens // BLOCK_TOKENS))
