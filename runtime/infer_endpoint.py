"""``POST /infer``: windows in, latents and motif scores out, straight on ASGI.

Falcon's own way through a request costs 12 of about 90 µs, and this is the one route that is asked twenty
times a second or ten thousand; every other one is Falcon's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Final

import msgspec

from runtime.active_model import ActiveModel, ModelHolder
from runtime.answers import (
    CODES,
    Answer,
    Headers,
    bad_input,
    engine_failed,
    error_answer,
    internal,
    unavailable,
)
from runtime.contract.errors import DeviceError, EngineError, PipelineError, WindowError
from runtime.infer_body import MAX_BODY_BYTES, BodyError, parse_infer_body
from runtime.metrics import RuntimeMetrics
from runtime.request_record import CROWDED, Queue, RequestRecord, fixed_headers, request_id

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

ROUTES: Final = ("/infer", "/", "/infer/infer")
"""EdgeInfer posts windows to its setting as it is, and its health probe to that with ``/infer`` appended:
whichever way it is set, one of the two is an alias."""

SLICE: Final = 8
"""Windows of a batch that are run before everybody else has a turn."""

_LOGGER: Final = logging.getLogger("runtime.app")
_ENCODER: Final = msgspec.json.Encoder()
_JSON_TYPES: Final = (b"", b"application/json")


class _NobodyThereError(Exception):
    """The client has left."""


class _AnsweredError(Exception):
    """Ends a request with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class InferEndpoint:
    """Answers ``POST`` on ``ROUTES``.

    Args:
        holder: What is served; may change between two requests.
        metrics: Where windows are counted.
        record: What every request leaves.
        queue: Requests that wait for their turn.
        most_waiting: How many may, the newest; older ones hear 503 and may ask again at once.
    """

    def __init__(
        self,
        holder: ModelHolder,
        metrics: RuntimeMetrics,
        record: RequestRecord,
        queue: Queue,
        most_waiting: int,
    ) -> None:
        self._holder = holder
        self._metrics = metrics
        self._record = record
        self._queue = queue
        self._most_waiting = most_waiting
        self._one_batch = asyncio.Lock()
        self._of_model: tuple[ActiveModel | None, Headers] = (None, [])

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer one request; a client that has left is neither answered nor counted."""
        fields = _Fields(scope["headers"])
        model: ActiveModel | None = None
        begin = self._record.clock()
        try:
            body = await _read(fields, receive)
            begin = self._record.begin(scope)
            self._queue.left(scope)
            model = self._admit(scope)
            window = parse_infer_body(body)
            before = perf_counter()
            # Inline in the event loop on purpose: a window takes about 0.2 ms, less than a hand-over to a
            # thread and back costs at p99, and the one chip runs one window at a time anyway.
            latent, scores = model.infer(window)
            engine_seconds = perf_counter() - before
            self._metrics.windows_done(1, engine_seconds, model.release_id)
            answer = Answer(
                status=200,
                body=_ENCODER.encode({"latent": latent.tolist(), "motif_scores": scores.tolist()}),
            )
        except _NobodyThereError:
            return
        except Exception as error:
            answer = self._failed(error, model, fields.request_id)
        finally:
            self._queue.left(scope)
        seconds = self._record.clock() - begin
        release = model.release_id if model else self._record.release()
        headers = fixed_headers(answer)
        headers += self._record.headers(fields.request_id, "" if model else release, seconds)
        if model is not None:
            headers += self._headers_of(model)
        self._record.done(fields.request_id, "POST", scope["path"], answer.status, seconds, release)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _admit(self, scope: Event) -> ActiveModel:
        """The model that this request is answered by."""
        if CROWDED in scope:
            raise _AnsweredError(error_answer(503, "overloaded", "too many connections are open"))
        if self._queue.waiting > self._most_waiting:
            what = f"more than {self._most_waiting} requests wait for their turn"
            raise _AnsweredError(error_answer(503, "overloaded", what))
        state = self._holder.state
        if isinstance(state, PipelineError):
            raise _AnsweredError(unavailable(state))
        return state

    def _headers_of(self, model: ActiveModel) -> Headers:
        if self._of_model[0] is not model:
            names = {"x-release": model.release_id, "x-target": model.target, "x-numbers": model.numbers}
            names |= {"x-calibration-origin": model.calibration_origin, "x-motif-head": model.motif_head}
            self._of_model = model, [(name.encode(), value.encode()) for name, value in names.items()]
        return self._of_model[1]

    def _failed(self, error: Exception, model: ActiveModel | None, identifier: bytes) -> Answer:
        if isinstance(error, _AnsweredError):
            return error.answer
        if isinstance(error, BodyError | WindowError):
            return bad_input(error)
        logged = {"fields": {"request_id": identifier.decode()}}
        if isinstance(error, EngineError):
            if isinstance(error, DeviceError) and model is not None:
                self._holder.lost(model, error)
            self._metrics.engine_failed(error.code)
            _LOGGER.error("engine: %s", error, extra=logged)
            return engine_failed(error)
        _LOGGER.error("unexpected", exc_info=error, extra=logged)
        return internal()


class _Fields:
    """The headers that count here, read once."""

    __slots__ = ("accept", "encoding", "length", "media_type", "request_id")

    def __init__(self, headers: Headers) -> None:
        self.length = -1
        self.media_type = self.encoding = self.accept = given = b""
        for name, value in headers:
            if name == b"content-length":
                self.length = int(value)
            elif name == b"content-type":
                self.media_type = value
            elif name == b"content-encoding":
                self.encoding = value
            elif name == b"accept":
                self.accept = value
            elif name == b"x-request-id":
                given = value
        self.request_id = request_id(given)


async def _read(fields: _Fields, receive: Receive) -> bytes:
    """The whole body. What is refused is refused before it is read; the server drops what still comes."""
    media_type = fields.media_type
    if media_type not in _JSON_TYPES and media_type.partition(b";")[0].strip().lower() != b"application/json":
        shown = media_type[:80].decode("latin-1")
        raise _AnsweredError(error_answer(415, CODES[415], f"content type {shown!r} is not read"))
    if fields.encoding and fields.encoding.strip().lower() != b"identity":
        shown = fields.encoding[:80].decode("latin-1")
        raise _AnsweredError(error_answer(415, CODES[415], f"content encoding {shown!r} is not read"))
    if fields.length > MAX_BODY_BYTES:
        raise _too_large()
    event = await receive()
    if event["type"] == "http.disconnect":
        raise _NobodyThereError
    body: bytes = event.get("body", b"")
    if not event.get("more_body"):
        return body
    parts, size = [body], len(body)
    while event.get("more_body"):
        event = await receive()
        if event["type"] == "http.disconnect":
            raise _NobodyThereError
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise _too_large()
    return b"".join(parts)


def _too_large() -> _AnsweredError:
    return _AnsweredError(error_answer(413, CODES[413], f"the body has more than {MAX_BODY_BYTES} bytes"))
