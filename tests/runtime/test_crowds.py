"""Many who ask for the same at one moment: others have their turn in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from runtime.infer_body import WindowBatch, read_body
from runtime.metrics_page import MetricsPage
from tests.runtime.service import Service
from tests.runtime.test_batches import batch_body
from tests.simulators import imu_windows

MANY = 12


@pytest.fixture(name="crowded")
def a_service_of_its_own(service: Service) -> Service:
    """What waits in it belongs to one event loop."""
    return Service(service.holder)


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


async def ask(service: Service, method: str, path: str, body: bytes = b"") -> int:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            statuses.append(event["status"])

    await service.app(scope, receive, send)
    return statuses[0]


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/status"])
def test_one_page_begins_in_each_pass(crowded: Service, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    passes, begun = Passes(), []
    inner = crowded.app._inner

    async def seen(*args: Any) -> None:
        begun.append(passes.count)
        await inner(*args)

    monkeypatch.setattr(crowded.app, "_inner", seen)
    statuses = asyncio.run(passes.during(*(ask(crowded, "GET", path) for _ in range(MANY))))
    assert statuses == [200] * MANY
    assert len(set(begun)) == MANY


def test_one_outline_of_a_batch_is_read_in_each_pass(
    crowded: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 1 MB takes 2 ms, and many bodies may end at one moment."""
    passes, read = Passes(), []

    def seen(body: bytes) -> object:
        found = read_body(body)
        if isinstance(found, WindowBatch):
            read.append(passes.count)
        return found

    monkeypatch.setattr("runtime.infer_endpoint.read_body", seen)
    body = batch_body(imu_windows(2))
    statuses = asyncio.run(passes.during(*(ask(crowded, "POST", "/infer", body) for _ in range(MANY))))
    assert statuses == [200] * MANY
    assert len(set(read)) == len(read) == MANY


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
