"""The HTTP surface: routes, and which error becomes which answer.

Answers are JSON where nothing else is said; every error has the shape of ``runtime.answers``. Where no
model is loaded, ``/infer`` answers 503 without looking at the body: no window would be right.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import falcon
import falcon.asgi
from falcon.asgi import Request, Response

from runtime.active_model import ModelHolder
from runtime.answers import CODES, JSON, Answer, error_answer, internal
from runtime.body_reading import Event, Receive, Send
from runtime.health import HealthResource
from runtime.infer_endpoint import ROUTES, InferEndpoint
from runtime.limits import Limits
from runtime.metrics import RuntimeMetrics
from runtime.metrics_page import CONTENT_TYPE, MetricsPage
from runtime.pages import register_pages
from runtime.request_record import Queue, RequestRecord, fixed_headers, plain_path, request_id
from runtime.turns import Stretch, Turns

_LOGGER: Final = logging.getLogger("runtime.app")
_ELSEWHERE: Final = "other"


class App:
    """The ASGI app: inference by ``InferEndpoint``, everything else by Falcon.

    Args:
        inner: Falcon's app.
        infer: What answers ``POST`` on its routes.
        record: What every request leaves.
        queue: Requests that wait for their turn.
        limits: For the server's connections.
        routes: Paths that are counted by their name.
        stretch: For how long tasks work before everybody else has a turn.
    """

    def __init__(
        self,
        inner: falcon.asgi.App[Any, Any],
        infer: InferEndpoint,
        record: RequestRecord,
        queue: Queue,
        limits: Limits,
        routes: frozenset[str],
        stretch: Stretch,
    ) -> None:
        self._inner = inner
        self.infer = infer
        self.at_once = infer.at_once
        self._record = record
        self.routes = routes
        self.queue = queue
        self.limits = limits
        self.turns = Turns(record.clock)
        self._stretch = stretch
        self.at_start: list[Callable[[asyncio.AbstractEventLoop], None]] = []
        """Called in the event loop before the first request; may begin to watch it."""

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            scope["path"] = plain_path(scope["path"])
            if scope["method"] == "POST" and scope["path"] in ROUTES:
                await self.infer(scope, receive, send)
            else:
                await self._other(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    def refused(self, answer: Answer, scope: Event | None) -> list[tuple[bytes, bytes]]:
        """Count and log what the server answers by itself; returns the answer's headers.

        Args:
            answer: The answer.
            scope: The request's, where its head was read.
        """
        given, method, route = b"", "", _ELSEWHERE
        if scope is not None:
            given = dict(scope["headers"]).get(b"x-request-id", b"")
            method, route = scope["method"], self._route(scope)
        identifier, release = request_id(given), self._record.release()
        # The request was never there in whole: no duration from then on is known, and 0 would look quick.
        self._record.done(identifier, method, route, answer.status, None, release)
        return fixed_headers(answer) + self._record.headers(identifier, release, None)

    def _route(self, scope: Event) -> str:
        path = plain_path(scope["path"])
        return path if path in self.routes else _ELSEWHERE

    async def _other(self, scope: Event, receive: Receive, send: Send) -> None:
        record, begin = self._record, self._record.begin(scope)
        await self._stretch.turn()  # A crowd that asks for pages is not everybody's wait.
        # An ASGI server may give what can be read once.
        scope["headers"] = [(name, value) for name, value in scope["headers"]]
        identifier = request_id(dict(scope["headers"]).get(b"x-request-id", b""))
        scope["runtime.request_id"] = identifier.decode()
        release, status = record.release(), 0

        async def send_with_headers(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status, seconds = event["status"], record.clock() - begin
                event["headers"] = [*event["headers"], *record.headers(identifier, release, seconds)]
                record.done(identifier, scope["method"], self._route(scope), status, seconds, release)
            await send(event)

        try:
            await self._inner(scope, receive, send_with_headers)
        except Exception:
            # Before Falcon's own handlers: what it could not even begin with.
            _LOGGER.exception("unexpected", extra={"fields": {"request_id": scope["runtime.request_id"]}})
            if not status:
                answer = internal()
                head = {"type": "http.response.start", "status": answer.status}
                await send_with_headers(head | {"headers": fixed_headers(answer)})
                await send({"type": "http.response.body", "body": answer.body})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        for start in self.at_start:
            start(asyncio.get_running_loop())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


class InferResource:
    """Says of ``/infer`` what is allowed; ``POST`` itself never comes this far."""

    async def on_post(self, req: Request, resp: Response) -> None:
        """404: ``InferEndpoint`` answers on its routes, and only Falcon takes this path for one."""
        raise falcon.HTTPNotFound


class MetricsResource:
    """``GET /metrics``: Prometheus text."""

    def __init__(self, metrics: RuntimeMetrics) -> None:
        self._page = MetricsPage(metrics.registry)

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200 with every metric."""
        resp.content_type = CONTENT_TYPE
        resp.data = await self._page.text()

    on_head = on_get


def create_app(
    holder: ModelHolder,
    metrics: RuntimeMetrics,
    limits: Limits | None = None,
    clock: Callable[[], float] = perf_counter,
) -> App:
    """Put the routes together; reads no environment and loads nothing.

    Args:
        holder: What is served; may change while the app runs.
        metrics: Where requests are counted.
        limits: Bounds for connections; the usual ones where none are given.
        clock: Seconds that only grow; the server's own is ``perf_counter``.
    """
    limits = limits or Limits()
    record, queue, stretch = RequestRecord(holder, metrics, clock), Queue(), Stretch(clock)
    app: falcon.asgi.App[Any, Any] = falcon.asgi.App(media_type=JSON)
    resources = {
        "/infer": InferResource(),
        "/infer/infer": InferResource(),
        "/healthz": HealthResource(holder),
        "/metrics": MetricsResource(metrics),
    }
    for route, resource in resources.items():
        app.add_route(route, resource)
    pages = register_pages(app, holder, metrics)
    app.set_error_serializer(_http_error)
    app.add_error_handler(Exception, _unexpected)
    infer = InferEndpoint(holder, metrics, record, queue, limits.waiting, stretch)
    return App(app, infer, record, queue, limits, frozenset({*resources, *ROUTES, *pages}), stretch)


async def _unexpected(req: Request, resp: Response | None, error: Exception, params: object) -> None:
    """503: a mistake of ours; the traceback is in the log, not in the answer."""
    _LOGGER.exception("unexpected", extra={"fields": {"request_id": req.scope.get("runtime.request_id")}})
    assert resp is not None, "no route takes WebSockets"
    _give(resp, internal())


def _http_error(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    """Give Falcon's own errors (404, 405, ...) the shape of ours."""
    message = error.description or f"{req.method[:16]} {req.path[:200]}: {error.title[4:].lower()}"
    hint = f"allowed are {resp.get_header('Allow')}" if error.status_code == 405 else ""
    _give(resp, error_answer(error.status_code, CODES.get(error.status_code, "bad_request"), message, hint))


def _give(resp: falcon.Response, answer: Answer) -> None:
    resp.status = answer.status
    resp.content_type = answer.media_type.decode()
    resp.data = answer.body
    with contextlib.suppress(KeyError):
        for name, value in answer.extra:
            resp.set_header(name.decode(), value.decode())
