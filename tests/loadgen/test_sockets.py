"""Sockets that the kernel dates: a late reader does not make an early event late, and nothing is lost on the way."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from setpoint.loadgen.sockets import DatedSocket, Inbox, is_dating_possible

pytestmark = pytest.mark.skipif(not is_dating_possible(), reason="only Linux dates reads in this way")


class Peer:
    """The other end: a listening socket, and the one connection that it takes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._taken: socket.socket | None = None

    @property
    def taken(self) -> socket.socket:
        if self._taken is None:
            self._taken, _ = self._listener.accept()
        return self._taken

    def close(self) -> None:
        if self._taken is not None:
            self._taken.close()
        self._listener.close()


class Notebook:
    """A receiver that writes everything down."""

    def __init__(self) -> None:
        self.transport: DatedSocket | None = None
        self.changed = asyncio.Event()
        self.reads: list[tuple[bytes, float]] = []
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: DatedSocket) -> None:
        self.transport = transport

    def received(self, data: bytes, at: float) -> None:
        self.reads.append((data, at))
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)
        self.changed.set()

    @property
    def body(self) -> bytes:
        return b"".join(data for data, _ in self.reads)

    async def until(self, size: int) -> None:
        while len(self.body) < size and not self.lost:
            self.changed.clear()
            await self.changed.wait()


@pytest.fixture
def peer() -> Iterator[Peer]:
    one = Peer()
    yield one
    one.close()


async def connected(peer: Peer, *, is_patient: bool) -> tuple[Inbox, Notebook]:
    notebook = Notebook()
    inbox = Inbox(asyncio.get_running_loop(), is_patient=is_patient)
    await inbox.connect("127.0.0.1", peer.port, notebook)
    return inbox, notebook


def test_a_read_is_dated_when_the_bytes_came_not_when_the_loop_came_to_them(peer: Peer) -> None:
    async def scene() -> tuple[float, float]:
        inbox, notebook = await connected(peer, is_patient=False)
        peer.taken.sendall(b"first")
        await notebook.until(5)
        sender = threading.Thread(target=peer.taken.sendall, args=(b"second",))
        sender.start()
        sender.join()
        time.sleep(0.2)  # noqa: ASYNC251 - the loop is to be late
        looked_at = time.monotonic()
        await notebook.until(11)
        inbox.close()
        return notebook.reads[-1][1], looked_at

    dated_at, looked_at = asyncio.run(scene())
    assert dated_at < looked_at


@pytest.mark.parametrize("is_patient", [False, True])
def test_what_was_sent_arrives_whole_and_in_the_order_of_its_dates(peer: Peer, is_patient: bool) -> None:  # noqa: FBT001
    pieces = [bytes([65 + index % 26]) * 700 for index in range(60)]

    def send() -> None:
        for piece in pieces:
            peer.taken.sendall(piece)
            time.sleep(0.008)

    async def scene() -> Notebook:
        inbox, notebook = await connected(peer, is_patient=is_patient)
        sender = threading.Thread(target=send)
        sender.start()
        await notebook.until(60 * 700)
        sender.join()
        inbox.close()
        return notebook

    notebook = asyncio.run(scene())
    dates = [at for _, at in notebook.reads]
    assert notebook.body == b"".join(pieces)
    assert dates == sorted(dates)
    assert dates[-1] <= time.monotonic()


def test_more_than_the_kernel_takes_at_once_is_sent_all_the_same(peer: Peer) -> None:
    size = 20_000_000

    async def scene() -> int:
        inbox, notebook = await connected(peer, is_patient=False)
        assert notebook.transport is not None
        notebook.transport.write(b"x" * size)
        taken = peer.taken
        loop = asyncio.get_running_loop()
        taken.setblocking(False)
        got = 0
        while got < size:
            got += len(await loop.sock_recv(taken, 1 << 20))
        inbox.close()
        return got

    assert asyncio.run(scene()) == size


def test_the_receiver_learns_once_that_the_other_end_has_gone(peer: Peer) -> None:
    async def scene() -> Notebook:
        inbox, notebook = await connected(peer, is_patient=True)
        peer.taken.close()
        await notebook.until(1)
        assert notebook.transport is not None
        assert notebook.transport.is_closing()
        notebook.transport.abort()
        inbox.close()
        await asyncio.sleep(0)
        return notebook

    assert asyncio.run(scene()).lost == [None]


def test_an_address_where_nobody_listens_is_an_error(peer: Peer) -> None:
    peer.close()

    async def scene() -> None:
        inbox = Inbox(asyncio.get_running_loop(), is_patient=False)
        try:
            await inbox.connect("127.0.0.1", peer.port, Notebook())
        finally:
            inbox.close()

    with pytest.raises(ConnectionRefusedError):
        asyncio.run(scene())
