"""How late the event loop is, all the time: what a request waits before anybody has read it.

A request's own time begins when the loop has read it, so a loop that stands still (HailoRT's ``configure``
holds the GIL) makes every client wait and no request slow. Here time is sampled instead of requests.
"""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import CollectorRegistry, Histogram

TICK_SECONDS: Final = 0.05
BUCKETS_SECONDS: Final = (0.001, 0.002, 0.005, 0.010, 0.020, 0.030, 0.045, 0.100, 0.250, 0.5, 1.0, 2.5, 10.0)
MOST_TICKS: Final = 1200
"""Of one stall, a minute of them: a process that was stopped for hours catches up with no more."""


class LoopLag:
    """Looks at moments 50 ms apart, and counts how much later than each the loop came to it.

    Every moment counts, also those of one stall: of 300 ms, they are 300, 250, 200, ... late. So the counts
    say what a request that comes at any time has to wait for the loop, and shares of it are shares of time.

    Args:
        registry: Where ``hailo_runtime_event_loop_lag_seconds`` is shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "hailo_runtime_event_loop_lag_seconds",
            "How late the event loop came to each of the moments 50 ms apart: what a request waits before it "
            "is read.",
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self._due = 0.0

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tick from now on; in the loop."""
        self._due = loop.time() + TICK_SECONDS
        loop.call_at(self._due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now, left = loop.time(), MOST_TICKS  # The loop's own clock: the one that its timers go by.
        while self._due <= now and left:
            self._lag.observe(now - self._due)
            self._due += TICK_SECONDS
            left -= 1
        if self._due <= now:
            self._due = now + TICK_SECONDS
        loop.call_at(self._due, self._tick, loop)
