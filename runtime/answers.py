"""Which error becomes which answer: one shape for all of them, whoever answers.

``{"error": code, "message": what and where, "hint": what to do}``, the hint where one is known; a 400 about
the body of ``/infer`` also says what a body is. Nothing but 503 is above 499.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec

from runtime.contract.errors import PipelineError
from runtime.infer_body import SCHEMA

JSON: Final = "application/json"
Headers = list[tuple[bytes, bytes]]
"""Names in lower case."""

RETRY_AFTER: Final = (b"retry-after", b"1")
CLOSE: Final = (b"connection", b"close")
"""In ``Answer.extra``: the connection ends with it."""

_ENCODER: Final = msgspec.json.Encoder()
_HINTS: Final = {
    404: "there are POST /infer, GET /healthz and GET /metrics; GET /openapi.json lists all",
    406: "send Accept: application/json or application/octet-stream, or leave it out",
    408: "send as many bytes as Content-Length says, or end a chunked body, without long pauses",
    413: "send fewer windows at a time",
    415: f"send {JSON} or application/octet-stream, without Content-Encoding",
}
CODES: Final = {
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "too_large",
    415: "unsupported_media_type",
}


class ModelUnavailableError(Exception):
    """No model is loaded; carries the reason."""

    def __init__(self, reason: PipelineError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Status, body and the headers that belong to it; ``retry`` where asking again may help."""

    status: int
    body: bytes
    media_type: bytes = b"application/json"
    extra: tuple[tuple[bytes, bytes], ...] = ()


def error_answer(
    status: int, error: str, message: str, hint: str = "", extra: Mapping[str, object] | None = None
) -> Answer:
    """An error's answer; 503 says when to ask again."""
    body: dict[str, object] = {"error": error, **(extra or {}), "message": message}
    if hint := hint or _HINTS.get(status, ""):
        body["hint"] = hint
    return Answer(status=status, body=_ENCODER.encode(body), extra=(RETRY_AFTER,) if status == 503 else ())


def bad_input(error: PipelineError) -> Answer:
    """400: a body or window that is wrong; says where, and what is right."""
    place = f"{error.where}: " if error.where else ""
    return error_answer(400, error.code, f"{place}{error.what}", error.hint, {"schema": SCHEMA})


def unavailable(reason: PipelineError) -> Answer:
    """503: nothing is loaded; the same reason as in ``/healthz``."""
    return error_answer(503, "model_unavailable", str(reason), reason.hint, {"reason": reason.code})


def engine_failed(error: PipelineError) -> Answer:
    """503: the engine could not run this window."""
    return error_answer(503, error.code, str(error), error.hint)


def internal() -> Answer:
    """503: a mistake of ours; the traceback is in the log, not in the answer."""
    return error_answer(503, "internal", "an error of the server's own; its log has the request id")


_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def raw_answer(answer: Answer, headers: Iterable[tuple[bytes, bytes]], *, ends: bool) -> bytes:
    """The bytes of an answer; ``ends`` where the connection ends with it."""
    parts = [_STATUS_LINES[answer.status]]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts += (b"connection: close\r\n\r\n" if ends else b"\r\n", answer.body)
    return b"".join(parts)
