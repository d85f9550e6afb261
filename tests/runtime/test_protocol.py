"""One connection of the server, in this process: what ends it, and what its client hears."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from gunicorn.config import Config as GunicornSettings
from gunicorn.glogging import Logger as GunicornLogger
from uvicorn.config import Config

from runtime.active_model import ActiveModel, ModelHolder
from runtime.app import App, create_app
from runtime.engines.emulator import EmulatorEngine
from runtime.limits import READ_BYTES, Limits
from runtime.metrics import RuntimeMetrics
from runtime.protocol import _BODY, RuntimeProtocol
from runtime.worker import RuntimeServer, RuntimeWorker
from tests.runtime.service import Service, logged
from tests.runtime.test_infer_body import GOOD
from tests.simulators import ReleaseSimulator, imu_windows

HEAD = b"POST /infer HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(name="holder", scope="module")
def a_holder(tmp_path_factory: pytest.TempPathFactory) -> ModelHolder:
    release = ReleaseSimulator().publish(tmp_path_factory.mktemp("store"))
    return ModelHolder(ActiveModel(release, EmulatorEngine(release)))


@pytest.fixture(autouse=True)
def however_slow_this_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is too late: what is refused by its age has tests of its own."""
    monkeypatch.setattr("runtime.admission.IN_TIME_SECONDS", 60.0)


class Serving:
    """The server in this loop."""

    def __init__(self, app: App, port: int, server: RuntimeServer) -> None:
        self.app = app
        self.port = port
        self.connections: set[Any] = server.server_state.connections
        self.quit = server.quit

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, *pieces: bytes, end: bool = False) -> bytes:
        """Send, and read until the server closes."""
        reader, writer = await self.connect()
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if end:
            writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(holder: ModelHolder, **limits: Any) -> AsyncIterator[Serving]:
    app = create_app(holder, RuntimeMetrics(), Limits(**limits))
    config = Config(app, log_config=None, **RuntimeWorker.CONFIG_KWARGS)
    server = RuntimeServer(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield Serving(app, listener.getsockname()[1], server)
            # Whatever happened: who is gone does not wait.
            async with asyncio.timeout(20):
                while app.queue.waiting and server.server_state.connections:
                    await asyncio.sleep(0.01)
            assert app.queue.waiting == 0
        finally:
            server.should_exit = True
            await asyncio.wait_for(running, 20)


def run(holder: ModelHolder, story: Callable[[Serving], Awaitable[None]], **limits: Any) -> None:
    async def told() -> None:
        async with serving(holder, **limits) as server:
            await story(server)

    asyncio.run(told())


def parted(answer: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), fields, json.loads(body[: int(fields["content-length"])])


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(GOOD), GOOD)
"""A whole body; trailers may follow, and an empty line."""

CUT_OFF = HEAD + b"Content-Length: 50\r\n\r\n{"


@pytest.mark.parametrize(
    ("sent", "status", "error", "identifier"),
    [
        (b"nonsense\r\n\r\n", 400, "invalid_http", None),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 60_000, 431, "head_too_large", None),
        (CHUNKED + b"A: " + b"b" * 100_000, 431, "head_too_large", "mine"),
        (CHUNKED + b"A: b\r\n" * 20_000, 431, "head_too_large", "mine"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "invalid_http", "mine"),
        (CUT_OFF, 408, "request_timeout", "mine"),
        (HEAD, 408, "request_timeout", None),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", 408, "request_timeout", "mine"),
    ],
)
def test_what_is_no_request_is_answered_and_counted(
    holder: ModelHolder, sent: bytes, status: int, error: str, identifier: str | None
) -> None:
    async def story(server: Serving) -> None:
        with logged("INFO") as lines:
            found, fields, body = parted(await server.exchange(sent))
        assert (found, body["error"], fields["connection"]) == (status, error, "close")
        assert fields["x-release"] == holder.model.release_id  # type: ignore[union-attr]
        assert identifier in (None, fields["x-request-id"])
        assert [(line["status"], line["request_id"]) for line in lines] == [(status, fields["x-request-id"])]
        assert server.app.queue.waiting == 0
        # It was never there in whole: 0 ms from then on would be a number that nobody measured.
        assert "server-timing" not in fields
        assert lines[0].get("latency_ms") is None
        _, _, page = (await server.exchange(METRICS, end=True)).partition(b"\r\n\r\n")
        assert b'status="%d"' % status in page
        assert b"hailo_runtime_request_duration_seconds_count" not in page

    run(holder, story, request_seconds=0.3)


def test_a_body_in_many_chunks_is_no_head(holder: ModelHolder) -> None:
    """What frames them has more bytes than a head may have."""
    parts = b"".join(b"1;a=b\r\n%c\r\n" % byte for byte in GOOD)

    async def story(server: Serving) -> None:
        answer = await server.exchange(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n", end=True
        )
        assert parted(answer)[0] == 200

    run(holder, story)
    assert len(parts) > Limits().head_bytes


