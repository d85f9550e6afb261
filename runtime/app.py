"""The HTTP surface: routes, request ids, and which error becomes which answer.

Answers are JSON (``/metrics`` apart); every error has the shape
``{"error": code, "message": what and where, "hint": what to do}``, the hint where one is known.
A request is taken up when its body begins to arrive, and 408 where it never does. Where no model
is loaded, ``/infer`` then answers 503 without looking at the body: no window would be right.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, Final

import falcon
import falcon.asgi
import msgspec
from falcon.asgi import Request, Response

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.errors import DeviceError, EngineError, PipelineError, WindowError
from runtime.infer_body import MAX_BODY_BYTES, SCHEMA, BodyError, InvalidJsonError, parse_infer_body
from runtime.metrics import CONTENT_TYPE, RuntimeMetrics

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

JSON: Final = "application/json"
_REQUESTS: Final = logging.getLogger("runtime.request")
_LOGGER: Final = logging.getLogger("runtime.app")
_ENCODER: Final = msgspec.json.Encoder()
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
_DISCARD_BYTES: Final = 8 * 1024 * 1024
_CUT_OFF: Final = "runtime.body_cut_off"
_ELSEWHERE: Final = "other"
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}
_HINTS: Final = {
    404: "there are POST /infer, GET /healthz and GET /metrics",
    413: "send one window: 900 numbers need about 18 kB",
    415: f"send {JSON} without Content-Encoding",
}


class ModelUnavailableError(Exception):
    """No model is loaded; carries the reason."""

    def __init__(self, reason: PipelineError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class InferResource:
    """``POST /infer``: one window in, latent and motif scores out."""

    def __init__(self, holder: ModelHolder, metrics: RuntimeMetrics) -> None:
        self._holder = holder
        self._metrics = metrics
        self._headers: tuple[ActiveModel | None, dict[str, str]] = (None, {})

    async def on_post(self, req: Request, resp: Response) -> None:
        """Answer 200 with ``{"latent": [64], "motif_scores": [M]}``, or an error."""
        model = self._holder.state
        if isinstance(model, PipelineError):
            raise ModelUnavailableError(model)
        _check_media(req)
        window = parse_infer_body(await _read_body(req, resp))
        # Inline in the event loop on purpose: a window takes about 0.2 ms, less than a hand-over
        # to a thread and back costs at p99, and the one chip runs one window at a time anyway.
        begin = perf_counter()
        try:
            latent, scores = model.infer(window)
        except DeviceError as error:
            self._holder.lost(model, error)
            raise
        self._metrics.engine_done(perf_counter() - begin)
        resp.set_headers(self._headers_of(model))
        resp.data = _ENCODER.encode({"latent": latent.tolist(), "motif_scores": scores.tolist()})

    def _headers_of(self, model: ActiveModel) -> dict[str, str]:
        if self._headers[0] is not model:
            names = {"X-Release": model.release_id, "X-Target": model.target, "X-Numbers": model.numbers}
            names |= {"X-Calibration-Origin": model.calibration_origin, "X-Motif-Head": model.motif_head}
            self._headers = model, names
        return self._headers[1]


class HealthResource:
    """``GET /healthz``: what is served, or why nothing is."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200 with ``ok: true``, or 503 with ``ok: false`` and the reason."""
        state = self._holder.state
        resp.set_header("Cache-Control", "no-store")
        if isinstance(state, PipelineError):
            _answer(resp, falcon.HTTP_503, {"ok": False, **_unavailable(state)}, state.hint)
            return
        health = {
            "ok": True,
            "model": state.artifact,
            "release": state.release_id,
            "target": state.target,
            "numbers": state.numbers,
            "calibration_origin": state.calibration_origin,
            "motif_head": state.motif_head,
            "motifs": state.motifs,
            "keys": state.keys,
            "store": {"alarm": state.alarm or None, "entry": state.sequence, "memory": state.memory},
        }
        resp.data = _ENCODER.encode(health)

    on_head = on_get


