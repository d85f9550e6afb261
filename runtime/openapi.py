"""What the API is, as an OpenAPI 3.1 document: what ``/docs`` shows, and what tests hold us to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from runtime.admission import overloaded
from runtime.answers import CODES, bad_input, engine_failed, error_answer, internal, unavailable
from runtime.config import VERSION
from runtime.contract.errors import DeviceInUseError, EngineError, PipelineError, WindowError
from runtime.contract.window import CHANNELS, LATENT_SIZE, WINDOW_LENGTH
from runtime.engines.hailo_errors import (
    DeviceBusyError,
    DeviceFailedError,
    DeviceLostError,
    DeviceTimeoutError,
    DriverMismatchError,
    NoDeviceError,
)
from runtime.infer_body import MAX_BODY_BYTES, MAX_WINDOWS, WINDOW_BYTES, BodyError
from runtime.plausibility import KINDS
from runtime.protocol import REFUSALS

Schema = dict[str, Any]
JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"


def document(motifs: int | None = None) -> Schema:
    """The document.

    Args:
        motifs: M of the head that is served; None where nothing is.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hailo-pipeline runtime",
            "version": VERSION,
            "description": "Windows of 9-axis IMU data in, latents and motif scores out.",
        },
        "paths": {
            "/infer": {"post": _infer("Run windows.", "infer")},
            "/": {
                "get": _got("What is served.", "root", JSON, "Health"),
                "post": _infer("As /infer, for clients whose address has no path.", "inferAtRoot"),
            },
            "/infer/infer": {"post": _infer("As /infer, for clients that append it twice.", "inferTwice")},
            "/healthz": {
                "get": _got("Whether a verified model answers.", "health", JSON, "Health", down=True)
            },
            "/status": {"get": _got("As /healthz, always 200.", "status", JSON, "Health")},
            "/metrics": {"get": _got("Prometheus' text.", "metrics", "text/plain", None)},
            "/test": {"post": _test()},
            "/docs": {"get": _got("This document as a page.", "docs", "text/html", None)},
            "/openapi.json": {"get": _got("This document.", "openapi", JSON, None)},
        },
        "components": {"schemas": _schemas(motifs), "headers": _headers()},
    }


def _schemas(motifs: int | None) -> Schema:
    number = {"type": "number"}
    row = {"type": "array", "items": number, "minItems": len(CHANNELS), "maxItems": len(CHANNELS)}
    window = {
        "type": "array",
        "items": row,
        "minItems": WINDOW_LENGTH,
        "maxItems": WINDOW_LENGTH,
        "description": f"Rows at 100 Hz of {' '.join(CHANNELS)}, in m/s², rad/s and µT; finite float32.",
    }
    latent = {"type": "array", "items": number, "minItems": LATENT_SIZE, "maxItems": LATENT_SIZE}
    scores: Schema = {"type": "array", "items": number, "minItems": 1, "description": "They sum to 1."}
    if motifs is not None:
        scores |= {"minItems": motifs, "maxItems": motifs}
    text = {"type": "string"}
    return {
        "Window": window,
        "Batch": {"type": "array", "items": _ref("Window"), "minItems": 1, "maxItems": MAX_WINDOWS},
        "InferBody": _object({"x": {"oneOf": [_ref("Window"), _ref("Batch")]}}, closed=True),
        "Latent": latent,
        "MotifScores": scores,
        "Answer": _object({"latent": _ref("Latent"), "motif_scores": _ref("MotifScores")}),
        "BatchAnswer": _object(
            {
                "latent": {"type": "array", "items": _ref("Latent")},
                "motif_scores": {"type": "array", "items": _ref("MotifScores")},
            }
        ),
        "Error": _object(
            {"error": text, "message": text, "hint": text, "schema": text, "reason": text},
            required=("error", "message"),
        ),
        "Health": _health(),
        "TestResult": _object({"ok": {"type": "boolean"}, "message": text, "release": text}),
    }