class Wire(asyncio.Transport):
    """A client whose bytes come in just the pieces that a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answers += bytes(data)

    def close(self) -> None:
        self.closed = True

    write_eof = abort = close

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def heard(holder: ModelHolder, *pieces: bytes) -> bytes:
    """All that is answered to these pieces, read one by one."""

    async def story() -> bytes:
        app = create_app(holder, RuntimeMetrics())
        config = Config(app, log_config=None, **RuntimeWorker.CONFIG_KWARGS)
        config.load()
        connection, wire = RuntimeProtocol(config, RuntimeServer(config).server_state, {}), Wire()
        connection.connection_made(wire)
        for piece in pieces:
            connection.data_received(piece)
            while connection._state < _BODY and not connection._nothing_due():
                await asyncio.sleep(0)
        return wire.answers

    return asyncio.run(asyncio.wait_for(story(), 20))


def test_the_time_in_which_we_do_not_read_is_not_the_clients(holder: ModelHolder) -> None:
    """Behind a request in work nothing is read, and what was sent at once looks as if it did not end."""

    async def story() -> None:
        app = create_app(holder, RuntimeMetrics(), Limits(request_seconds=30.0))
        config = Config(app, log_config=None, **RuntimeWorker.CONFIG_KWARGS)
        config.load()
        connection, wire = RuntimeProtocol(config, RuntimeServer(config).server_state, {}), Wire()
        connection.connection_made(wire)
        connection.data_received(WHOLE + WHOLE[:-1])
        later = perf_counter() + 100
        connection.look(later)
        while wire.answers.count(b"HTTP/1.1 200") < 1:
            await asyncio.sleep(0)
        connection.look(later + 29)
        connection.data_received(WHOLE[-1:])
        while wire.answers.count(b"HTTP/1.1") < 2:
            await asyncio.sleep(0)
        assert wire.answers.count(b"HTTP/1.1 200") == 2

    asyncio.run(asyncio.wait_for(story(), 20))


def answers_to(holder: ModelHolder, *pieces: bytes) -> list[int]:
    """The statuses of what is heard."""
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", heard(holder, *pieces))]


def full_piece(end: bytes) -> bytes:
    """As much as is read in one go: a request, and the beginning of the next."""
    padded = GET[:-2] + b"A: "
    return padded + b"a" * (READ_BYTES - len(padded) - 4 - len(end)) + b"\r\n\r\n" + end


@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        (GET[:-2] + b"A: ", b"b\r\n\r\n"),
        (b"G", GET[1:]),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNKED.partition(b"\r\n\r\n")[2] + b"\r\n"),
    ],
    ids=["head", "first byte", "chunks"],
)
def test_what_was_read_with_a_short_head_is_not_counted_as_its_bytes(
    holder: ModelHolder, begun: bytes, rest: bytes
) -> None:
    """It drips, as it may; nearly all of the first piece was the request before."""
    dripped = [rest[start : start + 1] for start in range(30)]
    assert answers_to(holder, full_piece(begun), *dripped, rest[30:]) == [200, 200]


def test_a_head_that_begins_behind_another_is_bounded_as_well(holder: ModelHolder) -> None:
    filled = [b"a" * 1024] * (Limits().head_bytes // 1024)
    begun = GET[:-2] + b"A: "
    assert answers_to(holder, full_piece(begun), *filled) == [200]
    assert answers_to(holder, full_piece(begun), *filled, b"a") == [200, 431]
    assert answers_to(holder, begun, *filled) == [431]


def test_a_trailer_says_nothing_about_the_request(holder: ModelHolder) -> None:
    """Who looks at heads in front of us must have seen what counts here."""
    trailers = b"Content-Type: text/plain\r\nAccept: text/html\r\nX-Request-Id: other\r\n\r\n"

    async def story(server: Serving) -> None:
        for pieces in ([CHUNKED + trailers], [CHUNKED[:-3], CHUNKED[-3:] + trailers]):
            status, fields, _ = parted(await server.exchange(*pieces, end=True))
            assert (status, fields["content-type"], fields["x-request-id"]) == (
                200,
                "application/json",
                "mine",
            )

    run(holder, story)


@pytest.mark.parametrize("sent", [CUT_OFF, CUT_OFF[:-1], CHUNKED, CHUNKED[:-3], CHUNKED[:-9], CHUNKED[:200]])
def test_a_body_whose_sender_closes_is_400(holder: ModelHolder, sent: bytes) -> None:
    async def story(server: Serving) -> None:
        answer = await server.exchange(sent, end=True)
        status, fields, body = parted(answer)
        assert (status, body["error"], fields["connection"]) == (400, "body_cut_off", "close")
        assert answer.count(b"HTTP/1.1") == 1
        assert server.app.queue.waiting == 0

    run(holder, story)


@pytest.mark.parametrize("sent", [b"", b"P", HEAD, b"\r\n"])
def test_who_closes_without_a_request_hears_nothing_and_leaves_nothing(
    holder: ModelHolder, sent: bytes
) -> None:
    async def story(server: Serving) -> None:
        assert await server.exchange(sent, end=True) == b""
        while server.connections:
            await asyncio.sleep(0.001)

    run(holder, story)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
"""404 where somebody takes it for a request of its own."""

SENT_TO = b"POST /infer HTTP/1.1\r\nHost: x\r\n"
IN_CHUNKS = SENT_TO + b"Transfer-Encoding: chunked\r\n\r\n"
SIZED = SENT_TO + b"Content-Length: 2\r\n"
AMBIGUOUS = {
    "line feeds alone": (SIZED.replace(b"\r\n", b"\n") + b"\n{}", "Expected CRLF after version"),
    "line feed after the first line": (SIZED.replace(b"\r", b"", 1) + b"\r\n{}", "Expected CRLF"),
    "line feed after a field": (SENT_TO + b"A: b\nContent-Length: 2\r\n\r\n{}", "Missing expected CR"),
    "line feed before the body": (SIZED + b"\n{}", "Invalid header field char"),
    "carriage return alone": (SENT_TO + b"A: b\rContent-Length: 2\r\n\r\n{}", "Missing expected LF"),
    "chunks, then a length": (
        IN_CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length can't be",
    ),
    "a length, then chunks": (
        SIZED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding can't be",
    ),
    "two lengths": (SIZED + b"Content-Length: 40\r\n\r\n{}", "Duplicate Content-Length"),
    "a length twice": (SIZED + b"Content-Length: 2\r\n\r\n{}", "Duplicate Content-Length"),
    "a list of lengths": (SENT_TO + b"Content-Length: 2, 2\r\n\r\n{}", "Invalid character in Content-Length"),
    "a signed length": (SENT_TO + b"Content-Length: +2\r\n\r\n{}", "Invalid character in Content-Length"),
    "an empty length": (SENT_TO + b"Content-Length:\r\n\r\n{}", "Empty Content-Length"),
    "a length folded": (SENT_TO + b"Content-Length: 2\r\n 0\r\n\r\n{}", "Unexpected whitespace"),
    "chunks folded": (SENT_TO + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", "Invalid header value"),
    "a field folded": (SENT_TO + b"A: b\r\n\tc\r\nContent-Length: 2\r\n\r\n{}", "Unexpected whitespace"),
    "a first field folded": (
        SIZED.replace(b"Host", b" Host") + b"\r\n{}",
        "Unexpected space after start line",
    ),
    "space before a colon": (
        SIZED + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Invalid header field char",
    ),
    "no coding that is known": (
        SENT_TO + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "a transfer coding that is not chunked",
    ),
    "compressed and chunked": (
        SENT_TO + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "a transfer coding that is not chunked",
    ),
    "chunked, and not last": (
        SENT_TO + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "Invalid `Transfer-Encoding`",
    ),
    "chunked twice": (
        IN_CHUNKS[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Invalid `Transfer-Encoding`",
    ),
    "line feed after a size": (IN_CHUNKS + b"2\n{}\r\n0\r\n\r\n", "Missing expected CR after chunk size"),
    "line feed after an extension": (
        IN_CHUNKS + b"2;a\n{}\r\n0\r\n\r\n",
        "Missing expected CR after chunk ext",
    ),
    "line feed after a chunk": (IN_CHUNKS + b"2\r\n{}\n0\r\n\r\n", "Missing expected CR after chunk data"),
    "line feeds at the end": (IN_CHUNKS + b"2\r\n{}\r\n0\n\n", "Missing expected CR after chunk size"),
    "a chunk longer than it says": (IN_CHUNKS + b"2\r\n{} \r\n0\r\n\r\n", "after chunk data"),
    "a length behind the chunks": (
        IN_CHUNKS + b"2\r\n{}\r\n0\r\nContent-Length: 40\r\n\r\n",
        "Content-Length can't be present",
    ),
    "a size in C's way": (IN_CHUNKS + b"0x2\r\n{}\r\n0\r\n\r\n", "Invalid character in chunk size"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_others_may_read_otherwise_is_refused_and_is_the_last(holder: ModelHolder, name: str) -> None:
    """A proxy that saw another end of it would hand us somebody else's request as a part of it."""
    sent, why = AMBIGUOUS[name]
    whole = sent + SMUGGLED + WHOLE
    for pieces in ([whole], [whole[at : at + 1] for at in range(len(whole))]):
        answer = heard(holder, *pieces)
        status, fields, body = parted(answer)
        assert (status, body["error"], fields["connection"]) == (400, "invalid_http", "close")
        assert why in body["message"]
        assert answer.count(b"HTTP/1.1 400") == 1
        assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"400"]


