"""Both of Ollama's own endpoints, against a stand-in that refuses whatever its contract does not know."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from setpoint.errors import EngineError
from setpoint.loadgen.ask import ask
from setpoint.loadgen.probe import identify, learn_words
from setpoint.loadgen.process import measure
from setpoint.loadgen.target import Api, EndpointTarget
from setpoint.seeds import stream
from setpoint.workload import Fixed, Steady, Traffic, plan_traffic

STAND_IN = Path(__file__).with_name("ollama_stand_in.py")
APIS: tuple[Api, ...] = ("ollama-chat", "ollama-generate")


@pytest.fixture(scope="module")
def ollama() -> Iterator[str]:
    """Serve two at a time, from a process of its own."""
    command = [sys.executable, str(STAND_IN), "--parallel", "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("is_streaming", [True, False])
def test_every_request_is_answered_with_its_tokens(ollama: str, api: Api, is_streaming: bool) -> None:  # noqa: FBT001 - a parameter
    target = identify(EndpointTarget(url=ollama, api=api, is_streaming=is_streaming))
    assert (target.model, target.engine) == ("smollm2:latest", "ollama")
    traffic = Traffic(class_name="chat", prompt=Fixed(30), output=Fixed(6))
    plan = plan_traffic([traffic], Steady(100.0), partial(stream, 1), count=20)
    run = asyncio.run(measure(target, plan))
    assert [record.detail for record in run.records if record.error is not None] == []
    assert {record.output_tokens for record in run.records} == {6}
    assert {len(record.event_at) for record in run.records} == {6 if is_streaming else 1}
    assert {record.token_source for record in run.records} == {"usage"}


def test_a_model_may_be_named_without_its_tag_and_one_that_is_not_there_is_told(ollama: str) -> None:
    assert identify(EndpointTarget(url=ollama, api="ollama-chat", model="smollm2")).model == "smollm2:latest"
    with pytest.raises(EngineError, match="has no model 'llama9'") as caught:
        identify(EndpointTarget(url=ollama, api="ollama-chat", model="llama9"))
    assert "smollm2:latest" in (caught.value.hint or "")


def test_a_server_that_leaves_out_cached_tokens_is_not_believed_to_count_exactly(ollama: str) -> None:
    lexicon = learn_words(identify(EndpointTarget(url=ollama, api="ollama-chat")))
    assert lexicon.source == "usage"
    assert len(lexicon.words) > 100
    assert not lexicon.is_exact


def test_the_stand_in_refuses_what_ollama_does_not_know(ollama: str) -> None:
    target = EndpointTarget(url=ollama)
    asked = {"model": "smollm2", "messages": [], "max_tokens": 5}
    assert ask(target, "/api/chat", asked).status == 400
    assert ask(target, "/api/chat", {"model": "smollm2", "messages": [], "options": {"max_tokens": 5}}).status == 400
    assert ask(target, "/api/chat", {"messages": []}).status == 400
    assert ask(target, "/api/generate", {"model": "other", "prompt": "x"}).status == 404
