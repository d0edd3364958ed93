"""The official client against a real server: it notices no difference."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import openai
import pydantic
import pytest

if TYPE_CHECKING:
    from tests.gateway.conftest import Server

pytestmark = pytest.mark.model

Client: TypeAlias = Any
"""The official client; its optional fields are what these tests assert."""

HELLO: Any = [{"role": "user", "content": "Say hello."}]


def test_a_chat_answers_with_text_usage_and_how_it_was_served(client: Client, model: str) -> None:
    answer = client.chat.completions.with_raw_response.create(model=model, messages=HELLO, max_tokens=12, temperature=0)
    parsed = answer.parse()
    assert parsed.choices[0].message.role == "assistant"
    assert parsed.choices[0].message.content
    assert parsed.choices[0].finish_reason == "length"
    assert parsed.usage.completion_tokens == 12
    assert parsed.usage.total_tokens == parsed.usage.prompt_tokens + 12
    assert answer.headers["x-setpoint-class"] == "standard"
    assert float(answer.headers["x-setpoint-ttft-ms"]) >= float(answer.headers["x-setpoint-queue-ms"]) >= 0


def test_a_stream_tells_the_role_first_then_the_same_text_then_usage(client: Client, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=HELLO, max_tokens=12, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=HELLO,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[-1].model_extra["setpoint"]["class"] == "standard"


def test_a_stream_without_usage_ends_with_its_reason(client: Client, model: str) -> None:
    chunks = list(client.chat.completions.create(model=model, messages=HELLO, max_tokens=3, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    assert chunks[-1].usage is None
    assert chunks[-1].model_extra["setpoint"]["ttft_ms"] > 0


def test_completions_answer_whole_and_streamed_alike(client: Client, model: str) -> None:
    asked = {"model": model, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert whole.choices[0].text
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert whole.usage.completion_tokens == 8


def test_many_prompts_give_their_choices_in_order(client: Client, model: str) -> None:
    prompts = ["One, two, three,", "The capital of France is"]
    alone = [
        client.completions.create(model=model, prompt=p, max_tokens=4, temperature=0).choices[0].text for p in prompts
    ]
    both = client.completions.create(model=model, prompt=prompts, max_tokens=4, temperature=0, n=2)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert len(both.choices) == 2 * len(alone)
    assert both.usage.completion_tokens == 16


def test_a_prompt_of_tokens_equals_its_text(client: Client, model: str) -> None:
    tokens = client.post("../tokenize", body={"prompt": "One, two,"}, cast_to=object)["tokens"]
    one = client.completions.create(model=model, prompt=tokens, max_tokens=4, temperature=0)
    two = client.completions.create(model=model, prompt="One, two,", max_tokens=4, temperature=0)
    assert one.choices[0].text == two.choices[0].text
    assert client.post("../detokenize", body={"tokens": tokens}, cast_to=object) == {"prompt": "One, two,"}


def test_choices_differ_and_the_seed_repeats_them(client: Client, model: str) -> None:
    def ask(seed: int, n: int = 1) -> list[str]:
        answer = client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=6, n=n, seed=seed, temperature=0.9
        )
        assert [c.index for c in answer.choices] == list(range(n))
        return [c.message.content or "" for c in answer.choices]

    assert len({*ask(7, n=4)}) > 1
    # alone, and with the prompt known by now: the engine computes the same batches, down to the last bit
    assert ask(7) == ask(7)
    assert len({*ask(7), *ask(8), *ask(9), *ask(10)}) > 1


def test_choices_of_a_stream_are_told_apart_by_index(client: Client, model: str) -> None:
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    for chunk in client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=6, n=2, seed=1, temperature=0.5, stream=True
    ):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert sorted(texts) == sorted(ends) == [0, 1]


def test_a_stop_string_ends_the_text_before_itself(client: Client, model: str) -> None:
    asked = {"model": model, "messages": HELLO, "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content or ""
    stop = whole[8:12]
    cut = client.chat.completions.create(**asked, stop=[stop])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == whole[: whole.index(stop)]


def test_logprobs_are_ordered_and_greedy_takes_the_first(client: Client, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for token in content:
        tops = [top.logprob for top in token.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert token.logprob == tops[0] <= 0
    assert "".join(token.token for token in content) == answer.choices[0].message.content


def test_completion_logprobs_hold_offsets(client: Client, model: str) -> None:
    answer = client.completions.create(model=model, prompt="One, two,", max_tokens=4, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


def test_a_json_schema_shapes_the_answer(client: Client, model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["color", "count"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}},
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert value["color"] in ("red", "green")
    assert isinstance(value["count"], int)


class Place(pydantic.BaseModel):
    """What the client's own parser shall make of an answer."""

    is_big: bool
    size: Literal["small", "large"]


