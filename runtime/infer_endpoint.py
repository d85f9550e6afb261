"""``POST /infer``: windows in, latents and motif scores out, straight on ASGI.

Falcon's own way through a request costs 12 of about 90 µs, and this is the one route that is asked twenty
times a second or ten thousand; every other one is Falcon's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import numpy as np

from runtime.active_model import ActiveModel, ModelHolder
from runtime.admission import (
    AnsweredError,
    BatchTurns,
    Pace,
    overloaded,
    windows_in_slice,
)
from runtime.answers import (
    CLOSE,
    CODES,
    Answer,
    Headers,
    bad_input,
    engine_failed,
    error_answer,
    internal,
    unavailable,
)
from runtime.body_reading import (
    BodyMemory,
    Event,
    HeldBody,
    NobodyThereError,
    Receive,
    Send,
    end_with,
    read_whole,
    too_large,
)
from runtime.contract.errors import DeviceError, DeviceInUseError, EngineError, PipelineError, WindowError
from runtime.contract.window import LATENT_SIZE, WINDOW_SHAPE, FloatArray, Window
from runtime.infer_answer import JSON_TYPE, OCTETS_TYPE, JsonParts, Scores, as_octets, choose, one_as_json
from runtime.infer_body import (
    MAX_BODY_BYTES,
    WINDOW_BYTES,
    BodyError,
    WindowBatch,
    are_several,
    parse_infer_body,
    read_body,
    read_octets,
)
from runtime.logs import Sampler
from runtime.metrics import RuntimeMetrics
from runtime.plausibility import is_probe
from runtime.request_record import (
    ANSWER,
    CROWDED,
    ERRORS_A_SECOND,
    INFER_ROUTES,
    Queue,
    RequestRecord,
    fixed_headers,
    request_id,
)
from runtime.turns import Stretch

ROUTES: Final = INFER_ROUTES
"""EdgeInfer posts windows to its setting as it is, and its health probe to that with ``/infer`` appended:
whichever way it is set, one of the two is an alias."""

SLICE: Final = 8
"""Windows of a batch that are run at most before everybody else has a turn: as ``SLICE_SECONDS`` allow."""

IMPLAUSIBLE: Final = b"x-implausible"
"""Header that names values that cannot be right."""

_LOGGER: Final = logging.getLogger("runtime.app")
_JSON_TYPES: Final = (b"", JSON_TYPE)


class InferEndpoint:
    """Answers ``POST`` on ``ROUTES``.

    Args:
        holder: What is served; may change between two requests.
        metrics: Where windows are counted.
        record: What every request leaves.
        queue: Requests that wait for their turn.
        most_waiting: How many may, the newest; older ones hear 503 and may ask again at once, as does a
            single window that cannot be answered within ``IN_TIME_SECONDS``.
        stretch: For how long tasks work before everybody else has a turn.
    """

    def __init__(
        self,
        holder: ModelHolder,
        metrics: RuntimeMetrics,
        record: RequestRecord,
        queue: Queue,
        most_waiting: int,
        stretch: Stretch,
    ) -> None:
        self._holder = holder
        self._metrics = metrics
        self._record = record
        self._queue = queue
        self._most_waiting = most_waiting
        self._clock = record.clock
        self._batches = BatchTurns()
        self._stretch = stretch
        self._failures = Sampler(1.0, ERRORS_A_SECOND)
        self.bodies = BodyMemory()
        self._pace = Pace()
        self._of_model: tuple[ActiveModel | None, Headers] = (None, [])
        self.answered: Callable[[ActiveModel, Window, FloatArray], None] | None = None
        """Told each window that was answered, with its latent; must not wait."""
        self.looked_at: Callable[[ActiveModel, Window, FloatArray, Scores, tuple[str, ...]], None] | None
        self.looked_at = None
        """Told each that is no probe, with latent, scores and implausible kinds; must not wait or raise."""
        self._asked: Callable[[ActiveModel, Window, FloatArray], None] | None = None

    def ask(self, take: Callable[[ActiveModel, Window, FloatArray], None]) -> None:
        """Hand the next answered window that is no probe, with its latent, to this: once. Any thread's."""
        self._asked = take

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer one request; a client that has left is neither answered nor counted."""
        with HeldBody(self.bodies) as held:
            done = await self._answered(scope, receive, held)
        if done is None:
            return
        answer, headers = done
        if CLOSE in answer.extra:
            await end_with(answer, headers, receive, send)
            return
        if (whole := scope.get(ANSWER)) is not None and whole(answer, headers):
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answered(
        self, scope: Event, receive: Receive, held: HeldBody
    ) -> tuple[Answer, Headers] | None:
        """Read and answer, counted; None where nobody is there any more."""
        fields = _Fields(scope["headers"])
        model: ActiveModel | None = None
        begin: float | None = None  # What was never there in whole has no duration; 0 would look quick.
        try:
            _check(scope, fields)
            body = await read_whole(receive, held)
            begin = self._record.begin(scope)
            self._queue.left(scope)
            model = self._admit(scope)
            # A switch while it waits for its turns must not close what it has begun with.
            with model.lease():
                await self._stretch.turn()
                windows = read_octets(body) if fields.octets else read_body(body)
                single = isinstance(windows, np.ndarray) and windows.ndim == 2
                if single or len(windows) == 1:
                    self._pace.check(self._clock() - begin)
                if isinstance(windows, np.ndarray) and (single or len(windows) == 1):
                    answer = self._one(model, windows.reshape(WINDOW_SHAPE), fields)
                else:
                    answer = await self._several(model, windows, fields)
        except NobodyThereError:
            return None
        except Exception as error:
            answer = self._failed(error, model, fields.request_id)
        finally:
            self._queue.left(scope)
        return answer, self._done(scope, fields, model, answer, begin)

    def at_once(self, scope: Event, body: bytes) -> tuple[Answer, Headers] | None:
        """Answer a request that is there in whole: as ``__call__``, which costs a task and three awaits.

        Args:
            scope: ASGI's, of a ``POST`` on one of ``ROUTES``.
            body: All of it.

        Returns:
            The answer and its headers, counted; None, and nothing is counted, for several windows:
            they take turns.
        """
        fields = _Fields(scope["headers"])
        model: ActiveModel | None = None
        begin = self._record.begin(scope)
        try:
            _check(scope, fields)
            if len(body) > WINDOW_BYTES if fields.octets else are_several(body):
                return None
            self._queue.left(scope)
            model = self._admit(scope)
            self._pace.check(self._clock() - begin)
            window = read_octets(body)[0] if fields.octets else parse_infer_body(body)
            answer = self._one(model, window, fields)
        except Exception as error:
            answer = self._failed(error, model, fields.request_id)
        self._queue.left(scope)
        return answer, self._done(scope, fields, model, answer, begin)

    def _done(
        self, scope: Event, fields: _Fields, model: ActiveModel | None, answer: Answer, begin: float | None
    ) -> Headers:
        """Count it; the answer's headers."""
        seconds = None if begin is None else self._clock() - begin
        release = model.release_id if model else self._record.release()
        headers = fixed_headers(answer)
        headers += self._record.headers(fields.request_id, "" if model else release, seconds)
        if model is not None:
            headers += self._headers_of(model)
        self._record.done(fields.request_id, "POST", scope["path"], answer.status, seconds, release)
        return headers

    def _one(self, model: ActiveModel, window: Window, fields: _Fields) -> Answer:
        before = self._clock()
        # Inline in the event loop on purpose: a window takes about 0.2 ms, less than a hand-over to a
        # thread and back costs at p99, and the one chip runs one window at a time anyway.
        latent, scores = model.infer(window)
        kinds = model.plausibility.kinds(window)
        seconds, probe = self._clock() - before, is_probe(window)
        self._pace.took(seconds)
        self._metrics.windows_done(1, seconds, model.release_id, kinds, probe)
        if self.answered is not None:
            self.answered(model, window, latent)
        if not probe:
            if self.looked_at is not None:
                self.looked_at(model, window, latent, scores, kinds)
            if self._asked is not None:
                self._give(model, window, latent)
        extra = ((IMPLAUSIBLE, model.plausibility.named(window).encode()),) if kinds else ()
        if fields.answer_type is OCTETS_TYPE:
            return _octets([as_octets(latent, scores)], model, extra)
        return Answer(status=200, body=one_as_json(latent, scores), extra=extra)

    async def _several(
        self, model: ActiveModel, windows: FloatArray | WindowBatch, fields: _Fields
    ) -> Answer:
        """Run them in slices; in between everybody else has a turn, other batches after this one."""
        json, octets, kinds = JsonParts(), list[bytes](), set[str]()
        async with self._batches.turn(len(windows)):
            start, took, ran = 0, 0.0, 0
            while start < len(windows):
                begin = self._clock()
                part = _part(windows, start, windows_in_slice(took, ran, SLICE))
                before = self._clock()
                latents, scores = model.infer_batch(part, first=start)
                found = model.plausibility.kinds_of_each(part)
                seconds, probes = self._clock() - before, sum(map(is_probe, part))
                self._pace.took(seconds / len(part))
                self._metrics.windows_done(len(part), seconds, model.release_id, found, probes)
                kinds.update(found)
                if self.answered is not None:
                    self.answered(model, part[0], latents[0])  # one of a slice: the line is short
                self._look_at_each(model, part, latents, scores, probes)
                if fields.answer_type is OCTETS_TYPE:
                    octets.append(as_octets(latents, scores))
                else:
                    json.add(latents, scores)
                start, took, ran = start + len(part), self._clock() - begin, len(part)
                await asyncio.sleep(0)
        extra = ((IMPLAUSIBLE, "; ".join(sorted(kinds)).encode()),) if kinds else ()
        if fields.answer_type is OCTETS_TYPE:
            return _octets(octets, model, extra)
        return Answer(status=200, body=json.body(), extra=extra)

    def _look_at_each(
        self, model: ActiveModel, part: FloatArray, latents: FloatArray, scores: Scores, probes: int
    ) -> None:
        """As for one window, each of a slice."""
        if self.looked_at is None and self._asked is None:
            return
        for window, latent, row in zip(part, latents, scores, strict=True):
            if probes and is_probe(window):
                continue
            if self.looked_at is not None:
                self.looked_at(model, window, latent, row, model.plausibility.kinds(window))
            if self._asked is not None:
                self._give(model, window, latent)

    def _give(self, model: ActiveModel, window: Window, latent: FloatArray) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked(model, window, latent)

    def _admit(self, scope: Event) -> ActiveModel:
        """The model that this request is answered by."""
        if self._queue.waiting > self._most_waiting:
            raise overloaded(f"more than {self._most_waiting} requests wait for their turn")
        state = self._holder.state
        if isinstance(state, PipelineError):
            raise AnsweredError(unavailable(state))
        return state

    def _headers_of(self, model: ActiveModel) -> Headers:
        if self._of_model[0] is not model:
            names = {"x-release": model.release_id, "x-target": model.target, "x-numbers": model.numbers}
            names |= {"x-calibration-origin": model.calibration_origin, "x-motif-head": model.motif_head}
            self._of_model = model, [(name.encode(), value.encode()) for name, value in names.items()]
        return self._of_model[1]

    def _failed(self, error: Exception, model: ActiveModel | None, identifier: bytes) -> Answer:
        if isinstance(error, AnsweredError):
            return error.answer
        if isinstance(error, BodyError | WindowError):
            return bad_input(error)
        if isinstance(error, DeviceInUseError):
            return engine_failed(error)  # Nothing failed: the chip is busy with a release that is loaded.
        # An engine that fails does so for every window, and must not fill the disk.
        unlogged = self._failures.take(self._clock())
        fields: dict[str, object] = {"request_id": identifier.decode()}
        if unlogged:
            fields["unlogged"] = unlogged
        if isinstance(error, EngineError):
            if isinstance(error, DeviceError) and model is not None:
                self._holder.lost(model, error)
            self._metrics.engine_failed(error.code, model.release_id if model else "")
            if unlogged is not None:
                _LOGGER.error("engine: %s", error, extra={"fields": fields})
            return engine_failed(error)
        if unlogged is not None:
            _LOGGER.error("unexpected", exc_info=error, extra={"fields": fields})
        return internal()


