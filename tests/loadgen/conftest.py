"""A server that streams as fast as it is asked to, in a process of its own."""

from collections.abc import Iterator

import pytest

from setpoint.loadgen import ceiling


@pytest.fixture(scope="module")
def null_server() -> Iterator[str]:
    """Serve an event every 2 ms to each stream; yields the URL."""
    with ceiling.null_server(tick_ms=2.0) as url:
        yield url
