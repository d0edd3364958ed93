"""The HTTP face of one served model: what each route answers."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from setpoint.engines.api import Generation
from setpoint.gateway.auth import Keyring
from setpoint.gateway.dialect import Chat, Completion, Dialect
from setpoint.gateway.endpoint import Endpoint, Handler, fault_response
from setpoint.gateway.engine import ServedEngine
from setpoint.gateway.exchange import Exchange
from setpoint.gateway.faults import Fault
from setpoint.gateway.generations import chat_generations, completion_generations, plain_messages
from setpoint.gateway.service import Service, choose_service
from setpoint.gateway.telemetry import CONTENT_TYPE, Telemetry
from setpoint.gateway.wire import Asked, ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, decode
from setpoint.settings import ApiKey, Settings

SHORT_BODY_BYTES = 16 << 10
"""Up to this size a body is decoded and tokenized on the event loop: a thread would cost more than the work."""

T = TypeVar("T")


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


class Api:
    """The handlers of every route, over one engine."""

    def __init__(self, engine: ServedEngine, settings: Settings, telemetry: Telemetry) -> None:
        self._engine = engine
        self._settings = settings
        self._telemetry = telemetry
        self._created = int(time.time())

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._engine.model_name:
            raise Fault(
                404,
                f"the model {name!r} is not served here (served: {self._engine.model_name})",
                param="model",
                code="model_not_found",
            )

    async def chat(self, request: Request, body: bytes, key: ApiKey | None) -> Response:
        """`POST /v1/chat/completions`."""

        def read() -> Exchange:
            asked = decode(body, ChatRequest)
            service = self._service(asked, request, key)
            generations = chat_generations(asked, self._engine, service, self._settings.server)
            return self._exchange(asked, service, generations, Chat())

        return await (await _off_loop(read, body)).answer()

    async def completion(self, request: Request, body: bytes, key: ApiKey | None) -> Response:
        """`POST /v1/completions`."""

        def read() -> Exchange:
            asked = decode(body, CompletionRequest)
            service = self._service(asked, request, key)
            generations = completion_generations(asked, self._engine, service, self._settings.server)
            return self._exchange(asked, service, generations, Completion())

        return await (await _off_loop(read, body)).answer()

    def _service(self, asked: Asked, request: Request, key: ApiKey | None) -> Service:
        self._check_model(asked.model)
        return choose_service(self._settings, request.headers, asked.service_tier, key)

    def _exchange(
        self, asked: Asked, service: Service, generations: Sequence[Generation], dialect: Dialect
    ) -> Exchange:
        return Exchange(
            engine=self._engine,
            request=asked,
            service=service,
            generations=generations,
            dialect=dialect,
            send_timeout_s=self._settings.server.send_timeout_s,
        )

    async def tokenize(self, _request: Request, body: bytes, _key: ApiKey | None) -> Response:
        """`POST /tokenize`."""

        def read() -> tuple[int, ...]:
            asked = decode(body, TokenizeRequest)
            self._check_model(asked.model)
            if (asked.prompt is None) == (asked.messages is None):
                raise Fault(400, "give either prompt or messages", param="prompt")
            if asked.messages is not None:
                return self._engine.chat_prompt(plain_messages(asked.messages)).tokens
            return self._engine.tokenize(asked.prompt or "", has_start=asked.add_special_tokens is not False)

        tokens = await _off_loop(read, body)
        return _json({"count": len(tokens), "max_model_len": self._engine.context_tokens, "tokens": tokens})

    async def detokenize(self, _request: Request, body: bytes, _key: ApiKey | None) -> Response:
        """`POST /detokenize`."""

        def read() -> str:
            asked = decode(body, DetokenizeRequest)
            self._check_model(asked.model)
            if any(token >= self._engine.vocabulary for token in asked.tokens):
                raise Fault(400, f"token ids must be below {self._engine.vocabulary}", param="tokens")
            return self._engine.detokenize(asked.tokens)

        return _json({"prompt": await _off_loop(read, body)})

    def _model(self) -> dict[str, object]:
        return {
            "id": self._engine.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "setpoint",
            "max_model_len": self._engine.context_tokens,
        }

    async def models(self, _request: Request, _body: bytes, _key: ApiKey | None) -> Response:
        """`GET /v1/models`."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request, _body: bytes, _key: ApiKey | None) -> Response:
        """`GET /v1/models/NAME`."""
        self._check_model(request.path_params["name"])
        return _json(self._model())

    async def health(self, _request: Request, _body: bytes, _key: ApiKey | None) -> Response:
        """`GET /health`: the process answers."""
        return _json({"status": "ok"})

    async def ready(self, _request: Request, _body: bytes, _key: ApiKey | None) -> Response:
        """`GET /ready`: requests are served, or 503 with the reason."""
        status = self._engine.status
        if status.failure is not None:
            raise Fault(503, status.failure, code="engine_failed")
        if status.is_draining:
            raise Fault(503, "the server is shutting down", code="draining")
        running, waiting = sum(status.running.values()), sum(status.waiting.values())
        return _json({"status": "ready", "running": running, "waiting": waiting})

    async def metrics(self, _request: Request, _body: bytes, _key: ApiKey | None) -> Response:
        """`GET /metrics`."""
        return Response(self._telemetry.render(), headers={"content-type": CONTENT_TYPE})


async def _off_loop(work: Callable[[], T], body: bytes) -> T:
    """Run `work` here when the body is short, in a thread when it is long enough to hold the event loop up."""
    return work() if len(body) <= SHORT_BODY_BYTES else await asyncio.to_thread(work)


async def _http_error(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    messages = {404: "there is no such path here", 405: "this path does not take this method"}
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return fault_response(Fault(status, messages.get(status, "the request failed"), headers=headers))


def build_app(engine: ServedEngine, settings: Settings, telemetry: Telemetry) -> Starlette:
    """Return the ASGI application that serves `engine` under `settings` and counts in `telemetry`."""
    api = Api(engine, settings, telemetry)
    keyring = Keyring(settings.keys)

    def route(path: str, method: str, handler: Handler, ring: Keyring | None = keyring) -> Route:
        return Route(path, Endpoint(path, handler, ring, settings.server, telemetry), methods=[method])

    routes = [
        route("/v1/chat/completions", "POST", api.chat),
        route("/v1/completions", "POST", api.completion),
        route("/v1/models", "GET", api.models),
        route("/v1/models/{name:path}", "GET", api.model),
        route("/tokenize", "POST", api.tokenize),
        route("/detokenize", "POST", api.detokenize),
        route("/health", "GET", api.health, None),
        route("/ready", "GET", api.ready, None),
        route("/metrics", "GET", api.metrics, None),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _http_error})
