"""HTTP/1.1 as bytes: a request built once, an answer taken apart as it comes. No I/O, no clock.

The parser is written for streams of many small chunks, where most reads hold exactly one: that case costs one search,
one conversion and one slice. It accepts chunked answers, those with a length, and those that end with the connection.
"""

from collections.abc import Mapping

CRLF = b"\r\n"
CHUNK_LINE_MAX = 256


class WireError(Exception):
    """The bytes are not an HTTP/1.1 answer."""


def request_bytes(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a whole request; raises ValueError when a header would smuggle in a line."""
    lines = [f"{method} {path} HTTP/1.1"]
    for name, value in headers.items():
        if any(mark in name + value for mark in "\r\n\0"):
            message = f"the header {name!r} holds a line break"
            raise ValueError(message)
        lines.append(f"{name}: {value}")
    if body or method == "POST":
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + CRLF + CRLF + body


class AnswerParser:
    """One answer: feed it what arrives, take the body bytes that come back."""

    __slots__ = ("_header_max", "_in_chunk", "_left", "_pending", "headers", "is_done", "is_kept_alive", "status")

    def __init__(self, header_bytes_max: int = 65536) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_done = False
        self.is_kept_alive = True
        self._header_max = header_bytes_max
        self._pending = b""
        self._in_chunk = 0
        self._left: int | None = None
        """Bytes left of a body with a length; `None`: chunked; -1: until the connection ends."""

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in `data`, which may be none; raises WireError when it is no HTTP."""
        if not self.status:
            data = self._headers(self._pending + data)
            if not self.status or self.is_done:
                return b""
        if self._left is None:
            return self._one_chunk(data) or self._chunks(data)
        if self._left < 0:
            return data
        body = data[: self._left]
        self._left -= len(body)
        self.is_done = self._left == 0
        return body

    def close(self) -> None:
        """Note that the connection has ended; raises WireError when the answer was not complete."""
        if self.status and self._left == -1:
            self.is_done = True
        if not self.is_done:
            raise WireError("the connection ended inside the answer" if self.status else "the connection ended unasked")

    def _headers(self, data: bytes) -> bytes:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > self._header_max:
                raise WireError("the headers are too large")
            self._pending = data
            return b""
        self._pending = b""
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise WireError(f"not an HTTP answer: {first[:60]!r}")
        status = int(rest[:3])
        body = data[end + 4 :]
        if status in {100, 102, 103}:
            return self._headers(body) if body else b""
        self.status = status
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._frame(version)
        return body

    def _frame(self, version: str) -> None:
        connection = self.headers.get("connection", "").lower()
        self.is_kept_alive = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
        if self.status in {204, 304}:
            self.is_done = True
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._left = None
        elif "content-length" in self.headers:
            length = self.headers["content-length"]
            if not length.isdigit():
                raise WireError(f"the content length is {length[:20]!r}")
            self._left = int(length)
            self.is_done = self._left == 0
        else:
            self._left = -1
            self.is_kept_alive = False

    def _one_chunk(self, data: bytes) -> bytes:
        """Return the content of `data` when that is exactly one whole chunk, as most reads are; nothing otherwise."""
        line = data.find(CRLF, 0, CHUNK_LINE_MAX)
        if line <= 0 or self._in_chunk or self._pending or not data.endswith(CRLF):
            return b""
        try:
            size = int(data[:line], 16)
        except ValueError:
            return b""
        return data[line + 2 : -2] if 0 < size == len(data) - line - 4 else b""

    def _chunks(self, data: bytes) -> bytes:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        body = b""
        at, end = 0, len(data)
        while at < end and not self.is_done:
            if self._in_chunk:
                piece = data[at : at + self._in_chunk]
                body = body + piece if body else piece
                self._in_chunk -= len(piece)
                at += len(piece)
                continue
            start, size = self._chunk_size(data, at)
            if start < 0:
                self._pending = data[at:]
                break
            self._in_chunk = size
            at = start
        return body

    def _chunk_size(self, data: bytes, at: int) -> tuple[int, int]:
        """Return where the next chunk starts and its size; (-1, 0) when that is not all there yet."""
        at += 2 if data.startswith(CRLF, at) else 0
        line = data.find(CRLF, at)
        if line < 0:
            if len(data) - at > CHUNK_LINE_MAX:
                raise WireError("a chunk has no size")
            return -1, 0
        try:
            size = int(data[at:line].partition(b";")[0], 16)
        except ValueError:
            size = -1
        if size < 0:
            raise WireError(f"a chunk has the size {data[at:line][:20]!r}")
        if size == 0:
            self.is_done = data.startswith(CRLF, line + 2) or data.find(b"\r\n\r\n", line) >= 0
            return (len(data), 0) if self.is_done else (-1, 0)
        return line + 2, size
