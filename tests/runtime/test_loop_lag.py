"""What clients wait for the event loop is counted, though no request sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from runtime.loop_lag import MOST_TICKS, TICK_SECONDS, LoopLag
from tests.doubles.hailo import HailoDouble
from tests.runtime.hailo import hailo_release
from tests.simulators import RuntimeServer, wait_for

NAME = "hailo_runtime_event_loop_lag_seconds"


class Loop:
    """A clock of the test's own, and the one timer."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> None:
        self.timers.append((when, lambda: callback(*args)))

    def pass_until(self, now: float) -> None:
        """Stand still until then, and only then run what is due."""
        self.now = now
        due = [each for each in self.timers if each[0] <= now]
        self.timers = [each for each in self.timers if each[0] > now]
        for _, run in due:
            run()


class Watched:
    """A loop whose lag is counted."""

    def __init__(self) -> None:
        self.loop, self.registry = Loop(), CollectorRegistry()
        LoopLag(self.registry).begin(cast(asyncio.AbstractEventLoop, self.loop))

    def ticks(self, late: str = "+Inf") -> int:
        """How many were at most so late."""
        value = self.registry.get_sample_value(f"{NAME}_bucket", {"le": late})
        assert value is not None
        return int(value)


def test_a_loop_that_runs_is_not_late() -> None:
    watched = Watched()
    for tick in range(1, 41):
        watched.loop.pass_until(100.0 + tick * TICK_SECONDS + 0.0001)
    assert (watched.ticks("0.001"), watched.ticks()) == (40, 40)


def test_each_moment_of_a_stall_counts_as_late_as_it_is() -> None:
    watched = Watched()
    watched.loop.pass_until(100.0 + TICK_SECONDS + 0.301)  # Late: 301, 251, ..., 1 ms.
    assert [watched.ticks(late) for late in ("0.045", "0.1", "0.25", "+Inf")] == [1, 2, 5, 7]
    assert len(watched.loop.timers) == 1
    watched.loop.pass_until(watched.loop.timers[0][0])
    assert (watched.ticks("0.045"), watched.ticks()) == (2, 8)


def test_who_was_stopped_for_a_day_catches_up_with_a_minute() -> None:
    watched = Watched()
    watched.loop.pass_until(100.0 + 86_400)
    assert watched.ticks() == MOST_TICKS
    assert watched.loop.timers[0][0] == pytest.approx(watched.loop.now + TICK_SECONDS)


def test_a_real_loop_that_is_blocked() -> None:
    registry = CollectorRegistry()

    async def story() -> None:
        LoopLag(registry).begin(asyncio.get_running_loop())
        time.sleep(0.4)
        while not registry.get_sample_value(f"{NAME}_count"):
            await asyncio.sleep(TICK_SECONDS)

    asyncio.run(story())
    count = registry.get_sample_value(f"{NAME}_count")
    early = registry.get_sample_value(f"{NAME}_bucket", {"le": "0.1"})
    assert count is not None
    assert early is not None
    assert count - early >= 4  # 350, 300, ... ms


def counted(server: RuntimeServer) -> tuple[float, float]:
    """Moments so far: those that came at most 100 ms late, and all."""
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    (family,) = [each for each in text_string_to_metric_families(text) if each.name == NAME]
    values = {(each.name, each.labels.get("le")): each.value for each in family.samples}
    return values[f"{NAME}_bucket", "0.1"], values[f"{NAME}_count", None]


def test_a_switch_on_a_chip_is_seen(tmp_path: Path) -> None:
    """``configure`` holds the GIL: clients wait, and no request's own time says so."""
    store, double = tmp_path / "store", HailoDouble(tmp_path / "chip", configure_ms=400)
    hailo_release(store)
    server = RuntimeServer(tmp_path, RELEASE_STORE=str(store), TARGET="hailo8", **double.environment)
    try:
        server.wait_until_answering()
        wait_for(lambda: counted(server)[1] > 2, "the first moments")
        before = counted(server)
        second = hailo_release(store, motifs=13)
        wait_for(lambda: httpx.get(f"{server.url}/healthz").json().get("release") == second.id, "the switch")
        wait_for(lambda: counted(server)[1] > before[1] + 2, "the next moments")
        early, count = counted(server)
        assert (count - early) - (before[1] - before[0]) >= 4
    finally:
        server.stop()
