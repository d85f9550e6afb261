"""The order in which requests are taken up, and for how long at a stretch."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, Protocol

from runtime.admission import SLICE_SECONDS

_LOGGER: Final = logging.getLogger("runtime.app")


class Waiting(Protocol):
    """A connection with a whole request."""

    loop: asyncio.AbstractEventLoop

    def take_turn(self, cycle: Any) -> None:
        """Answer the request."""

    def drop(self, cycle: Any) -> None:
        """End: the request could not be answered, by a mistake of ours."""


class Turns:
    """Whole requests in the order in which they came, a few at a stretch of the event loop.

    After ``SLICE_SECONDS`` what has come meanwhile is read, and batches go on: what is not read yet waits
    where nobody can tell for how long.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._due: deque[tuple[Waiting, Any]] = deque()
        self._comes = False

    def wait(self, connection: Waiting, cycle: Any) -> None:
        """Let a request have its turn when everything that is there now has been read."""
        self._due.append((connection, cycle))
        self._go_on(connection.loop)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._comes:
            self._comes = True
            loop.call_soon(self._take)

    def _take(self) -> None:
        """Who comes meanwhile, from the line of a connection that has just been answered, is behind all."""
        until, self._comes = self._clock() + SLICE_SECONDS, False
        while self._due:
            connection, cycle = self._due.popleft()
            try:
                connection.take_turn(cycle)
            except Exception:  # One connection's trouble is not that of all others.
                _LOGGER.exception("connection", extra={"fields": {"event": "connection"}})
                connection.drop(cycle)
            if self._due and self._clock() >= until:
                self._go_on(connection.loop)
                return


class Stretch:
    """Tasks of one pass of the event loop, as long as ``SLICE_SECONDS``; the others work in the next one.

    For all that is no whole window of a client's: pages, bodies that came in parts, outlines of batches.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._since: float | None = None

    async def turn(self) -> None:
        """Return in a pass that has time left; to be called right before the work."""
        while self._since is not None and self._clock() - self._since >= SLICE_SECONDS:
            seen = self._since
            await asyncio.sleep(0)
            if self._since == seen:  # Nobody has ended it: that was another event loop's.
                self._since = None
        if self._since is None:
            self._since = self._clock()
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self._since = None