@pytest.mark.parametrize(
    "sent",
    [
        SIZED + b"\r\n{}",
        SENT_TO + b"Content-Length: 2 \r\n\r\n{}",
        SENT_TO + b"content-length:\t002\r\n\r\n{}",
        SENT_TO + b"Content_Length: 50\r\nContent-Length: 2\r\n\r\n{}",
        SIZED + b"\r\n{}\r\n",
        SENT_TO + b"TRANSFER-ENCODING:\tCHUNKED \r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        IN_CHUNKS + b"1;a=b\r\n{\r\n01\r\n}\r\n000;c\r\nX-Length: 40\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    ],
)
def test_what_has_one_meaning_is_read_so_and_the_next_begins_behind_it(
    holder: ModelHolder, sent: bytes
) -> None:
    whole = sent + SMUGGLED + WHOLE
    for pieces in ([whole], [whole[at : at + 1] for at in range(len(whole))]):
        assert answers_to(holder, *pieces) == [400, 404, 200]


def test_who_was_told_to_come_again_may_do_so_on_the_same_connection(holder: ModelHolder) -> None:
    async def story(server: Serving) -> None:
        used, infer = await server.connect(), server.app.infer
        for request in (WHOLE, BATCH, CHUNKED + b"\r\n"):
            infer._most_waiting = -1
            assert await asked(used, request) == 503
            infer._most_waiting = 96
            assert await asked(used, request) == 200
        used[1].close()

    run(holder, story)


