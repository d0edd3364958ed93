"""One plain request: every wait of it ends, and what cannot be sent is a sentence."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from setpoint.errors import ConfigError, EngineError
from setpoint.loadgen.ask import ask
from setpoint.loadgen.target import EndpointTarget


@pytest.fixture
def dripping() -> Iterator[str]:
    """Serve one answer, a byte every 20 ms, which would take minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            talk, _ = server.accept()
            with talk:
                talk.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n")
                while True:
                    try:
                        talk.sendall(b"x")
                    except OSError:
                        return
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_an_answer_that_comes_drop_by_drop_is_given_up(dripping: str) -> None:
    with pytest.raises(EngineError, match="does not answer within"):
        ask(EndpointTarget(url=dripping), "/v1/models", timeout_s=0.2)


@pytest.mark.parametrize("key", ["sk-1\nx: y", "sk-\u20ac"])
def test_a_key_that_no_header_can_hold_is_told(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="cannot be sent"):
            ask(EndpointTarget(url=url, api_key=key), "/v1/models")
