"""The settings as frozen values: what each means, its default, and the range that it must lie in.

The ranges stand in the types (`Meta`), so that reading a table checks them and `docs/config.md` can quote them.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from setpoint.model import PRESETS, ServiceClass

Tier = Literal["auto", "default", "flex", "priority"]
"""The values of the OpenAI API's `service_tier`; the file maps them to service classes."""
KvLayout = Literal["per-slot", "shared"]

Count = Annotated[int, Meta(ge=1)]
Duration = Annotated[float, Meta(gt=0.0, le=366 * 24 * 3600.0)]


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens, and the limits that keep one client from harming the others."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    model_name: Annotated[str, Meta(min_length=1)] | None = None
    """The model id that clients see; `None` takes it from the model file."""
    default_class: Annotated[str, Meta(min_length=1)] = "standard"
    body_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 30)] = 4 << 20
    header_bytes_max: Annotated[int, Meta(ge=1024, le=1 << 20)] = 16 << 10
    prompt_tokens_max: Count | None = None
    """`None`: only the context of the engine limits a prompt."""
    choices_max: Annotated[int, Meta(ge=1, le=128)] = 16
    """The largest `n`."""
    requests_max: Count = 4096
    """Generations that the server holds at once, waiting or running, over all classes."""
    connections_max: Annotated[int, Meta(ge=8)] = 4096
    header_timeout_s: Duration = 10.0
    """How long a connection may take to send its request line and headers."""
    body_timeout_s: Duration = 30.0
    keep_alive_s: Duration = 30.0
    send_timeout_s: Duration = 60.0
    """How long a client may leave its answer unread."""
    drain_timeout_s: Duration = 30.0
    """How long running requests may still take after SIGTERM."""


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the embedded engine is built with; `None` leaves the choice to the engine."""

    model: Annotated[str, Meta(min_length=1)] | None = None
    slots: Annotated[int, Meta(ge=1, le=256)] | None = None
    context_tokens: Annotated[int, Meta(ge=16)] | None = None
    kv_layout: KvLayout | None = None
    """Whether each slot has KV of its own, or all take from one pool (`setpoint.engines.llamacpp.kv`)."""
    kv_tokens: Annotated[int, Meta(ge=16)] | None = None
    prefix_tokens: Annotated[int, Meta(ge=0)] | None = None
    """Beside `kv_tokens`, for prefixes that requests share (system prompts)."""
    step_tokens_max: Annotated[int, Meta(ge=1)] | None = None
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    gpu_layers: Annotated[int, Meta(ge=0)] | None = None
    quantize: Annotated[str, Meta(min_length=1)] | None = None
    step_time_file: Annotated[str, Meta(min_length=1)] | None = None
    """A step-time model that was fitted to this engine; without it, the first steps give a rough one."""


class StrategySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which batching strategy decides, with its own options by name."""

    name: str = "slack"
    options: Mapping[str, int | float | bool | str] = {}


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One client: the class that its requests have by default, and those that it may name (`None`: all)."""

    name: str
    secret: str
    class_name: str | None = None
    class_names: tuple[str, ...] | None = None

    def may_use(self, class_name: str) -> bool:
        """Say whether a request with this key may name the class."""
        return self.class_names is None or class_name in self.class_names or class_name == self.class_name


def default_tiers() -> dict[Tier, str]:
    """Return the classes behind `service_tier` where the file names none; `auto` means the default class."""
    return {"priority": "chat", "default": "standard", "flex": "batch"}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One whole, checked configuration."""

    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    strategy: StrategySettings = StrategySettings()
    classes: Mapping[str, ServiceClass] = msgspec.field(default_factory=lambda: dict(PRESETS))
    tiers: Mapping[Tier, str] = msgspec.field(default_factory=default_tiers)
    keys: tuple[ApiKey, ...] = ()