def test_who_only_reads_any_more_is_answered(holder: ModelHolder) -> None:
    async def story(server: Serving) -> None:
        status, fields, body = parted(await server.exchange(WHOLE, end=True))
        assert (status, len(body["latent"]), fields["x-request-id"]) == (200, 64, "mine")

    run(holder, story)


def batch(windows: int) -> bytes:
    head = HEAD[:-2].replace(b"X-Request-Id: mine", b"Content-Type: application/octet-stream")
    body = imu_windows(windows, seed=3).astype("<f4").tobytes()
    return head + b"\r\nAccept: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(body) + body


BATCH, SMALL_BATCH = batch(50), batch(7)
"""Windows that are run in turns: what comes meanwhile is read before they are answered."""


@pytest.mark.parametrize("begun", [b"", b"P", HEAD, HEAD[:-2]], ids=["nothing", "byte", "lines", "head"])
def test_who_only_reads_any_more_is_answered_what_is_in_work(holder: ModelHolder, begun: bytes) -> None:
    """Also where the next request had begun: it is not one, and takes nobody's answer away."""

    async def story(server: Serving) -> None:
        answer = await server.exchange(BATCH + begun, end=True)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.lower().count(b"connection: close") == 1
        assert answer.count(b"HTTP/1.1") == 1
        assert not server.connections
        assert server.app.queue.waiting == 0

    run(holder, story)


BAD_CHUNK = HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"


@pytest.mark.parametrize(
    "before",
    [(WHOLE,), (BATCH,), (GET, BATCH, BATCH), (BATCH, WHOLE), (GET, SMALL_BATCH)],
    ids=["window", "batch", "three", "batch and window", "one piece"],
)
@pytest.mark.parametrize(
    ("last", "end", "error"),
    [(BAD_CHUNK, False, "invalid_http"), (BAD_CHUNK, True, "invalid_http"), (CUT_OFF, True, "body_cut_off")],
    ids=["chunk", "chunk, half-closed", "cut off"],
)
def test_a_refusal_is_told_after_the_answers_before_it(
    holder: ModelHolder,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[bytes, ...],
    last: bytes,
    end: bool,
    error: str,
) -> None:
    """Answers have no number: one that comes too early is taken for another request's."""
    monkeypatch.setattr("runtime.protocol._LINGER_SECONDS", 1000.0)  # who sends no more is not waited for

    async def story(server: Serving) -> None:
        answer = await server.exchange(b"".join((*before, last)), end=end)
        statuses = re.findall(rb"HTTP/1.1 (\d+) ", answer)
        assert statuses == [b"200"] * len(before) + [b"400"]
        status, fields, body = parted(answer[answer.index(b"HTTP/1.1 400") :])
        assert (status, body["error"], fields["x-request-id"]) == (400, error, "mine")
        while server.connections:
            await asyncio.sleep(0.01)
        assert server.app.queue.waiting == 0

    run(holder, story)


def test_a_good_request_before_nonsense_is_answered(holder: ModelHolder) -> None:
    """A Content-Length that is too short makes the rest look like the next request."""

    async def story(server: Serving) -> None:
        answer = await server.exchange(WHOLE + b"rubbish\r\n\r\n")
        status, fields, _ = parted(answer)
        assert (status, fields["connection"]) == (200, "close")
        assert answer.count(b"HTTP/1.1") == 1

    run(holder, story)


def test_requests_in_one_piece_are_answered_in_order(holder: ModelHolder) -> None:
    async def story(server: Serving) -> None:
        answer = await server.exchange(WHOLE + GET + WHOLE, end=True)
        assert answer.count(b"HTTP/1.1 200") == 3
        assert server.app.queue.waiting == 0

    run(holder, story)


def test_of_hundreds_in_one_piece_the_first_are_answered(holder: ModelHolder) -> None:
    """Each takes its time and memory before anybody else has a turn."""
    lines: list[int] = []

    async def story(server: Serving) -> None:
        reader, writer = await server.connect()
        writer.write(GET * 500)
        first = await reader.readuntil(b"\r\n\r\n")
        lines.extend(len(each.pipeline) for each in server.connections)
        answer = first + await asyncio.wait_for(reader.read(), 20)
        assert answer.count(b"HTTP/1.1 200") == 32
        assert answer.lower().count(b"connection: close") == 1
        writer.close()
        assert server.app.queue.waiting == 0

    run(holder, story)
    assert max(lines) < 32


