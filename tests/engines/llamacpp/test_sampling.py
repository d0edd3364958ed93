"""Drawing tokens: the shortcuts give what the plain definition gives."""

import collections
import json
import math
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.llamacpp.conversation import Conversation, generation
from tests.engines.llamacpp.oracle import Oracle, has_bytes

from setpoint.engines.api import Sampling
from setpoint.engines.llamacpp.chat import ChatTemplate
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.engines.llamacpp.grammar import compile_grammar
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.sampling import Sampler, Scratch
from setpoint.engines.llamacpp.truncation import Floats, likeliest, survivors
from setpoint.errors import EngineError, RequestError

Ids = npt.NDArray[np.intp]
NO_IDS: Ids = np.empty(0, dtype=np.intp)


def sampler(sampling: Sampling, vocabulary: int = 1000, prompt: Ids = NO_IDS, ends: Ids = NO_IDS) -> Sampler:
    return Sampler(sampling, Scratch(vocabulary), prompt=prompt, ends=ends, grammar=None)


def logits(seed: int, vocabulary: int = 1000, spread: float = 3.0) -> Floats:
    return (np.random.default_rng(seed).normal(size=vocabulary) * spread).astype(np.float32)


def by_definition(weights: Floats, sampling: Sampling) -> set[int]:
    """Min-p, then top-k, then top-p, over the whole sorted vocabulary."""
    order = [int(i) for i in np.argsort(-weights, kind="stable") if weights[i] >= sampling.min_p]
    order = order[: sampling.top_k or None]
    total, kept = float(weights[order].sum(dtype=np.float64)), []
    mass = 0.0
    for token in order:
        kept.append(token)
        mass += float(weights[token])
        if mass > sampling.top_p * total:
            break
    return set(kept)


@given(
    st.integers(0, 2**16),
    st.integers(0, 50),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.001, 0.2]),
    st.sampled_from([0.3, 3.0, 12.0]),
)
def test_the_survivors_are_those_of_the_definition(
    seed: int, top_k: int, top_p: float, min_p: float, spread: float
) -> None:
    sampling = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    weights = Scratch(1000).weights(logits(seed, spread=spread), 1.0)
    assert set(survivors(weights, sampling).tolist()) == by_definition(weights, sampling)


def test_draws_follow_the_distribution() -> None:
    row = np.array([2.0, 1.0, 0.0, -1.0, -30.0], dtype=np.float32)
    chooser = sampler(Sampling(temperature=0.7, seed=1), vocabulary=5)
    drawn = collections.Counter(chooser.sample(row.copy()) for _ in range(20_000))
    weights = np.exp(row / 0.7) / np.exp(row / 0.7).sum()
    for token in range(4):
        assert drawn[token] / 20_000 == pytest.approx(weights[token], abs=4 * math.sqrt(0.25 / 20_000))
    assert drawn[4] == 0


@pytest.mark.parametrize("top_p", [0.4, 0.6, 0.95])
def test_draws_by_top_p_follow_the_distribution_of_what_it_leaves(top_p: float) -> None:
    row = np.array([2.0, 1.0, 1.0, 1.0, 0.0, -1.0, -3.0], dtype=np.float32)
    sampling = Sampling(temperature=0.9, top_p=top_p, seed=2)
    chooser = sampler(sampling, vocabulary=7)
    drawn = collections.Counter(chooser.sample(row.copy()) for _ in range(20_000))
    weights = Scratch(7).weights(row, 0.9)
    kept = by_definition(weights, sampling)
    assert {*drawn} == kept
    for token in kept:
        share = weights[token] / weights[[*kept]].sum()
        assert drawn[token] / 20_000 == pytest.approx(share, abs=4 * math.sqrt(0.25 / 20_000))


@given(st.integers(0, 2**16), st.floats(0, 1, exclude_max=True))
def test_a_pick_is_where_the_running_sum_passes_the_point(seed: int, point: float) -> None:
    scratch = Scratch(1000)
    weights = scratch.weights(logits(seed), 1.0).astype(np.float64)
    token = scratch.pick(point)
    running = np.cumsum(weights) / weights.sum()
    assert running[token] >= point - 1e-6
    assert running[token] - weights[token] / weights.sum() <= point + 1e-6


