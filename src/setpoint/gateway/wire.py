"""The requests of the OpenAI API as frozen values, and the decoding that tells what is wrong with them.

Three kinds of fields: those that are understood (the structs below), those that change nothing here and are ignored
(`IGNORED`), and those whose effect is missing here, which are accepted only at the value that asks for nothing
(`NEUTRAL`). A field that is none of these is refused by name: an answer that silently disregards a part of the question
is worse than none. `null` always means that the field was not given.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from setpoint.errors import RequestError
from setpoint.settings import Tier

IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "store",
        "user",
    }
)

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Meta(gt=0.0, le=1.0)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream tells beside its text."""

    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """A named JSON schema."""

    schema: dict[str, Any] | bool = {}
    name: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """The form that the output must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Part(msgspec.Struct, frozen=True):
    """One part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and completion requests have in common."""

    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: PositiveShare | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    logit_bias: Mapping[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    service_tier: Tier | None = None


class ChatRequest(Asked, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None


class CompletionRequest(Asked, frozen=True, kw_only=True):
    """`POST /v1/completions`; a prompt is a text or a list of tokens, or a list of either."""

    prompt: str | list[Any]
    logprobs: TopLogprobs | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /tokenize`, in the shape of vLLM's: a prompt or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /detokenize`, in the shape of vLLM's."""

    model: str | None = None
    tokens: list[Annotated[int, Meta(ge=0)]]


T = TypeVar("T", bound=msgspec.Struct)


def decode(body: bytes, kind: type[T]) -> T:
    """Return the request in `body`; raise a RequestError that names the field at fault."""
    fields = _fields(body)
    known = kind.__struct_fields__
    for name in fields:
        if name not in known:
            _check_foreign(name, fields[name], known)
    try:
        return msgspec.convert({name: value for name, value in fields.items() if name in known}, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        missing = re.search(r"required field `(\w+)`", what)
        param = path.rstrip("`").lstrip(".")
        if missing:
            param = f"{param}.{missing[1]}".lstrip(".")
            what = f"{param} is required"
        raise RequestError(f"{param}: {what}" if param and not missing else what, param=param or None) from error


def _fields(body: bytes) -> dict[str, Any]:
    """Return the fields of the JSON object in `body` that are not null."""
    try:
        value = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise RequestError("the body is not valid UTF-8", code="invalid_utf8", hint="encode it as UTF-8") from error
    except (msgspec.DecodeError, RecursionError) as error:
        code = "invalid_utf8" if "utf-8" in str(error).lower() else "invalid_json"
        raise RequestError(f"the body is not valid JSON: {error}", code=code) from error
    if not isinstance(value, dict):
        raise RequestError(f"the body must be a JSON object, not {type(value).__name__}", code="invalid_json")
    return {name: field for name, field in value.items() if field is not None}


def _check_foreign(name: str, value: object, known: tuple[str, ...]) -> None:
    if name in IGNORED:
        return
    if name in NEUTRAL:
        if value in NEUTRAL[name]:
            return
        raise RequestError(
            f"{name} is not supported here", param=name, code="unsupported_parameter", hint="leave the field out"
        )
    near = difflib.get_close_matches(name, known, n=1)
    raise RequestError(
        f"unknown field {name}",
        param=name,
        code="unknown_parameter",
        hint=f"did you mean {near[0]}?" if near else "leave the field out",
    )
