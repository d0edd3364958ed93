"""The two tongues of the OpenAI API, chat and completions: the same events, told in different shapes."""

from collections.abc import Sequence
from typing import Any, Protocol

from setpoint.engines.api import Piece, TokenLogprob
from setpoint.gateway.answers import Gathered, chat_logprobs, completion_logprobs
from setpoint.model import FinishReason


class Dialect(Protocol):
    """How one API shapes the choices of its answers; one value serves one request."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, index: int, gathered: Gathered) -> dict[str, Any]:
        """Return a whole choice."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return what a stream begins choice `index` with, or `None`."""
        ...

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the next piece of a choice."""
        ...

    def closing(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Return the end of a choice."""
        ...


class Chat:
    """`/v1/chat/completions`."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, index: int, gathered: Gathered) -> dict[str, Any]:
        """Return a whole choice."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": gathered.text, "refusal": None},
            "logprobs": chat_logprobs(gathered.logprobs),
            "finish_reason": gathered.reason,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the chunk that names the role."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the next piece of a choice."""
        return self._chunk(index, {"content": piece.text}, piece.logprobs)

    def closing(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Return the end of a choice."""
        return self._chunk(index, {}) | {"finish_reason": reason}

    @staticmethod
    def _chunk(index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": chat_logprobs(logprobs), "finish_reason": None}


class Completion:
    """`/v1/completions`; remembers how far each choice has come, for the offsets of log-probabilities."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self) -> None:
        self._offsets: dict[int, int] = {}

    def whole(self, index: int, gathered: Gathered) -> dict[str, Any]:
        """Return a whole choice."""
        return {
            "index": index,
            "text": gathered.text,
            "logprobs": completion_logprobs(gathered.logprobs),
            "finish_reason": gathered.reason,
        }

    def opening(self, index: int) -> dict[str, Any] | None:  # noqa: ARG002 - the shape of the protocol
        """Return nothing: completions begin with their text."""
        return None

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the next piece of a choice."""
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(one.token) for one in piece.logprobs)
        logprobs = completion_logprobs(piece.logprobs, offset)
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": None}

    def closing(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Return the end of a choice."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}
