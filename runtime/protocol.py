"""One connection: uvicorn's httptools protocol, with a bound on everything that a client may do.

uvicorn itself waits for ever for a head or a body that does not come, keeps a head of any size in memory,
and answers what it cannot parse in plain text. What is refused here is answered and counted as everywhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from runtime.answers import Answer, Headers, error_answer, raw_answer
from runtime.infer_endpoint import ROUTES
from runtime.limits import MOST_IN_LINE, READ_BYTES, Flow, Limits
from runtime.request_record import ANSWER, CROWDED

DISCARD_BYTES: Final = 8 * 1024 * 1024
"""What is read of a body after its answer: who still sends does not read, and would lose it in a reset."""

REFUSALS: Final = {
    "invalid_http": 400,
    "body_cut_off": 400,
    "request_timeout": 408,
    "head_too_large": 431,
    "shutting_down": 503,
}
"""What a connection answers by itself: error to status."""

_LOGGER: Final = logging.getLogger("runtime.app")
_LINGER_SECONDS: Final = 5.0
_MORE_CONNECTIONS: Final = 64
"""Beyond the bound: they may ask for health, and hear why they are not served."""

_VERSIONS: Final = ("1.1", "1.0")
_IDLE, _HEAD, _BODY, _LINGERING = range(4)


class RuntimeState(ServerState):
    """What the connections of one server share."""

    ending = False
    """Each connection's next answer is its last."""


