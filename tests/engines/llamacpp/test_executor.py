"""The executor on the starter model: what a step plan says is what the model computes."""

from collections.abc import Iterator

import pytest
from tests.engines.llamacpp.conversation import GREEDY, Conversation, decode_together, generation, is_empty, kv_tokens

from setpoint.engines.api import Executor, Sampling
from setpoint.engines.llamacpp.chat import ChatTemplate
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.engines.llamacpp.model import Model
from setpoint.errors import ConfigError, EngineError, ModelError, RequestError
from setpoint.settings import KvLayout

pytestmark = pytest.mark.model

QUESTIONS = ("Name three fruits.", "Write a haiku.", "What is the capital of France?", "Count to five.")


@pytest.fixture(params=["per-slot", "shared"])
def executor(model: Model, request: pytest.FixtureRequest) -> Iterator[LlamaExecutor]:
    """Yield an executor that must hold no request, no KV and no pin when a test is over."""
    layout: KvLayout = request.param
    made = LlamaExecutor(
        model, slots=4, kv_layout=layout, kv_tokens=1024, step_tokens_max=128, prefixes=2, prefix_tokens=512
    )
    yield made
    assert is_empty(made)
    assert all(stored.pins == 0 for stored in made._prefixes._stored)
    made.close()


@pytest.fixture
def prompts(model: Model) -> list[tuple[int, ...]]:
    return [model.tokenize(question) for question in QUESTIONS]


def test_it_is_an_executor(executor: LlamaExecutor) -> None:
    behind_the_seam: Executor = executor
    assert behind_the_seam.capacity.slots == 4
    assert behind_the_seam.capacity.kv_blocks * 16 == 1024
    assert behind_the_seam.capacity.step_tokens_max == 128


def test_sequences_decoded_together_yield_what_each_yields_alone(
    executor: LlamaExecutor, prompts: list[tuple[int, ...]]
) -> None:
    alone = [Conversation(executor, i, generation(prompt), 0).run(12) for i, prompt in enumerate(prompts)]
    together = [Conversation(executor, 10 + i, generation(prompt), i) for i, prompt in enumerate(prompts)]
    for conversation in together:
        conversation.prefill()
    decode_together(together, 11)
    assert [conversation.tokens for conversation in together] == alone
    for conversation in together:
        executor.release(conversation.request_id)


def test_sequences_that_a_step_leaves_out_are_moved_and_yield_the_same(
    executor: LlamaExecutor, prompts: list[tuple[int, ...]]
) -> None:
    alone = [Conversation(executor, i, generation(prompt), 0).run(13) for i, prompt in enumerate(prompts)]
    together = [Conversation(executor, 10 + i, generation(prompt), i) for i, prompt in enumerate(prompts)]
    for conversation in together:
        conversation.prefill()
    decode_together(together[::3], 4)
    decode_together(together[1::2], 2)
    decode_together([together[0], together[2]], 5)
    for conversation in together:
        conversation.decode(13 - len(conversation.yielded))
    assert [conversation.tokens for conversation in together] == alone
    for conversation in together:
        executor.release(conversation.request_id)


def test_a_step_mixes_prefill_chunks_with_decodes(executor: LlamaExecutor, prompts: list[tuple[int, ...]]) -> None:
    alone = [Conversation(executor, i, generation(prompt), 0).run(6) for i, prompt in enumerate(prompts[:2])]
    first = Conversation(executor, 10, generation(prompts[0]), 0)
    first.prefill()
    second = Conversation(executor, 11, generation(prompts[1]), 3)
    out = executor.run([10], [(11, 2)])
    assert [sampled.request_id for sampled in out.tokens] == [10]
    out = executor.run([10], [(11, len(prompts[1]) - 2)])
    yielded = {sampled.request_id: sampled.token for sampled in out.tokens}
    assert yielded == {10: alone[0][2], 11: alone[1][0]}
    assert out.forward_s > 0
    assert out.sampling_s > 0
    executor.release(first.request_id)
    executor.release(second.request_id)


@pytest.mark.parametrize("chunks", [(1,), (3, 5), (16, 16)])
def test_a_prompt_in_chunks_yields_what_it_yields_at_once(
    executor: LlamaExecutor, chat: ChatTemplate, chunks: tuple[int, ...]
) -> None:
    prompt = chat.prompt([{"role": "user", "content": "Tell me a story about a dragon and a small village."}])
    whole = Conversation(executor, 0, generation(prompt), 0).run(8)
    chunked = Conversation(executor, 1, generation(prompt), 1)
    chunked.prefill(*chunks)
    chunked.decode(7)
    executor.release(1)
    assert chunked.tokens == whole


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, seed=7, presence_penalty=0.5)])
def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened(
    executor: LlamaExecutor, prompts: list[tuple[int, ...]], sampling: Sampling
) -> None:
    whole = Conversation(executor, 0, generation(prompts[1], sampling), 0).run(12)
    talk = Conversation(executor, 1, generation(prompts[1], sampling), 0)
    talk.prefill()
    talk.decode(5)
    executor.preempt(1)
    assert executor._packing.free == {*range(executor.kv.places)}
    executor.admit(1, 2)
    talk.prefill(4)
    talk.decode(5)
    executor.release(1)
    assert talk.tokens == whole


