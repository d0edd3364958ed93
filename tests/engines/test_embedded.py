"""The embedded engine as a gateway sees it: what cannot be compiled never reaches the engine's thread."""

import asyncio
import threading

import pytest

from setpoint.core.replica import ReplicaMachine
from setpoint.core.strategies import make_strategy
from setpoint.engines.api import Finished, Generation, Piece, Sampling
from setpoint.engines.driver import Driver
from setpoint.engines.embedded import EmbeddedEngine
from setpoint.engines.llamacpp import grammar as grammars
from setpoint.engines.llamacpp.automaton import Automaton
from setpoint.engines.llamacpp.executor import LlamaExecutor
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.llamacpp.rules import Rules
from setpoint.engines.llamacpp.text import TextStream
from setpoint.errors import RequestError
from setpoint.model import PRESETS, AnyCommand, AnyEvent, Arrived
from setpoint.steptime.learner import LearnedStepTime
from setpoint.steptime.model import linear
from setpoint.units import Tokens

pytestmark = pytest.mark.model


def test_a_schema_is_compiled_or_refused_before_the_engine_hears_of_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = LlamaExecutor(model, slots=2, kv_tokens=512, prefix_tokens=0, prefixes=0, step_tokens_max=32)
    step_time = LearnedStepTime(linear(key="test", step_s=0.02, decode_s=0.002, prefill_s=0.002))
    machine = ReplicaMachine(make_strategy("slack"), PRESETS, executor.capacity, step_time)
    heard: list[AnyEvent] = []
    threads: list[str] = []

    def handle(event: AnyEvent) -> list[AnyCommand]:
        heard.append(event)
        return machine.handle(event)

    def compiled(rules: Rules) -> Automaton:
        threads.append(threading.current_thread().name)
        return Automaton(rules)

    def asking(schema: str) -> Generation:
        return Generation(
            prompt=model.tokenize("Say yes or no:"),
            class_name="chat",
            output_tokens_max=Tokens(8),
            sampling=Sampling(json_schema=schema),
        )

    async def talk() -> None:
        driver = Driver(handle=handle, executor=executor, text_stream=lambda asked: TextStream(model, asked.stop))
        engine = EmbeddedEngine(model, driver, model_name="test", context_tokens=256)
        async with driver:
            with pytest.raises(RequestError, match="unknown type"):
                await anext(engine.generate(asking('{"type": "oops"}')))
            assert not [event for event in heard if isinstance(event, Arrived)]
            *pieces, end = [event async for event in engine.generate(asking('{"enum": ["yes", "no"]}'))]
            assert isinstance(end, Finished)
            assert "".join(p.text for p in pieces if isinstance(p, Piece)).strip() in {'"yes"', '"no"'}

    monkeypatch.setattr(grammars, "Automaton", compiled)
    asyncio.run(talk())
    executor.close()
    assert len(threads) == 1
    assert threads[0] != "setpoint-engine"
