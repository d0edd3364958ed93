"""What is at an endpoint: which engine, which models, how it counts tokens; asked before any load.

The engine is told from `owned_by` in the list of models, which each engine fills in its own way. The words of the
prompts are then checked: under the server's own tokenizer where it offers one, else by its usage reports, so that a
prompt of n tokens has n tokens, chat template included.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from setpoint.errors import EngineError, WorkloadError
from setpoint.loadgen.ask import ask
from setpoint.loadgen.client import RunOptions
from setpoint.loadgen.process import measure
from setpoint.loadgen.prompts import Lexicon
from setpoint.loadgen.target import EndpointTarget, EngineKind
from setpoint.loadgen.words import WORDS
from setpoint.metrics import RequestRecord
from setpoint.workload import PlannedRequest

OWNERS: dict[str, EngineKind] = {
    "setpoint": "setpoint",
    "vllm": "vllm",
    "sglang": "sglang",
    "tensorrt_llm": "tensorrt-llm",
    "llamacpp": "llama-server",
    "library": "ollama",
}
FEW, MANY, STEP = 16, 192, 7
LEARN_S = 20.0
"""How long words are counted by whole requests; what has not been counted by then is left out."""
OK, NOT_FOUND = 200, 404
UNAUTHORIZED = (401, 403)


def identify(target: EndpointTarget) -> EndpointTarget:
    """Return the target with its engine (unless one was named) and model filled in.

    Raises EngineError when it cannot be reached, refuses the key, or does not have the model.
    """
    is_native = target.api.startswith("ollama")
    answer = ask(target, "/api/tags" if is_native else "/v1/models")
    if answer.status in UNAUTHORIZED:
        raise EngineError(f"{target.url} refuses access (HTTP {answer.status})", hint="give a key with --api-key")
    if answer.status != OK:
        if target.model:
            return target
        raise EngineError(
            f"{target.url} does not list its models (HTTP {answer.status})", hint="name the model with --model"
        )
    listed = answer.json()
    entries = _entries(listed, "models" if is_native else "data")
    names = [str(entry.get("name" if is_native else "id", "")) for entry in entries]
    if is_native and f"{target.model}:latest" in names:
        target = replace(target, model=f"{target.model}:latest")
    if target.model and names and target.model not in names:
        raise EngineError(
            f"{target.url} has no model {target.model!r}", hint=f"it has {', '.join(repr(name) for name in names[:8])}"
        )
    if not target.model and not names:
        raise EngineError(f"{target.url} serves no model", hint="name the model with --model")
    owner = str(entries[0].get("owned_by", "")) if entries else ""
    engine: EngineKind = "ollama" if is_native else OWNERS.get(owner, "openai")
    return replace(
        target,
        model=target.model or names[0],
        engine=engine if target.engine == "openai" else target.engine,
    )


def _entries(listed: object, key: str) -> list[dict[str, Any]]:
    found = listed.get(key, []) if isinstance(listed, dict) else []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def first_request(target: EndpointTarget, *, words: Sequence[str] = WORDS[:FEW], tokens: int = 2) -> RequestRecord:
    """Send one request with a prompt of `words`, and return its record.

    Raises EngineError, naming what is wrong, when it fails: nothing is measured on an endpoint that does not work.
    """
    planned = PlannedRequest(id=0, at_s=0.0, prompt_tokens=len(words), output_tokens=tokens, text=" ".join(words))
    run = asyncio.run(measure(target, [planned], RunOptions(connections=0)))
    record = run.records[0]
    if record.error is not None:
        raise EngineError(f"the first request failed ({record.error}): {record.detail}", hint=_hint(record))
    return record


def _hint(record: RequestRecord) -> str | None:
    return {
        "unauthorized": "give a key with --api-key",
        "not_found": "is the API right (--api), and the model (--model)?",
        "rate_limited": "the server refuses work: raise its limits, or wait",
        "timeout": "the server accepts requests but does not answer",
        "bad_stream": "is this API the right one (--api)?",
        "client_error": "the server refuses a parameter: see --api, --engine and --extra-body",
        "server_error": "the server's own log says more",
        "cut": "did the server fail (see its log), or does a proxy in between end answers?",
        "too_large": "is this an endpoint of a language model?",
        "unreachable": "is the server still running?",
        "tls": "name the certificate authority with --ca-file",
    }.get(record.error or "")


def learn_words(target: EndpointTarget) -> Lexicon:
    """Return words of one token each under the server's tokenizer, and what its template adds to a prompt.

    Counted by usage reports, no prompt begins as another did: a server may leave out what it had cached. One that does
    (the same prompt with more words after it counts as those alone) cannot be believed about its template, and the
    lexicon is not exact.
    """
    tokenize = _tokenizer(target)
    is_whole = True
    if tokenize is not None:
        words = single_token_words(WORDS, tokenize, overhead=tokenize(()))
        source = "tokenizer"
    else:
        few = first_request(target, words=WORDS[FEW : 2 * FEW], tokens=1)
        if not _tells_usage(few):
            return Lexicon()
        more = first_request(target, words=WORDS[FEW : 3 * FEW], tokens=1)
        is_whole = more.prompt_tokens >= few.prompt_tokens + FEW
        overhead = (few if is_whole else more).prompt_tokens - FEW
        counted_words = WORDS[3 * FEW : 3 * FEW + MANY]
        words = single_token_words(counted_words, _usage_counter(target), overhead=overhead)
        source = "usage"
    if len(words) < FEW:
        return Lexicon()
    counted = first_request(target, words=words[-FEW:], tokens=1)
    if not _tells_usage(counted):
        return Lexicon(words=words, source=source)
    return Lexicon(words=words, overhead_tokens=counted.prompt_tokens - FEW, is_exact=is_whole, source=source)


def _tells_usage(record: RequestRecord) -> bool:
    return record.token_source == "usage" and record.prompt_tokens >= FEW  # noqa: S105 - tokens of text


def single_token_words(
    words: Sequence[str], count: Callable[[Sequence[str]], int], *, overhead: int
) -> tuple[str, ...]:
    """Return those of `words` that add exactly one token, by halving lists whose count is not their length."""
    if not words or count(words) - overhead == len(words):
        return tuple(words)
    if len(words) == 1:
        return ()
    middle = len(words) // 2
    return single_token_words(words[:middle], count, overhead=overhead) + single_token_words(
        words[middle:], count, overhead=overhead
    )


def _usage_counter(target: EndpointTarget) -> Callable[[Sequence[str]], int]:
    """Return a function that counts tokens by usage reports, and none at all (-1) once its time is up."""
    until = time.monotonic() + LEARN_S
    calls = 0

    def count(words: Sequence[str]) -> int:
        nonlocal calls
        calls += 1
        if time.monotonic() > until:
            return -1
        turn = STEP * calls % len(words)
        return first_request(target, words=[*words[turn:], *words[:turn]], tokens=1).prompt_tokens

    return count


def _tokenizer(target: EndpointTarget) -> Callable[[Sequence[str]], int] | None:
    """Return a function that counts tokens with the server's own tokenizer, or `None` where it offers none."""

    def count(words: Sequence[str]) -> int:
        text = " ".join(words)
        if target.engine == "llama-server":
            answer = ask(target, "/tokenize", {"content": text}).json()
        else:
            answer = ask(target, "/tokenize", {"model": target.model, "prompt": text}).json()
        if not isinstance(answer, dict) or not isinstance(answer.get("tokens"), list):
            raise WorkloadError("the server's tokenizer did not answer as expected")
        return len(answer["tokens"])

    if target.engine not in {"setpoint", "vllm", "sglang", "llama-server"} or target.api.startswith("ollama"):
        return None
    try:
        count(WORDS[:FEW])
    except (EngineError, WorkloadError):
        return None
    return count
