"""From a table that was read to checked settings; every fault is collected and told with its place.

Three passes, each over what the one before left whole: unknown keys (with the nearest known one as a hint), types and
ranges (from the types in `values`), and contradictions between settings that are each fine alone.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args

import msgspec

from setpoint.errors import ConfigError
from setpoint.model import PRESETS, ServiceClass
from setpoint.settings.classes import ClassTable, build_class, class_faults
from setpoint.settings.values import (
    ApiKey,
    EngineSettings,
    ServerSettings,
    Settings,
    StrategySettings,
    Tier,
    default_tiers,
)

TABLES = ("server", "engine", "strategy", "classes", "tiers", "keys")
TIERS: dict[str, Tier] = {tier: tier for tier in get_args(Tier)}
SECRET_CHARACTERS_MIN = 8

T = TypeVar("T", bound=msgspec.Struct)


class KeyTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"class_name": "class"}):
    """One `[keys.NAME]` table as the file spells it."""

    secret: str
    class_name: str | None = None
    classes: tuple[str, ...] | None = None


class _Faults:
    """The faults found so far, each as `place: what is wrong`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, place: str, what: str) -> None:
        self.lines.append(f"{place}: {what}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the nearest known word, or the empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _table(value: object, place: str, faults: _Faults) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    faults.add(place, f"expected a table [{place}], got {type(value).__name__}")
    return {}


def _convert(value: object, kind: type[T], place: str, faults: _Faults) -> T | None:
    """Convert one table, with every unknown key and the first wrong value reported under `place`."""
    table = dict(_table(value, place, faults))
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in [key for key in table if key not in known]:
        faults.add(f"{place}.{key}", f"unknown key{nearest(key, known)}")
        del table[key]
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        missing = re.search(r"required field `(\w+)`", what)
        faults.add(place + path.rstrip("`"), f"{missing[1]} is missing" if missing else _plain(what))
        return None


def _plain(what: str) -> str:
    return what.replace("Expected", "expected").replace("Invalid", "invalid").replace("`", "")


def _strategy(value: object, known: Iterable[str] | None, faults: _Faults) -> StrategySettings:
    table = {"name": value} if isinstance(value, str) else dict(_table(value, "strategy", faults))
    name = table.pop("name", "slack")
    if not isinstance(name, str) or (known is not None and name not in known):
        faults.add("strategy.name", f"unknown strategy {name!r}{nearest(str(name), known or ())}")
        name = "slack"
    for key in [key for key, option in table.items() if not isinstance(option, int | float | str)]:
        faults.add(f"strategy.{key}", "expected a number, a word or true/false")
        del table[key]
    return StrategySettings(name=name, options=table)


def _classes(value: object, faults: _Faults) -> dict[str, ServiceClass]:
    classes = dict(PRESETS)
    for name, content in _table(value, "classes", faults).items():
        place = f"classes.{name}"
        table = _convert(content, ClassTable, place, faults)
        if table is None:
            continue
        if isinstance(table.preset, str) and table.preset not in PRESETS:
            faults.add(f"{place}.preset", f"unknown preset {table.preset!r}{nearest(table.preset, PRESETS)}")
            continue
        classes[name] = build_class(name, table)
        for key, what in class_faults(classes[name]):
            faults.add(f"{place}.{key}", what)
    return classes


def _tiers(value: object, faults: _Faults) -> dict[Tier, str]:
    tiers = default_tiers()
    for key, name in _table(value, "tiers", faults).items():
        tier = TIERS.get(key)
        if tier is None:
            faults.add(f"tiers.{key}", f"unknown service tier{nearest(key, TIERS)}")
        elif not isinstance(name, str):
            faults.add(f"tiers.{key}", "expected the name of a class")
        else:
            tiers[tier] = name
    return tiers


def _keys(value: object, faults: _Faults) -> tuple[ApiKey, ...]:
    keys: list[ApiKey] = []
    for name, content in _table(value, "keys", faults).items():
        place = f"keys.{name}"
        table = _convert({"secret": content} if isinstance(content, str) else content, KeyTable, place, faults)
        if table is None:
            continue
        if len(table.secret) < SECRET_CHARACTERS_MIN or not table.secret.isascii():
            faults.add(f"{place}.secret", f"must be at least {SECRET_CHARACTERS_MIN} ASCII characters")
        twins = [key.name for key in keys if key.secret == table.secret]
        if twins:
            faults.add(f"{place}.secret", f"the same secret as keys.{twins[0]}")
        keys.append(ApiKey(name=name, secret=table.secret, class_name=table.class_name, class_names=table.classes))
    return tuple(keys)


def _named_classes(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield (place, class name) wherever the settings name a class."""
    yield "server.default_class", settings.server.default_class
    for tier, name in settings.tiers.items():
        yield f"tiers.{tier}", name
    for key in settings.keys:
        if key.class_name is not None:
            yield f"keys.{key.name}.class", key.class_name
        for name in key.class_names or ():
            yield f"keys.{key.name}.classes", name


def _check(settings: Settings, faults: _Faults) -> None:
    """Add each contradiction between settings that are fine alone."""
    for place, name in _named_classes(settings):
        if name not in settings.classes:
            faults.add(place, f"unknown class {name!r}{nearest(name, settings.classes)}")
    engine = settings.engine
    if engine.kv_tokens and engine.context_tokens and engine.kv_tokens < engine.context_tokens:
        faults.add(
            "engine.kv_tokens",
            f"a KV cache of {engine.kv_tokens} tokens cannot hold one sequence of context_tokens = "
            f"{engine.context_tokens}",
        )
    if engine.step_tokens_max and engine.slots and engine.step_tokens_max < engine.slots:
        faults.add(
            "engine.step_tokens_max",
            f"a step of {engine.step_tokens_max} tokens cannot advance slots = {engine.slots} sequences",
        )


def parse_settings(table: Mapping[str, Any], *, strategies: Iterable[str] | None = None) -> Settings:
    """Return the settings that `table` (the file as read) describes, over the defaults.

    `strategies`: the names to accept, if the caller knows them. Raises one `ConfigError` that lists every fault found.
    """
    faults = _Faults()
    for key in table:
        if key not in TABLES:
            faults.add(key, f"unknown table{nearest(key, TABLES)}")
    server = _convert(table.get("server", {}), ServerSettings, "server", faults)
    engine = _convert(table.get("engine", {}), EngineSettings, "engine", faults)
    settings = Settings(
        server=server or ServerSettings(),
        engine=engine or EngineSettings(),
        strategy=_strategy(table.get("strategy", "slack"), strategies, faults),
        classes=_classes(table.get("classes", {}), faults),
        tiers=_tiers(table.get("tiers", {}), faults),
        keys=_keys(table.get("keys", {}), faults),
    )
    _check(settings, faults)
    if faults.lines:
        raise ConfigError("; ".join(faults.lines), hint="docs/config.md lists every setting with its unit and default")
    return settings
