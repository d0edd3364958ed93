"""Which prompt prefixes are kept in the KV cache so that later prompts need not compute them again.

Pure bookkeeping: the executor moves the KV. A prefix is stored when its request said so, or when two prompts began
alike. It occupies a KV sequence of its own and a share of cells that is set aside for prefixes; the least recently used
one that nobody has pinned gives way. A stored prefix serves every prompt that agrees with a part of it.
"""

from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

Tokens32 = npt.NDArray[np.int32]

_RECENT: Final = 64
_RECENT_TOKENS: Final = 1024


class PrefixStats(msgspec.Struct, frozen=True, kw_only=True):
    """What sharing saved: prompts that were looked up, prompts that hit, prompt tokens not computed, what is held."""

    lookups: int
    hits: int
    tokens_saved: int
    prefixes: int
    tokens_held: int


@dataclass
class StoredPrefix:
    """Tokens whose KV the sequence `sequence` holds; not evicted while `pins` requests count on it."""

    sequence: int
    tokens: Tokens32
    pins: int = 0
    used_at: int = 0


@dataclass
class PrefixStore:
    """The stored prefixes, within `tokens_max` tokens in all and as many as there are `sequences`.

    Prefixes under `tokens_min` tokens are not worth a sequence.
    """

    sequences: range
    tokens_max: int
    tokens_min: int
    _stored: list[StoredPrefix] = field(default_factory=list)
    _recent: Tokens32 = field(default_factory=lambda: np.full((_RECENT, _RECENT_TOKENS), -1, dtype=np.int32))
    _clock: int = 0
    _lookups: int = 0
    _hits: int = 0
    _saved: int = 0

    def pin(self, prompt: Tokens32) -> tuple[StoredPrefix, int] | None:
        """Pin and return the stored prefix that agrees longest with `prompt`, and for how many tokens; or `None`."""
        self._lookups += 1
        best = max(self._stored, key=lambda stored: shared_tokens(stored.tokens, prompt), default=None)
        length = 0 if best is None else min(shared_tokens(best.tokens, prompt), len(prompt) - 1)
        if best is None or length < self.tokens_min:
            return None
        best.pins += 1
        self._clock += 1
        best.used_at = self._clock
        return best, length

    def unpin(self, stored: StoredPrefix) -> None:
        """Give back one pin."""
        assert stored.pins > 0, "unpinned more often than pinned"
        stored.pins -= 1

    def count_hit(self, tokens: int) -> None:
        """Count a prompt of which `tokens` were not computed."""
        self._hits += 1
        self._saved += tokens

    def seen_before(self, prompt: Tokens32) -> int:
        """Return how many leading tokens of `prompt` an earlier recent prompt began with, and remember `prompt`."""
        if self.tokens_max == 0:
            return 0
        head = np.full(_RECENT_TOKENS, -2, dtype=np.int32)
        head[: min(len(prompt), _RECENT_TOKENS)] = prompt[:_RECENT_TOKENS]
        differs = self._recent != head
        shared = int(np.where(differs.any(axis=1), differs.argmax(axis=1), _RECENT_TOKENS).max())
        self._recent[self._lookups % _RECENT] = np.where(head == -2, -1, head)  # noqa: PLR2004 - the padding above
        return shared if shared >= self.tokens_min else 0

    def store(self, tokens: Tokens32) -> tuple[StoredPrefix | None, list[int]]:
        """Take `tokens` in; return the new entry (`None`: not worth it, or no room) and the sequences to free first."""
        if not self.tokens_min <= len(tokens) <= self.tokens_max:
            return None, []
        if any(shared_tokens(stored.tokens, tokens) == len(tokens) for stored in self._stored):
            return None, []
        removable = [stored for stored in self._stored if not stored.pins]
        contained = [stored for stored in removable if shared_tokens(stored.tokens, tokens) == len(stored.tokens)]
        removable.sort(key=lambda stored: stored.used_at)
        victims = list(contained)
        kept = [stored for stored in removable if stored not in victims]
        while not self._has_room(len(tokens), victims):
            if not kept:
                return None, []
            victims.append(kept.pop(0))
        self._stored = [stored for stored in self._stored if stored not in victims]
        free = set(self.sequences) - {stored.sequence for stored in self._stored}
        self._clock += 1
        entry = StoredPrefix(min(free), tokens, used_at=self._clock)
        self._stored.append(entry)
        return entry, [victim.sequence for victim in victims]

    def stats(self) -> PrefixStats:
        """Return the counts so far."""
        return PrefixStats(
            lookups=self._lookups,
            hits=self._hits,
            tokens_saved=self._saved,
            prefixes=len(self._stored),
            tokens_held=sum(len(stored.tokens) for stored in self._stored),
        )

    def _has_room(self, tokens: int, victims: list[StoredPrefix]) -> bool:
        left = [stored for stored in self._stored if stored not in victims]
        return len(left) < len(self.sequences) and tokens + sum(len(s.tokens) for s in left) <= self.tokens_max


def shared_tokens(left: Tokens32, right: Tokens32) -> int:
    """Return how many leading tokens `left` and `right` have in common."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    return int(differs.argmax()) if differs.any() else length
