"""What goes wrong on the way in and out, in the shape of the OpenAI API: `{"error": {message, type, param, code}}`.

Every error that leaves the gateway is a `Fault`; `fault_of` turns whatever was raised below into one, and `refusal`
does the same for a `Refused`, which is a value until it meets HTTP.
"""

import math
from collections.abc import Mapping

import msgspec

from setpoint.engines.api import RefusalReason, Refused
from setpoint.errors import EngineError, RequestError, SetpointError, UserError

KINDS: Mapping[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", "class_not_allowed"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("timeout_error", "request_timeout"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "internal_error"),
    503: ("server_error", "unavailable"),
}
"""The type and the default code of each status."""

REFUSALS: Mapping[RefusalReason, tuple[int, str]] = {
    "unknown_class": (400, "unknown_class"),
    "too_long": (400, "context_length_exceeded"),
    "queue_full": (429, "queue_full"),
    "late": (429, "target_unreachable"),
    "expired": (429, "wait_expired"),
    "draining": (503, "draining"),
}
"""The status and the code of each refusal."""


class Fault(Exception):  # noqa: N818 - it is an answer as much as an error
    """An error answer: a status, a body in the shape of the OpenAI API, and headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.headers = dict(headers or {})
        self.kind, default_code = KINDS.get(status, ("invalid_request_error", None))
        self.code = code or default_code

    def body(self) -> bytes:
        """Return the JSON body."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


def _sentence(error: SetpointError) -> str:
    return error.message if error.hint is None else f"{error.message} ({error.hint})"


def fault_of(error: Exception) -> Fault:
    """Return the answer to any exception; one that nobody foresaw tells nothing of its insides."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, RequestError):
        return Fault(400, _sentence(error), param=error.param, code=error.code)
    if isinstance(error, UserError):
        return Fault(400, _sentence(error))
    if isinstance(error, EngineError):
        return Fault(500, _sentence(error), code="engine_error")
    return Fault(500, "the server met an unforeseen error; its log has the details")


def refusal(refused: Refused) -> Fault:
    """Return the answer to a refusal; `Retry-After` is in whole seconds, rounded up, and at least 1."""
    status, code = REFUSALS[refused.reason]
    headers = {}
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(refused.retry_after_s)))
    return Fault(status, refused.message, code=code, headers=headers)
