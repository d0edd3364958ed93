"""The seam between an engine and those who talk to it: what one generation asks for, and what comes back.

The gateway builds a `Generation`, hands it to an engine's driver, and reads a stream of `Piece`, ended by exactly one
`Finished` or `Refused`. The driver is the only part that knows both the core (which counts) and the executor (which
computes).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from setpoint.model import Capacity, FinishReason, RejectReason
from setpoint.units import Seconds, Tokens


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is drawn; the defaults are those of the OpenAI API. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    """How many alternatives to report beside the log-probability of each token; `None` reports nothing."""
    grammar: str | None = None
    """A GBNF grammar that the output must follow."""
    json_schema: str | None = None
    """A JSON schema (as JSON text) that the output must follow; `{}` admits any JSON value."""
    logit_bias: Mapping[int, float] = {}
    is_eos_ignored: bool = False


class Generation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request with all that the engine needs to serve it.

    `prefix_tokens`: how many leading prompt tokens others are likely to share (a system prompt); 0 if unknown.
    """

    prompt: tuple[int, ...]
    class_name: str
    output_tokens_max: Tokens
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    prefix_tokens: Tokens = Tokens(0)
    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None


class ChatPrompt(msgspec.Struct, frozen=True):
    """A conversation as tokens; the first `prefix_tokens` of them are likely to be shared with other requests."""

    tokens: tuple[int, ...]
    prefix_tokens: int = 0


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token with its natural log-probability and the most likely alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Piece(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Output text that is ready to be shown: valid UTF-8, of `tokens` further tokens (0 when held back till now)."""

    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()


class Finished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The generation is over; durations are measured by the engine from the arrival."""

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    queue_s: Seconds
    ttft_s: Seconds | None
    e2e_s: Seconds


RefusalReason = RejectReason | Literal["draining"]
"""Why a generation was refused: the core's reasons, and that the server is about to stop."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The generation was refused, or expired while it waited."""

    reason: RefusalReason
    message: str
    retry_after_s: Seconds | None = None


GenerationEvent = Piece | Finished | Refused


class SampledToken(msgspec.Struct, frozen=True):
    """What one sequence yielded in a step."""

    request_id: int
    token: int
    is_end: bool
    logprob: TokenLogprob | None = None


class StepOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a step produced, with the seconds of the forward pass and of the sampling apart."""

    tokens: tuple[SampledToken, ...]
    forward_s: Seconds
    sampling_s: Seconds


class TextStream(Protocol):
    """The output text of one sequence, token by token: never half a character, never a stop string or what follows."""

    def push(self, token: int) -> tuple[str, bool]:
        """Take the next token in; return the text that it makes ready, if any, and whether a stop string is met."""
        ...

    def finish(self) -> str:
        """Return what was still held back; the sequence is over."""
        ...


class Executor(Protocol):
    """What carries out step plans: it owns KV and samplers, and decides nothing. Called from one thread only."""

    @property
    def capacity(self) -> Capacity:
        """What the engine can hold and compute."""
        ...

    def prepare(self, request_id: int, generation: Generation) -> int:
        """Take a request in before it waits; return how many prompt tokens a shared prefix saves (it stays pinned).

        When it raises, nothing of the request is held and `release` must not follow.
        """
        ...

    def admit(self, request_id: int, slot: int) -> None:
        """Bind the request to the KV sequence `slot` and copy its shared prefix there."""
        ...

    def run(self, decodes: Sequence[int], prefills: Sequence[tuple[int, int]]) -> StepOutput:
        """Run one forward pass: one token for each of `decodes`, the next `tokens` of the prompt for each prefill."""
        ...

    def preempt(self, request_id: int) -> None:
        """Free the slot and the KV of the request, and keep its tokens: its next prefill recomputes them all."""
        ...

    def release(self, request_id: int) -> None:
        """Forget the request and free all that it holds; at any point of its life."""
        ...
