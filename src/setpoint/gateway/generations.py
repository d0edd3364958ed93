"""From a request of the OpenAI API to the generations that answer it: one for each prompt and each of its `n` choices.

Choice number i of a prompt draws with `seed + i`, so that the choices differ and the whole is repeatable.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from setpoint.engines.api import ChatPrompt, Generation, Sampling
from setpoint.errors import RequestError
from setpoint.gateway.engine import ServedEngine
from setpoint.gateway.service import Service
from setpoint.gateway.wire import Asked, ChatRequest, CompletionRequest, Message, ResponseFormat
from setpoint.settings import ServerSettings
from setpoint.units import Tokens

COMPLETION_TOKENS_DEFAULT = 16
"""What the OpenAI API gives a completion that names no `max_tokens`; a chat gets what the context has left."""


def plain_messages(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """Return the messages as a chat template wants them: text alone, and `developer` as `system`."""
    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": message.content
            if isinstance(message.content, str)
            else "".join(part.text for part in message.content),
        }
        for message in messages
    ]


def chat_generations(
    request: ChatRequest, engine: ServedEngine, service: Service, limits: ServerSettings
) -> list[Generation]:
    """Return the generations of a chat request; raises RequestError when it asks for what cannot be."""
    if request.top_logprobs and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs = true", param="top_logprobs")
    asked = request.max_completion_tokens or request.max_tokens
    if request.max_tokens and request.max_tokens != asked:
        raise RequestError(
            "max_tokens and max_completion_tokens contradict each other", param="max_tokens", hint="give one of them"
        )
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    prompt = engine.chat_prompt(plain_messages(request.messages))
    return _generations(request, [prompt], engine, service, limits, (asked, None, logprobs))


def completion_generations(
    request: CompletionRequest, engine: ServedEngine, service: Service, limits: ServerSettings
) -> list[Generation]:
    """Return the generations of a completion request, prompt by prompt."""
    texts = _prompts(request.prompt)
    prompts = [
        ChatPrompt(engine.tokenize(text) if isinstance(text, str) else _checked(text, engine.vocabulary))
        for text in texts
    ]
    ask = (request.max_tokens, COMPLETION_TOKENS_DEFAULT, request.logprobs)
    return _generations(request, prompts, engine, service, limits, ask)


def _generations(
    request: Asked,
    prompts: Sequence[ChatPrompt],
    engine: ServedEngine,
    service: Service,
    limits: ServerSettings,
    ask: tuple[int | None, int | None, int | None],
) -> list[Generation]:
    """Return one generation a choice; `ask`: output tokens asked for, their default, and log-probabilities."""
    output_tokens, output_default, logprobs = ask
    n = request.n or 1
    if n * len(prompts) > limits.choices_max:
        raise RequestError(f"{n * len(prompts)} choices asked for; this server gives {limits.choices_max}", param="n")
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options is for streams: set stream = true", param="stream_options")
    sampling = _sampling(request, engine.vocabulary, logprobs)
    made = []
    for prompt in prompts:
        room = _room(prompt.tokens, output_tokens, engine.context_tokens, limits)
        first = Generation(
            prompt=prompt.tokens,
            class_name=service.class_name,
            output_tokens_max=Tokens(output_tokens or min(room, output_default or room)),
            sampling=sampling,
            stop=_stops(request.stop),
            prefix_tokens=Tokens(prompt.prefix_tokens),
            ttft_s=service.ttft_s,
            tpot_s=service.tpot_s,
        )
        made += [_choice(first, index) for index in range(n)]
    return made


def _choice(generation: Generation, index: int) -> Generation:
    if index == 0 or generation.sampling.seed is None:
        return generation
    sampling = msgspec.structs.replace(generation.sampling, seed=generation.sampling.seed + index)
    return msgspec.structs.replace(generation, sampling=sampling)


def _room(prompt: Sequence[int], output_tokens: int | None, context: int, limits: ServerSettings) -> int:
    """Return how many output tokens the context has left; raise when the request needs more than there is."""
    if not prompt:
        raise RequestError("the prompt is empty", param="prompt")
    prompt_max = min(context - 1, limits.prompt_tokens_max or context)
    if len(prompt) > prompt_max:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens; at most {prompt_max} are accepted (context: {context})",
            code="context_length_exceeded",
            hint="shorten the prompt",
        )
    room = context - len(prompt)
    if output_tokens is not None and output_tokens > room:
        raise RequestError(
            f"max_tokens is {output_tokens}, but the context of {context} tokens has {room} left after a prompt of "
            f"{len(prompt)}",
            param="max_tokens",
            code="context_length_exceeded",
            hint=f"ask for at most {room}",
        )
    return room


def _sampling(request: Asked, vocabulary: int, logprobs: int | None) -> Sampling:
    given = {
        "temperature": request.temperature,
        "top_k": None if request.top_k is None else max(0, request.top_k),
        "top_p": request.top_p,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "seed": request.seed,
        "logprobs": logprobs,
        "json_schema": _json_schema(request.response_format),
        "logit_bias": _logit_bias(request.logit_bias or {}, vocabulary),
        "is_eos_ignored": request.ignore_eos,
    }
    return msgspec.convert({name: value for name, value in given.items() if value is not None}, Sampling)


def _json_schema(form: ResponseFormat | None) -> str | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return '{"type":"object"}'
    if form.json_schema is None:
        raise RequestError("response_format.json_schema is required", param="response_format.json_schema")
    return msgspec.json.encode(form.json_schema.schema).decode()


def _logit_bias(bias: Mapping[str, float], vocabulary: int) -> dict[int, float]:
    checked = {}
    for name, value in bias.items():
        if not (name.isascii() and name.isdigit() and int(name) < vocabulary):
            raise RequestError(f"logit_bias: {name!r} is not a token id below {vocabulary}", param="logit_bias")
        checked[int(name)] = value
    return checked


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(type(item) is int for item in prompt):
        return [prompt]
    if prompt and all(isinstance(item, str | list) for item in prompt):
        return prompt
    raise RequestError("prompt: expected a text, a list of tokens, or a list of either", param="prompt")


def _checked(tokens: Sequence[object], vocabulary: int) -> tuple[int, ...]:
    checked = tuple(token for token in tokens if type(token) is int and 0 <= token < vocabulary)
    if len(checked) != len(tokens):
        raise RequestError(f"prompt: token ids must be whole numbers from 0 to {vocabulary - 1}", param="prompt")
    return checked