def test_who_leaves_with_requests_in_line_leaves_the_line(holder: ModelHolder) -> None:
    async def story(server: Serving) -> None:
        for _ in range(5):
            _, writer = await server.connect()
            writer.write(WHOLE * 4)
            writer.transport.abort()
        assert parted(await server.exchange(WHOLE, end=True))[0] == 200
        assert server.app.queue.waiting == 0

    run(holder, story)


def test_a_silent_connection_is_closed_and_a_used_one_kept(holder: ModelHolder) -> None:
    async def story(server: Serving) -> None:
        assert await server.exchange() == b""

    run(holder, story, idle_seconds=-0.5)


def test_a_minute_between_two_requests_is_no_reset(holder: ModelHolder) -> None:
    """EdgeInfer's client keeps idle connections for 60 s; ours are kept a while longer, and not for ever."""

    async def story(server: Serving) -> None:
        used = await server.connect()
        for idle in (60.0, 75.0):
            assert await asked(used, WHOLE) == 200
            (connection,) = server.connections
            connection.look(perf_counter() + idle)
            assert not connection.transport.is_closing()
        assert await asked(used, WHOLE) == 200
        connection.look(perf_counter() + 77)
        assert await asyncio.wait_for(used[0].read(), 20) == b""
        used[1].close()

    run(holder, story)


OFFERS = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    b"upgrade: websocket\r\nUpgrade: h2c\r\nconnection: upgrade\r\nExpect: 100-continue\r\n\r\n",
)
"""As ``curl --http2`` and Java's HttpClient send them, and worse."""


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("piece", [10_000_000, 1000, 7])
@pytest.mark.parametrize("sent", [WHOLE, CHUNKED + b"\r\n"], ids=["length", "chunks"])
def test_a_request_that_offers_another_protocol_is_answered_as_any(
    holder: ModelHolder, sent: bytes, piece: int, offer: bytes
) -> None:
    """And so is what follows on its connection."""
    head, _, body = sent.partition(b"\r\n\r\n")
    asking = (head + b"\r\n" + offer + body) * 2 + GET

    async def story(server: Serving) -> None:
        pieces = [asking[start : start + piece] for start in range(0, len(asking), piece)]
        answer = await server.exchange(*pieces, end=True)
        assert answer.count(b"HTTP/1.1 200") == 3
        assert answer.replace(b"HTTP/1.1 100", b"").count(b"HTTP/1.1") == 3
        assert answer.count(b"mine") == 2
        assert server.app.queue.waiting == 0

    run(holder, story)


def test_who_is_refused_before_it_was_told_to_go_on_is_not_told(holder: ModelHolder) -> None:
    """There is nothing to write to any more, which was a traceback in the log."""
    sent = HEAD + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"

    async def story(server: Serving) -> None:
        with logged("ERROR") as lines:
            answer = await server.exchange(sent, end=True)
        assert parted(answer)[0] == 400
        assert lines == []

    run(holder, story)


def test_an_upgrade_is_not_followed(holder: ModelHolder) -> None:
    async def story(server: Serving) -> None:
        asked = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        status, fields, _ = parted(await server.exchange(asked + b"\x81\x05hello"))
        assert (status, fields["connection"]) == (200, "close")

    run(holder, story)


async def asked(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes) -> int:
    """The status of its answer; the connection may go on."""
    reader, writer = connection
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head.split()[1])


def test_too_many_connections_are_told_so_and_health_is_not(holder: ModelHolder) -> None:
    """Who is served goes on being served."""

    async def story(server: Serving) -> None:
        held = [await server.connect() for _ in range(2)]
        assert [await asked(each, GET) for each in held] == [200, 200]
        status, fields, body = parted(await server.exchange(WHOLE))
        assert (status, fields["retry-after"], body["error"]) == (503, "1", "overloaded")
        assert fields["connection"] == "close"
        assert parted(await server.exchange(GET))[0] == 200
        late = [await server.connect() for _ in range(2)]
        assert [await asked(each, WHOLE) for each in held] == [200, 200]
        for _, writer in held + late:
            writer.close()

    run(holder, story, connections=2)


def test_who_never_sent_anything_makes_room(holder: ModelHolder) -> None:
    """The longest silent first; however many there are, who comes then is served."""

    async def story(server: Serving) -> None:
        served = await server.connect()
        assert await asked(served, WHOLE) == 200
        silent = [await server.connect() for _ in range(100)]
        for reader, _ in silent[:-1]:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
        assert len(server.connections) == 2
        assert await asked(silent[-1], WHOLE) == 200
        assert await asked(served, WHOLE) == 200
        for _, writer in [served, *silent]:
            writer.close()

    run(holder, story, connections=2)


