"""gunicorn's own asgi worker, which lets go of idle connections and reads in small pieces."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, Final

from gunicorn.workers.gasgi import ASGIWorker

READ_BYTES: Final = 16 * 1024
"""What is parsed of one connection before the others get their turn; a request has about 19 kB.

In asyncio's own 256 KiB there is room for 40,000 chunks of one byte, which took gunicorn's parser
and the application 160 ms; in these they take 20 ms (2-core AMD EPYC, Python 3.11, longest wait
for another connection's ``/healthz``).
"""


class RuntimeWorker(ASGIWorker):  # type: ignore[misc]
    """Serves the app on asyncio; ``SIGTERM`` finishes what has begun and closes what is idle.

    gunicorn's worker waits ``graceful_timeout`` for every open connection, and a client's pool
    keeps idle ones for a minute: each stop would take that long and end in ``SIGKILL``.
    """

    def run(self) -> None:
        """Serve until told to stop."""
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        create_server = self.loop.create_server

        async def remember(factory: Callable[[], asyncio.Protocol], **options: Any) -> asyncio.Server:
            def connect() -> asyncio.Protocol:
                connection = factory()
                self._connections.add(connection)
                _read_in_pieces(connection)
                return connection

            server: asyncio.Server = await create_server(connect, **options)
            return server

        self.loop.create_server = remember
        super().run()

    def handle_exit_signal(self) -> None:
        """``SIGTERM``: stop accepting, close idle connections, let requests finish."""
        super().handle_exit_signal()
        for connection in list(self._connections):
            # Where a later gunicorn names this otherwise, stopping is slow again, nothing worse.
            if getattr(connection, "_awaiting_request", False) and connection.transport is not None:
                connection.transport.close()


def _read_in_pieces(connection: asyncio.Protocol) -> None:
    made = connection.connection_made

    def connection_made(transport: asyncio.BaseTransport) -> None:
        # The size of a read is an attribute of asyncio's socket transports, not a setting.
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        # Gone again, so that the connection and this function do not keep each other.
        del connection.connection_made
        made(transport)

    connection.connection_made = connection_made  # type: ignore[method-assign]
