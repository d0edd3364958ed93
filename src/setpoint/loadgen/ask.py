"""One plain request to a server, blocking: for probing an endpoint before a run and reading its counters during one."""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator

import msgspec

from setpoint.errors import ConfigError, EngineError
from setpoint.loadgen.connection import tls_context
from setpoint.loadgen.target import EndpointTarget

ANSWER_MAX = 8 * 1024 * 1024
ALL_OF_TIMEOUT = 3.0


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

    `timeout_s` is for each read; three times as long is what all of them get, for a server that answers drop by drop.
    Raises EngineError, with a hint, when there is no connection, no answer in time, or no HTTP, and ConfigError for a
    header that cannot be sent.
    """
    address = target.address
    try:
        return _exchange(target, path, body, timeout_s)
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
    except ValueError:
        raise ConfigError(
            f"a request to {target.url} cannot be sent as it is",
            hint="is there a line break or a letter beyond Latin-1 in the URL, --api-key or --header?",
        ) from None


def _exchange(target: EndpointTarget, path: str, body: object, timeout_s: float) -> Answer:
    """Return the answer; raises what the standard library raises, and TimeoutError for one that does not end."""
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
    with contextlib.closing(connection):
        connection.connect()
        with _bounded(connection.sock, ALL_OF_TIMEOUT * timeout_s):
            connection.request("GET" if body is None else "POST", address.prefix + path, body=data, headers=headers)
            answer = connection.getresponse()
            content = answer.read(ANSWER_MAX)
    return Answer(status=answer.status, content_type=answer.getheader("content-type", ""), body=content)


@contextlib.contextmanager
def _bounded(plain: socket.socket, limit_s: float) -> Iterator[None]:
    """Cut the connection when the block takes longer than `limit_s`; raises TimeoutError then."""
    is_cut = threading.Event()

    def cut() -> None:
        is_cut.set()
        with contextlib.suppress(OSError):
            plain.shutdown(socket.SHUT_RDWR)

    late = threading.Timer(limit_s, cut)
    late.daemon = True
    late.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not is_cut.is_set():
            raise
    finally:
        late.cancel()
    if is_cut.is_set():
        raise TimeoutError