def test_beyond_the_bound_nothing_piles_up(holder: ModelHolder) -> None:
    """All have sent a head, so none makes room: each further one hears 503 before its body, and is closed."""

    async def story(server: Serving) -> None:
        begun = []
        for _ in range(2):
            begun.append(await server.connect())
            begun[-1][1].write(WHOLE[:-5])
            while sum(each.cycle is not None for each in server.connections) < len(begun):
                await asyncio.sleep(0.001)
        for _ in range(99):
            further = await server.connect()
            assert await asked(further, WHOLE[:-5]) == 503
            assert await asyncio.wait_for(further[0].read(), 20) == b""
            further[1].close()
            assert len(server.connections) <= 3
        assert [await asked(each, WHOLE[-5:]) for each in begun] == [200, 200]
        for _, writer in begun:
            writer.close()

    run(holder, story, connections=2)


def test_more_than_can_wait_are_refused_and_the_rest_answered(holder: ModelHolder) -> None:
    """All in one piece on as many connections: none waits for ever, and none is left in the line."""

    async def story(server: Serving) -> None:
        answers = await asyncio.gather(*(server.exchange(WHOLE, end=True) for _ in range(40)))
        found = [parted(answer) for answer in answers]
        assert {status for status, _, _ in found} <= {200, 503}
        assert all(fields["retry-after"] == "1" for status, fields, _ in found if status == 503)
        assert server.app.queue.waiting == 0

    run(holder, story, waiting=0)


def test_a_large_answered_body_is_dropped_and_the_connection_goes_on(holder: ModelHolder) -> None:
    size = 3_000_000
    large = HEAD + b"Content-Length: %d\r\n\r\n" % size

    async def story(server: Serving) -> None:
        answer = await server.exchange(large, b" " * size, GET, end=True)
        assert parted(answer)[0] == 413
        assert answer.count(b"HTTP/1.1 200") == 1

    run(holder, story)


def test_a_body_without_room_is_answered_while_it_is_sent_and_its_connection_ends(
    holder: ModelHolder,
) -> None:
    """Who reads only after sending reads the answer, too."""
    body = b" " * 900_000
    begun = HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) + 5)

    async def story(server: Serving) -> None:
        server.app.infer.bodies.most = 1_000_000
        held_reader, held = await server.connect()
        held.write(begun + body)
        while server.app.infer.bodies.held < 800_000:
            await asyncio.sleep(0.01)
        answer = await server.exchange(begun, body, b" " * 5, GET)
        status, fields, told = parted(answer)
        assert (status, fields["connection"], fields["retry-after"]) == (503, "close", "1")
        assert (told["error"], answer.count(b"HTTP/1.1")) == ("overloaded", 1)
        held.write(b" " * 5)
        assert (await held_reader.readline()).startswith(b"HTTP/1.1 400")
        held.close()
        assert server.app.infer.bodies.held == 0

    run(holder, story)


def test_who_is_told_that_there_is_no_room_and_goes_leaves_nothing(holder: ModelHolder) -> None:
    async def story(server: Serving) -> None:
        server.app.infer.bodies.most = 0
        reader, writer = await server.connect()
        writer.write(HEAD + b"Content-Length: 900000\r\n\r\n" + b" " * 200_000)
        with logged("ERROR") as lines:
            assert (await reader.readline()).startswith(b"HTTP/1.1 503")
            writer.close()
            while server.connections:
                await asyncio.sleep(0.01)
        assert lines == []

    run(holder, story)