class MetricsResource:
    """``GET /metrics``: Prometheus text."""

    def __init__(self, metrics: RuntimeMetrics) -> None:
        self._metrics = metrics

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200 with every metric."""
        resp.content_type = CONTENT_TYPE
        resp.data = self._metrics.text()

    on_head = on_get


class RequestRecord:
    """Middleware: gives each request an id, counts it, and logs one line about it."""

    def __init__(self, holder: ModelHolder, metrics: RuntimeMetrics) -> None:
        self._holder = holder
        self._metrics = metrics

    async def process_request(self, req: Request, resp: Response) -> None:
        """Note when it began and under which id."""
        req.context.begin = perf_counter()
        identifier = _request_id(req.get_header("X-Request-Id"))
        req.context.request_id = identifier
        resp.set_header("X-Request-Id", identifier)

    async def process_response(
        self, req: Request, resp: Response, resource: object, req_succeeded: bool
    ) -> None:
        """Count it and log it."""
        seconds = perf_counter() - req.context.begin
        route = req.uri_template or _ELSEWHERE
        self.done(req.context.request_id, req.method, route, resp.status_code, seconds)

    def done(self, identifier: str, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request and write its line; ``route`` is one of a few known texts."""
        self._metrics.request_done(route, status, seconds)
        if _REQUESTS.isEnabledFor(logging.INFO):
            model = self._holder.model
            fields = {
                "request_id": identifier,
                "method": method[:16],
                "route": route,
                "status": status,
                "latency_ms": round(seconds * 1000, 3),
                "release": model.release_id if model else None,
            }
            _REQUESTS.info("request", extra={"fields": fields})


class App:
    """The ASGI app: Falcon's, told of bodies that never come or do not end.

    Falcon waits for the first part of a body before its middleware runs, and where that does not
    come it returns without an answer: gunicorn then sends a 500 of its own that nobody counts. And
    a body that is cut off looks to it like one that ended.
    """

    def __init__(self, inner: falcon.asgi.App[Any, Any], record: RequestRecord) -> None:
        self._inner = inner
        self._record = record

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer one request; other scopes than ``http`` are handed on as they are."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        begin = perf_counter()
        waiting = [await receive()]
        if waiting[0]["type"] == "http.disconnect":
            await self._never_came(scope, send, begin)
            return

        async def receive_again() -> Event:
            if waiting:
                return waiting.pop()
            event = await receive()
            if event["type"] == "http.disconnect":
                scope[_CUT_OFF] = True
            return event

        await self._inner(scope, receive_again, send)

    async def _never_came(self, scope: Event, send: Send, begin: float) -> None:
        headers = dict(scope["headers"])
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return  # It sent all that it had to, and left before we looked: nobody is there.
        identifier = _request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        body = _ENCODER.encode(
            {
                "error": "request_timeout",
                "message": "the request announced a body, and nothing of it came",
                "hint": "send as many bytes as Content-Length says, or end a chunked body",
            }
        )
        fields = {"Content-Type": JSON, "Content-Length": str(len(body)), "Connection": "close"}
        fields["X-Request-Id"] = identifier
        named = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": 408, "headers": named})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        self._record.done(identifier, scope["method"], _ELSEWHERE, 408, perf_counter() - begin)


