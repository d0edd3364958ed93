"""What happened to one request, as instants on one monotonic clock, and the durations that follow from them.

A record is written by whoever watched the request: the measuring client, the gateway, or the simulator (whose clock is
virtual). Latency counts from `scheduled_at`, the planned send, so that a client or a server that falls behind cannot
hide the waiting (no coordinated omission); `ttft_wire_s` counts from the first byte written instead.

An *event* is one content message of a stream: text, reasoning text or a tool-call delta. It may carry several tokens:
`event_tokens` says how many where the server told. Token totals come from the server's usage report, never from the
number of events, unless `token_source` says so.
"""

from itertools import pairwise
from typing import Literal

import msgspec

ErrorKind = Literal[
    "unreachable",
    "tls",
    "unauthorized",
    "not_found",
    "rate_limited",
    "client_error",
    "server_error",
    "timeout",
    "cut",
    "bad_stream",
    "too_large",
    "rejected",
    "expired",
    "cancelled",
    "unsent",
]
"""Why a request failed. `timeout`: no answer, or a stall, beyond the limit. `cut`: the connection ended inside the
answer. `rejected`, `expired`: a refusal as a value. `cancelled`: we stopped the run. `unsent`: it was due, and the
client never sent it."""

TokenSource = Literal["usage", "tokenizer", "events", "plan"]
"""Where `output_tokens` comes from; `plan` is the simulator's own knowledge."""

ONE_TOKEN_SLACK = 0.05
"""Events may fall short of the tokens by this share (end-of-text, held-back UTF-8) and still carry one token each."""


class RequestRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request: instants in seconds on a monotonic clock, `None` for what did not happen.

    `first_token_at` is the first content event (for an answer that is not streamed, or empty, its end);
    `first_answer_at` the first that is not reasoning. `event_at` and `event_tokens` are the content events
    (empty: not recorded; empty `event_tokens` alone: the server did not tell).
    `queue_s` is the queue time that the server reports.
    """

    id: int
    class_name: str
    scheduled_at: float
    sent_at: float | None = None
    first_token_at: float | None = None
    first_answer_at: float | None = None
    ended_at: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    event_at: list[float] = []
    event_tokens: list[int] = []
    queue_s: float | None = None
    token_source: TokenSource = "usage"  # noqa: S105 - tokens of text, not of access
    error: ErrorKind | None = None
    detail: str = ""
    status: int = 0

    @property
    def is_failed(self) -> bool:
        """Whether the request counts as infinitely late."""
        return self.error is not None or self.ended_at is None

    @property
    def dispatch_lag_s(self) -> float | None:
        """How late the client sent it: its own fault, not the server's."""
        return None if self.sent_at is None else self.sent_at - self.scheduled_at

    @property
    def ttft_s(self) -> float | None:
        """Planned send to first content."""
        return None if self.first_token_at is None else self.first_token_at - self.scheduled_at

    @property
    def ttft_wire_s(self) -> float | None:
        """First byte sent to first content."""
        if self.first_token_at is None or self.sent_at is None:
            return None
        return self.first_token_at - self.sent_at

    @property
    def e2e_s(self) -> float | None:
        """Planned send to the last content event (or the end of an answer without any)."""
        return None if self.is_failed or self.ended_at is None else self.ended_at - self.scheduled_at

    @property
    def first_tokens(self) -> int:
        """Tokens of the first event: c_1."""
        return self.event_tokens[0] if self.event_tokens else 1

    @property
    def tpot_s(self) -> float | None:
        """`(t_end - t_1) / (n - c_1)`; undefined (`None`) when the first event carried the whole answer."""
        later = self.output_tokens - self.first_tokens
        if self.is_failed or later <= 0 or self.first_token_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.first_token_at) / later

    @property
    def is_one_token_an_event(self) -> bool:
        """Whether each event carried one token, as far as can be told."""
        if self.event_tokens:
            return all(tokens == 1 for tokens in self.event_tokens)
        return self.output_tokens - len(self.event_at) <= max(2.0, ONE_TOKEN_SLACK * self.output_tokens)

    def event_gaps_s(self) -> list[float]:
        """Return the gaps between successive events: the stalls that a reader sees."""
        return [later - earlier for earlier, later in pairwise(self.event_at)]

    def itl_s(self) -> list[float]:
        """Return the gap before each token after the first event; an event of c tokens gives c times `gap / c`.

        Where the server did not tell and events are fewer than tokens, each event counts as the mean number of tokens.
        """
        gaps = self.event_gaps_s()
        if self.is_one_token_an_event:
            return gaps
        if self.event_tokens:
            pairs = zip(gaps, self.event_tokens[1:], strict=True)
            return [gap / tokens for gap, tokens in pairs if tokens > 0 for _ in range(tokens)]
        tokens = round(self.output_tokens / len(self.event_at)) if self.event_at else 1
        return [gap / tokens for gap in gaps for _ in range(tokens)]
