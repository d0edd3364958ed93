"""Bytes that no client of good will would send: each gets a clear answer, and the server goes on."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.gateway.conftest import Server

pytestmark = pytest.mark.model

SILENT = 300
CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _still_serves(server: Server) -> Iterator[None]:
    yield
    answer = httpx.post(f"{server.url}{CHAT}", json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
    assert answer.status_code == 200
    server.wait_idle()


def raw(server: Server, data: bytes) -> bytes:
    """Send bytes; return everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"hello"', "invalid_json"),
        (b"[" * 50_000, "invalid_json"),
        (b'{"messages": NaN}', "invalid_json"),
        (b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', "invalid_utf8"),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', "invalid_json"),
    ],
)
def test_a_body_that_is_no_request_is_told_400(server: Server, content: bytes, code: str) -> None:
    for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
        answer = httpx.post(f"{server.url}{path}", content=content)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_told_413(server: Server, *, is_chunked: bool) -> None:
    content = b" " * 200_000
    answer = httpx.post(f"{server.url}{CHAT}", content=iter([content]) if is_chunked else content)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_come_is_told_408(server: Server) -> None:
    answer = raw(server, b"POST /tokenize HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in answer


def test_unknown_paths_and_methods_have_errors_of_the_same_shape(server: Server) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/gpt-4", 404),
    ):
        answer = httpx.request(method, f"{server.url}{path}")
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
    assert httpx.get(f"{server.url}{CHAT}").headers["allow"] == "POST"


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 40_000 + b"\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    ],
)
def test_what_is_not_http_is_told_400(server: Server, data: bytes) -> None:
    answer = raw(server, data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"error"' in answer


def test_connections_that_send_nothing_stop_nobody_and_are_closed(server: Server) -> None:
    with ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        silent = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(SILENT)]
        silent[0].sendall(b"POST /tok")
        answer = httpx.post(f"{server.url}/tokenize", json={"prompt": "Hello"})
        assert answer.json()["count"] > 0
        assert [connection.recv(1) for connection in silent] == [b""] * SILENT
