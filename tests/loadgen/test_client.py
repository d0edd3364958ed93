"""The client against servers that behave, and servers that do not: each failure has its name."""

import asyncio
import contextlib
import json
import time
from functools import partial
from pathlib import Path

import msgspec
import pytest

from setpoint.errors import ConfigError, EngineError
from setpoint.loadgen.ceiling import FILE, Ceiling, ceiling
from setpoint.loadgen.client import LoadClient, RunOptions
from setpoint.loadgen.health import ClientSamples, judge_client
from setpoint.loadgen.null_server import chunk
from setpoint.loadgen.probe import first_request, identify
from setpoint.loadgen.process import Snapshot, measure, measure_in_process
from setpoint.loadgen.prompts import Lexicon, prompt_text, request_body, translate_priority
from setpoint.loadgen.run import Run
from setpoint.loadgen.target import ClassTargets, EndpointTarget, EngineKind, Limits
from setpoint.metrics import ErrorKind, RequestRecord
from setpoint.model import decode_priority
from setpoint.seeds import stream
from setpoint.workload import Fixed, PlannedRequest, Steady, Traffic, plan_traffic


def plan_of(count: int, rps: float = 200.0, tokens: int = 5) -> list[PlannedRequest]:
    traffic = Traffic(class_name="chat", prompt=Fixed(7), output=Fixed(tokens))
    return plan_traffic([traffic], Steady(rps), partial(stream, 1), count=count)


@pytest.mark.parametrize("api", ["chat", "completions", "ollama-chat"])
def test_every_request_of_a_plan_has_its_record(null_server: str, api: str) -> None:
    target = EndpointTarget(url=null_server, api=api)  # type: ignore[arg-type]  # the parameters are APIs
    run = asyncio.run(measure(target, plan_of(40)))
    assert sorted(record.id for record in run.records) == list(range(40))
    for record in run.records:
        assert record.error is None
        assert (record.prompt_tokens, record.output_tokens, len(record.event_at)) == (7, 5, 5)
        assert record.sent_at is not None
        assert record.scheduled_at <= record.sent_at < record.event_at[0] <= record.event_at[-1]
        assert record.event_at == sorted(record.event_at)


def test_a_closed_loop_never_exceeds_its_concurrency(null_server: str) -> None:
    run = asyncio.run(measure(EndpointTarget(url=null_server), plan_of(30), RunOptions(concurrency=3)))
    edges = [(r.sent_at or 0.0, 1) for r in run.records] + [(r.ended_at or 0.0, -1) for r in run.records]
    level = peak = 0
    for _, change in sorted(edges, key=lambda edge: (edge[0], edge[1])):
        level += change
        peak = max(peak, level)
    assert peak <= 3


def test_a_conversation_sends_its_history(null_server: str) -> None:
    talk = Traffic(class_name="chat", prompt=Fixed(6), output=Fixed(5), turns=Fixed(3))
    plan = plan_traffic([talk], Steady(100.0), partial(stream, 1), count=4)
    run = asyncio.run(measure(EndpointTarget(url=null_server), plan))
    assert sorted(record.prompt_tokens for record in run.records) == [6] * 4 + [17] * 4 + [28] * 4


def test_workers_share_the_plan_and_keep_their_records_on_disk(null_server: str, tmp_path: Path) -> None:
    seen: list[Snapshot] = []

    def look(snapshot: Snapshot) -> None:
        seen.append(snapshot)

    run = measure_in_process(
        EndpointTarget(url=null_server), plan_of(60), workers=2, on_progress=look, directory=tmp_path
    )
    assert sorted(record.id for record in run.records) == list(range(60))
    assert len(run.samples) == 2
    assert sum(len(path.read_text().splitlines()) for path in tmp_path.glob("records-*.jsonl")) == 60
    assert not list(tmp_path.glob("spec-*"))
    assert seen


def test_a_rule_may_end_a_run_and_what_was_cut_off_is_no_part_of_the_window(null_server: str) -> None:
    plan = plan_of(4000, rps=100.0, tokens=100)
    run = measure_in_process(
        EndpointTarget(url=null_server), plan, on_progress=lambda s: "enough" if s.ended > 20 else None
    )
    assert run.stopped_by == "enough"
    assert len(run.records) < 4000
    assert "cancelled" in {record.error for record in run.records}
    summary = run.summary()
    assert summary is not None
    assert summary.overall.failed == 0


