"""A stand-in for Ollama that is strict where Ollama is: its contract as one reads it in `api/types.go` and `routes.go`.

    python tests/loadgen/ollama_stand_in.py [--upstream URL] [--parallel N]

Streams unless told not to; lines of JSON without a sentinel, of which the last has `done`, a reason and durations in
whole nanoseconds; counts of zero are left out, and so are prompt tokens that were cached, from the end of the last
prompt's common beginning. A field or option that Ollama does not know is refused, which the real one would pass over:
who sends one has misread the contract. Requests wait for one of `parallel` slots for as long as it takes. With
`--upstream` the tokens come from the chat or completions API of an engine, else a word every two milliseconds.

Prints its port and ends when its standard input does.
"""

import argparse
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "smollm2:latest"
FIELDS = {
    "/api/chat": {"model", "messages", "stream", "format", "keep_alive", "tools", "options", "think", "truncate"},
    "/api/generate": {"model", "prompt", "suffix", "system", "template", "context", "stream", "raw", "format"}
    | {"keep_alive", "images", "options", "think", "truncate"},
}
OPTIONS = {"num_ctx", "num_batch", "num_predict", "num_thread", "num_gpu", "temperature", "seed", "stop", "top_k"} | {
    "top_p",
    "min_p",
}
TEMPLATE_TOKENS = 4
WORD_S = 0.002


class RefusalError(Exception):
    """An answer with a status of its own, given before the first byte."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class Runner:
    """What generates: slots, the last prompt that is still cached, and the engine behind, if there is one."""

    def __init__(self, upstream: str | None, parallel: int) -> None:
        self.upstream = upstream
        self.slots = threading.Semaphore(parallel)
        self._cached: list[str] = []

    def evaluated(self, prompt: list[str]) -> int:
        """Return how many tokens of a prompt were not cached; it is cached from now on."""
        same = 0
        for one, other in zip(prompt, self._cached, strict=False):
            if one != other:
                break
            same += 1
        self._cached = prompt
        return len(prompt) - same

    def words(self, path: str, asked: dict[str, Any], count: int) -> Iterator[str]:
        """Yield the text of each token."""
        if self.upstream is None:
            for _ in range(count):
                time.sleep(WORD_S)
                yield " word"
            return
        is_chat = path == "/api/chat"
        key = "messages" if is_chat else "prompt"
        body = {key: asked[key], "max_tokens": count, "temperature": 0.0, "stream": True, "ignore_eos": True}
        url = self.upstream + ("/v1/chat/completions" if is_chat else "/v1/completions")
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})  # noqa: S310 - of a test
        with urllib.request.urlopen(request, timeout=60.0) as answer:  # noqa: S310 - as above
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                for choice in json.loads(line[6:]).get("choices", []):
                    text = choice.get("delta", {}).get("content") if is_chat else choice.get("text")
                    if text:
                        yield text


def checked(path: str, body: bytes) -> dict[str, Any]:
    """Return what is asked; raises RefusalError as Ollama answers, or for what it does not know."""
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise RefusalError(400, str(error)) from None
    unknown = (set(asked) - FIELDS[path]) | {f"options.{name}" for name in set(asked.get("options", {})) - OPTIONS}
    if unknown:
        raise RefusalError(400, f"Ollama knows no {min(unknown)}")
    if not asked.get("model"):
        raise RefusalError(400, "model is required")
    if asked["model"] not in {MODEL, MODEL.removesuffix(":latest")}:
        raise RefusalError(404, f"model '{asked['model']}' not found")
    return dict(asked)


def prompt_of(path: str, asked: dict[str, Any]) -> list[str]:
    """Return the tokens of the prompt, its template's included: a word is one."""
    if path == "/api/generate":
        template = [] if asked.get("raw") else ["<user>"] * TEMPLATE_TOKENS
        return [*template, *asked["prompt"].split()]
    tokens: list[str] = []
    for message in asked["messages"]:
        tokens += [f"<{message['role']}>"] * TEMPLATE_TOKENS + message["content"].split()
    return tokens


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    runner: Runner

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer the three plain questions."""
        details = {"format": "gguf", "family": "llama", "parameter_size": "135M", "quantization_level": "Q4_0"}
        listed = {"name": MODEL, "model": MODEL, "modified_at": "2026-11-24T12:00:00Z", "size": 91, "digest": "0" * 64}
        known = {
            "/": (b"Ollama is running", "text/plain"),
            "/api/version": (b'{"version":"0.33.0"}', "application/json"),
            "/api/tags": (json.dumps({"models": [listed | {"details": details}]}).encode(), "application/json"),
        }
        body, kind = known.get(self.path, (b"404 page not found", "text/plain"))
        self._whole(200 if self.path in known else 404, body, kind)

    def do_POST(self) -> None:
        """Answer a chat or a completion."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path not in FIELDS:
            self._whole(404, b"404 page not found", "text/plain")
            return
        try:
            asked = checked(self.path, body)
        except RefusalError as refusal:
            self._whole(refusal.status, json.dumps({"error": refusal.words}).encode(), "application/json")
            return
        begun = time.monotonic_ns()
        with self.runner.slots:
            self._answer(asked, begun)

    def _answer(self, asked: dict[str, Any], begun: int) -> None:
        is_chat = self.path == "/api/chat"
        base = {"model": asked["model"], "created_at": "2026-11-24T12:00:00.000000001Z"}

        def said(text: str) -> dict[str, Any]:
            return {"message": {"role": "assistant", "content": text}} if is_chat else {"response": text}

        count = int(asked.get("options", {}).get("num_predict", 16))
        evaluated = self.runner.evaluated(prompt_of(self.path, asked))
        is_streaming = asked.get("stream", True)
        if is_streaming:
            self.send_response(200)
            self.send_header("content-type", "application/x-ndjson")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
        texts = []
        for text in self.runner.words(self.path, asked, count):
            texts.append(text)
            if is_streaming:
                self._line({**base, **said(text), "done": False})
        took = time.monotonic_ns() - begun
        counts = {"prompt_eval_count": evaluated, "eval_count": len(texts)}
        durations = {"total_duration": took, "load_duration": 0, "prompt_eval_duration": 1, "eval_duration": took}
        totals = {key: value for key, value in (counts | durations).items() if value}
        last = {**base, **said("" if is_streaming else "".join(texts)), "done": True, "done_reason": "length", **totals}
        if is_streaming:
            self._line(last)
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._whole(200, json.dumps(last).encode(), "application/json; charset=utf-8")

    def _line(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def _whole(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """The server; a client that leaves is no error."""

    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that have left."""


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream")
    parser.add_argument("--parallel", type=int, default=1)
    arguments = parser.parse_args()
    Handler.runner = Runner(arguments.upstream, arguments.parallel)
    with Server(("127.0.0.1", 0), Handler) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
