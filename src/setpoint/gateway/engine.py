"""What the gateway needs of whatever generates behind it; the embedded engine is one, a pool will be another."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from setpoint.engines.api import ChatPrompt, Generation, GenerationEvent
from setpoint.engines.observe import DriverStatus


class ServedEngine(Protocol):
    """One served model. The methods beside `generate` are quick for short texts and safe to call from any thread."""

    @property
    def model_name(self) -> str:
        """The model id that clients see."""
        ...

    @property
    def context_tokens(self) -> int:
        """Prompt and output of one sequence."""
        ...

    @property
    def vocabulary(self) -> int:
        """The number of tokens; ids run from 0."""
        ...

    @property
    def status(self) -> DriverStatus:
        """What is running and waiting now."""
        ...

    def tokenize(self, text: str, *, has_start: bool = True) -> tuple[int, ...]:
        """Return the tokens of a text; `has_start` puts the model's start token first where it wants one."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; bytes that are no character become U+FFFD."""
        ...

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> ChatPrompt:
        """Return a conversation as tokens, by the model's own template; raises RequestError when it refuses."""
        ...

    def generate(self, generation: Generation) -> AsyncGenerator[GenerationEvent, None]:
        """Yield pieces and one `Finished` or `Refused`; closing it cancels."""
        ...
