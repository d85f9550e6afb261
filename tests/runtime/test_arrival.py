"""How a body arrives: whole, too large, cut off, or never."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import falcon.testing
import pytest

from runtime.body_reading import FREE_BODY_BYTES
from runtime.infer_body import MAX_BODY_BYTES, MAX_WINDOW_BYTES
from runtime.request_record import COMPLETE_AT, CROWDED, Queue
from tests.runtime.service import Service, logged
from tests.runtime.test_infer_body import GOOD
from tests.simulators import imu_windows


def test_a_body_up_to_the_limit_is_read(service: Service) -> None:
    padded = GOOD + b" " * (MAX_WINDOW_BYTES - len(GOOD))
    assert service.post(padded).status_code == 200
    assert service.post(padded + b" ").json["error"] == "invalid_body"
    result = service.post(GOOD + b" " * (MAX_BODY_BYTES + 1 - len(GOOD)))
    assert result.status_code == 413
    assert result.json["error"] == "too_large"


DISCONNECT: dict[str, Any] = {"type": "http.disconnect"}


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def answered(
    service: Service, events: list[dict[str, Any]], method: str = "POST", path: str = "/infer", **headers: str
) -> tuple[int, dict[str, str], bytes] | None:
    """Hand these events over as a server does; falcon's simulator knows no body that is cut off."""
    coming = iter(events)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(coming)

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    named = {name.replace("_", "-"): value for name, value in headers.items()}
    scope = falcon.testing.create_scope(path=path, method=method, headers=named)
    asyncio.run(service.app(scope, receive, send))
    if not sent:
        return None
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], fields, sent[1]["body"]


@pytest.mark.parametrize(
    "headers", [{"content_length": str(len(GOOD) + 1)}, {"transfer_encoding": "chunked"}]
)
@pytest.mark.parametrize("events", [[DISCONNECT], [part(GOOD), DISCONNECT]])
def test_who_leaves_before_the_end_is_not_answered(
    service: Service, headers: dict[str, str], events: list[dict[str, Any]]
) -> None:
    """Though what came may be a window: the rest might have made it another. The server tells who listens."""
    with logged("DEBUG") as lines:
        assert answered(service, events, **headers) is None
    assert lines == []


@pytest.mark.parametrize("headers", [{"content_length": str(len(GOOD))}, {"transfer_encoding": "chunked"}])
def test_a_body_in_parts_is_a_body(service: Service, headers: dict[str, str]) -> None:
    parts = [part(GOOD[:50]), part(GOOD[50:-50]), part(GOOD[-50:], more=False)]
    answer = answered(service, parts, **headers)
    assert answer is not None
    assert answer[0] == 200


def test_who_leaves_after_the_whole_body_is_answered(service: Service) -> None:
    service = Service(service.holder)
    with logged("DEBUG") as lines:
        answer = answered(service, [part(GOOD, more=False), DISCONNECT], content_length=str(len(GOOD)))
    assert answer is not None
    assert [line["status"] for line in lines] == [answer[0]] == [200]


def test_what_is_too_large_is_refused_before_it_is_read(service: Service) -> None:
    answer = answered(service, [], content_length=str(MAX_BODY_BYTES + 1))
    assert answer is not None
    assert answer[0] == 413


