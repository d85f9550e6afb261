"""Pages and documents beside inference: what is served, what the API is, and a test on a golden window."""

from __future__ import annotations

import html
import logging
from typing import Any, Final

import falcon
import falcon.asgi
import msgspec
from falcon.asgi import Request, Response

from runtime.active_model import ModelHolder
from runtime.contract.errors import DeviceError, DeviceInUseError, EngineError, PipelineError
from runtime.health import health_of
from runtime.metrics import RuntimeMetrics
from runtime.openapi import document, infer_errors

_LOGGER: Final = logging.getLogger("runtime.app")
_ENCODER: Final = msgspec.json.Encoder()
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color-scheme:light dark}table{border-collapse:collapse;margin:.5em 0}"
    "td,th{border:1px solid #8888;padding:.3em .6em;text-align:left}"
    "code,pre{font:14px/1.4 ui-monospace,monospace}pre{overflow:auto;padding:.6em;border:1px solid #8888}"
)
_EXAMPLE: Final = (
    "curl -s http://127.0.0.1:9000/infer -H 'Content-Type: application/json' \\\n"
    '  -d "{\\"x\\": $(python3 -c \'print([[0.1 * i] * 9 for i in range(100)])\')}"'
)


class RootResource:
    """``GET /``: what is served, for people and programs; a page where a browser asks."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200, whether a model is served or not."""
        health = health_of(self._holder)
        if "text/html" in req.accept:
            rows = "".join(f"<tr><th>{_text(k)}<td>{_text(v)}" for k, v in health.items())
            links = "".join(f'<li><a href="{path}">{path}</a>' for path in ("/docs", "/healthz", "/metrics"))
            _page(resp, "hailo-pipeline runtime", f"<table>{rows}</table><ul>{links}</ul>")
            return
        resp.data = _ENCODER.encode(health)

    on_head = on_get

    async def on_post(self, req: Request, resp: Response) -> None:
        """404: ``InferEndpoint`` answers on its routes, and only Falcon takes this path for one."""
        raise falcon.HTTPNotFound


class StatusResource:
    """``GET /status``: as ``/healthz``, always 200."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200."""
        resp.data = _ENCODER.encode(health_of(self._holder))

    on_head = on_get


class OpenApiResource:
    """``GET /openapi.json``."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200 with the document of the model that is served."""
        model = self._holder.model
        resp.data = _ENCODER.encode(document(model.motifs if model else None))

    on_head = on_get


class DocsResource:
    """``GET /docs``: the same as a page that needs nothing from anywhere."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    async def on_get(self, req: Request, resp: Response) -> None:
        """Answer 200."""
        model = self._holder.model
        found = document(model.motifs if model else None)
        parts = [f"<p>{_text(found['info']['description'])}", f"<h2>Example</h2><pre>{_text(_EXAMPLE)}</pre>"]
        for path, methods in found["paths"].items():
            parts += [_operation(path, method, operation) for method, operation in methods.items()]
        errors = "".join(
            f"<tr><td>{status}<td><code>{error}</code><td>{_text(to_do)}"
            for error, (status, to_do) in infer_errors().items()
        )
        parts.append('<h2 id="errors">Errors of <code>POST /infer</code> and its aliases</h2>')
        parts.append(f"<table><tr><th>Status<th>error<th>What to do{errors}</table>")
        parts.append("<h2>Schemas</h2>")
        for name, schema in found["components"]["schemas"].items():
            shown = msgspec.json.format(_ENCODER.encode(schema), indent=2).decode()
            parts.append(f'<h3 id="{name}">{name}</h3><pre>{_text(shown)}</pre>')
        _page(resp, "hailo-pipeline runtime", "".join(parts))

    on_head = on_get


class TestResource:
    """``POST /test``: one golden window through the model that is served."""

    def __init__(self, holder: ModelHolder, metrics: RuntimeMetrics) -> None:
        self._holder = holder
        self._metrics = metrics

    async def on_post(self, req: Request, resp: Response) -> None:
        """Answer 200 where it gives what was recorded, else 503; a body is not looked at."""
        state = self._holder.state
        told: dict[str, Any]
        if isinstance(state, PipelineError):
            told = {"ok": False, "error": state.code, "message": str(state), "release": ""}
        else:
            try:
                state.repeat_golden_window()
                told = {"ok": True, "message": "a golden window gives what was recorded"}
            except PipelineError as error:
                # As at /infer: a device that failed here must not wait for a client to find it.
                if isinstance(error, DeviceError):
                    self._holder.lost(state, error)
                if isinstance(error, EngineError) and not isinstance(error, DeviceInUseError):
                    self._metrics.engine_failed(error.code, state.release_id)
                _LOGGER.error("golden window: %s", error, extra={"fields": {"event": "test_failed"}})
                told = {"ok": False, "error": error.code, "message": str(error)}
            told |= {"release": state.release_id}
        if not told["ok"]:
            resp.status = 503
            resp.set_header("Retry-After", "1")
        resp.data = _ENCODER.encode(told)


def register_pages(
    app: falcon.asgi.App[Any, Any], holder: ModelHolder, metrics: RuntimeMetrics
) -> tuple[str, ...]:
    """Add the routes; returns their paths."""
    resources = {
        "/": RootResource(holder),
        "/status": StatusResource(holder),
        "/docs": DocsResource(holder),
        "/openapi.json": OpenApiResource(holder),
        "/test": TestResource(holder, metrics),
    }
    for path, resource in resources.items():
        app.add_route(path, resource)
    return tuple(resources)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = []
    for status, answer in operation["responses"].items():
        kinds = ", ".join(answer["content"])
        headers = ", ".join(answer["headers"])
        rows.append(f"<tr><td>{status}<td>{_text(answer['description'])}<td>{kinds}<td>{headers}")
    body = ""
    if "requestBody" in operation:
        body = f"<p>Body: {', '.join(operation['requestBody']['content'])}"
    return (
        f"<h2>{method.upper()} <code>{path}</code></h2><p>{_text(operation['summary'])}{body}"
        f"<table><tr><th>Status<th>Meaning<th>Type<th>Headers{''.join(rows)}</table>"
    )


def _page(resp: Response, title: str, body: str) -> None:
    resp.content_type = "text/html; charset=utf-8"
    resp.set_header("Content-Security-Policy", _POLICY)
    resp.text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{title}</h1>{body}'
    )


def _text(value: object) -> str:
    return html.escape(str(value))