class RuntimeProtocol(HttpToolsProtocol):
    """Parses requests of one connection and hands them to the ``App``; ``look`` ends what takes too long."""

    def __init__(
        self,
        config: Any,
        server_state: RuntimeState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._shared = server_state
        self._limits: Limits = self.app.limits
        self._queue = self.app.queue
        self._state = _IDLE
        self._since = self._unread_since = perf_counter()
        self._head_bytes = 0  # Since the request's first byte; in its body, since anything of the body came.
        self._bodied = self._ended = (
            False  # Of this piece: it has some of a body, the end of a head or request.
        )
        self._begun = 0
        self._discarded = 0
        self._crowded = False
        self._half_closed = False
        self._parsing = False
        self._refusal: Callable[[], None] | None = None  # What is told after the answers that are due before.
        self._whole: Any = None  # A request that may be answered without a task, if its end is in this piece.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        # The size of a read is an attribute of asyncio's socket transports, not a setting.
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)
        if len(self.connections) > self._limits.connections:
            self._make_room()

    def _make_room(self) -> None:
        """End who is silent for longest, so that who is served goes on; else this one is one too many."""
        connections: set[RuntimeProtocol] = self.connections  # type: ignore[assignment]
        silent = [each for each in connections if each is not self and each.cycle is None]
        if silent:
            min(silent, key=lambda each: each._since)._end_now()
        elif len(self.connections) > self._limits.connections + _MORE_CONNECTIONS:
            self._end_now()
        else:
            self._crowded = True

    def _end_now(self) -> None:
        """Without a word; not counted any more, though the loop has yet to close it."""
        self.connections.discard(self)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client is gone: what it still had in the queue is not answered."""
        for cycle, _ in self.pipeline:
            self._queue.left(cycle.scope)
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse a piece."""
        if self._state == _LINGERING or self._refusal is not None:
            self._discard(len(data))
            return
        self._parsing, self._bodied, self._ended, self._begun = True, False, False, 0
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse("invalid_http", f"no HTTP/1.1 request: {str(error.__context__ or error)[:200]}")
        finally:
            self._parsing = False
        if self._state in (_HEAD, _BODY):
            self._bound_fields(len(data))
        if self._whole is not None:
            cycle, self._whole = self._whole, None
            if cycle.more_body:
                super()._start_asgi_task(cycle, self.app)
            else:
                self.app.turns.wait(self, cycle)

    def _feed(self, data: bytes) -> None:
        """Parse; where a request offers another protocol, again from its head without the offer.

        Nothing is spoken here but HTTP/1.1, and the parser takes the request's body for the other protocol.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                version = self.parser.get_http_version().encode()
                line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)
                fields = [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
                data = b"\r\n".join([line, *fields, b"", data[offer.args[0] :]])
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self._begun -= 1

    def _bound_fields(self, size: int) -> None:
        """The parser keeps a field of any size until it ends, in a head and behind a body's last chunk.

        It does not say where in a piece a head begins: what was before it is not counted as its bytes.
        """
        self._head_bytes = 0 if self._bodied or self._ended else self._head_bytes + size
        if self._head_bytes > self._limits.head_bytes:
            what = (
                "request line and headers have"
                if self._state == _HEAD
                else "what is sent beside the body has"
            )
            self._refuse("head_too_large", f"{what} more than {self._limits.head_bytes} bytes")

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if self._parsing and cycle.scope["method"] == "POST" and cycle.scope["path"] in ROUTES:
            self._whole = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def take_turn(self, cycle: Any) -> None:
        """Answer a whole request, as its task would; several windows get one."""
        if cycle.disconnected:
            self._queue.left(cycle.scope)
        elif self.flow.write_paused or (answered := self.app.at_once(cycle.scope, bytes(cycle.body))) is None:
            super()._start_asgi_task(cycle, self.app)
        else:
            self._answer(cycle, *answered)

    def drop(self, cycle: Any) -> None:
        """End the connection without a word: this request cannot be answered."""
        self._queue.left(cycle.scope)
        self.transport.abort()

    def on_response_complete(self) -> None:
        """As uvicorn's, without a timer for each answer: ``look`` ends what is idle."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._state == _IDLE:
            self._since = perf_counter()
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            if cycle is self.cycle and self._refusal is not None:
                refuse, self._refusal = self._refusal, None
                refuse()
            else:
                self._start_asgi_task(cycle, app)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more, but may still read."""
        self._half_closed = True
        if self._nothing_due():
            return None
        if self._state == _BODY:
            self._refuse("body_cut_off", "the connection was closed before the end of the body")
            return self._refusal is not None
        # A head that has begun is no request; what was asked before it is answered.
        self.cycle.keep_alive = False
        return self._state != _LINGERING

    def on_message_begin(self) -> None:
        """The first byte of a request.

        Raises:
            ValueError: There are too many in this piece: what was asked before is answered, and is the last.
        """
        self._begun += 1
        if self._begun > MOST_IN_LINE:
            raise ValueError("too many requests in one piece")
        self._state, self._since, self._head_bytes = _HEAD, perf_counter(), 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; a trailer is dropped, since the request was taken up by its head."""
        if self._state == _HEAD:
            coded = len(name) == 17 and name.lower() == b"transfer-encoding"
            if coded and value.strip().lower() != b"chunked":
                raise ValueError("a transfer coding that is not chunked")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The application may begin."""
        if self.parser.get_http_version() not in _VERSIONS:
            raise ValueError("neither HTTP/1.1 nor HTTP/1.0")  # the parser's error, which is refused above
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("no proxy")
            return
        if self._crowded:
            self.scope[CROWDED] = True  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if self._crowded or self._shared.ending:
            self.cycle.keep_alive = False
        self.scope[ANSWER] = partial(self._answer, self.cycle)  # type: ignore[typeddict-unknown-key]
        self._state, self._discarded, self._ended = _BODY, 0, True

    def on_body(self, body: bytes) -> None:
        """A part of a body; dropped where the answer did not need it."""
        self._bodied = True
        if self.cycle.response_complete:
            self._discard(len(body))
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        if self._state == _HEAD:
            return  # It comes again, without its offer of another protocol.
        now = perf_counter()
        self._state, self._since, self._ended = _IDLE, now, True
        if not self.cycle.response_complete:
            self._queue.arrived(self.scope, now)
        super().on_message_complete()

    def _answer(self, cycle: Any, answer: Answer, headers: Headers) -> bool:
        """What uvicorn's ``send`` does, in one piece: two writes are two packets, and a third of the time.

        Returns:
            False, and nothing was sent, where the client does not read: ``send`` waits for it.
        """
        if self.flow.write_paused:
            return False
        if cycle.disconnected:
            return True
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        self.transport.write(raw_answer(answer, headers, ends=not cycle.keep_alive))
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def look(self, now: float) -> None:
        """End what takes too long; asked about once a second, ``now`` by ``perf_counter``."""
        if self.pipeline:
            self._since = now  # Nothing is read while others are in work: that time is ours.
        limits, waited = self._limits, now - self._since
        if self.transport.get_write_buffer_size() == 0:
            self._unread_since = now
        elif now - self._unread_since > limits.request_seconds:
            self.transport.abort()
        if self._state in (_HEAD, _BODY) and waited > limits.request_seconds:
            part = "headers" if self._state == _HEAD else "body"
            what = f"the request's {part} did not end within {limits.request_seconds:g} s"
            self._refuse("request_timeout", what)
        elif self._state == _LINGERING and waited > _LINGER_SECONDS:
            self.transport.abort()
        elif self._state == _IDLE and waited > limits.idle_seconds + 1 and self._nothing_due():
            self.transport.close()

    def answers_its_last(self) -> None:
        """The server ends: the answer that is due, or the next, is the last."""
        if not self._nothing_due():
            self.cycle.keep_alive = False

    def may_ask(self, since: float) -> bool:
        """Whether its client may be about to ask: it did, or came, after ``since`` on ``perf_counter``."""
        begins = self._state in (_IDLE, _HEAD) and self._nothing_due()
        return begins and self._since > since and not self.transport.is_closing()

    def shutdown(self) -> None:
        """The server ends: idle connections are closed, requests that have begun are finished."""
        if self._state == _LINGERING:
            self.transport.abort()
        elif self._state == _HEAD and self._nothing_due():
            self.transport.close()
        else:
            super().shutdown()

    def _nothing_due(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > DISCARD_BYTES:
            self.transport.abort()

    def _refuse(self, error: str, what: str) -> None:
        """Answer for the application, and end the connection: what comes next cannot be told apart."""
        if self.transport.is_closing():
            return
        cycle, reading_body = self.cycle, self._state == _BODY
        if not self._nothing_due():
            if self.pipeline and reading_body:
                # Others are in work: their answers are due first.
                self._refusal = self._refusal or partial(self._refuse, error, what)
                return
            if cycle.response_started or not reading_body:
                # The answer to what came before is due first, and is the last one.
                cycle.keep_alive = False
                self.transport.pause_reading()
                if cycle.response_started:
                    self.transport.close()
                return
            # The application waits for the rest: it hears that nobody is there, and says nothing.
            cycle.disconnected, cycle.waiting_for_100_continue = True, False
            cycle.message_event.set()
        elif reading_body:
            self.transport.close()  # Answered long ago; only the rest of its body does not come.
            return
        answer = error_answer(REFUSALS[error], error, what)
        self._since, self._state, self._discarded = perf_counter(), _LINGERING, 0
        headers = self.app.refused(answer, cycle.scope if reading_body else None)
        self.transport.write(raw_answer(answer, headers, ends=True))
        try:
            if self.transport.can_write_eof() and not self._half_closed:
                self.transport.write_eof()
            else:
                self.transport.close()
        except OSError:  # The client has reset it meanwhile; the loop has not heard of it yet.
            self.transport.abort()

    def give_up(self, *, whole: bool) -> None:
        """The server waits no longer: 503 for whose body still comes, or also for ``whole`` requests."""
        if self._nothing_due() or self.cycle.response_started or self.transport.is_closing():
            return
        if self.pipeline:
            if whole:
                self.transport.abort()  # What came before has no answer either, and would be given this one.
        elif self._state == _BODY:
            self._refuse("shutting_down", "the server ends, and the body is not there in whole")
        elif whole:
            answer = error_answer(
                REFUSALS["shutting_down"],
                "shutting_down",
                "the server ends before the request's turn has come",
            )
            self.cycle.keep_alive = False
            self._answer(self.cycle, answer, self.app.refused(answer, self.cycle.scope))
            self.cycle.disconnected = True  # What it may still say is dropped.