def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large(service: Service) -> None:
    parts = [part(b" " * 10_000) for _ in range(MAX_BODY_BYTES // 10_000 + 1)]
    answer = answered(service, parts, transfer_encoding="chunked")
    assert answer is not None
    assert answer[0] == 413


def test_one_connection_too_many_is_told_before_its_body_is_read(service: Service) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body is read")

    sent: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    scope = falcon.testing.create_scope(path="/infer", method="POST")
    asyncio.run(service.app({**scope, CROWDED: True}, receive, send))
    assert (sent[0]["status"], json.loads(sent[1]["body"])["error"]) == (503, "overloaded")


def held_bodies(service: Service, bodies: list[list[dict[str, Any]]]) -> list[int]:
    """All at once, each event in turn, in rounds; their statuses by the order in which they were answered."""
    statuses: list[int] = []

    async def one(events: list[dict[str, Any]]) -> None:
        coming = iter(events)

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            return next(coming)

        async def send(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                statuses.append(event["status"])

        await service.app(falcon.testing.create_scope(path="/infer", method="POST"), receive, send)

    async def together() -> None:
        await asyncio.gather(*map(one, bodies))

    asyncio.run(together())
    return statuses


def test_bodies_that_are_being_read_are_bounded_together(service: Service) -> None:
    """What is there counts, not what is announced; a window has room whatever others send."""
    bodies, piece = service.app.infer.bodies, 100_000
    bodies.most, before = 12 * piece, bodies.most
    large = [*[part(b" " * piece) for _ in range(9)], part(b"{}", more=False)]
    try:
        assert sorted(held_bodies(service, [large, large, large])) == [400, 503, 503]
        assert bodies.held == 0
        window = [part(GOOD[:5000]), part(b""), part(GOOD[5000:], more=False)]
        assert held_bodies(service, [large] * 9 + [window] * 9).count(200) == 9
        leaves = [*large[:3], DISCONNECT]
        held_bodies(service, [leaves] * 9)
        assert bodies.held == 0
    finally:
        bodies.most = before


def test_a_batch_that_waits_keeps_its_room(service: Service) -> None:
    bodies = service.app.infer.bodies
    seen: list[int] = []
    looked_at, service.app.infer.looked_at = service.app.infer.looked_at, lambda *_: seen.append(bodies.held)
    batch = json.dumps({"x": imu_windows(30).tolist()}).encode()
    try:
        cut = len(batch) - 10
        assert held_bodies(service, [[part(batch[:cut]), part(batch[cut:], more=False)]]) == [200]
    finally:
        service.app.infer.looked_at = looked_at
    assert set(seen) == {cut - FREE_BODY_BYTES}
    assert bodies.held == 0


def test_what_is_to_watch_the_loop_begins_with_it(service: Service) -> None:
    """The server says so once, and again when it ends."""
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    seen: list[object] = []

    async def receive() -> dict[str, Any]:
        return next(events)

    async def send(event: dict[str, Any]) -> None:
        seen.append(event["type"])

    async def live() -> None:
        service.app.at_start.append(lambda loop: seen.append(loop is asyncio.get_running_loop()))
        await service.app({"type": "lifespan"}, receive, send)
        service.app.at_start.pop()

    asyncio.run(live())
    assert seen == [True, "lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("waiting", [96, 97])
def test_who_waits_too_long_hears_when_to_ask_again(service: Service, waiting: int) -> None:
    """More requests behind this one than are ever answered in time."""
    service.app.queue.waiting = waiting
    try:
        answer = answered(service, [part(GOOD, more=False)])
    finally:
        service.app.queue.waiting = 0
    assert answer is not None
    status, fields, body = answer
    assert status == (503 if waiting > 96 else 200)
    if status == 503:
        assert (fields["retry-after"], json.loads(body)["error"]) == ("1", "overloaded")


INFERENCE: dict[str, Any] = {"method": "POST", "path": "/infer"}


def test_whose_turn_has_come_waits_no_longer() -> None:
    queue, scope = Queue(), dict(INFERENCE)
    queue.arrived(scope, 1.0)
    assert queue.waiting == 1
    queue.left(scope)
    queue.left(scope)
    assert queue.waiting == 0


def test_who_was_answered_before_the_end_of_its_body_does_not_wait() -> None:
    """Counted then, nobody would ever take it away again: after 97, every window would hear 503."""
    queue, scope = Queue(), dict(INFERENCE)
    queue.left(scope)
    queue.arrived(scope, 1.0)
    assert (queue.waiting, scope[COMPLETE_AT]) == (0, 1.0)


@pytest.mark.parametrize(
    ("method", "path", "counted"),
    [
        ("POST", "/", 1),
        ("POST", "//infer/", 1),
        ("POST", "/test", 0),
        ("GET", "/", 0),
        ("GET", "/metrics", 0),
    ],
)
def test_only_inference_waits_in_the_queue(method: str, path: str, counted: int) -> None:
    queue = Queue()
    queue.arrived({"method": method, "path": path}, 1.0)
    assert queue.waiting == counted


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/csv"}, {"content-length": str(MAX_BODY_BYTES + 1)}]
)
def test_what_is_refused_by_its_head_has_no_duration(service: Service, headers: dict[str, str]) -> None:
    """It was never there in whole, and 0 ms would look quick."""
    service = Service(service.holder)
    answer = answered(service, [part(b"")], **headers)
    assert answer is not None
    assert answer[0] in (413, 415)
    assert "server-timing" not in answer[1]
    assert service.sample("hailo_runtime_requests_total", status=str(answer[0])) == 1
    assert not service.sample("hailo_runtime_request_duration_seconds_count")
