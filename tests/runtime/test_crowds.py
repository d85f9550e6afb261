"""Many who ask for the same at one moment: others have their turn in between."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import falcon.testing
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.admission import SLICE_SECONDS
from runtime.engines.emulator import EmulatorEngine
from runtime.infer_body import read_body
from runtime.metrics_page import MetricsPage
from runtime.turns import Stretch
from tests.runtime.service import Service, ask
from tests.runtime.test_batches import batch_body
from tests.simulators import ReleaseSimulator, imu_windows

MANY = 12


class Passes:
    """Counts passes of the event loop, as anybody else meets them who waits for a turn."""

    def __init__(self) -> None:
        self.count = 0

    async def during(self, *all_of: Awaitable[Any]) -> list[Any]:
        counting = asyncio.create_task(self._go_on())
        try:
            return await asyncio.gather(*all_of)
        finally:
            counting.cancel()

    async def _go_on(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


async def asked(service: Service, method: str, path: str, body: bytes = b"") -> int:
    kind = {"Content-Type": "application/json"}
    return await ask(service.app, falcon.testing.create_scope(path=path, method=method, headers=kind), body)


class Working:
    """A clock on which each piece of work takes a while, and nothing else does."""

    def __init__(self, passes: Passes, takes: float) -> None:
        self._passes = passes
        self._takes = takes
        self.now = 100.0
        self.worked: list[int] = []

    def work(self) -> None:
        self.worked.append(self._passes.count)
        self.now += self._takes

    def most_in_a_pass(self) -> int:
        (found,) = Counts(self.worked).most_common(1)
        return found[1]


def at_work(service: Service, takes: float) -> tuple[Passes, Working, Service]:
    passes = Passes()
    working = Working(passes, takes)
    return passes, working, Service(service.holder, lambda: working.now)


@pytest.mark.parametrize(("takes", "most"), [(SLICE_SECONDS * 1.5, 1), (SLICE_SECONDS / 2.5, 3)])
@pytest.mark.parametrize("path", ["/healthz", "/docs", "/test"])
def test_pages_are_made_as_long_as_a_slice_in_each_pass(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str, takes: float, most: int
) -> None:
    passes, working, crowded = at_work(service, takes)
    inner = crowded.app._inner

    async def seen(*args: Any) -> None:
        working.work()
        await inner(*args)

    monkeypatch.setattr(crowded.app, "_inner", seen)
    method = "POST" if path == "/test" else "GET"
    statuses = asyncio.run(passes.during(*(asked(crowded, method, path) for _ in range(MANY))))
    assert statuses == [200] * MANY
    assert working.most_in_a_pass() == most


@pytest.mark.parametrize(("takes", "most"), [(SLICE_SECONDS * 1.5, 1), (SLICE_SECONDS / 2.5, 3)])
@pytest.mark.parametrize("windows", [1, 2])
def test_bodies_are_read_as_long_as_a_slice_in_each_pass(
    service: Service, monkeypatch: pytest.MonkeyPatch, windows: int, takes: float, most: int
) -> None:
    """An outline of 1 MB takes 2 ms, and many bodies may end at one moment."""
    passes, working, crowded = at_work(service, takes)
    monkeypatch.setattr("runtime.admission.IN_TIME_SECONDS", 60.0)

    def seen(body: bytes) -> object:
        working.work()
        return read_body(body)

    monkeypatch.setattr("runtime.infer_endpoint.read_body", seen)
    bodies = [batch_body(imu_windows(windows, seed=number)) for number in range(MANY)]
    statuses = asyncio.run(passes.during(*(asked(crowded, "POST", "/infer", body) for body in bodies)))
    assert statuses == [200] * MANY
    assert working.most_in_a_pass() == most


def test_another_event_loop_is_not_waited_for() -> None:
    """Each of a test's requests has a loop of its own, and none comes back to end a stretch."""
    now = [1.0]
    stretch = Stretch(lambda: now[0])
    for _ in range(3):
        asyncio.run(asyncio.wait_for(stretch.turn(), 10))
        now[0] += 1.0


@pytest.mark.parametrize("windows", [1, 2])
def test_who_waits_for_a_turn_is_answered_by_the_release_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: int
) -> None:
    """A switch in between must not close that release's engine."""
    release = ReleaseSimulator().publish(tmp_path)
    old, new = (ActiveModel(release, EmulatorEngine(release)) for _ in range(2))
    crowded = Service(ModelHolder(old))
    monkeypatch.setattr("runtime.admission.IN_TIME_SECONDS", 60.0)

    async def story() -> int:
        begun, let_go = asyncio.Event(), asyncio.Event()

        async def hold(_: Stretch) -> None:
            begun.set()
            await let_go.wait()

        monkeypatch.setattr(Stretch, "turn", hold)
        waits = asyncio.create_task(asked(crowded, "POST", "/infer", batch_body(imu_windows(windows))))
        await begun.wait()
        crowded.holder.replace(new)
        assert old.in_use == 1
        let_go.set()
        return await waits

    assert asyncio.run(story()) == 200
    assert old.in_use == 0


class Watched(CollectorRegistry):
    """Counts how often all families were asked for."""

    asked = 0

    def collect(self) -> Any:
        self.asked += 1
        return super().collect()


def a_registry() -> Watched:
    registry = Watched()
    requests = Counter("requests", "All.\nOf them.", ["route"], registry=registry)
    for number in range(200):
        requests.labels(f'"{number}"').inc(number)
    Histogram("seconds", "Time.", registry=registry).observe(0.2)
    Counter("nothing", "No sample.", ["route"], registry=registry)
    return registry


def test_the_page_is_what_the_library_writes_and_is_written_in_pieces() -> None:
    registry, passes = a_registry(), Passes()
    (text,) = asyncio.run(passes.during(MetricsPage(registry).text()))
    assert text == generate_latest(registry)
    assert passes.count >= 6  # four pieces of the first family, one of each other


def test_a_crowd_shares_a_page() -> None:
    registry = a_registry()
    page = MetricsPage(registry)
    texts = asyncio.run(Passes().during(*(page.text() for _ in range(MANY))))
    assert registry.asked <= 2
    assert set(texts) == {generate_latest(registry)}


def test_a_page_is_never_older_than_who_asks_for_it() -> None:
    registry = CollectorRegistry()
    counter = Counter("requests", "All.", registry=registry)
    page = MetricsPage(registry)

    async def story() -> list[bytes]:
        first = asyncio.create_task(page.text())
        await asyncio.sleep(0)  # it is being written
        counter.inc()
        return [await first, await page.text()]

    _, second = asyncio.run(story())
    assert b"requests_total 1.0" in second


def test_who_leaves_while_a_page_is_written_keeps_nobody_waiting() -> None:
    page = MetricsPage(a_registry())

    async def story() -> bytes:
        first = asyncio.create_task(page.text())
        await asyncio.sleep(0)
        first.cancel()
        return await asyncio.wait_for(page.text(), 10)

    assert b"requests_total" in asyncio.run(story())
