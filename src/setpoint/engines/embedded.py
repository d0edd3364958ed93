"""The embedded engine as a gateway sees it: a llama.cpp model, its chat template, and the driver that runs it."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import lru_cache
from typing import Any

from setpoint.engines.api import ChatPrompt, Generation, GenerationEvent
from setpoint.engines.driver import Driver
from setpoint.engines.llamacpp.chat import ChatTemplate
from setpoint.engines.llamacpp.grammar import compile_ahead
from setpoint.engines.llamacpp.model import Model
from setpoint.engines.observe import DriverStatus
from setpoint.errors import ModelError, RequestError

PREFIXES_KEPT = 64
"""How many system prompts are remembered as tokens."""


class EmbeddedEngine:
    """One model in this process, served; implements what `setpoint.gateway.engine.ServedEngine` asks for."""

    def __init__(self, model: Model, driver: Driver, *, model_name: str, context_tokens: int) -> None:
        """Serve `model` through `driver`; a model without a chat template still serves completions."""
        self.model_name = model_name
        self.context_tokens = context_tokens
        self.vocabulary = model.info.vocabulary
        self._model = model
        self._driver = driver
        try:
            self._template: ChatTemplate | None = ChatTemplate(model)
        except ModelError as error:
            self._template, self._no_template = None, error
        # bound here and not to the class, so that the cache goes with the engine
        self._system_tokens = lru_cache(PREFIXES_KEPT)(self._render_system)

    @property
    def status(self) -> DriverStatus:
        """What is running and waiting now."""
        return self._driver.status

    def tokenize(self, text: str, *, has_start: bool = True) -> tuple[int, ...]:
        """Return the tokens of a text; `has_start` puts the model's start token first where it wants one."""
        return self._model.tokenize(text, has_start=has_start)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; bytes that are no character become U+FFFD."""
        return b"".join(self._model.piece(token) for token in tokens).decode(errors="replace")

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> ChatPrompt:
        """Return a conversation as tokens; the part that its system message makes up is marked as a prefix."""
        template = self._template
        if template is None:
            raise RequestError(self._no_template.message, hint=self._no_template.hint, param="messages")
        tokens = template.prompt(messages)
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        return ChatPrompt(tokens, 0 if system is None else _shared(self._system_tokens(system), tokens))

    def _render_system(self, content: str) -> tuple[int, ...]:
        """Return the tokens of a conversation that is a system message alone, empty when the template refuses it."""
        try:
            return () if self._template is None else self._template.prompt([{"role": "system", "content": content}])
        except RequestError:
            return ()

    def generate(self, generation: Generation) -> AsyncGenerator[GenerationEvent, None]:
        """Yield pieces and one `Finished` or `Refused`; closing it cancels."""
        sampling = generation.sampling
        is_free = sampling.grammar is None and sampling.json_schema is None
        return self._driver.generate(generation) if is_free else self._generate_by_grammar(generation)

    async def _generate_by_grammar(self, generation: Generation) -> AsyncGenerator[GenerationEvent, None]:
        """Compile before the engine hears of the request, so that a bad or large schema holds up no step."""
        held = await asyncio.to_thread(compile_ahead, self._model, generation.sampling)
        async with aclosing(self._driver.generate(generation)) as events:
            async for event in events:
                yield event
        del held  # till now the engine could find it


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens the two have in common."""
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)
