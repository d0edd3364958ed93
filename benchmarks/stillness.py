"""Notices when this process stood still: a machine that sleeps, or stops its processes, spoils every latency."""

import threading
import time
from typing import Self

BEAT_S = 0.1


class Stillness:
    """Beats in a thread of its own within a `with` statement; `longest_s` is the longest time without a beat."""

    def __init__(self) -> None:
        """Begin at rest."""
        self.longest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Begin to beat."""
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        before = time.monotonic()
        while not self._over.wait(BEAT_S):
            now = time.monotonic()
            self.longest_s = max(self.longest_s, now - before)
            before = now
