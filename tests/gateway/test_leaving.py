"""Clients that leave, and a server that leaves: nobody's slot is kept, nobody is left without an answer."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gateway.conftest import Server

pytestmark = pytest.mark.model

CONFIG = """
[engine]
slots = 2
kv_tokens = 4096
context_tokens = 1500
step_tokens_max = 16
[server]
drain_timeout_s = 20
[classes.tiny]
queue_max = 1
[classes.strict]
ttft_ms = 1
late = "refuse"
[keys.alice]
secret = "sk-alice-0123"
class = "chat"
[keys.bob]
secret = "sk-bob-456789"
classes = ["batch"]
class = "batch"
"""
HELLO: Any = [{"role": "user", "content": "Say hello."}]
LONG_PROMPT: Any = [{"role": "user", "content": "word " * 1200}]


def body(**changes: object) -> dict[str, object]:
    return {"messages": HELLO, "max_tokens": 1000, "ignore_eos": True, "stream": True, **changes}


def test_a_client_that_leaves_in_the_middle_frees_its_slot(server: Server) -> None:
    url = f"{server.url}/v1/chat/completions"
    before = server.metric("requests_total", outcome="cancelled")
    with httpx.stream("POST", url, json=body(max_tokens=900)) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert server.metric("num_requests_running") == 1
    server.wait_idle()
    assert server.metric("requests_total", outcome="cancelled") == before + 1
    assert server.metric("kv_cache_usage_perc") == 0


def test_a_client_that_leaves_before_its_first_token_frees_its_slot(server: Server) -> None:
    url = f"{server.url}/v1/chat/completions"
    before = server.metric("requests_total", outcome="cancelled")
    for is_stream in (True, False):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body(max_tokens=900, stream=is_stream), timeout=httpx.Timeout(30, read=0.005))
    server.wait_until(lambda: server.metric("requests_total", outcome="cancelled") == before + 2)
    server.wait_idle()


@pytest.fixture(scope="module")
def guarded(start_server: Callable[..., Server]) -> Server:
    return start_server(CONFIG)


class TestKeysAndQueues:
    """One server with keys, two slots and small steps; its last test ends it."""

    def test_no_key_or_a_wrong_one_is_told_401(self, guarded: Server) -> None:
        for key in ("wrong", "sk-alice-012", "sk-alice-01234"):
            with guarded.client(key) as client, pytest.raises(openai.AuthenticationError) as caught:
                client.models.list()
            assert caught.value.code == "invalid_api_key"
        assert httpx.get(f"{guarded.url}/v1/models").status_code == 401
        assert httpx.get(f"{guarded.url}/health").status_code == 200

    def test_a_key_brings_its_class_and_bounds_the_others(self, guarded: Server) -> None:
        model = "SmolLM2-135M-Instruct.Q4_1"
        with guarded.client("sk-alice-0123") as alice:
            answer = alice.chat.completions.with_raw_response.create(model=model, messages=HELLO, max_tokens=1)
            assert answer.headers["x-setpoint-class"] == "chat"
        with guarded.client("sk-bob-456789") as bob, pytest.raises(openai.PermissionDeniedError):
            bob.chat.completions.create(model=model, messages=HELLO, max_tokens=1, service_tier="priority")

    def test_a_full_queue_is_told_429_with_the_time_to_come_again(self, guarded: Server) -> None:
        async def crowd() -> list[httpx.Response]:
            headers = {"authorization": "Bearer sk-alice-0123", "x-setpoint-class": "tiny"}
            async with httpx.AsyncClient(headers=headers, timeout=60) as client:
                asks = (
                    client.post(f"{guarded.url}/v1/chat/completions", json=body(max_tokens=30, stream=index % 2 == 0))
                    for index in range(8)
                )
                return await asyncio.gather(*asks)

        answers = asyncio.run(crowd())
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in refused:
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
        assert guarded.metric("requests_total", outcome="queue_full") == len(refused)

    def test_a_target_that_cannot_be_met_is_told_429_at_once(self, guarded: Server) -> None:
        with guarded.client("sk-alice-0123", **{"x-setpoint-class": "strict"}) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(
                    model="SmolLM2-135M-Instruct.Q4_1", messages=LONG_PROMPT, max_tokens=1, stream=True
                )
            assert caught.value.code == "target_unreachable"

    def test_sigterm_finishes_what_runs_and_refuses_what_waits(self, guarded: Server) -> None:
        async def leave() -> tuple[list[str], list[httpx.Response], httpx.Response, httpx.Response]:
            headers = {"authorization": "Bearer sk-alice-0123"}
            url = f"{guarded.url}/v1/chat/completions"
            async with httpx.AsyncClient(headers=headers, timeout=60) as client:
                runs = [asyncio.create_task(client.post(url, json=body(max_tokens=150))) for _ in range(2)]
                await wait_for(client, f"{guarded.url}/ready", '"running":2')
                waits = [asyncio.create_task(client.post(url, json=body(max_tokens=150))) for _ in range(2)]
                await wait_for(client, f"{guarded.url}/ready", '"waiting":2')
                guarded.process.send_signal(signal.SIGTERM)
                refused = await asyncio.gather(*waits)
                late = await client.post(url, json=body())
                ready = await client.get(f"{guarded.url}/ready")
                return [answer.text for answer in await asyncio.gather(*runs)], refused, late, ready

        texts, refused, late, ready = asyncio.run(leave())
        assert all('"finish_reason":"length"' in text and text.endswith("data: [DONE]\n\n") for text in texts)
        for answer in (*refused, late, ready):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "draining"
        assert guarded.stop() == 0


async def wait_for(client: httpx.AsyncClient, url: str, text: str) -> None:
    async with asyncio.timeout(60):
        while text not in (await client.get(url)).text:  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.01)
