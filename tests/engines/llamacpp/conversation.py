"""Drives an executor as the core would, one request at a time or many at once."""

from collections.abc import Sequence

from setpoint.engines.api import Generation, SampledToken, Sampling
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.units import Tokens

GREEDY = Sampling(temperature=0.0)


def generation(prompt: Sequence[int], sampling: Sampling = GREEDY, *, prefix_tokens: int = 0) -> Generation:
    return Generation(
        prompt=tuple(prompt),
        class_name="chat",
        output_tokens_max=Tokens(64),
        sampling=sampling,
        prefix_tokens=Tokens(prefix_tokens),
    )


class Conversation:
    """One request on an executor: it is prepared and admitted, and remembers the tokens that it yielded."""

    def __init__(self, executor: LlamaExecutor, request_id: int, wanted: Generation, slot: int) -> None:
        self.executor, self.request_id, self.slot, self.wanted = executor, request_id, slot, wanted
        self.saved = executor.prepare(request_id, wanted)
        self.yielded: list[SampledToken] = []
        executor.admit(request_id, slot)

    @property
    def tokens(self) -> list[int]:
        return [sampled.token for sampled in self.yielded]

    def prefill(self, *chunks: int) -> None:
        """Compute the prompt in `chunks` tokens at a time, and what then is left at once."""
        left = len(self.wanted.prompt) + len(self.yielded) - self.saved
        for chunk in [*chunks, left - sum(chunks)]:
            self.yielded += self.executor.run([], [(self.request_id, chunk)]).tokens

    def decode(self, tokens: int) -> None:
        for _ in range(tokens):
            self.yielded += self.executor.run([self.request_id], []).tokens

    def run(self, tokens: int) -> list[int]:
        """Prefill, decode until there are `tokens` tokens, release; return them."""
        self.prefill()
        self.decode(tokens - len(self.yielded))
        self.executor.release(self.request_id)
        return self.tokens


def kv_tokens(executor: LlamaExecutor, request_id: int) -> int:
    """Return how many tokens of KV a request that has a slot holds, as llama.cpp counts them."""
    return executor._context.length(executor._sequences[request_id].held_place)


def is_empty(executor: LlamaExecutor) -> bool:
    """Return whether no request is left, and no token of one in the KV cache."""
    places = range(executor.kv.places)
    is_clear = not any(executor._context.length(place) for place in places)
    return not executor._sequences and executor._packing.free == {*places} and is_clear


def decode_together(conversations: Sequence[Conversation], tokens: int) -> None:
    """Decode `tokens` tokens of all conversations in shared steps."""
    by_id = {conversation.request_id: conversation for conversation in conversations}
    for _ in range(tokens):
        for sampled in conversations[0].executor.run(list(by_id), []).tokens:
            by_id[sampled.request_id].yielded.append(sampled)
