"""Answers as bytes: however they are cut up, the same body; and what counts as a token of content."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.loadgen.decode import BadStreamError, Decoded, StreamedError, decode_answer
from setpoint.loadgen.null_server import chunk
from setpoint.loadgen.target import parse_url
from setpoint.loadgen.wire import AnswerParser, WireError, request_bytes

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def feed(data: bytes, cuts: list[int]) -> tuple[AnswerParser, bytes]:
    parser, body = AnswerParser(), b""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for low, high in pairwise(edges):
        body += parser.feed(data[low:high])
    return parser, body


cuts = st.lists(st.integers(0, 10_000), max_size=12)
pieces = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


@given(pieces, cuts)
def test_a_chunked_answer_is_the_same_however_it_is_cut(parts: list[bytes], where: list[int]) -> None:
    data = CHUNKED + b"".join(chunk(part) for part in parts) + b"0\r\n\r\n"
    parser, body = feed(data, where)
    assert body == b"".join(parts)
    assert parser.is_done
    assert parser.is_kept_alive
    assert parser.status == 200


@given(st.binary(min_size=1, max_size=200), cuts)
def test_an_answer_with_a_length_is_the_same_however_it_is_cut(body: bytes, where: list[int]) -> None:
    parser, found = feed(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body, where)
    assert found == body
    assert parser.is_done


@given(st.binary(max_size=200), cuts)
def test_noise_is_an_error_or_unfinished_and_never_a_crash(noise: bytes, where: list[int]) -> None:
    for head in (b"", CHUNKED):
        try:
            feed(head + noise, where)
        except WireError:
            continue


def test_trailers_and_chunk_extensions_are_passed_over() -> None:
    parser, body = feed(CHUNKED + b"3;x=1\r\nabc\r\n0\r\nx-took: 1\r\n\r\n", [])
    assert (body, parser.is_done) == (b"abc", True)


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    parser, body = feed(HEAD + b"\r\nabc", [])
    assert body == b"abc"
    assert not parser.is_done
    parser.close()
    assert parser.is_done
    assert not parser.is_kept_alive


def test_a_connection_that_ends_early_is_an_error() -> None:
    parser, _ = feed(CHUNKED + b"5\r\nab", [])
    with pytest.raises(WireError, match="inside the answer"):
        parser.close()


def test_continue_is_not_the_answer() -> None:
    parser, body = feed(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"content-length: 1\r\n\r\nx", [])
    assert (parser.status, body) == (200, b"x")


def test_a_header_cannot_smuggle_in_a_line() -> None:
    with pytest.raises(ValueError, match="line break"):
        request_bytes("POST", "/", {"x": "a\r\nb: c"})


@pytest.mark.parametrize(
    ("url", "host", "port", "prefix", "is_tls"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, "", False),
        ("localhost:8000/v1/", "localhost", 8000, "", False),
        ("https://x.org/llm/v1/chat/completions", "x.org", 443, "/llm", True),
        ("http://[::1]:11434/api/chat", "::1", 11434, "", False),
    ],
)
def test_urls_are_taken_with_or_without_the_path_of_the_api(
    url: str, host: str, port: int, prefix: str, *, is_tls: bool
) -> None:
    address = parse_url(url)
    assert (address.host, address.port, address.prefix, address.is_tls) == (host, port, prefix, is_tls)


def sse(*messages: object, done: bool = True) -> bytes:
    lines = [b"data: " + json.dumps(message).encode() + b"\n\n" for message in messages]
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def delta(**fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields}]}


def read(body: bytes, *, reads: list[bytes] | None = None) -> Decoded:
    """Decode `body` as if each message had come in a read of its own, one a second."""
    parts = reads or [line + b"\n\n" for line in body.split(b"\n\n") if line]
    ends = [sum(len(part) for part in parts[: index + 1]) for index in range(len(parts))]
    return decode_answer(body, ends, [float(index) for index in range(len(parts))], "chat", is_streamed=True)


def test_the_role_and_empty_messages_are_no_first_token() -> None:
    answer = read(sse(delta(role="assistant", content=""), delta(content="Hi"), delta(), delta(content=" you")))
    assert answer.event_at == [1.0, 3.0]
    assert answer.text == "Hi you"


def test_reasoning_and_tool_calls_are_tokens_but_not_yet_the_answer() -> None:
    answer = read(sse(delta(reasoning_content="hm"), delta(tool_calls=[{"index": 0}]), delta(content="x")))
    assert answer.event_at == [0.0, 1.0, 2.0]
    assert answer.first_answer_at == 2.0


def test_totals_come_from_usage_and_not_from_the_number_of_events() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    answer = read(sse(delta(content="three tokens at once"), {"choices": [], "usage": usage}))
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (7, 9, 4)


def test_running_usage_tells_how_many_tokens_each_event_holds() -> None:
    def with_usage(text: str, tokens: int) -> dict[str, object]:
        return delta(content=text) | {"usage": {"prompt_tokens": 1, "completion_tokens": tokens}}

    assert read(sse(with_usage("a", 1), with_usage("b c d", 4), with_usage("e", 5))).event_tokens == [1, 3, 1]


def test_comments_and_named_events_are_passed_over() -> None:
    body = b": keep-alive\n\nevent: message\n" + sse(delta(content="x"))
    assert len(read(body).event_at) == 1


def test_an_event_is_dated_by_the_read_that_completed_it() -> None:
    body = sse(delta(content="a"), delta(content="b"))
    parts = [body[:20], body[20:25], body[25:]]
    assert read(body, reads=parts).event_at == [2.0, 2.0]
    assert read(body, reads=[body[:-14], body[-14:-3], body[-3:]]).event_at == [0.0, 0.0]


def test_carriage_returns_are_no_part_of_the_data() -> None:
    assert read(sse(delta(content="x")).replace(b"\n", b"\r\n")).text == "x"


@pytest.mark.parametrize("error", [{"error": {"message": "no memory"}}, {"object": "error", "message": "no memory"}])
def test_an_error_inside_a_stream_is_the_servers_own(error: dict[str, object]) -> None:
    with pytest.raises(StreamedError, match="no memory"):
        read(sse(delta(content="x"), error))


@pytest.mark.parametrize("body", [b"<html>", b"data: {oops\n\n", sse(delta(content="x"), done=False)])
def test_what_is_no_stream_of_events_is_told(body: bytes) -> None:
    with pytest.raises(BadStreamError):
        read(body)


def test_ollama_lines_carry_text_thought_and_totals() -> None:
    lines = [
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {"message": {"role": "assistant", "content": "Hi"}, "done": False},
        {"message": {"role": "assistant", "content": ""}, "done": True, "prompt_eval_count": 3, "eval_count": 2},
    ]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    ends = [index + 1 for index, byte in enumerate(body) if byte == 10]
    answer = decode_answer(body, ends, [0.0, 1.0, 2.0], "ollama-chat", is_streamed=True)
    assert answer.event_at == [0.0, 1.0]
    assert (answer.prompt_tokens, answer.output_tokens, answer.first_answer_at) == (3, 2, 1.0)
    body = b'{"response":"x","done":false}\n{"error":"gone"}\n'
    with pytest.raises(StreamedError, match="gone"):
        decode_answer(body, [len(body)], [0.0], "ollama-generate", is_streamed=True)


def test_an_answer_that_is_not_streamed_has_one_event() -> None:
    body = json.dumps({"choices": [{"message": {"content": "Hi"}}], "usage": {"completion_tokens": 2}}).encode()
    answer = decode_answer(body, [10, len(body)], [1.0, 2.0], "chat", is_streamed=False)
    assert (answer.event_at, answer.output_tokens) == ([2.0], 2)
