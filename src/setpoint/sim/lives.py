"""The unfinished requests of a replica, and how many tokens each of them has.

All requests in decode yield one token in each pass, so that their tokens are counted in common: `rounds` passes have
been run, and a request has `rounds - behind` tokens. Those that a plan leaves out fall behind further. Who reaches its
last token next is the head of a heap. A pass thus touches nobody but those that it ends; a record is brought up to
date when somebody looks at it.
"""

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush

from setpoint.metrics.timeline import RequestRecord


class Life:
    """An unfinished request: its record, and the tokens that it will really produce."""

    __slots__ = ("behind", "output_tokens", "record")

    def __init__(self, record: RequestRecord, output_tokens: int) -> None:
        """Begin outside of decode."""
        self.record = record
        self.output_tokens = output_tokens
        self.behind = 0


class Lives:
    """All of them, by id; iterates over the ids."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._all: dict[int, Life] = {}
        self._decoding: dict[int, Life] = {}
        self._rounds = 0
        self._stops: list[tuple[int, int]] = []
        """A heap of (rounds at the last token, id); stale where that is no longer so."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the ids."""
        return iter(self._all)

    def add(self, request_id: int, record: RequestRecord, output_tokens: int) -> None:
        """Take a request in that will produce so many tokens."""
        self._all[request_id] = Life(record, output_tokens)

    def find(self, request_id: int) -> RequestRecord | None:
        """Return a record, its tokens counted up to now."""
        life = self._all.get(request_id)
        if life is None:
            return None
        self._count(request_id, life)
        return life.record

    def pop(self, request_id: int) -> RequestRecord:
        """Forget a request and return its record, its tokens counted up to now."""
        life = self._all.pop(request_id)
        self._count(request_id, life)
        self._decoding.pop(request_id, None)
        return life.record

    def rest(self, request_id: int) -> None:
        """Take a request out of decode: it was taken back."""
        self.find(request_id)
        self._decoding.pop(request_id, None)

    def records(self) -> list[RequestRecord]:
        """Return the records of all, their tokens counted up to now."""
        for request_id, life in self._decoding.items():
            self._count(request_id, life)
        return [life.record for life in self._all.values()]

    def yield_one(self, request_id: int) -> bool:
        """Count the token that the end of a prefill yields, and let it decode; return whether it was the last."""
        life = self._all[request_id]
        life.record.output_tokens += 1
        life.behind = self._rounds - life.record.output_tokens
        self._decoding[request_id] = life
        heappush(self._stops, (life.behind + life.output_tokens, request_id))
        return life.record.output_tokens >= life.output_tokens

    def yield_each(self, passes: int, left_out: Iterable[int]) -> list[int]:
        """Count one token a pass for each in decode but those `left_out`; return who has got its last, by id."""
        self._rounds += passes
        for request_id in left_out:
            life = self._decoding.get(request_id)
            if life is not None:
                life.behind += passes
                heappush(self._stops, (life.behind + life.output_tokens, request_id))
        stopped: list[int] = []
        while self._stops and self._stops[0][0] <= self._rounds:
            stop_at, request_id = heappop(self._stops)
            if self._is_current(stop_at, request_id) and request_id not in stopped[-1:]:
                stopped.append(request_id)
        return stopped

    def left_out(self, decodes: tuple[int, ...]) -> tuple[int, ...]:
        """Return who is in decode but not in `decodes`, all of whom are."""
        if len(decodes) == len(self._decoding):
            return ()
        wanted = set(decodes)
        return tuple([request_id for request_id in self._decoding if request_id not in wanted])

    def passes_to_stop(self) -> int:
        """Return after how many passes the first in decode has its last token; somebody is."""
        while not self._is_current(*self._stops[0]):
            heappop(self._stops)
        return self._stops[0][0] - self._rounds

    def _is_current(self, stop_at: int, request_id: int) -> bool:
        life = self._decoding.get(request_id)
        return life is not None and stop_at == life.behind + life.output_tokens

    def _count(self, request_id: int, life: Life) -> None:
        if request_id in self._decoding:
            life.record.output_tokens = self._rounds - life.behind