def test_the_client_parses_an_answer_into_a_type_of_its_own(client: Client, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model, messages=HELLO, max_tokens=400, temperature=0, response_format=Place
    )
    assert isinstance(answer.choices[0].message.parsed, Place)


def test_the_class_comes_from_the_tier_or_the_header(client: Client, server: Server, model: str) -> None:
    raw = client.chat.completions.with_raw_response
    flex = raw.create(model=model, messages=HELLO, max_tokens=2, service_tier="flex")
    assert flex.headers["x-setpoint-class"] == "batch"
    assert flex.parse().service_tier == "flex"
    named = raw.create(
        model=model,
        messages=HELLO,
        max_tokens=2,
        service_tier="flex",
        extra_headers={"x-setpoint-class": "voice", "x-setpoint-ttft-ms": "900", "x-setpoint-tpot-ms": "50.5"},
    )
    assert named.headers["x-setpoint-class"] == "voice"
    assert server.metric("requests_total", class_="voice") >= 1


def test_a_shared_system_prompt_is_not_computed_twice(client: Client, model: str) -> None:
    system: Any = {"role": "system", "content": "You are a helpful assistant of a small shop that sells tea. " * 4}
    cached = [
        client.chat.completions.create(
            model=model, messages=[system, {"role": "user", "content": question}], max_tokens=2
        ).usage.prompt_tokens_details.cached_tokens
        for question in ("Hello?", "What do you sell?")
    ]
    assert cached[0] == 0
    assert cached[1] > 20


@pytest.mark.parametrize(
    ("change", "kind", "param", "code"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "model_not_found"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", None),
        ({"max_tokens": -3}, openai.BadRequestError, "max_tokens", None),
        ({"max_tokens": 5000}, openai.BadRequestError, "max_tokens", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": "word " * 2000}]},
            openai.BadRequestError,
            None,
            "context_length_exceeded",
        ),
        ({"messages": []}, openai.BadRequestError, "messages", None),
        ({"messages": "hi"}, openai.BadRequestError, "messages", None),
        ({"messages": [{"role": "user", "content": 3}]}, openai.BadRequestError, "messages[0].content", None),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature", None),
        ({"temperature": 3.0}, openai.BadRequestError, "temperature", None),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs", None),
        ({"n": 0}, openai.BadRequestError, "n", None),
        ({"n": 99}, openai.BadRequestError, "n", None),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools", "unsupported_parameter"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature", "unknown_parameter"),
        ({"extra_headers": {"x-setpoint-class": "gold"}}, openai.BadRequestError, "x-setpoint-class", "unknown_class"),
        ({"extra_headers": {"x-setpoint-ttft-ms": "soon"}}, openai.BadRequestError, "x-setpoint-ttft-ms", None),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias", None),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "response_format.json_schema", None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "oops"}}}},
            openai.BadRequestError,
            None,
            None,
        ),
    ],
)
def test_a_bad_request_is_named_by_its_field(
    client: Client,
    model: str,
    change: dict[str, object],
    kind: type[openai.APIStatusError],
    param: str | None,
    code: str | None,
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": model, "messages": HELLO, "max_tokens": 2, **change})
    error = caught.value
    assert error.type == "invalid_request_error"
    assert error.message
    if param:
        assert error.param == param
    if code:
        assert error.code == code


def test_harmless_fields_are_accepted(client: Client, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=2, user="me", metadata={"a": "b"}, store=False, tools=[], seed=None
    )
    assert answer.choices
