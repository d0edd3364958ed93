"""One open request inside a driver: its text so far, its instants, its counts. Owned by the engine thread."""

import asyncio

from setpoint.engines.api import (
    Finished,
    Generation,
    GenerationEvent,
    Piece,
    RefusalReason,
    Refused,
    SampledToken,
    TextStream,
    TokenLogprob,
)
from setpoint.engines.observe import Outcome, RequestRecord
from setpoint.model import FinishReason, Request
from setpoint.units import Instant, Seconds, Tokens

Delivery = GenerationEvent | Exception

MESSAGES: dict[RefusalReason, str] = {
    "unknown_class": "the service class {name!r} is not configured",
    "too_long": "the prompt and its answer need more tokens than this engine can hold",
    "queue_full": "the queue of class {name!r} is full",
    "late": "the request cannot get its first token within the target of class {name!r}",
    "expired": "the request waited longer than class {name!r} allows",
    "draining": "the server is shutting down and takes no more requests",
}


class Ticket:
    """One open request; `queue` belongs to the event loop and is only ever filled there."""

    def __init__(self, request_id: int, generation: Generation, text: TextStream, arrived_at: Instant) -> None:
        self.id = request_id
        self.generation = generation
        self.class_name = generation.class_name
        self.text = text
        self.arrived_at = arrived_at
        self.queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.cached_tokens = 0
        self.computed_tokens = 0
        self.output_tokens = 0
        self.preemptions = 0
        self.admitted_at: Instant | None = None
        self.first_token_at: Instant | None = None
        self.last_token_at: Instant | None = None
        self._held_tokens = 0
        self._held_logprobs: list[TokenLogprob] = []

    def take(self, sampled: SampledToken, at: Instant) -> tuple[Piece | None, bool]:
        """Take one token in; return the text that it makes ready, if any, and whether the sequence ended itself."""
        self.output_tokens += 1
        self._held_tokens += 1
        if self.first_token_at is None:
            self.first_token_at = at
        self.last_token_at = at
        if sampled.is_end:
            return None, True
        if sampled.logprob is not None:
            self._held_logprobs.append(sampled.logprob)
        text, is_stopped = self.text.push(sampled.token)
        piece = self._piece(text) if text else None
        if is_stopped:
            # what is still held belongs to the stop string, which is not shown
            self._held_logprobs.clear()
        return piece, is_stopped

    def rest(self) -> Piece | None:
        """Return what was held back, now that the sequence is over, or `None`."""
        text = self.text.finish()
        return self._piece(text) if text or self._held_logprobs else None

    def _piece(self, text: str) -> Piece:
        piece = Piece(text=text, tokens=self._held_tokens, logprobs=tuple(self._held_logprobs))
        self._held_tokens = 0
        self._held_logprobs.clear()
        return piece

    def request(self) -> Request:
        """Return what the core needs to know of this request."""
        return Request(
            id=self.id,
            class_name=self.class_name,
            arrived_at=self.arrived_at,
            prompt_tokens=Tokens(len(self.generation.prompt)),
            output_tokens_max=self.generation.output_tokens_max,
            cached_tokens=Tokens(self.cached_tokens),
            ttft_s=self.generation.ttft_s,
            tpot_s=self.generation.tpot_s,
        )

    def queue_s(self, at: Instant) -> Seconds:
        """Return how long the request waited to be admitted, or has waited until `at`."""
        return Seconds((at if self.admitted_at is None else self.admitted_at) - self.arrived_at)

    def _ttft_s(self) -> Seconds | None:
        return None if self.first_token_at is None else Seconds(self.first_token_at - self.arrived_at)

    def finished(self, reason: FinishReason, at: Instant) -> Finished:
        """Return the last event of a generation that ended at `at`."""
        return Finished(
            reason=reason,
            prompt_tokens=len(self.generation.prompt),
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            queue_s=self.queue_s(at),
            ttft_s=self._ttft_s(),
            e2e_s=Seconds(at - self.arrived_at),
        )

    def refused(self, reason: RefusalReason, retry_after_s: Seconds | None = None) -> Refused:
        """Return the last event of a generation that was refused."""
        message = MESSAGES[reason].format(name=self.class_name)
        return Refused(reason=reason, message=message, retry_after_s=retry_after_s)

    def record(self, outcome: Outcome, at: Instant) -> RequestRecord:
        """Return the account of the request, over at `at`."""
        return RequestRecord(
            request_id=self.id,
            class_name=self.class_name,
            outcome=outcome,
            prompt_tokens=len(self.generation.prompt),
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            queue_s=self.queue_s(at),
            ttft_s=self._ttft_s(),
            e2e_s=Seconds(at - self.arrived_at),
            preemptions=self.preemptions,
        )
