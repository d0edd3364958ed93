"""Prompts made up to an exact number of tokens, and the bodies of the requests that carry them.

A prompt is a random sequence of words of which each is one token under the server's tokenizer (`probe` verifies that,
and measures the tokens that the chat template adds). Prompts of one run differ from those of another seed, so that a
prefix cache does not turn the second run into another workload; shared prefixes are shared on purpose, drawn from the
id of the prefix or block.
"""

from typing import Any

import msgspec

from setpoint.loadgen.target import ClassTargets, EndpointTarget
from setpoint.loadgen.words import WORDS
from setpoint.model import encode_priority
from setpoint.seeds import stream
from setpoint.workload import PlannedRequest

SOONEST, LATEST = 1.0, 0.0
UNFORCED = ("openai", "ollama")
"""Engines that cannot be asked to ignore the end of text."""


class Lexicon(msgspec.Struct, frozen=True, kw_only=True):
    """Words of one token each; `overhead_tokens` are what the server adds; `is_exact`: both were checked.

    `source` says how: `tokenizer` (the server's /tokenize), `usage` (its usage reports), `assumed`.
    """

    words: tuple[str, ...] = WORDS
    overhead_tokens: int = 0
    is_exact: bool = False
    source: str = "assumed"


def prompt_text(lexicon: Lexicon, one: PlannedRequest, seed: int, tokens: int | None = None) -> str:
    """Return the prompt of a request: its own text, or words for `tokens` (all of its prompt) less the overhead."""
    if one.text is not None:
        return one.text
    wanted = max(1, (one.prompt_tokens if tokens is None else tokens) - lexicon.overhead_tokens)
    words: list[str] = []
    if one.prefix_id is not None:
        words += stream(seed, "prefix", one.prefix_id).choices(lexicon.words, k=min(one.prefix_tokens, wanted))
    for block in one.prefix_blocks:
        left = min(one.block_tokens, wanted - len(words))
        if left <= 0:
            break
        words += stream(seed, "block", block).choices(lexicon.words, k=one.block_tokens)[:left]
    if len(words) < wanted:
        words += stream(seed, "prompt", one.id).choices(lexicon.words, k=wanted - len(words))
    return " ".join(words)


def request_body(
    target: EndpointTarget,
    one: PlannedRequest,
    prompt: str,
    history: list[dict[str, str]],
    *,
    due_epoch_s: float = 0.0,
) -> bytes:
    """Return the JSON of one request; `history` holds the earlier messages of its conversation."""
    body: dict[str, Any] = {"model": target.model} if target.model else {}
    messages = [*history, {"role": "user", "content": prompt}]
    if target.api == "ollama-chat":
        body |= {"messages": messages} | _ollama(target, one)
    elif target.api == "ollama-generate":
        body |= {"prompt": _joined(messages), "raw": True} | _ollama(target, one)
    else:
        is_chat = target.api == "chat"
        body |= {"messages": messages} if is_chat else {"prompt": _joined(messages)}
        body |= {"max_tokens": one.output_tokens, "temperature": 0.0} | _openai(target, one, due_epoch_s)
    return msgspec.json.encode(body | target.extra_body)


def request_headers(target: EndpointTarget, one: PlannedRequest) -> dict[str, str]:
    """Return the headers of one request."""
    headers = {
        "host": target.address.authority,
        "content-type": "application/json",
        "accept": "text/event-stream" if target.is_streaming else "application/json",
        "user-agent": "setpoint",
    }
    if target.api_key:
        headers["authorization"] = f"Bearer {target.api_key}"
    if target.engine == "setpoint":
        headers["x-setpoint-class"] = one.class_name
        known = target.classes.get(one.class_name)
        if known is not None and known.ttft_ms is not None:
            headers["x-setpoint-ttft-ms"] = f"{known.ttft_ms:g}"
        if known is not None and known.tpot_ms is not None:
            headers["x-setpoint-tpot-ms"] = f"{known.tpot_ms:g}"
    return headers | target.extra_headers


def _joined(messages: list[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)


def _ollama(target: EndpointTarget, one: PlannedRequest) -> dict[str, Any]:
    return {
        "stream": target.is_streaming,
        "options": {"num_predict": one.output_tokens, "temperature": 0.0},
    }


def _openai(target: EndpointTarget, one: PlannedRequest, due_epoch_s: float) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if target.is_streaming:
        options = {"include_usage": True}
        if target.engine in {"vllm", "sglang"}:
            options["continuous_usage_stats"] = True
        body |= {"stream": True, "stream_options": options}
    if target.is_length_forced and target.engine not in UNFORCED:
        body["ignore_eos"] = True
    known = target.classes.get(one.class_name)
    if known is None:
        return body
    if target.engine == "vllm":
        body["vllm_xargs"] = _xargs(one.class_name, known)
    priority = None if known.band is None else translate_priority(target, _number(target, known, due_epoch_s))
    return body if priority is None else body | {"priority": priority}


def _xargs(class_name: str, known: ClassTargets) -> dict[str, str | float]:
    """Return what Setpoint's scheduler inside vLLM reads of a request; a plain vLLM passes it over."""
    told = {"setpoint.ttft_ms": known.ttft_ms, "setpoint.tpot_ms": known.tpot_ms}
    return {"setpoint.class": class_name} | {key: value for key, value in told.items() if value is not None}


def _number(target: EndpointTarget, known: ClassTargets, due_epoch_s: float) -> int:
    """Return the band; where classes have deadlines and the engine takes any integer, with the deadline in it."""
    assert known.band is not None, "only classes with a band have a priority"
    if target.engine not in {"vllm", "sglang"} or all(one.due_s is None for one in target.classes.values()):
        return known.band
    return encode_priority(known.band, None if known.due_s is None else due_epoch_s + known.due_s)


def translate_priority(target: EndpointTarget, band: int) -> int | float | None:
    """Return the priority of `band` (0 is the most urgent) in the engine's own convention, `None` where it has none.

    vLLM: an integer, lower is sooner. SGLang: an integer, higher is sooner. TensorRT-LLM: 0..1, higher is sooner, with
    0.5 as the default.
    """
    if target.engine == "vllm":
        return band
    if target.engine == "sglang":
        return -band
    if target.engine == "tensorrt-llm":
        return SOONEST / (1.0 + band) if band >= 0 else LATEST
    return None
