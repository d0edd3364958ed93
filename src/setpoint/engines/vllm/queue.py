"""vLLM's waiting queue, in which `schedule()` can be shown the requests of a plan alone, in the order of the plan.

It takes the place of vLLM's own queue and keeps its contract (`vllm/v1/core/sched/request_queue.py`): what `peek` shows
the next `pop` returns, and what `schedule()` puts back is not shown again in the same step. The length is always that
of all that wait, for vLLM reports it.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any


class PlannedQueue:
    """All waiting requests: in order of arrival or, with `is_by_priority`, as vLLM's requests compare."""

    def __init__(self, *, is_by_priority: bool = False) -> None:
        """Start empty and with nothing hidden."""
        self._store: OrderedDict[str, Any] = OrderedDict()
        self._is_by_priority = is_by_priority
        self._planned: deque[Any] | None = None

    def show_only(self, requests: Iterable[Any]) -> None:
        """Show `requests`, all of which wait here, and no others, until `show_all`."""
        self._planned = deque(requests)

    def show_all(self) -> None:
        """Hide nothing any more."""
        self._planned = None

    def add_request(self, request: Any) -> None:  # noqa: ANN401 - vLLM's own type, as in all that follows
        """Put a request at the end."""
        self._store[request.request_id] = request

    def prepend_request(self, request: Any) -> None:  # noqa: ANN401
        """Put a request at the front."""
        self._store[request.request_id] = request
        self._store.move_to_end(request.request_id, last=False)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Put requests at the front, the last of them first."""
        for request in requests:
            self.prepend_request(request)

    def peek_request(self) -> Any:  # noqa: ANN401
        """Return the request that `pop_request` would; raises `IndexError` when none is shown."""
        if self._planned is not None:
            return self._planned[0]
        if not self._store:
            raise IndexError("peek from an empty queue")
        return min(self._store.values()) if self._is_by_priority else next(iter(self._store.values()))

    def pop_request(self) -> Any:  # noqa: ANN401
        """Take out the request that `peek_request` shows."""
        request = self.peek_request()
        if self._planned is not None:
            self._planned.popleft()
        del self._store[request.request_id]
        return request

    def remove_request(self, request: Any) -> None:  # noqa: ANN401
        """Take out one request; raises `ValueError` when it is not here."""
        if self._store.pop(request.request_id, None) is None:
            raise ValueError(f"request {request.request_id} does not wait")

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Take out those of `requests` that are here."""
        for request in requests:
            self._store.pop(request.request_id, None)

    def __bool__(self) -> bool:
        """Return whether a request is shown."""
        return bool(self._store if self._planned is None else self._planned)

    def __len__(self) -> int:
        """Return how many wait, shown or not."""
        return len(self._store)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over all that wait."""
        return iter(sorted(self._store.values()) if self._is_by_priority else list(self._store.values()))