def _health() -> Schema:
    text: Schema = {"type": "string"}
    maybe: Schema = {"type": ["object", "null"]}
    served = ("model", "release", "target", "numbers", "calibration_origin", "motif_head", "keys")
    refused = ("error", "reason", "message", "hint")
    return _object(
        {
            "ok": {"type": "boolean"},
            **dict.fromkeys((*served, *refused), text),
            "motifs": {"type": "integer", "minimum": 1},
            "runs_on": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
            "engine": maybe
            | {"description": "Windows that failed since one was run; null where the last was."},
            "switch": maybe
            | {"description": "Why what the channel names is not served, or how long it is tried; or null."},
            "shadow": maybe | {"description": "The canary beside stable; null where CANARY_MODE is off."},
            "drift": maybe | {"description": "Traffic beside calibration: how far, or why it is not known."},
            "telemetry": maybe
            | {"description": "What is kept of windows; null where TELEMETRY_DIR is not set."},
            "store": {"type": "object", "description": "What is amiss with the store, and its entry."},
        },
        required=("ok",),
    )


def _object(properties: Schema, *, required: tuple[str, ...] | None = None, closed: bool = False) -> Schema:
    found: Schema = {"type": "object", "properties": properties, "required": list(required or properties)}
    return found | ({"additionalProperties": False} if closed else {})


def _ref(name: str, kind: str = "schemas") -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers() -> Schema:
    told = {
        "X-Request-Id": "The client's own, where it is a sane one.",
        "Server-Timing": "Milliseconds from the whole request's being there to its answer.",
        "X-Release": "Id of the release that answered.",
        "X-Target": "emulator, hailo8 or hailo8l.",
        "X-Numbers": "How the latent comes about: measured or emulated.",
        "X-Calibration-Origin": "captured, synthetic or unknown.",
        "X-Motif-Head": "checkpoint, file or fitted.",
        "X-Implausible": f"Values that cannot be right: {', '.join(KINDS)}.",
        "X-Columns": "What the numbers of each row are.",
        "Retry-After": "Seconds.",
    }
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in told.items()}


_EVERYWHERE: Final = ("X-Request-Id", "Server-Timing")
_OF_A_MODEL: Final = ("X-Release", "X-Target", "X-Numbers", "X-Calibration-Origin", "X-Motif-Head")


def _answer(
    text: str, content: Mapping[str, Schema | None], headers: tuple[str, ...] = (), **more: Any
) -> Schema:
    named = {name: _ref(name, "headers") for name in (*_EVERYWHERE, *headers)}
    bodies = {kind: {"schema": schema} if schema else {} for kind, schema in content.items()}
    return {"description": text, "headers": named, "content": bodies, **more}


ENGINE_ERRORS: Final[tuple[type[EngineError], ...]] = (
    EngineError,
    NoDeviceError,
    DeviceBusyError,
    DeviceTimeoutError,
    DeviceLostError,
    DriverMismatchError,
    DeviceFailedError,
    DeviceInUseError,
)
"""What a window can fail with that was let in."""

_TO_DO: Final = {
    "invalid_json": "Send JSON: NaN and Infinity are none.",
    "invalid_body": "Send one key, x, as schema says; the message names the place.",
    "window_shape": f"Send {WINDOW_LENGTH} rows of {len(CHANNELS)} numbers for each window.",
    "window_value": "Send finite numbers that float32 has; the message names the place.",
    "invalid_http": "Send HTTP/1.1 or HTTP/1.0, with one length; the connection ends.",
    "body_cut_off": "Send as many bytes as Content-Length says before closing.",
    "head_too_large": "Send fewer or shorter headers.",
    "model_unavailable": "reason and hint say why nothing is served, as /healthz does; ask again.",
    "overloaded": "Ask again, less at a time.",
    "device_in_use": "Ask again: a release that is being loaded has the chip.",
    "shutting_down": "Ask again, on a new connection.",
    "internal": "Ask again; the server's log has what failed, under the request id.",
}
_ENGINE_TO_DO: Final = "Ask again; hint says what may be amiss, /healthz whether it lasts."


