"""From settings back to the table of `setpoint.toml`: what differs from the defaults, and no more."""

from typing import Any

import msgspec

from setpoint.model import PRESETS
from setpoint.settings.classes import class_table
from setpoint.settings.values import ApiKey, Settings, default_tiers


def _differing(value: msgspec.Struct) -> dict[str, Any]:
    default = type(value)()
    pairs = ((name, getattr(value, name)) for name in value.__struct_fields__)
    return {name: field for name, field in pairs if field != getattr(default, name) and field is not None}


def _key_table(key: ApiKey) -> dict[str, Any]:
    table: dict[str, Any] = {"secret": key.secret}
    if key.class_name is not None:
        table["class"] = key.class_name
    if key.class_names is not None:
        table["classes"] = list(key.class_names)
    return table


def settings_table(settings: Settings) -> dict[str, Any]:
    """Return a table of plain values, ready for a TOML writer, from which `parse_settings` makes the same settings."""
    tiers = default_tiers()
    table: dict[str, Any] = {
        "server": _differing(settings.server),
        "engine": _differing(settings.engine),
        "strategy": {"name": settings.strategy.name, **settings.strategy.options},
        "classes": {name: dict(class_table(c)) for name, c in settings.classes.items() if PRESETS.get(name) != c},
        "tiers": {tier: name for tier, name in settings.tiers.items() if tiers.get(tier) != name},
        "keys": {key.name: _key_table(key) for key in settings.keys},
    }
    return {name: content for name, content in table.items() if content}
