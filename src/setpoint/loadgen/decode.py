"""What an answer said, and when each piece of it arrived; decoded after the answer has ended.

While a stream runs the client keeps its bytes and, for each read, the instant and how many bytes there were by then.
Here the bytes become messages (server-sent events, or lines of JSON), each dated by the read that completed it.

A message is a *content event* when it holds text, reasoning text or a tool call: a message that only names the role, an
empty one, a usage report or a keep-alive comment is none.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from setpoint.loadgen.target import Api

DONE = b"[DONE]"


class BadStreamError(Exception):
    """The body is not what the API promises."""


class StreamedError(Exception):
    """The server reported an error inside a stream."""


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: Any = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Served(msgspec.Struct):
    queue_ms: float | None = None


class _Message(msgspec.Struct):
    """The union of what the OpenAI APIs and Ollama's own send."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: Any = None
    setpoint: _Served | None = None
    message: Any = None
    response: str | None = None
    thinking: str | None = None
    done: bool | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None


class Decoded(msgspec.Struct, kw_only=True):
    """The content events of an answer with their token counts (empty where not told), its usage and its text."""

    event_at: list[float] = []
    event_tokens: list[int] = []
    first_answer_at: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    queue_s: float | None = None
    text: str = ""


_decoder = msgspec.json.Decoder(_Message)
_list_decoder = msgspec.json.Decoder(list[_Message])


def decode_answer(body: bytes, ends: Sequence[int], times: Sequence[float], api: Api, *, is_streamed: bool) -> Decoded:
    """Return what the answer said; `ends[k]` bytes of `body` were there at `times[k]`.

    Raises BadStreamError for bytes that are no such answer, StreamedError for an error that the server reports in it.
    """
    decoded = Decoded()
    texts: list[str] = []
    raws, dates, is_done = _messages(body, ends, times, is_lines=api.startswith("ollama"), is_streamed=is_streamed)
    is_ended = is_done or not is_streamed
    told = 0
    for message, at in zip(_parse_all(raws), dates, strict=True):
        answer, thought = _content(message)
        usage = message.usage
        if usage is not None or message.done or message.setpoint is not None:
            _take_totals(message, decoded)
            is_ended = is_ended or bool(message.done)
        if answer or thought:
            decoded.event_at.append(at)
            if answer:
                texts.append(answer)
                decoded.first_answer_at = decoded.first_answer_at or at
            if usage is not None and usage.completion_tokens is not None:
                decoded.event_tokens.append(usage.completion_tokens - told)
                told = usage.completion_tokens
    if not is_ended:
        raise BadStreamError("the stream ended without saying so")
    if len(decoded.event_tokens) != len(decoded.event_at) or min(decoded.event_tokens, default=1) < 1:
        decoded.event_tokens = []
    decoded.text = "".join(texts)
    return decoded


def _messages(
    body: bytes, ends: Sequence[int], times: Sequence[float], *, is_lines: bool, is_streamed: bool
) -> tuple[list[bytes], list[float], bool]:
    """Return the messages in `body`, for each when it was complete, and whether the stream said that it was done."""
    if not is_streamed:
        return [body], [times[-1] if times else 0.0], True
    raws: list[bytes] = []
    dates: list[float] = []
    read, last = 0, len(ends) - 1
    position, is_done = 0, False
    for line in body.split(b"\n"):
        position += len(line) + 1
        if not line:
            continue
        if is_lines:
            raw = line.rstrip(b"\r")
        elif line.startswith(b"data:"):
            raw = line[5:].strip()
        elif line == b"\r" or line.startswith((b":", b"event:", b"id:", b"retry:")):
            continue
        else:
            raise BadStreamError(f"not a server-sent event: {line[:60]!r}")
        if raw == DONE:
            is_done = True
            continue
        while read < last and ends[read] < position:
            read += 1
        if raw or not is_lines:
            raws.append(raw)
            dates.append(times[read])
    return raws, dates, is_done


def _parse_all(raws: Sequence[bytes]) -> list[_Message]:
    """Return the messages, decoded in one go; one by one where that fails, so that the bad one is named."""
    try:
        messages = _list_decoder.decode(b"[" + b",".join(raws) + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [_parse(raw) for raw in raws]
    is_clean = len(messages) == len(raws) and all(
        message.error is None and message.object != "error" for message in messages
    )
    return messages if is_clean else [_parse(raw) for raw in raws]


def _parse(raw: bytes) -> _Message:
    try:
        message = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadStreamError(f"not the JSON that was promised ({error}): {raw[:60]!r}") from None
    if message.error is not None:
        raise StreamedError(_words(message.error))
    if message.object == "error":
        raise StreamedError(_words(message.message))
    return message


def _words(error: object) -> str:
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)[:200]


def _content(message: _Message) -> tuple[str, bool]:
    """Return the text of a message, and whether it holds anything else that counts (reasoning, a tool call)."""
    if message.choices:
        choice = message.choices[0]
        if choice.text:
            return str(choice.text), False
        delta = choice.delta or choice.message
        if delta is None:
            return "", False
        text = str(delta.content) if delta.content else ""
        return text, bool(delta.reasoning_content or delta.reasoning or delta.thinking or delta.tool_calls)
    if isinstance(message.message, dict):
        inner = message.message
        return str(inner.get("content") or ""), bool(inner.get("thinking") or inner.get("tool_calls"))
    return message.response or "", bool(message.thinking)


def _take_totals(message: _Message, decoded: Decoded) -> None:
    usage = message.usage
    if usage is not None:
        decoded.prompt_tokens = usage.prompt_tokens
        decoded.output_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            decoded.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0
    if message.done:
        decoded.prompt_tokens = message.prompt_eval_count
        decoded.output_tokens = message.eval_count
    if message.setpoint is not None and message.setpoint.queue_ms is not None:
        decoded.queue_s = message.setpoint.queue_ms / 1000.0