def _request_id(given: str | None) -> str:
    """The client's own where it is a sane one, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


def create_app(holder: ModelHolder, metrics: RuntimeMetrics) -> App:
    """Put the routes together; reads no environment and loads nothing.

    Args:
        holder: What is served; may change while the app runs.
        metrics: Where requests are counted.
    """
    record = RequestRecord(holder, metrics)
    app: falcon.asgi.App[Any, Any] = falcon.asgi.App(media_type=JSON, middleware=[record])
    app.add_route("/infer", InferResource(holder, metrics))
    app.add_route("/healthz", HealthResource(holder))
    app.add_route("/metrics", MetricsResource(metrics))
    answers = ErrorAnswers(metrics)
    app.set_error_serializer(answers.http_error)
    app.add_error_handler(Exception, answers.unexpected)
    app.add_error_handler(WindowError, answers.bad_input)
    app.add_error_handler(BodyError, answers.bad_input)
    app.add_error_handler(ModelUnavailableError, answers.no_model)
    app.add_error_handler(EngineError, answers.engine_failed)
    return App(app, record)


async def _read_body(req: Request, resp: Response) -> bytes:
    """The body, never more than ``MAX_BODY_BYTES`` of it in memory; 413 where it is larger."""
    length = req.content_length
    if length is None or length <= MAX_BODY_BYTES:
        body: bytes = await req.stream.read(MAX_BODY_BYTES + 1)
        if _CUT_OFF in req.scope or (length is not None and len(body) < length):
            # The server stopped waiting; what came may be JSON all the same. What comes still
            # would be read as the next request.
            resp.set_header("Connection", "close")
            stated = "" if length is None else f" of {length}"
            raise InvalidJsonError(f"the body was cut off after {len(body)}{stated} bytes")
        if len(body) <= MAX_BODY_BYTES:
            return body
    # Who still sends does not read: without this the answer would be lost in a reset.
    discarded = 0
    while discarded < _DISCARD_BYTES and (chunk := await req.stream.read(65536)):
        discarded += len(chunk)
    raise falcon.HTTPContentTooLarge(
        description=f"the body has more than {MAX_BODY_BYTES} bytes", headers={"Connection": "close"}
    )


def _check_media(req: Request) -> None:
    kind = req.content_type
    if kind is not None and kind.partition(";")[0].strip().lower() != JSON:
        raise falcon.HTTPUnsupportedMediaType(description=f"content type {kind[:80]!r} is not {JSON}")
    encoding = req.get_header("Content-Encoding")
    if encoding and encoding.strip().lower() != "identity":
        raise falcon.HTTPUnsupportedMediaType(description=f"content encoding {encoding[:80]!r} is not read")


def _unavailable(reason: PipelineError) -> dict[str, str]:
    return {"error": "model_unavailable", "reason": reason.code, "message": str(reason)}


class ErrorAnswers:
    """Which error becomes which answer; nothing but 503 above 499, and 400 has the schema always."""

    def __init__(self, metrics: RuntimeMetrics) -> None:
        self._metrics = metrics

    async def bad_input(
        self, req: Request, resp: Response | None, error: BodyError | WindowError, params: object
    ) -> None:
        """400: a body or window that is wrong; says where, and what is right."""
        place = f"{error.where}: " if error.where else ""
        body = {"error": error.code, "message": f"{place}{error.what}", "schema": SCHEMA}
        _answer(resp, falcon.HTTP_400, body, error.hint)

    async def no_model(
        self, req: Request, resp: Response | None, error: ModelUnavailableError, params: object
    ) -> None:
        """503: nothing is loaded; the same reason as in ``/healthz``."""
        _answer(resp, falcon.HTTP_503, _unavailable(error.reason), error.reason.hint)

    async def engine_failed(
        self, req: Request, resp: Response | None, error: EngineError, params: object
    ) -> None:
        """503: the engine could not run this window; counted and logged."""
        self._metrics.engine_failed(error.code)
        _LOGGER.error("engine: %s", error, extra={"fields": {"request_id": req.context.request_id}})
        _answer(resp, falcon.HTTP_503, {"error": error.code, "message": str(error)}, error.hint)

    async def unexpected(self, req: Request, resp: Response | None, error: Exception, params: object) -> None:
        """503: a mistake of ours; the traceback is in the log, not in the answer."""
        _LOGGER.exception("unexpected", extra={"fields": {"request_id": req.context.request_id}})
        body = {"error": "internal", "message": "an error of the server's own; its log has the request id"}
        _answer(resp, falcon.HTTP_503, body)

    def http_error(self, req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
        """Give Falcon's own errors (404, 405, 413, 415, ...) the shape of ours."""
        code = _CODES.get(error.status_code, "bad_request")
        message = error.description or f"{req.method[:16]} {req.path[:200]}: {error.title[4:].lower()}"
        body: dict[str, object] = {"error": code, "message": message}
        if error.status_code == 400:
            body["schema"] = SCHEMA
        hint = _HINTS.get(error.status_code, "")
        if error.status_code == 405:
            hint = f"allowed are {resp.get_header('Allow')}"
        resp.content_type = JSON
        resp.data = _with_hint(body, hint)


def _answer(resp: Response | None, status: str, body: Mapping[str, object], hint: str = "") -> None:
    assert resp is not None, "no route takes WebSockets"
    resp.status = status
    resp.content_type = JSON
    resp.data = _with_hint(body, hint)


def _with_hint(body: Mapping[str, object], hint: str) -> bytes:
    return _ENCODER.encode({**body, "hint": hint} if hint else body)