def test_a_connection_is_read_in_small_pieces(holder: ModelHolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody else waits while one piece is parsed, and it may be chunks of one byte each."""
    sizes: list[int] = []
    received = RuntimeProtocol.data_received

    def data_received(self: RuntimeProtocol, data: bytes) -> None:
        sizes.append(len(data))
        received(self, data)

    monkeypatch.setattr(RuntimeProtocol, "data_received", data_received)

    async def story(server: Serving) -> None:
        assert await server.exchange(WHOLE * 10, end=True)

    run(holder, story)
    assert sum(sizes) == 10 * len(WHOLE)
    assert max(sizes) <= READ_BYTES


def test_the_end_finishes_what_has_begun(holder: ModelHolder, tmp_path: Path, service: Service) -> None:
    async def story() -> None:
        async with serving(holder) as server:
            idle_reader, _ = await server.connect()
            reader, writer = await server.connect()
            writer.write(WHOLE[:-10])
            asked, asking = await server.connect()
            asking.write(GET)
            assert await asked.readline()  # What was sent before has been seen.
            ending = asyncio.get_running_loop().call_later(0.5, writer.write, WHOLE[-10:])
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        assert await idle_reader.read() == b""
        assert ending is not None

    asyncio.run(story())


def test_at_the_end_whose_body_does_not_come_hears_503(
    holder: ModelHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.worker.DRAIN_SECONDS", 2.1)
    told: list[tuple[bool, bool]] = []
    give_up = RuntimeProtocol.give_up

    def seen(self: RuntimeProtocol, *, whole: bool) -> None:
        give_up(self, whole=whole)
        told.append((whole, self.transport.is_closing()))

    monkeypatch.setattr(RuntimeProtocol, "give_up", seen)

    async def story() -> None:
        async with serving(holder) as server:
            reader, writer = await server.connect()
            writer.write(CUT_OFF)
            asked, asking = await server.connect()
            asking.write(GET)
            assert await asked.readline()  # What was sent before has been seen.
        answer = await reader.read()
        status, fields, body = parted(answer)
        assert (status, fields["retry-after"], body["error"]) == (503, "1", "shutting_down")
        assert (fields["x-request-id"], fields["connection"]) == ("mine", "close")
        assert answer.count(b"HTTP/1.1") == 1
        assert not server.connections
        assert told[0] == (False, False)  # What is still sent is read on: else a reset takes the answer away.
        writer.close()

    run_quietly(story)


@pytest.mark.parametrize("quits", [False, True])
def test_at_the_end_who_has_no_turn_any_more_hears_503(
    holder: ModelHolder, monkeypatch: pytest.MonkeyPatch, quits: bool
) -> None:
    monkeypatch.setattr("runtime.worker.DRAIN_SECONDS", 2.1)

    async def story() -> None:
        async with serving(holder) as server:
            begun, forever = asyncio.Event(), asyncio.Event()

            async def hangs(*_: object) -> None:
                begun.set()
                await forever.wait()

            monkeypatch.setattr(server.app.infer, "_several", hangs)
            batch = b'{"x": [%s]}' % b",".join([json.dumps(json.loads(GOOD)["x"]).encode()] * 2)
            reader, writer = await server.connect()
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(batch) + batch)
            await asyncio.wait_for(begun.wait(), 20)
            if quits:
                server.quit()
        status, fields, body = parted(await reader.read())
        assert (status, fields["retry-after"], body["error"]) == (503, "1", "shutting_down")
        writer.close()

    asyncio.run(story())


def run_quietly(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Nothing goes wrong by uvicorn's log, which is where it says so."""
    told: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    try:
        asyncio.run(story())
    finally:
        logger.removeHandler(handler)
    assert told == []


def test_at_the_end_what_only_the_kernel_has_accepted_is_answered(
    holder: ModelHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is connected has been promised something; the loop comes to it later than the signal."""
    peers: list[socket.socket] = []
    ports: list[int] = []
    on_tick = RuntimeServer.on_tick

    async def comes_at_the_end(self: RuntimeServer, counter: int) -> bool:
        ends = await on_tick(self, counter)
        if ends:  # From here on the loop does not run until the server listens no more.
            for _ in range(5):
                peers.append(socket.create_connection(("127.0.0.1", ports[0]), timeout=20))
                peers[-1].sendall(WHOLE)
        return ends

    monkeypatch.setattr(RuntimeServer, "on_tick", comes_at_the_end)

    async def story() -> None:
        async with serving(holder) as server:
            ports.append(server.port)

    asyncio.run(story())
    for peer in peers:
        with peer, peer.makefile("rb") as answer:
            status, fields, _ = parted(answer.read())
            assert (status, fields["connection"]) == (200, "close")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]), timeout=20)


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_the_sign_of_life_does_not_depend_on_the_wall_clock(
    holder: ModelHolder, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """A Pi learns from the network what time it is; the arbiter kills who gives no sign."""
    signs: list[bool] = []
    for name in ("gunicorn.error", "gunicorn.access", "uvicorn.error", "uvicorn.access"):
        for attribute in ("handlers", "level", "propagate"):
            monkeypatch.setattr(
                logging.getLogger(name), attribute, getattr(logging.getLogger(name), attribute)
            )

    async def story() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            settings = GunicornSettings()
            worker = RuntimeWorker(1, 1, [listener], None, 0, settings, GunicornLogger(settings))
            worker.wsgi = create_app(holder, RuntimeMetrics())
            monkeypatch.setattr(worker, "notify", lambda: signs.append(True))
            serving = asyncio.create_task(worker._serve())
            while not signs:
                await asyncio.sleep(0.01)
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + step)
            while len(signs) < 3:
                await asyncio.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)
            await serving
            worker.tmp.close()

    asyncio.run(asyncio.wait_for(story(), 20))


async def ask_until_last(server: Serving, begun: asyncio.Event, pause: float) -> int:
    """One request after the other, until the server says that it was the last; how many were answered."""
    reader, writer = await server.connect()
    answered = 0
    while True:
        writer.write(WHOLE)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).lower()
        # 503 where all eight waited for long, as while this process collects its garbage: an answer, too.
        assert head.split()[1] in (b"200", b"503")
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        answered += 1
        begun.set()
        if b"connection: close" in head:
            assert await reader.read() == b""
            writer.close()
            return answered
        await asyncio.sleep(pause)


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.4])
def test_at_the_end_nobody_who_asks_on_and_on_loses_a_request(holder: ModelHolder, pause: float) -> None:
    """Between two requests a connection is idle, and what comes then may be on its way already."""

    async def story() -> None:
        async with serving(holder) as server:
            begun = [asyncio.Event() for _ in range(8)]
            asking = [asyncio.create_task(ask_until_last(server, each, pause)) for each in begun]
            await asyncio.gather(*(each.wait() for each in begun))
        assert all(count > 1 for count in await asyncio.gather(*asking))

    asyncio.run(story())


def test_the_end_does_not_wait_for_who_was_silent_for_long(
    holder: ModelHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a chip, the next worker waits meanwhile."""
    looks: list[int] = []
    may_ask = RuntimeProtocol.may_ask

    def long_after(self: RuntimeProtocol, since: float) -> bool:
        looks.append(1)
        return may_ask(self, since + 60)

    monkeypatch.setattr(RuntimeProtocol, "may_ask", long_after)

    async def story() -> None:
        async with serving(holder) as server:
            reader, _ = await server.connect()
            while not server.connections:
                await asyncio.sleep(0.01)
        assert await reader.read() == b""

    asyncio.run(story())
    assert looks == [1]


def test_a_failure_at_one_connection_is_not_the_servers(
    holder: ModelHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was reset cannot be shut down; it was the end of the worker once."""
    looked: list[int] = []
    look = RuntimeProtocol.look

    def fails_first(self: RuntimeProtocol, now: float) -> None:
        looked.append(1)
        if len(looked) == 1:
            raise OSError(107, "Transport endpoint is not connected")
        look(self, now)

    monkeypatch.setattr(RuntimeProtocol, "look", fails_first)

    async def story(server: Serving) -> None:
        with logged("ERROR") as lines:
            assert await server.exchange(HEAD) == b""
        assert "not connected" in lines[0]["traceback"]
        assert parted(await server.exchange(WHOLE, end=True))[0] == 200

    run(holder, story)


def test_who_does_not_read_is_waited_for_and_not_kept_in_memory(holder: ModelHolder) -> None:
    """Hundreds of answers are due to it; the server holds a few, and reads no further requests meanwhile."""

    async def story(server: Serving) -> None:
        connections: set[Any] = server.connections
        with socket.create_connection(("127.0.0.1", server.port)) as peer:
            peer.setblocking(False)
            each = HEAD + b"A: " + b"a" * 1100 + b"\r\nContent-Length: 2\r\n\r\n{}"
            sent, request = 0, memoryview(each * 20_000)
            for _ in range(200):
                with contextlib.suppress(BlockingIOError):
                    sent += peer.send(request[sent:])
                await asyncio.sleep(0.01)
                assert connections, "given up though the bound is 30 s"
            (connection,) = connections
            assert sent < len(request)
            assert connection.transport.get_write_buffer_size() < 300_000
            assert len(connection.pipeline) < 100

    run(holder, story)


def test_an_answer_that_waits_at_the_first_look_is_not_given_up(holder: ModelHolder) -> None:
    """Its bound counts from when it was first seen to wait, not from the machine's start."""
    aborted: list[bool] = []

    class Full(asyncio.Transport):
        def get_write_buffer_size(self) -> int:
            return 100

        def abort(self) -> None:
            aborted.append(True)

        def is_closing(self) -> bool:
            return False

    async def story() -> None:
        app = create_app(holder, RuntimeMetrics())
        config = Config(app, log_config=None, **RuntimeWorker.CONFIG_KWARGS)
        config.load()
        connection = RuntimeProtocol(config, RuntimeServer(config).server_state, {})
        connection.transport = Full()
        now = perf_counter()
        connection.look(now)
        assert aborted == []
        connection.look(now + 31)
        assert aborted

    asyncio.run(story())


def test_a_turn_that_fails_ends_its_own_connection_only(
    holder: ModelHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours: its client hears that the connection is gone, and nobody else hears anything."""
    taken: list[int] = []
    take_turn = RuntimeProtocol.take_turn

    def fails_first(self: RuntimeProtocol, cycle: Any) -> None:
        taken.append(1)
        if len(taken) == 1:
            raise ValueError("a mistake of ours")
        take_turn(self, cycle)

    monkeypatch.setattr(RuntimeProtocol, "take_turn", fails_first)

    async def story(server: Serving) -> None:
        first, second = await server.connect(), await server.connect()
        with logged("ERROR") as lines:
            for _, writer in (first, second):
                writer.write(WHOLE)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(first[0].read(), 20) == b""
            assert (await asyncio.wait_for(second[0].readline(), 20)).startswith(b"HTTP/1.1 200")
        assert "a mistake of ours" in lines[0]["traceback"]
        second[1].close()

    run(holder, story)
    assert len(taken) == 2


def test_a_request_in_two_pieces_is_answered_as_one(holder: ModelHolder) -> None:
    """Whole or not: the two ways to an answer give the same but for the id and the time."""

    async def story(server: Serving) -> None:
        whole = parted(await server.exchange(WHOLE, end=True))
        reader, writer = await server.connect()
        writer.write(WHOLE[:-5])
        await asyncio.sleep(0.05)  # another piece, as far as a socket lets one tell
        writer.write(WHOLE[-5:])
        writer.write_eof()
        parts = parted(await asyncio.wait_for(reader.read(), 20))
        writer.close()
        for _, fields, _ in (whole, parts):
            del fields["server-timing"]
        assert whole == parts

    run(holder, story)
