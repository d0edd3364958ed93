"""A server that does nothing but stream: what the client can do at most is measured against it.

It answers every POST with `max_tokens` (or `num_predict`) events in OpenAI's or Ollama's form, all streams in step, one
event each per tick, as a batched engine does. Run as `python -m setpoint.loadgen.null_server`: it prints its port and
ends when its standard input does.
"""

import argparse
import asyncio
import contextlib
import sys
from typing import cast

import msgspec

from setpoint.loadgen.loops import run

BODY_MAX = 64 * 1024 * 1024
HEADER_END = b"\r\n\r\n"
TOKENS_DEFAULT = 16


def chunk(payload: bytes) -> bytes:
    """Return `payload` as one chunk of HTTP/1.1."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = chunk(
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"null","choices":'
    b'[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
_LAST = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"null","choices":[],'
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)
_LINE = chunk(b'{"model":"null","message":{"role":"assistant","content":" word"},"done":false}\n')
_LAST_LINE = (
    b'{"model":"null","message":{"role":"assistant","content":""},"done":true,"prompt_eval_count":%d,"eval_count":%d}\n'
)


_LIST = b'{"object":"list","data":[{"id":"null","object":"model","owned_by":"null"}]}'
_MODELS = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_LIST), _LIST)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class _Ask(msgspec.Struct):
    max_tokens: int | None = None
    options: dict[str, float] = {}
    messages: list[dict[str, str]] = []
    prompt: str = ""

    @property
    def tokens(self) -> int:
        """How many events are wanted."""
        return max(1, int(self.max_tokens or self.options.get("num_predict", TOKENS_DEFAULT)))

    @property
    def words(self) -> int:
        """How many words the prompt has: its tokens, to this server."""
        return len(self.prompt.split()) + sum(len(message.get("content", "").split()) for message in self.messages)


class _Stream(asyncio.Protocol):
    """One connection; `left` events are still to be written."""

    def __init__(self, streams: set["_Stream"]) -> None:
        self._streams = streams
        self._data = b""
        self._is_ollama = False
        self._ask = _Ask()
        self.left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature of the protocol
        self._streams.discard(self)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(HEADER_END)
        if end < 0:
            return
        head = self._data[:end].lower()
        _, found, rest = head.partition(b"content-length:")
        size = int(rest.split(b"\r\n", 1)[0]) if found else 0
        if size > BODY_MAX:
            self._transport.abort()
        if len(self._data) < end + len(HEADER_END) + size:
            return
        body = self._data[end + len(HEADER_END) : end + len(HEADER_END) + size]
        self._data = b""
        if not head.startswith(b"post"):
            self._transport.write(_MODELS if head.startswith(b"get /v1/models ") else _NOT_FOUND)
            return
        self._is_ollama = b" /api/" in head.split(b"\r\n", 1)[0]
        self._ask = msgspec.json.decode(body, type=_Ask)
        self.left = self._ask.tokens
        self._transport.write(_HEAD)
        self._streams.add(self)

    def tick(self) -> None:
        """Write the next event, and the end after the last."""
        self.left -= 1
        event = _LINE if self._is_ollama else _EVENT
        if self.left:
            self._transport.write(event)
            return
        self._streams.discard(self)
        words, tokens = self._ask.words, self._ask.tokens
        last = _LAST_LINE % (words, tokens) if self._is_ollama else _LAST % (words, tokens, words + tokens)
        self._transport.write(event + chunk(last) + b"0\r\n\r\n")


async def serve(tick_s: float, port: int) -> None:
    """Serve on the loopback until standard input ends; prints the port."""
    loop = asyncio.get_running_loop()
    streams: set[_Stream] = set()
    server = await loop.create_server(lambda: _Stream(streams), "127.0.0.1", port, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    ended = loop.run_in_executor(None, sys.stdin.buffer.read)
    due = loop.time()
    while not ended.done():
        due = max(due + tick_s, loop.time())
        await asyncio.sleep(due - loop.time())
        for stream in list(streams):
            stream.tick()
    server.close()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m setpoint.loadgen.null_server")
    parser.add_argument("--tick-ms", type=float, default=5.0)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        run(serve(arguments.tick_ms / 1e3, arguments.port))


if __name__ == "__main__":
    main()
