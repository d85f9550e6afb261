"""The HTTP surface: routes, request ids, and which error becomes which answer.

Answers are JSON (``/metrics`` apart); every error has the shape
``{"error": code, "message": what and where, "hint": what to do}``. Where no model is loaded,
``/infer`` answers 503 before it reads the body: no window would be right.
"""

from __future__ import annotations

import logging
import os
import re
from time import perf_counter
from typing import Any, Final

import falcon
import falcon.asgi
import msgspec
from falcon.asgi import Request, Response

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.errors import EngineError, PipelineError, WindowError
from runtime.infer_body import MAX_BODY_BYTES, SCHEMA, BodyError, InvalidJsonError, parse_infer_body
from runtime.metrics import CONTENT_TYPE, RuntimeMetrics

App = falcon.asgi.App[Any, Any]

JSON: Final = "application/json"
_REQUESTS: Final = logging.getLogger("runtime.request")
_LOGGER: Final = logging.getLogger("runtime.app")
_ENCODER: Final = msgspec.json.Encoder()
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
_DISCARD_BYTES: Final = 8 * MAX_BODY_BYTES
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


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
        _check_content_type(req.content_type)
        window = parse_infer_body(await _read_body(req))
        # Inline in the event loop on purpose: a window takes about 0.2 ms, less than a hand-over
        # to a thread and back costs at p99, and the one chip runs one window at a time anyway.
        begin = perf_counter()
        latent, scores = model.infer(window)
        self._metrics.engine_done(perf_counter() - begin)
        resp.set_headers(self._headers_of(model))
        resp.data = _ENCODER.encode({"latent": latent.tolist(), "motif_scores": scores.tolist()})

    def _headers_of(self, model: ActiveModel) -> dict[str, str]:
        if self._headers[0] is not model:
            names = {"X-Release": model.release_id, "X-Target": model.target}
            self._headers = model, names | {"X-Numbers": model.numbers, "X-Motif-Head": model.motif_head}
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
            resp.status = falcon.HTTP_503
            resp.data = _ENCODER.encode({"ok": False, "reason": state.code, "message": str(state)})
            return
        health = {
            "ok": True,
            "model": state.artifact,
            "release": state.release_id,
            "target": state.target,
            "numbers": state.numbers,
            "motif_head": state.motif_head,
            "motifs": state.motifs,
        }
        resp.data = _ENCODER.encode(health)


class MetricsResource:
    """``GET /metrics``: Prometheus text."""

    def __init__(self, metrics: RuntimeMetrics) -> None:
        self._metrics = metrics

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200 with every metric."""
        resp.content_type = CONTENT_TYPE
        resp.data = self._metrics.text()


class RequestRecord:
    """Middleware: gives each request an id, counts it, and logs one line about it."""

    def __init__(self, holder: ModelHolder, metrics: RuntimeMetrics) -> None:
        self._holder = holder
        self._metrics = metrics

    async def process_request(self, req: Request, resp: Response) -> None:
        """Note when it began and under which id."""
        req.context.begin = perf_counter()
        given = req.get_header("X-Request-Id")
        identifier = given if given and _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        req.context.request_id = identifier
        resp.set_header("X-Request-Id", identifier)

    async def process_response(
        self, req: Request, resp: Response, resource: object, req_succeeded: bool
    ) -> None:
        """Count it and log it."""
        seconds = perf_counter() - req.context.begin
        route, status = req.uri_template or "other", resp.status_code
        self._metrics.request_done(route, status, seconds)
        if _REQUESTS.isEnabledFor(logging.INFO):
            model = self._holder.model
            fields = {
                "request_id": req.context.request_id,
                "method": req.method[:16],
                "route": route,
                "status": status,
                "latency_ms": round(seconds * 1000, 3),
                "release": model.release_id if model else None,
            }
            _REQUESTS.info("request", extra={"fields": fields})


def create_app(holder: ModelHolder, metrics: RuntimeMetrics) -> App:
    """Put the routes together; reads no environment and loads nothing.

    Args:
        holder: What is served; may change while the app runs.
        metrics: Where requests are counted.
    """
    app: App = falcon.asgi.App(media_type=JSON, middleware=[RequestRecord(holder, metrics)])
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
    return app


async def _read_body(req: Request) -> bytes:
    """The body, never more than ``MAX_BODY_BYTES`` of it in memory; 413 where it is larger."""
    length = req.content_length
    if length is None or length <= MAX_BODY_BYTES:
        body: bytes = await req.stream.read(MAX_BODY_BYTES + 1)
        if length is not None and len(body) < length:
            # The server stopped waiting; what came may be JSON all the same.
            raise InvalidJsonError(f"the body ended after {len(body)} of {length} bytes")
        if len(body) <= MAX_BODY_BYTES:
            return body
    # Who still sends does not read: without this the answer would be lost in a reset.
    discarded = 0
    while discarded < _DISCARD_BYTES and (chunk := await req.stream.read(65536)):
        discarded += len(chunk)
    raise falcon.HTTPContentTooLarge(
        description=f"the body has more than {MAX_BODY_BYTES} bytes", headers={"Connection": "close"}
    )


def _check_content_type(value: str | None) -> None:
    if value is not None and value.partition(";")[0].strip().lower() != JSON:
        raise falcon.HTTPUnsupportedMediaType(description=f"content type {value[:80]!r} is not {JSON}")


class ErrorAnswers:
    """Which error becomes which answer; nothing but 503 above 499."""

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
        reason = error.reason
        body = {"error": "model_unavailable", "reason": reason.code, "message": str(reason)}
        _answer(resp, falcon.HTTP_503, body, reason.hint)

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
        resp.content_type = JSON
        resp.data = _ENCODER.encode({"error": code, "message": message})


def _answer(resp: Response | None, status: str, body: dict[str, str], hint: str = "") -> None:
    assert resp is not None, "no route takes WebSockets"
    resp.status = status
    resp.content_type = JSON
    resp.data = _ENCODER.encode(body | {"hint": hint} if hint else body)
