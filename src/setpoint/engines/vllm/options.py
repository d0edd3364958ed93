"""The options of the plug-in: the table `setpoint` of `--additional-config`, over that of an environment variable.

    --additional-config '{"setpoint": {"default_class": "chat", "strategy": "slack"}}'
    SETPOINT_VLLM='{"config": "setpoint.toml", "journal": "journal.jsonl"}'

Classes and strategy may stand in a `setpoint.toml` (`config`) or in the table itself, spelled as in that file.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from setpoint.core.strategies import STRATEGIES
from setpoint.errors import ConfigError
from setpoint.settings import Settings, parse_settings

VARIABLE = "SETPOINT_VLLM"


class PluginTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options as they are spelled.

    `config`: a `setpoint.toml`, of which the classes, the strategy and `server.default_class` are taken. `strategy`,
    `classes` and `default_class` go before what stands there. `priorities`: the class that a request's `priority`
    names, by its number. `refusal`: what a refused request becomes: `error` (the client gets a failure, as vLLM reports
    any) or `abort` (an empty answer whose `stop_reason` says why). `step_time`: a fitted step-time model to start from.
    `journal`: a file to write every event and command to.
    """

    config: str | None = None
    strategy: str | dict[str, Any] | None = None
    classes: dict[str, Any] = {}
    default_class: str | None = None
    priorities: dict[str, str] = {}
    refusal: Literal["error", "abort"] = "error"
    step_time: str | None = None
    journal: str | None = None


class PluginOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options, checked: `priorities` by number, files as they were named."""

    settings: Settings
    priorities: dict[int, str]
    refusal: Literal["error", "abort"] = "error"
    step_time: str | None = None
    journal: str | None = None


def read_options(additional_config: object, environment: Mapping[str, str]) -> PluginOptions:
    """Return the options; raises `ConfigError` that names every fault found first."""
    table = _from_environment(environment)
    if isinstance(additional_config, Mapping):
        own = additional_config.get("setpoint", {})
        if not isinstance(own, Mapping):
            raise ConfigError("additional_config.setpoint must be a table", hint="see docs/vllm.md")
        table.update(own)
    try:
        options = msgspec.convert(table, PluginTable)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the options of the vLLM plug-in: {error}", hint="see docs/vllm.md") from error
    settings = _settings(options)
    return PluginOptions(
        settings=settings,
        priorities=_priorities(options.priorities, settings),
        refusal=options.refusal,
        step_time=options.step_time,
        journal=options.journal,
    )


def read_text(path: str) -> str:
    """Return the text of a file that an option names; raises `ConfigError` when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", hint="the engine's process must be able to read it"
        ) from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    text = environment.get(VARIABLE, "{}")
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{VARIABLE} is not a JSON object: {error}", hint="see docs/vllm.md") from error


def _settings(options: PluginTable) -> Settings:
    table: dict[str, Any] = {}
    if options.config is not None:
        try:
            table = tomllib.loads(read_text(options.config))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{options.config}: {error}", hint="it must be a TOML file") from error
    if options.strategy is not None:
        table["strategy"] = options.strategy
    if options.classes:
        table["classes"] = {**table.get("classes", {}), **options.classes}
    if options.default_class is not None:
        table["server"] = {**table.get("server", {}), "default_class": options.default_class}
    return parse_settings(table, strategies=STRATEGIES)


def _priorities(table: Mapping[str, str], settings: Settings) -> dict[int, str]:
    priorities = {}
    for number, name in table.items():
        if name not in settings.classes:
            raise ConfigError(f"priorities.{number}: unknown class {name!r}", hint="name a class of the configuration")
        try:
            priorities[int(number)] = name
        except ValueError as error:
            raise ConfigError(f"priorities.{number}: not a whole number", hint='write {"10": "batch"}') from error
    return priorities
