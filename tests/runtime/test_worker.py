"""The worker's own part: how much is read of one connection at a time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.workers.gasgi import ASGIWorker

from runtime.worker import READ_BYTES, RuntimeWorker

Factory = Callable[[], asyncio.Protocol]


class Reader(asyncio.Protocol):
    """Notes the size of each piece that it is handed."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.sizes.append(len(data))

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


def as_the_worker_makes_it(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> Factory:
    """What gunicorn's worker hands to its loop, once ours has run."""
    given: list[Factory] = []

    async def create_server(made: Factory, **options: Any) -> None:
        given.append(made)

    monkeypatch.setattr(ASGIWorker, "run", lambda self: asyncio.run(self.loop.create_server(factory)))
    worker = RuntimeWorker.__new__(RuntimeWorker)
    worker.loop = SimpleNamespace(create_server=create_server)
    worker.run()
    return given[0]


def test_a_connection_is_read_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody else waits while one piece is parsed, and it may be chunks of one byte each."""
    factory = as_the_worker_makes_it(Reader, monkeypatch)

    async def read(sent: int) -> list[int]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop, reader = asyncio.get_running_loop(), factory()
        assert isinstance(reader, Reader)
        await loop.connect_accepted_socket(lambda: reader, ours)
        assert "connection_made" not in vars(reader)
        await loop.sock_sendall(theirs, b" " * sent)
        theirs.close()
        await reader.ended
        return reader.sizes

    sent = 20 * READ_BYTES
    sizes = asyncio.run(read(sent))
    assert sum(sizes) == sent
    assert max(sizes) <= READ_BYTES