class Rude:
    """A server that answers each connection with `answer`, and then closes it, or holds it open."""

    def __init__(self, answer: bytes, *, is_held: bool = False) -> None:
        self._answer, self._is_held = answer, is_held

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer)
            await writer.drain()
            if self._is_held:
                await reader.read()
        writer.close()


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WORD = chunk(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
LIMITS = Limits(connect_s=1.0, answer_s=0.2, stall_s=0.2, total_s=1.0, answer_bytes_max=100_000)


def against(rude: Rude) -> RequestRecord:
    async def talk() -> RequestRecord:
        server = await asyncio.start_server(rude, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            run = await measure(EndpointTarget(url=url, limits=LIMITS), plan_of(1), RunOptions(connections=0))
        return run.records[0]

    return asyncio.run(talk())


def refusal(status: str, extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{extra}content-length: 4\r\n\r\nwhy?".encode()


@pytest.mark.parametrize(
    ("answer", "is_held", "kind", "words"),
    [
        (refusal("401 Unauthorized"), False, "unauthorized", "HTTP 401"),
        (refusal("404 Not Found"), False, "not_found", "why?"),
        (refusal("429 Too Many Requests", "retry-after: 7\r\n"), False, "rate_limited", "retry after 7 s"),
        (refusal("400 Bad Request"), False, "client_error", "HTTP 400"),
        (refusal("503 Service Unavailable"), False, "server_error", "HTTP 503"),
        (STREAM + WORD, False, "cut", "inside the answer"),
        (b"", False, "cut", "ended"),
        (b"", True, "timeout", "no answer within"),
        (STREAM + WORD, True, "timeout", "stood still"),
        (STREAM + chunk(b"data: {oops\n\n") + b"0\r\n\r\n", False, "bad_stream", "not the JSON"),
        (STREAM + WORD + b"0\r\n\r\n", False, "bad_stream", "without saying so"),
        (STREAM + b"zz\r\n", True, "bad_stream", "size"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", True, "bad_stream", "not an HTTP answer"),
        (STREAM + chunk(b'data: {"error":{"message":"boom"}}\n\n') + b"0\r\n\r\n", False, "server_error", "boom"),
        (STREAM + chunk(b"x" * 200_000), True, "too_large", "exceeds"),
    ],
)
def test_each_failure_has_its_name(answer: bytes, *, is_held: bool, kind: ErrorKind, words: str) -> None:
    record = against(Rude(answer, is_held=is_held))
    assert record.error == kind
    assert words in record.detail
    assert record.is_failed


def test_a_server_that_is_not_there_is_unreachable() -> None:
    target = EndpointTarget(url="http://127.0.0.1:9")
    run = asyncio.run(measure(target, plan_of(3)))
    assert {record.error for record in run.records} == {"unreachable"}
    with pytest.raises(EngineError, match="cannot reach") as caught:
        identify(target)
    assert caught.value.hint


def test_tls_to_a_plain_server_is_a_tls_failure() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org\r\n")
        await writer.drain()
        writer.close()

    async def talk() -> RequestRecord:
        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            target = EndpointTarget(url=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            with pytest.raises(EngineError, match="TLS failed"):
                await asyncio.to_thread(identify, target)
            return (await measure(target, plan_of(1))).records[0]

    assert asyncio.run(talk()).error == "tls"


def test_a_first_request_that_fails_stops_everything(null_server: str) -> None:
    assert first_request(EndpointTarget(url=null_server)).output_tokens == 2
    with pytest.raises(EngineError, match="first request failed"):
        first_request(EndpointTarget(url="http://127.0.0.1:9"))


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://u:p@host", "http://host:port", "http://h?q=1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        _ = EndpointTarget(url=url).address


def request(**changes: object) -> PlannedRequest:
    fields: dict[str, object] = {"id": 3, "at_s": 0.0, "prompt_tokens": 50, "output_tokens": 9, "class_name": "chat"}
    return PlannedRequest(**(fields | changes))  # type: ignore[arg-type]


def test_prompts_have_their_length_and_share_what_is_to_be_shared() -> None:
    lexicon = Lexicon(overhead_tokens=10)
    plain, other = prompt_text(lexicon, request(), 1), prompt_text(lexicon, request(id=4), 1)
    assert len(plain.split()) == 40
    assert plain != other
    assert plain != prompt_text(lexicon, request(), 2)
    one = prompt_text(lexicon, request(prefix_id=1, prefix_tokens=20), 1).split()
    two = prompt_text(lexicon, request(id=5, prefix_id=1, prefix_tokens=20), 1).split()
    assert one[:20] == two[:20]
    assert one[20:] != two[20:]
    blocks = prompt_text(lexicon, request(prefix_blocks=(1, 2), block_tokens=15), 1).split()
    cousin = prompt_text(lexicon, request(prefix_blocks=(1, 9), block_tokens=15), 1).split()
    assert blocks[:15] == cousin[:15]
    assert blocks[15:30] != cousin[15:30]
    assert prompt_text(lexicon, request(text="my own"), 1) == "my own"


def test_priority_is_translated_to_each_engines_convention() -> None:
    def of(engine: EngineKind) -> list[int | float | None]:
        return [translate_priority(EndpointTarget(url="x", engine=engine), band) for band in (0, 1, 5)]

    assert of("vllm") == [0, 1, 5]
    assert of("sglang") == [0, -1, -5]
    assert of("tensorrt-llm") == [1.0, 0.5, pytest.approx(1 / 6)]
    assert of("llama-server") == [None, None, None]


def test_only_engines_that_know_a_parameter_are_sent_it() -> None:
    classes = {"chat": ClassTargets(band=2)}
    plain = request_body(EndpointTarget(url="x", classes=classes), request(), "hi", [])
    vllm = request_body(EndpointTarget(url="x", engine="vllm", classes=classes), request(), "hi", [])
    assert b"ignore_eos" not in plain
    assert b"priority" not in plain
    assert b'"ignore_eos":true' in vllm
    assert b'"priority":2' in vllm
    assert b"continuous_usage_stats" in vllm


def test_a_client_at_its_limits_convicts_itself() -> None:
    good = ClientSamples(
        dispatch_lags=[0.0001] * 100, loop_lags=[0.0] * 100, cpu_s=1.0, wall_s=10.0, offered=100, sent=100
    )
    assert judge_client([good]).is_valid
    tired = ClientSamples(
        dispatch_lags=[0.05] * 100, loop_lags=[0.02] * 100, cpu_s=9.0, wall_s=10.0, offered=100, sent=90, events=99
    )
    verdict = judge_client([good, tired], ceiling_eps=10.0)
    assert len(verdict.faults) == 5
    assert not verdict.is_valid


def test_a_wide_target_allows_more_lag() -> None:
    slow = ClientSamples(dispatch_lags=[0.05] * 100, cpu_s=1.0, wall_s=10.0)
    assert not judge_client([slow]).is_valid
    assert judge_client([slow], ttft_limit_s=2.0).is_valid


def test_a_run_without_records_has_no_summary() -> None:
    run = Run(target=EndpointTarget(url="x"), options=RunOptions(), start_at=0.0, records=[], samples=[])
    assert run.summary() is None


def test_a_request_to_vllm_names_its_class_and_targets_for_the_plug_in() -> None:
    targets = {"chat": ClassTargets(band=1, ttft_ms=200.0)}
    one = PlannedRequest(id=0, at_s=0.0, prompt_tokens=1, output_tokens=1, class_name="chat")
    body = json.loads(request_body(EndpointTarget(url="http://x", engine="vllm", classes=targets), one, "hi", []))
    assert body["vllm_xargs"] == {"setpoint.class": "chat", "setpoint.ttft_ms": 200.0}
    assert decode_priority(body["priority"]) == (1, 0.2)
    for target in (
        EndpointTarget(url="http://x", engine="vllm"),
        EndpointTarget(url="http://x", engine="sglang", classes=targets),
    ):
        assert "vllm_xargs" not in json.loads(request_body(target, one, "hi", []))


def test_a_priority_holds_the_deadline_where_the_engine_takes_any_integer() -> None:
    classes = {
        "chat": ClassTargets(band=0, ttft_ms=200.0),
        "slow": ClassTargets(band=0, ttft_ms=900.0),
        "letter": ClassTargets(band=0, e2e_s=30.0),
        "batch": ClassTargets(band=1),
    }

    def priority(engine: EngineKind, class_name: str, due_epoch_s: float) -> float:
        one = PlannedRequest(id=0, at_s=0.0, prompt_tokens=1, output_tokens=1, class_name=class_name)
        target = EndpointTarget(url="http://x", engine=engine, classes=classes)
        return float(json.loads(request_body(target, one, "hi", [], due_epoch_s=due_epoch_s))["priority"])

    asked = [("chat", 1.7e9), ("slow", 1.7e9), ("chat", 1.7e9 + 1.0), ("letter", 1.7e9), ("batch", 1.6e9)]
    vllm = [priority("vllm", *one) for one in asked]
    assert vllm == sorted(vllm)
    assert vllm[-1] < 2**63
    assert [decode_priority(int(one)) for one in vllm[:2]] == [(0, 1.7e9 + 0.2), (0, 1.7e9 + 0.9)]
    assert decode_priority(int(vllm[-1])) == (1, None)
    assert [priority("sglang", *one) for one in asked] == [-one for one in vllm]
    assert priority("tensorrt-llm", "chat", 1.7e9) == 1.0


def test_a_client_knows_when_a_request_is_due_by_the_wall_clock() -> None:
    def deadlines(**options: int) -> list[float]:
        target = EndpointTarget(
            url="http://127.0.0.1:9", engine="vllm", classes={"chat": ClassTargets(band=0, ttft_ms=500.0)}
        )
        plan = [
            PlannedRequest(id=i, at_s=50.0 * i, prompt_tokens=1, output_tokens=1, class_name="chat") for i in range(2)
        ]
        client = LoadClient(target, plan, RunOptions(**options), Lexicon(), lambda _: None)
        client._start = time.monotonic() + 100.0
        found = [json.loads(client._payload(one).partition(b"\r\n\r\n")[2]) for one in plan]
        return [float(decode_priority(one["priority"])[1] or 0.0) - time.time() for one in found]

    assert deadlines() == pytest.approx([100.5, 150.5], abs=5.0)
    assert deadlines(concurrency=1) == pytest.approx([0.5, 0.5], abs=5.0)


def test_a_loop_that_stood_still_was_stopped_and_is_told_so() -> None:
    stopped = ClientSamples(loop_lags=[0.001] * 1000 + [17.0], wall_s=30.0, cpu_s=0.3, offered=10, sent=10)
    found = judge_client([stopped])
    assert found.stalled_s == 17.0
    assert "stood still for 17.0 s" in found.faults[0]


def test_two_late_sends_of_a_hundred_convict_nobody_and_five_do() -> None:
    def late(count: int) -> bool:
        lags = [0.001] * (100 - count) + [0.05] * count
        return not judge_client([ClientSamples(dispatch_lags=lags, wall_s=1.0, offered=100, sent=100)]).is_valid

    assert (late(2), late(5)) == (False, True)


def test_the_client_is_measured_against_its_own_ceiling(tmp_path: Path) -> None:
    found = ceiling("1.0", tmp_path)
    assert found > 1000.0
    kept = Ceiling(
        events_per_s=123.0, made_on=msgspec.json.decode((tmp_path / FILE).read_bytes(), type=Ceiling).made_on
    )
    (tmp_path / FILE).write_bytes(msgspec.json.encode(kept))
    assert ceiling("1.0", tmp_path) == 123.0
    busy = ClientSamples(events=100, wall_s=1.0, offered=1, sent=1)
    assert judge_client([busy], ceiling_eps=123.0).faults == ("the client ran at 81% of its own ceiling, 50% allowed",)


def test_an_authority_that_is_no_certificate_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nonsense")
    with pytest.raises(ConfigError, match="cannot read the certificate authority"):
        identify(EndpointTarget(url="https://127.0.0.1:9", ca_file=str(path)))