def test_temperature_zero_is_greedy_and_needs_no_chance() -> None:
    assert sampler(Sampling(temperature=0.0)).is_plain
    assert sampler(Sampling(temperature=0.0)).sample(logits(1)) == int(logits(1).argmax())


def test_the_same_seed_gives_the_same_tokens() -> None:
    first, second, other = (sampler(Sampling(seed=seed)) for seed in (5, 5, 6))
    drawn = [[chooser.sample(logits(i)) for i in range(50)] for chooser in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_penalties_turn_the_choice_away_from_what_was_said() -> None:
    row = np.array([3.0, 2.9, 2.0], dtype=np.float32)
    for penalty in (Sampling(temperature=0.0, presence_penalty=0.5), Sampling(temperature=0.0, frequency_penalty=0.5)):
        chooser = sampler(penalty, vocabulary=3)
        assert [chooser.sample(row.copy()) for _ in range(2)] == [0, 1]
    repetition = sampler(Sampling(temperature=0.0, repetition_penalty=2.0), vocabulary=3, prompt=np.array([0]))
    assert [repetition.sample(row.copy()) for _ in range(2)] == [1, 2]


def test_bias_forbids_and_forces() -> None:
    row = logits(3)
    best = int(row.argmax())
    assert sampler(Sampling(temperature=0.0, logit_bias={best: -100.0})).sample(row.copy()) != best
    assert sampler(Sampling(temperature=0.0, logit_bias={7: 100.0})).sample(row.copy()) == 7


def test_an_ignored_end_is_never_drawn() -> None:
    row = logits(4)
    best = int(row.argmax())
    chooser = sampler(Sampling(temperature=0.0, is_eos_ignored=True), ends=np.array([best]))
    assert chooser.sample(row.copy()) != best


def test_log_probabilities_sum_to_one() -> None:
    row = logits(5)
    scratch = Scratch(len(row))
    for temperature in (1.0, 0.7):
        scratch.weights(row, temperature)
        assert np.exp(row.astype(np.float64) / temperature - scratch.log_total()).sum() == pytest.approx(1.0, abs=1e-5)
    assert likeliest(row, 3).tolist() == np.argsort(-row)[:3].tolist()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0),
        Sampling(temperature=0.7, seed=1),
        Sampling(top_p=0.9, seed=1),
        Sampling(top_k=5, min_p=0.01, seed=1),
        Sampling(temperature=0.7, seed=1, is_eos_ignored=True),
        Sampling(logit_bias={3: -5.0}, seed=1),
        Sampling(repetition_penalty=1.3, seed=1),
    ],
)
def test_only_a_sampler_that_says_so_overwrites_the_logits(sampling: Sampling) -> None:
    row = logits(7)
    chooser = sampler(sampling, prompt=np.arange(20), ends=np.array([int(row.argmax())]))
    before = row.copy()
    for _ in range(3):
        chooser.sample(row)
    assert chooser.is_edited != np.array_equal(row, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_the_engines_fault(bad: float) -> None:
    row = logits(6)
    row[10] = bad
    for temperature in (0.0, 1.0):
        with pytest.raises(EngineError, match="finite"):
            sampler(Sampling(temperature=temperature)).sample(row.copy())


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (Sampling(temperature=-1.0), "temperature"),
        (Sampling(temperature=math.nan), "temperature"),
        (Sampling(top_p=1.5), "top_p"),
        (Sampling(top_k=-1), "top_k"),
        (Sampling(logprobs=21), "logprobs"),
        (Sampling(repetition_penalty=0.0), "repetition_penalty"),
        (Sampling(logit_bias={5000: 1.0}), "logit_bias"),
        (Sampling(logit_bias={5: 101.0}), "logit_bias"),
        (Sampling(grammar="root ::= 1", json_schema="{}"), "grammar"),
    ],
)
def test_a_field_out_of_range_is_named(sampling: Sampling, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        sampler(sampling)
    assert caught.value.param == param


@pytest.mark.model
class TestOnTheModel:
    @pytest.fixture
    def executor(self, model: Model) -> Iterator[LlamaExecutor]:
        made = LlamaExecutor(model, slots=2, kv_tokens=1024, step_tokens_max=256, prefixes=0, prefix_tokens=0)
        yield made
        made.close()

    def answer(self, executor: LlamaExecutor, prompt: tuple[int, ...], sampling: Sampling, tokens: int) -> str:
        talk = Conversation(executor, 0, generation(prompt, sampling), 0)
        talk.prefill()
        while not talk.yielded[-1].is_end and len(talk.yielded) < tokens:
            talk.decode(1)
        executor.release(0)
        return b"".join(map(executor.model.piece, talk.tokens)).decode()

    def test_a_json_schema_is_followed(self, executor: LlamaExecutor, chat: ChatTemplate) -> None:
        schema = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "age": {"type": "integer", "minimum": 18, "maximum": 99},
                "colour": {"enum": ["red", "green"]},
            },
            "required": ["name", "age", "colour"],
        }
        prompt = chat.prompt([{"role": "user", "content": "Invent a person, as JSON."}])
        for temperature in (0.0, 1.0):
            sampling = Sampling(temperature=temperature, seed=2, json_schema=json.dumps(schema))
            person = json.loads(self.answer(executor, prompt, sampling, 120))
            assert set(person) == {"name", "age", "colour"}
            assert len(person["name"]) <= 12
            assert 18 <= person["age"] <= 99
            assert person["colour"] in {"red", "green"}

    def test_a_grammar_that_is_complete_ends_the_output(self, executor: LlamaExecutor, chat: ChatTemplate) -> None:
        prompt = chat.prompt([{"role": "user", "content": "Yes or no?"}])
        for is_eos_ignored in (False, True):
            sampling = Sampling(grammar='root ::= "yes" | "no"', seed=1, is_eos_ignored=is_eos_ignored)
            assert self.answer(executor, prompt, sampling, 20) in {"yes", "no"}

    @pytest.mark.parametrize("grammar", ['x ::= "a"', "root ::= (", 'root ::= root "a" | "b"', "root ::= \0"])
    def test_a_grammar_that_cannot_be_compiled_is_refused(self, executor: LlamaExecutor, grammar: str) -> None:
        with pytest.raises(RequestError) as caught:
            executor.prepare(0, generation((1,), Sampling(grammar=grammar)))
        assert caught.value.param == "grammar"

    def test_log_probabilities_come_with_alternatives(self, executor: LlamaExecutor, model: Model) -> None:
        talk = Conversation(
            executor, 0, generation(model.tokenize("One, two,"), Sampling(temperature=0.0, logprobs=3)), 0
        )
        talk.prefill()
        executor.release(0)
        logprob = talk.yielded[0].logprob
        assert logprob is not None
        assert model.piece(talk.tokens[0]).decode() == logprob.token
        assert logprob.top[0] == (logprob.token, logprob.logprob)
        assert [p for _, p in logprob.top] == sorted((p for _, p in logprob.top), reverse=True)
        assert -5.0 < logprob.logprob < 0.0

    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(temperature=0.5, seed=1, logprobs=3),
            Sampling(seed=1, logprobs=3),
            Sampling(seed=1, logprobs=3, top_p=0.5),
            Sampling(temperature=2.0, seed=1, logprobs=3, repetition_penalty=1.5, is_eos_ignored=True),
        ],
    )
    def test_log_probabilities_are_those_of_the_model_however_a_token_is_drawn(
        self, executor: LlamaExecutor, model: Model, sampling: Sampling
    ) -> None:
        def first_top(drawn_by: Sampling) -> tuple[tuple[str, float], ...]:
            talk = Conversation(executor, 0, generation(model.tokenize("One, two,"), drawn_by), 0)
            talk.prefill()
            executor.release(0)
            assert talk.yielded[0].logprob is not None
            return talk.yielded[0].logprob.top

        for (word, logprob), (drawn_word, drawn_logprob) in zip(
            first_top(Sampling(temperature=0.0, logprobs=3)), first_top(sampling), strict=True
        ):
            assert drawn_word == word
            assert drawn_logprob == pytest.approx(logprob, abs=1e-4)

    def test_the_same_seed_gives_the_same_text_whoever_else_is_served(
        self, executor: LlamaExecutor, model: Model
    ) -> None:
        prompt, sampling = model.tokenize("Once upon a time"), Sampling(temperature=0.9, seed=11, top_p=0.95)
        alone = Conversation(executor, 0, generation(prompt, sampling), 0).run(10)
        other = Conversation(executor, 1, generation(model.tokenize("The sea is"), Sampling(seed=1)), 1)
        other.prefill()
        talk = Conversation(executor, 2, generation(prompt, sampling), 0)
        talk.prefill()
        for _ in range(9):
            talk.yielded += [s for s in executor.run([1, 2], []).tokens if s.request_id == 2]
        executor.release(1)
        executor.release(2)
        assert talk.tokens == alone

    @pytest.mark.parametrize("text", ["root ::= [a-c]", 'root ::= "a" | "bc" | "é"', "root ::= [^b]+", "root ::= .+"])
    @pytest.mark.parametrize(
        "sampling",
        [Sampling(), Sampling(temperature=0.6, top_p=0.7), Sampling(top_k=5), Sampling(min_p=0.1, top_k=30)],
    )
    def test_drawing_by_a_grammar_is_drawing_from_the_masked_distribution(
        self, model: Model, text: str, sampling: Sampling
    ) -> None:
        row = logits(5, model.info.vocabulary)
        row[:3000] += 6.0
        oracle = Oracle(model, text)
        is_allowed = oracle.allowed(len(row)) & has_bytes(model)
        oracle.close()
        masked = np.where(is_allowed, row, -np.inf).astype(np.float32)
        scratch = Scratch(len(row))
        weights = scratch.weights(masked, sampling.temperature).astype(np.float64)
        kept = np.zeros(len(row), dtype=np.bool_)
        kept[survivors(weights.astype(np.float32), sampling)] = True
        expected = weights * kept / weights[kept].sum()
        draws = 400
        drawn = collections.Counter[int]()
        for seed in range(draws):
            seeded = msgspec.structs.replace(sampling, seed=seed)
            grammar = compile_grammar(model, grammar=text)
            drawn[Sampler(seeded, scratch, prompt=NO_IDS, ends=NO_IDS, grammar=grammar).sample(row.copy())] += 1
        assert all(is_allowed[token] and kept[token] for token in drawn)
        for token in np.argsort(-expected)[:5].tolist():
            deviation = math.sqrt(draws * expected[token] * (1 - expected[token]))
            assert abs(drawn[token] - draws * expected[token]) < 4.5 * deviation + 1

    def test_a_truncated_draw_by_a_grammar_is_that_of_the_masked_row_token_by_token(self, model: Model) -> None:
        scratch, is_allowed = Scratch(model.info.vocabulary), Oracle(model, "root ::= [^b]+")
        mask = is_allowed.allowed(model.info.vocabulary) & has_bytes(model)
        is_allowed.close()
        for seed in range(20):
            # with a min-p neither draws among all first
            sampling, row = Sampling(top_p=0.9, min_p=1e-6, seed=seed), logits(seed, model.info.vocabulary)
            grammar = compile_grammar(model, grammar="root ::= [^b]+")
            by_grammar = Sampler(sampling, scratch, prompt=NO_IDS, ends=NO_IDS, grammar=grammar)
            masked = Sampler(sampling, scratch, prompt=NO_IDS, ends=NO_IDS, grammar=None)
            assert by_grammar.sample(row.copy()) == masked.sample(np.where(mask, row, np.float32(-np.inf)))

    def test_what_others_asked_about_a_grammar_changes_no_draw(self, model: Model) -> None:
        schema = '{"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 3}'
        scratch = Scratch(model.info.vocabulary)

        def draw(seed: int) -> list[int]:
            grammar = compile_grammar(model, json_schema=schema)
            one = Sampler(Sampling(seed=seed), scratch, prompt=NO_IDS, ends=NO_IDS, grammar=grammar)
            return [one.sample(logits(i, model.info.vocabulary)) for i in range(30)]

        first = draw(1)
        for seed in range(2, 6):
            draw(seed)
        assert draw(1) == first
