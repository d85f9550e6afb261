"""How long the loop did not run is measured from outside, and what goes on in it is waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from runtime.event_loop import EventLoop

BLOCKED = 0.2


@pytest.fixture(name="loop")
def a_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Runs in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_blocked_loop_is_measured(loop: asyncio.AbstractEventLoop) -> None:
    seen = EventLoop()
    seen.attach(loop)
    begun = threading.Event()

    def block() -> None:
        begun.set()
        time.sleep(BLOCKED)

    with seen.watched() as stall:
        loop.call_soon_threadsafe(block)
        assert begun.wait(10)
    assert stall.seconds >= BLOCKED * 0.9


def test_it_is_measured_where_the_block_fails(loop: asyncio.AbstractEventLoop) -> None:
    seen = EventLoop()
    seen.attach(loop)
    with pytest.raises(ValueError, match="failed"), seen.watched() as stall:
        raise ValueError("failed")
    assert stall.ended.is_set()


def test_what_went_on_is_waited_for(loop: asyncio.AbstractEventLoop) -> None:
    seen, done, begun = EventLoop(), list[int](), threading.Event()
    seen.attach(loop)

    def work() -> None:
        begun.set()
        time.sleep(BLOCKED)
        done.append(1)

    loop.call_soon_threadsafe(work)
    assert begun.wait(10)
    seen.wait_until_passed()
    assert done == [1]


def test_without_a_loop_nothing_is_waited_for() -> None:
    seen = EventLoop()
    seen.wait_until_passed()
    with seen.watched() as stall:
        pass
    assert stall.seconds == 0


def test_a_closed_loop_keeps_nobody(loop: asyncio.AbstractEventLoop) -> None:
    seen = EventLoop()
    closed = asyncio.new_event_loop()
    closed.close()
    seen.attach(closed)
    seen.wait_until_passed()
    with seen.watched() as stall:
        pass
    assert stall.seconds == 0