def test_a_long_shared_prefix_is_computed_once(executor: LlamaExecutor, chat: ChatTemplate) -> None:
    system = {"role": "system", "content": "You answer in one short sentence. " * 6}
    ask = [chat.prompt([system, {"role": "user", "content": question}]) for question in QUESTIONS[:3]]
    shared = next(i for i, pair in enumerate(zip(*ask, strict=False)) if len(set(pair)) > 1)
    cold = [Conversation(executor, 0, generation(ask[0], prefix_tokens=shared), 0)]
    assert cold[0].saved == 0
    cold[0].run(5)
    warm = Conversation(executor, 1, generation(ask[1]), 1)
    assert warm.saved == shared
    warm.run(6)
    stats = executor.prefix_stats
    assert (stats.hits, stats.tokens_saved, stats.prefixes, stats.tokens_held) == (1, shared, 1, shared)
    fresh = LlamaExecutor(executor.model, slots=1, kv_tokens=512, step_tokens_max=128, prefixes=0, prefix_tokens=0)
    assert Conversation(fresh, 0, generation(ask[1]), 0).run(6) == warm.tokens
    fresh.close()


def test_what_two_prompts_begin_with_is_stored_unasked(executor: LlamaExecutor, chat: ChatTemplate) -> None:
    system = {"role": "system", "content": "You are a pirate. " * 10}
    ask = [chat.prompt([system, {"role": "user", "content": question}]) for question in QUESTIONS[:3]]
    saved = []
    for i, prompt in enumerate(ask):
        talk = Conversation(executor, i, generation(prompt), 0)
        saved.append(talk.saved)
        talk.run(2)
    assert saved[:2] == [0, 0]
    assert saved[2] > 40


def test_at_least_one_prompt_token_is_left_to_compute(executor: LlamaExecutor, chat: ChatTemplate) -> None:
    prompt = chat.prompt([{"role": "user", "content": QUESTIONS[0]}])
    first = Conversation(executor, 0, generation(prompt, prefix_tokens=len(prompt)), 0).run(3)
    again = Conversation(executor, 1, generation(prompt), 0)
    assert again.saved == len(prompt) - 1
    assert again.run(3) == first


def test_a_request_may_leave_at_any_point(executor: LlamaExecutor, chat: ChatTemplate) -> None:
    prompt = chat.prompt([{"role": "user", "content": QUESTIONS[0]}])
    Conversation(executor, 0, generation(prompt, prefix_tokens=20), 0).run(2)
    assert executor.prepare(1, generation(prompt)) == 20
    executor.release(1)
    executor.prepare(2, generation(prompt))
    executor.admit(2, 0)
    executor.release(2)
    partly = Conversation(executor, 3, generation(prompt), 0)
    executor.run([], [(3, 3)])
    assert kv_tokens(executor, 3) == 23
    executor.release(3)
    decoding = Conversation(executor, 4, generation(prompt), 1)
    decoding.prefill()
    decoding.decode(2)
    executor.release(4)
    preempted = Conversation(executor, 5, generation(prompt), 2)
    preempted.prefill()
    executor.preempt(5)
    executor.release(5)
    assert partly.slot == 0


def test_a_stored_prefix_that_is_pinned_is_not_evicted(executor: LlamaExecutor, model: Model) -> None:
    prompts = [model.tokenize(f"{word} " * 40)[:40] for word in ("red", "green", "blue", "grey")]
    for i, prompt in enumerate(prompts[:2]):
        Conversation(executor, i, generation(prompt, prefix_tokens=32), 0).run(1)
    assert executor.prepare(8, generation(prompts[0])) == 32
    for i, prompt in enumerate(prompts[2:], start=2):
        Conversation(executor, i, generation(prompt, prefix_tokens=32), 1).run(1)
    assert executor.prepare(9, generation(prompts[1])) == 0
    executor.admit(8, 0)
    assert kv_tokens(executor, 8) == 32
    executor.release(8)
    executor.release(9)


def test_a_failed_step_moves_nothing_and_may_be_tried_again(
    executor: LlamaExecutor, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Conversation(executor, 0, generation(prompts[0]), 0).run(4)
    talk = Conversation(executor, 1, generation(prompts[0]), 0)
    talk.prefill()
    decode = executor._context.decode

    def fail(tokens: int) -> None:
        decode(tokens)
        raise EngineError("the power went out")

    monkeypatch.setattr(executor._context, "decode", fail)
    with pytest.raises(EngineError):
        executor.run([1], [])
    assert kv_tokens(executor, 1) == len(prompts[0])
    monkeypatch.undo()
    talk.decode(3)
    executor.release(1)
    assert talk.tokens == whole


def test_more_kv_than_there_is_fails_the_step_and_not_the_process(model: Model) -> None:
    executor = LlamaExecutor(model, slots=2, kv_layout="shared", kv_tokens=256, step_tokens_max=256, prefixes=0)
    for request_id in (0, 1):
        executor.prepare(request_id, generation([5] * 200))
        executor.admit(request_id, request_id)
    executor.run([], [(0, 200)])
    with pytest.raises(EngineError, match="no room"):
        executor.run([], [(1, 200)])
    assert kv_tokens(executor, 1) == 0
    executor.close()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [((), "empty"), ((1,) * 2000, "together may have"), ((1, 49152), "does not have"), ((-1,), "does not have")],
)
def test_a_prompt_that_cannot_be_served_is_refused(
    executor: LlamaExecutor, prompt: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        executor.prepare(0, generation(prompt))


def test_sizes_that_contradict_each_other_are_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        LlamaExecutor(model, slots=1, kv_tokens=3000, prefixes=0, step_tokens_max=4096)
    with pytest.raises(ConfigError, match="not within 1 to 256"):
        LlamaExecutor(model, slots=300)
    with pytest.raises(ConfigError, match="each of 8 slots 0 tokens"):
        LlamaExecutor(model, slots=8, kv_tokens=1024)
    with pytest.raises(ModelError, match="GiB are free"):
        LlamaExecutor(model, kv_tokens=1 << 30)