class _Fields:
    """The headers that count here, read once."""

    __slots__ = ("answer_type", "encoding", "length", "media_type", "octets", "request_id")

    def __init__(self, headers: Headers) -> None:
        self.length = -1
        self.media_type = self.encoding = accept = given = b""
        for name, value in headers:
            if name == b"content-length":
                self.length = int(value)
            elif name == b"content-type":
                self.media_type = value
            elif name == b"content-encoding":
                self.encoding = value
            elif name == b"accept":
                accept = value if not accept else accept + b"," + value
            elif name == b"x-request-id":
                given = value
        self.request_id = request_id(given)
        self.answer_type = choose(accept)
        self.octets = self.media_type == OCTETS_TYPE


def _check(scope: Event, fields: _Fields) -> None:
    """Refuse what can be refused before a body is read; the server drops what still comes."""
    if CROWDED in scope:
        raise overloaded("too many connections are open")
    if not fields.octets and fields.media_type not in _JSON_TYPES:
        media_type = fields.media_type.partition(b";")[0].strip().lower()
        fields.octets = media_type == OCTETS_TYPE
        if not fields.octets and media_type != JSON_TYPE:
            shown = fields.media_type[:80].decode("latin-1")
            raise AnsweredError(error_answer(415, CODES[415], f"content type {shown!r} is not read"))
    if fields.answer_type is None:
        what = "Accept allows neither application/json nor application/octet-stream"
        raise AnsweredError(error_answer(406, CODES[406], what))
    if fields.encoding and fields.encoding.strip().lower() != b"identity":
        shown = fields.encoding[:80].decode("latin-1")
        raise AnsweredError(error_answer(415, CODES[415], f"content encoding {shown!r} is not read"))
    if fields.length > MAX_BODY_BYTES:
        raise too_large()


def _part(windows: FloatArray | WindowBatch, start: int, most: int) -> FloatArray:
    if isinstance(windows, np.ndarray):
        return windows[start : start + most]
    return windows.windows(start, windows.slice_end(start, most))


def _octets(parts: list[bytes], model: ActiveModel, extra: tuple[tuple[bytes, bytes], ...]) -> Answer:
    shape = (b"x-columns", b"latent=%d; motif_scores=%d" % (LATENT_SIZE, model.motifs))
    return Answer(status=200, body=b"".join(parts), media_type=OCTETS_TYPE, extra=(shape, *extra))
