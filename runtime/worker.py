"""gunicorn's own asgi worker, which also lets go of idle connections when told to stop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

from gunicorn.workers.gasgi import ASGIWorker


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
