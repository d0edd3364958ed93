"""The model's own chat template, rendered in a sandbox.

A template is code from a stranger's file: it runs in Jinja2's immutable sandbox, with the few helpers that templates of
the Hugging Face hub expect (`raise_exception`, `strftime_now`, `tojson`).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from setpoint.engines.llamacpp.model import Model
from setpoint.errors import ModelError, RequestError


class ChatTemplate:
    """Turns a conversation into a prompt in the form that the model was trained on."""

    def __init__(self, model: Model) -> None:
        """Compile the template of `model`; raise ModelError when it has none or it is broken."""
        source = model.chat_template()
        if not source:
            raise ModelError(
                f"{model.info.name} has no chat template", hint="use /v1/completions, or an instruction-tuned model"
            )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        environment.filters["tojson"] = _tojson
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template of {model.info.name} is broken: {error}") from error
        self._model = model
        self._specials = {"bos_token": model.special_text("bos"), "eos_token": model.special_text("eos")}

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:  # noqa: ANN401 - Jinja2's own
        """Return the prompt text of `messages`, ready for the assistant's answer.

        `variables` (such as `tools`) reach the template. Raises RequestError when the template refuses the messages.
        """
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=True, **self._specials, **variables
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise RequestError(
                f"the chat template of the model refuses these messages: {error}",
                hint="check roles, their order and the content of each message",
                param="messages",
            ) from error

    def prompt(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> tuple[int, ...]:  # noqa: ANN401
        """Return the prompt tokens of `messages`, special tokens parsed."""
        text = self.render(messages, **variables)
        start = self._specials["bos_token"]
        has_own_start = bool(start) and text.startswith(start)
        return self._model.tokenize(text, has_start=not has_own_start, is_special_parsed=True)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now(tz=UTC).strftime(form)


def _tojson(value: object, indent: int | None = None, **_options: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
