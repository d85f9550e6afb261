"""How a body arrives: whole, too large, cut off, or never."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import falcon.testing
import pytest

from runtime.active_model import ModelHolder
from runtime.app import App, RequestRecord
from runtime.infer_body import MAX_BODY_BYTES
from runtime.metrics import RuntimeMetrics
from tests.runtime.service import NO_RELEASE, Service, logged
from tests.runtime.test_infer_body import GOOD


def test_a_body_up_to_the_limit_is_read(service: Service) -> None:
    padded = GOOD + b" " * (MAX_BODY_BYTES - len(GOOD))
    assert service.post(padded).status_code == 200
    result = service.post(padded + b" ")
    assert result.status_code == 413
    assert result.json["error"] == "too_large"
    assert result.headers["connection"] == "close"


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
    ("headers", "stated"),
    [
        ({"content_length": str(len(GOOD) + 1)}, f"{len(GOOD)} of {len(GOOD) + 1} bytes"),
        ({"transfer_encoding": "chunked"}, f"cut off after {len(GOOD)} bytes"),
    ],
)
def test_a_body_that_is_cut_off_is_400(service: Service, headers: dict[str, str], stated: str) -> None:
    """Though what came is a window: the rest might have made it another."""
    answer = answered(service, [part(GOOD), DISCONNECT], **headers)
    assert answer is not None
    status, fields, body = answer
    assert (status, fields["connection"]) == (400, "close")
    assert stated in json.loads(body)["message"]


@pytest.mark.parametrize("headers", [{"content_length": str(len(GOOD))}, {"transfer_encoding": "chunked"}])
def test_a_body_in_parts_is_a_body(service: Service, headers: dict[str, str]) -> None:
    parts = [part(GOOD[:50]), part(GOOD[50:-50]), part(GOOD[-50:], more=False)]
    answer = answered(service, parts, **headers)
    assert answer is not None
    assert answer[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/infer", {"content_length": "50"}),
        ("POST", "/infer", {"transfer_encoding": "chunked"}),
        ("POST", "/no/such/path", {"content_length": "50"}),
        ("GET", "/healthz", {"content_length": "50"}),
        ("HEAD", "/healthz", {"content_length": "50"}),
    ],
)
def test_a_body_that_never_comes_is_408(method: str, path: str, headers: dict[str, str]) -> None:
    service = Service(ModelHolder(NO_RELEASE))
    with logged("INFO") as lines:
        answer = answered(service, [DISCONNECT], method, path, x_request_id="my-id", **headers)
    assert answer is not None
    status, fields, body = answer
    assert (status, fields["connection"], fields["x-request-id"]) == (408, "close", "my-id")
    assert fields["content-type"] == "application/json"
    if method == "HEAD":
        assert body == b""
    else:
        assert len(body) == int(fields["content-length"])
        assert set(json.loads(body)) == {"error", "message", "hint"}
        assert json.loads(body)["error"] == "request_timeout"
    assert service.sample("hailo_runtime_requests_total", route="other", status="408") == 1
    (line,) = lines
    assert (line["status"], line["request_id"], line["route"]) == (408, "my-id", "other")
    assert (line["method"], line["release"]) == (method, None)


def test_who_leaves_before_we_look_is_no_noise(service: Service) -> None:
    with logged("DEBUG") as lines:
        assert answered(service, [DISCONNECT], "GET", "/healthz") is None
    assert lines == []


def test_who_leaves_after_the_whole_body_is_answered(service: Service) -> None:
    with logged("DEBUG") as lines:
        answer = answered(service, [part(GOOD, more=False), DISCONNECT], content_length=str(len(GOOD)))
    assert answer is not None
    assert [line["status"] for line in lines] == [answer[0]] == [200]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_other_scopes_are_falcons_own(kind: str) -> None:
    """Nothing is taken from their events, and nothing said to them by us."""
    seen: list[object] = []

    async def inner(scope: object, receive: object, send: object) -> None:
        seen.extend((scope, receive, send))

    async def receive() -> dict[str, Any]:
        raise AssertionError("was asked for an event")

    async def send(event: dict[str, Any]) -> None:
        raise AssertionError("was sent something")

    scope = {"type": kind}
    record = RequestRecord(ModelHolder(NO_RELEASE), RuntimeMetrics())
    asyncio.run(App(inner, record)(scope, receive, send))  # type: ignore[arg-type]
    assert seen == [scope, receive, send]


def test_what_falcon_itself_refuses_says_the_schema_too(service: Service) -> None:
    answer = answered(service, [part(GOOD, more=False)], content_length="-1")
    assert answer is not None
    assert answer[0] == 400
    assert "100 rows" in json.loads(answer[2])["schema"]
