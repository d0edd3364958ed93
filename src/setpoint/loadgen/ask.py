"""One plain request to a server, blocking: for probing an endpoint before a run and reading its counters during one."""

import http.client
import socket
import ssl

import msgspec

from setpoint.errors import EngineError
from setpoint.loadgen.connection import tls_context
from setpoint.loadgen.target import EndpointTarget

ANSWER_MAX = 8 * 1024 * 1024


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Status, content type and body of an answer."""

    status: int
    content_type: str
    body: bytes

    def json(self) -> object:
        """Return the body as JSON values, or `None` when it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


def ask(target: EndpointTarget, path: str, body: object = None, *, timeout_s: float = 10.0) -> Answer:
    """Return the answer to a GET of `path` (below the target's own prefix), or to a POST of `body` as JSON.

    Raises EngineError, with a hint, when there is no connection, no answer in time, or no HTTP.
    """
    address = target.address
    connection: http.client.HTTPConnection
    if address.is_tls:
        connection = http.client.HTTPSConnection(
            address.host, address.port, timeout=timeout_s, context=tls_context(target)
        )
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    headers = {"content-type": "application/json", "user-agent": "setpoint"} | target.extra_headers
    if target.api_key:
        headers["authorization"] = f"Bearer {target.api_key}"
    data = None if body is None else msgspec.json.encode(body)
    try:
        connection.request("GET" if body is None else "POST", address.prefix + path, body=data, headers=headers)
        answer = connection.getresponse()
        return Answer(
            status=answer.status, content_type=answer.getheader("content-type", ""), body=answer.read(ANSWER_MAX)
        )
    except ssl.SSLError as error:
        raise EngineError(
            f"{target.url}: TLS failed: {error.reason or error}",
            hint="name the certificate authority with --ca-file, or use http:// if the server has no TLS",
        ) from None
    except TimeoutError:
        raise EngineError(
            f"{target.url} accepts connections but does not answer within {timeout_s:g} s",
            hint="is the model still loading?",
        ) from None
    except socket.gaierror:
        raise EngineError(f"the host {address.host!r} is unknown", hint="check the URL") from None
    except OSError as error:
        raise EngineError(
            f"cannot reach {address.host}:{address.port}: {error.strerror or error}",
            hint="is the server running, and is this its port?",
        ) from None
    except http.client.HTTPException as error:
        raise EngineError(f"{target.url} does not speak HTTP: {error!r}", hint="is this the right port?") from None
    finally:
        connection.close()
