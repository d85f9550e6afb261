"""The server's event loop, seen from the thread that loads releases: how long it did not run."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from time import perf_counter
from typing import Final

TICK_SECONDS: Final = 0.002
_PASS_SECONDS: Final = 5.0


class EventLoop:
    """Attached once the server runs; before that nothing is awaited and nothing measured."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """This is the loop that answers."""
        self._loop = loop

    def wait_until_passed(self) -> None:
        """Return when everything that was going on without a pause in the loop has ended."""
        passed = threading.Event()
        if self._call(passed.set):
            passed.wait(_PASS_SECONDS)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Stall]:
        """Measure how long the loop does not run at a stretch, until the end of the block."""
        stall = Stall()
        running = self._call(stall.begin)
        try:
            yield stall
        finally:
            if running:
                # Its last tick sees a stall that lasts until now.
                self._call(stall.end)
                stall.ended.wait(_PASS_SECONDS)

    def _call(self, what: object) -> bool:
        if self._loop is None:
            return False
        with contextlib.suppress(RuntimeError):  # The loop is closed: the process ends.
            self._loop.call_soon_threadsafe(what)  # type: ignore[arg-type]
            return True
        return False


class Stall:
    """The longest stretch in which the loop did not come to its next tick, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.ended = threading.Event()
        self._last = 0.0

    def begin(self) -> None:
        """Tick from now on; in the loop."""
        self._last = perf_counter()
        asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def end(self) -> None:
        """Tick no more; in the loop."""
        self._look()
        self.ended.set()

    def _tick(self) -> None:
        if not self.ended.is_set():
            self._look()
            asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _look(self) -> None:
        now = perf_counter()
        self.seconds = max(self.seconds, now - self._last - TICK_SECONDS)
        self._last = now
