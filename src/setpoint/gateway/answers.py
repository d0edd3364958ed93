"""The answers of the OpenAI API as frozen values, built from pieces of output; pure.

`Gathered` is what a whole choice came to. Both APIs share usage and the `setpoint` object, in which this server tells
the class served and the durations (of the slowest choice) in milliseconds.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from setpoint.engines.api import Finished, Piece, TokenLogprob
from setpoint.model import FinishReason
from setpoint.settings import Tier


class TokensDetails(msgspec.Struct, frozen=True):
    """How many prompt tokens a shared prefix saved."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of one request: its prompts once, its outputs all."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokensDetails


class Served(msgspec.Struct, frozen=True, kw_only=True, rename={"class_name": "class"}):
    """How the request was served."""

    class_name: str
    queue_ms: float
    ttft_ms: float | None
    e2e_ms: float


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer and every chunk of one request begins with."""

    id: str
    object: str
    created: int
    model: str
    service_tier: Tier | UnsetType = UNSET


class Answer(Envelope, frozen=True, kw_only=True):
    """A whole answer."""

    choices: list[dict[str, Any]]
    usage: Usage
    setpoint: Served


class Chunk(Envelope, frozen=True, kw_only=True):
    """One event of a stream."""

    choices: list[dict[str, Any]]
    usage: Usage | UnsetType | None = UNSET
    setpoint: Served | UnsetType = UNSET


class Gathered:
    """One choice, gathered from its pieces."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """All its text."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """The log-probabilities of all its tokens."""
        return [logprob for piece in self.pieces for logprob in piece.logprobs]


def usage_of(finished: Sequence[Finished], n: int) -> Usage:
    """Return the usage of a request whose choices come `n` to a prompt, prompt by prompt."""
    prompt_tokens = sum(one.prompt_tokens for one in finished[::n])
    output_tokens = sum(one.output_tokens for one in finished)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=output_tokens,
        total_tokens=prompt_tokens + output_tokens,
        prompt_tokens_details=TokensDetails(sum(one.cached_tokens for one in finished[::n])),
    )


def served_of(class_name: str, finished: Sequence[Finished]) -> Served:
    """Return how the request was served: the durations of its slowest choice."""
    firsts = [one.ttft_s for one in finished if one.ttft_s is not None]
    return Served(
        class_name=class_name,
        queue_ms=_ms(max(one.queue_s for one in finished)),
        ttft_ms=_ms(max(firsts)) if firsts else None,
        e2e_ms=_ms(max(one.e2e_s for one in finished)),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000.0, 3)


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Return log-probabilities in the shape of the chat API, or `None` for none."""
    if not logprobs:
        return None
    content = [
        {**_token(one.token, one.logprob), "top_logprobs": [_token(text, value) for text, value in one.top]}
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def completion_logprobs(logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any] | None:
    """Return log-probabilities in the shape of the completions API; offsets count characters from `offset`."""
    if not logprobs:
        return None
    offsets = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(one.token)
    return {
        "tokens": [one.token for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [dict(one.top) for one in logprobs],
        "text_offset": offsets,
    }