def infer_errors() -> dict[str, tuple[int, str]]:
    """Every ``error`` that ``POST /infer`` may answer: status and what to do; asked of what makes them."""
    bodies: list[type[PipelineError]] = [BodyError, *_kinds_of(BodyError), *_kinds_of(WindowError)]
    answers = [
        *(bad_input(kind("")) for kind in bodies),
        *(error_answer(status, CODES[status], "") for status in (406, 413, 415)),
        *(error_answer(status, error, "") for error, status in REFUSALS.items()),
        unavailable(PipelineError("")),
        overloaded("").answer,
        internal(),
        *(engine_failed(kind("")) for kind in ENGINE_ERRORS),
    ]
    found: dict[str, tuple[int, str]] = {}
    for answer in sorted(answers, key=lambda each: each.status):
        body = msgspec.json.decode(answer.body)
        hint = body.get("hint", "")
        to_do = hint[:1].upper() + hint[1:] + "." if hint else _ENGINE_TO_DO
        found[body["error"]] = answer.status, _TO_DO.get(body["error"], to_do)
    return found


def _kinds_of(family: type[PipelineError]) -> Iterator[type[PipelineError]]:
    for kind in family.__subclasses__():
        if kind.__module__.startswith("runtime."):  # not a test's
            yield kind
            yield from _kinds_of(kind)


def _infer_error(status: str, text: str, headers: tuple[str, ...] = ()) -> Schema:
    """An answer that is one of these errors, each with what to do."""
    told = [
        {"const": error, "description": to_do}
        for error, (code, to_do) in infer_errors().items()
        if str(code) == status
    ]
    schema = {"allOf": [_ref("Error"), {"properties": {"error": {"oneOf": told}}}]}
    return _answer(text, {JSON: schema}, headers)


_BUSY: Final = "Nothing is loaded, the engine failed, or too much waits."
_REFUSED: Final = {
    "400": "The body or the request is not what it should be; the message names the place.",
    "406": "Accept allows neither JSON nor octets.",
    "408": "The request did not end in time.",
    "413": f"More than {MAX_BODY_BYTES} bytes.",
    "415": "Another type, or a Content-Encoding.",
    "431": "The request line and the headers, or what is sent beside a body, are too long.",
}


def _infer(text: str, name: str) -> Schema:
    octets = {
        "type": "string",
        "format": "binary",
        "description": f"N x {WINDOW_BYTES} bytes: float32 little endian, rows of {len(CHANNELS)}.",
    }
    answered = {JSON: {"oneOf": [_ref("Answer"), _ref("BatchAnswer")]}, OCTETS: None}
    return {
        "summary": text,
        "operationId": name,
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": _ref("InferBody")}, OCTETS: {"schema": octets}},
        },
        "responses": {
            "200": _answer(
                f"One window's answer, or a batch's; as octets N x ({LATENT_SIZE} + M) float32.",
                answered,
                (*_OF_A_MODEL, "X-Implausible", "X-Columns"),
            ),
            **{status: _infer_error(status, reason) for status, reason in _REFUSED.items()},
            "503": _infer_error("503", _BUSY, ("Retry-After",)),
        },
    }


def _got(text: str, name: str, kind: str, schema: str | None, *, down: bool = False) -> Schema:
    content = {kind: _ref(schema) if schema else None}
    found: Schema = {"200": _answer(text, content)}
    if down:
        found["503"] = _answer("Nothing is served; says why.", content)
    return {"summary": text, "operationId": name, "responses": found}


def _test() -> Schema:
    content = {JSON: _ref("TestResult")}
    return {
        "summary": "Repeat a golden window of the release that is served.",
        "operationId": "test",
        "responses": {
            "200": _answer("It gave what was recorded.", content),
            "503": _answer("It did not, or nothing is served.", content, ("Retry-After",)),
        },
    }
