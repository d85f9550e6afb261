"""gunicorn's worker: uvicorn's, with our protocol, an end that runs to its end, and a look at the slow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable
from time import perf_counter
from types import FrameType
from typing import Any, ClassVar, Final

from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from runtime.protocol import RuntimeProtocol, RuntimeState

DRAIN_SECONDS: Final = 8
"""How long everything may take to end after ``SIGTERM``; gunicorn kills after 10 s."""

LAST_ASKED_SECONDS: Final = 1.0
"""Of these: who asked so shortly ago may be about to ask again, and hears that it was the last time."""

LAST_WORD_SECONDS: Final = 1.0
"""Of these, the last: who still sends its body hears 503, and has so long to read it."""

_LOGGER: Final = logging.getLogger("runtime.app")
_LOOK_TICKS: Final = 5  # of 0.1 s
_NOTIFY_TICKS: Final = 10
_LAST_LOOK_SECONDS: Final = 0.05
_MOST_ACCEPTED: Final = 256
"""More than twice the backlog: they may come faster than they are taken."""


class RuntimeWorker(UvicornWorker):  # type: ignore[misc]
    """Serves the app on asyncio; ``SIGTERM`` answers what has begun or is under way, and closes."""

    alive: bool
    """Not asked to end yet; gunicorn's."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "asyncio",
        "http": RuntimeProtocol,
        "ws": "none",
        "interface": "asgi3",
        "lifespan": "on",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        # A Pi may not know what time it is, and then RFC 9110 wants none.
        "date_header": False,
        # uvicorn would tell it by the wall clock: RuntimeServer does.
        "callback_notify": None,
        "timeout_graceful_shutdown": DRAIN_SECONDS - LAST_ASKED_SECONDS,
    }

    def init_signals(self) -> None:
        """Until the server takes over, too, the process ends in order.

        By default a signal ends it at once, and what it is loading then looks as if it had died of it.
        """
        super().init_signals()
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(each, self._end_early)

    def _end_early(self, sig: int, frame: FrameType | None) -> None:
        # Once: systemd asks, and so does the arbiter; what runs at exit is not to be cut off.
        if self.alive:
            self.alive = False
            sys.exit(0)

    async def _serve(self) -> None:
        if not self.alive:
            return  # Asked to end, in a place where Python drops exceptions.
        self.config.app = self.wsgi
        server = RuntimeServer(self.config, self.notify)
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, server.quit)
        try:
            await server.serve(sockets=self.sockets)
        finally:
            self.alive = False
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)


class RuntimeServer(Server):
    """uvicorn's server, told of connections that take too long, and with an end that loses no request.

    Args:
        config: uvicorn's.
        notify: Called about once a second, by no clock: the arbiter kills who is silent for 30 s.
    """

    def __init__(self, config: Config, notify: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._notify = notify
        self.server_state: RuntimeState = RuntimeState()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """``SIGTERM``: drain. uvicorn's own then ends by the signal, before what is to run at exit."""
        self.should_exit = True

    def quit(self) -> None:
        """``SIGQUIT``: end now."""
        self.should_exit = self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more; connections in use get one more answer; then as uvicorn.

        uvicorn closes idle connections at once, and between two requests each connection is idle: what its
        client is just sending would be lost. Whose request it cancels hears a 500 in plain text: before that,
        503.
        """
        waiting = _accepted(sockets or [])
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        connections: set[RuntimeProtocol] = self.server_state.connections  # type: ignore[assignment]
        self.server_state.ending = True
        await self._take(waiting)
        for connection in connections:
            connection.answers_its_last()
        until, asking = perf_counter() + LAST_ASKED_SECONDS, bool(connections)
        while asking and not self.force_exit and perf_counter() < until:
            await asyncio.sleep(_LAST_LOOK_SECONDS)  # first of all: what is in a socket is read
            lately = perf_counter() - LAST_ASKED_SECONDS
            asking = any(each.may_ask(lately) for each in connections)
        late = asyncio.create_task(self._tell_who_is_late())
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()
            if self.force_exit:  # What is not done is cancelled with the loop.
                self._give_up(whole=True)

    async def _tell_who_is_late(self) -> None:
        """Beside uvicorn's own wait, and over before it cancels what is not done."""
        await asyncio.sleep(DRAIN_SECONDS - LAST_ASKED_SECONDS - LAST_WORD_SECONDS)
        self._give_up(whole=False)
        await asyncio.sleep(LAST_WORD_SECONDS)
        self._give_up(whole=True)
        for connection in list(self.server_state.connections):
            connection.shutdown()

    def _give_up(self, *, whole: bool) -> None:
        for connection in list(self.server_state.connections):
            connection.give_up(whole=whole)  # type: ignore[union-attr]

    async def _take(self, accepted: list[socket.socket]) -> None:
        """Serve connections that the loop has not accepted itself, as those that it has."""
        loop = asyncio.get_running_loop()

        def connection() -> RuntimeProtocol:
            return RuntimeProtocol(self.config, self.server_state, self.lifespan.state, loop)

        for each in accepted:
            try:
                await loop.connect_accepted_socket(connection, each)
            except OSError:  # Its client has left meanwhile.
                each.close()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % _NOTIFY_TICKS == 0:
            self._notify()
        if counter % _LOOK_TICKS == 0:
            now = perf_counter()
            for connection in list(self.server_state.connections):
                try:
                    connection.look(now)  # type: ignore[union-attr]
                except Exception:
                    # What is amiss with one connection must not end the loop that all others are served by.
                    _LOGGER.exception("connection", extra={"fields": {"event": "connection"}})
                    connection.transport.abort()
        return await super().on_tick(counter)


def _accepted(listening: list[socket.socket]) -> list[socket.socket]:
    """What the kernel holds of connections that nobody accepted: closing resets it.

    To be called right before, without a wait. What comes in the microseconds between, or is half connected,
    is still reset: new ones cannot be refused first without refusing them to the next worker, too, where it
    has the same socket.
    """
    accepted: list[socket.socket] = []
    for each in listening:
        with contextlib.suppress(OSError):  # There are no more, or no descriptors for them.
            while len(accepted) < _MOST_ACCEPTED:
                accepted.append(each.accept()[0])
    for each in accepted:
        each.setblocking(False)
    return accepted
