"""Everything that `setpoint.toml` may say, as frozen values with defaults, and the way from and to its tables.

The file is read and written elsewhere (the command line does); here a table that was already read becomes `Settings`
or one `ConfigError` that names every fault with its place (`classes.chat.ttft_ms`), and `Settings` become a table
again. Durations in the file carry their unit in the key (`_ms`, `_s`); inside the program they are seconds.
"""

from setpoint.settings.parse import parse_settings
from setpoint.settings.values import (
    ApiKey,
    EngineSettings,
    KvLayout,
    ServerSettings,
    Settings,
    StrategySettings,
    Tier,
)
from setpoint.settings.write import settings_table

__all__ = [
    "ApiKey",
    "EngineSettings",
    "KvLayout",
    "ServerSettings",
    "Settings",
    "StrategySettings",
    "Tier",
    "parse_settings",
    "settings_table",
]
