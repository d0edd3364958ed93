"""From tokens to text that may be shown: whole characters only, and nothing that a stop string will take back.

A token may hold a part of a character, and a stop string may be spread over tokens and begin within one. So text passes
two gates: a UTF-8 decoder keeps the bytes of an unfinished character, and what could still become a stop string waits
until it is one or is not. Pure: it knows of a model only which bytes a token stands for.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol


class Vocabulary(Protocol):
    """What turns a token into bytes."""

    def piece(self, token: int) -> bytes:
        """Return the bytes that `token` stands for."""
        ...


class TextStream:
    """The text of one output. After the first `is_stopped` nothing more may be pushed."""

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        """Begin an output that ends before the first of the non-empty strings in `stop`."""
        self._vocabulary = vocabulary
        self._stop = tuple(string for string in stop if string)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._is_stopped = False

    def push(self, token: int) -> tuple[str, bool]:
        """Return the text that `token` makes ready, often empty, and whether a stop string was met (and cut off)."""
        assert not self._is_stopped, "the text has ended"
        text = self._held + self._decoder.decode(self._vocabulary.piece(token))
        found = min((place for place in map(text.find, self._stop) if place >= 0), default=-1)
        if found >= 0:
            self._held, self._is_stopped = "", True
            return text[:found], True
        keep = self._may_become_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """Return what was held back, at the end of an output; an unfinished character is left out."""
        text, self._held = self._held, ""
        self._decoder.reset()
        return text

    def _may_become_stop(self, text: str) -> int:
        """Return the length of the longest end of `text` with which some stop string begins."""
        return max(
            (size for string in self._stop for size in range(1, len(string)) if text.endswith(string[:size])), default=0
        )
