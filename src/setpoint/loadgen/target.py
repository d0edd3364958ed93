"""The endpoint under test: where it is, what it speaks, which engine it is, and how long we are willing to wait."""

from functools import cache
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import msgspec

from setpoint.errors import ConfigError
from setpoint.model import Slo

Api = Literal["chat", "completions", "ollama-chat", "ollama-generate"]
EngineKind = Literal["openai", "setpoint", "vllm", "sglang", "tensorrt-llm", "llama-server", "ollama"]

PATHS: dict[Api, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "ollama-chat": "/api/chat",
    "ollama-generate": "/api/generate",
}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long, how large and how many; every wait ends.

    `answer_s`: from the send to the first byte. `stall_s`: between two bytes. `total_s`: from the send to the end.
    """

    connect_s: float = 10.0
    answer_s: float = 120.0
    stall_s: float = 60.0
    total_s: float = 900.0
    answer_bytes_max: int = 64 * 1024 * 1024
    header_bytes_max: int = 64 * 1024
    connections_max: int = 8192


class ClassTargets(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request of one class tells the server: its band (0 is the most urgent) and its own targets.

    `e2e_s`, of the whole answer, is told as part of a priority alone.
    """

    band: int | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_s: float | None = None

    @classmethod
    def of(cls, slo: Slo, band: int | None = None) -> Self:
        """Return what a request of a class with these targets tells."""
        ttft_ms, tpot_ms = (None if one is None else 1e3 * one for one in (slo.ttft_s, slo.tpot_s))
        return cls(band=band, ttft_ms=ttft_ms, tpot_ms=tpot_ms, e2e_s=slo.e2e_s)

    @property
    def due_s(self) -> float | None:
        """How long a request may wait: for its first token or, where that has no target, for its last."""
        return self.e2e_s if self.ttft_ms is None else self.ttft_ms / 1e3


class EndpointTarget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An endpoint and how to ask it.

    `url` may end in `/v1` or not. `is_length_forced` asks engines that can to ignore the end of text, so that answers
    have the planned length. `extra_body` and `extra_headers` are added to each request. `ca_file`: a certificate
    authority of one's own; `is_tls_checked` false trusts anyone.
    """

    url: str
    api: Api = "chat"
    model: str = ""
    engine: EngineKind = "openai"
    api_key: str | None = None
    is_streaming: bool = True
    is_length_forced: bool = True
    extra_body: dict[str, Any] = {}
    extra_headers: dict[str, str] = {}
    classes: dict[str, ClassTargets] = {}
    limits: Limits = Limits()
    ca_file: str | None = None
    is_tls_checked: bool = True

    @property
    def address(self) -> "Address":
        """The parsed URL; raises ConfigError when it is none."""
        return parse_url(self.url)

    @property
    def path(self) -> str:
        """The path of the requests."""
        return self.address.prefix + PATHS[self.api]


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where to connect to; `prefix` is the path before `/v1` or `/api`, without a slash at its end."""

    host: str
    port: int
    is_tls: bool
    prefix: str

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


@cache
def parse_url(url: str) -> Address:
    """Return where `url` points to; raises ConfigError when it is not an http or https URL."""
    hint = "write something like http://127.0.0.1:8000"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"cannot read the URL {url!r}: {error}", hint=hint) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"{url!r} is not an http or https URL", hint=hint)
    if parts.query or parts.fragment or parts.username:
        raise ConfigError(f"the URL {url!r} must hold a host, a port and a path only", hint="give keys with --api-key")
    is_tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/")
    for path in (*PATHS.values(), "/v1", "/api"):
        prefix = prefix.removesuffix(path)
    return Address(host=parts.hostname, port=port or (443 if is_tls else 80), is_tls=is_tls, prefix=prefix)
