"""Bytes that no client of ours sends: refused or closed; nothing grows, and everybody else is answered."""

from __future__ import annotations

import gzip
import json
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import httpx
import pytest

from runtime.openapi import infer_errors
from tests.simulators import (
    ROOT,
    ReleaseSimulator,
    RuntimeServer,
    imu_windows,
    infer_body,
    running_server,
    wait_for,
)

GOOD: Final = infer_body(imu_windows(1, seed=2)[0])
POST: Final = b"POST /infer HTTP/1.1\r\nHost: x\r\n"
GET: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


def post(body: bytes, *fields: bytes) -> bytes:
    return b"".join(
        [POST, *(b"%s\r\n" % field for field in fields), b"Content-Length: %d\r\n\r\n" % len(body), body]
    )


def chunked(*chunks: bytes) -> bytes:
    parts = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    return b"".join([POST, b"Transfer-Encoding: chunked\r\n\r\n", *parts, b"0\r\n\r\n"])


def first(value: bytes) -> bytes:
    """A good body whose first number is another text."""
    return b'{"x":[[' + value + GOOD[GOOD.index(b",") :]


@dataclass(frozen=True)
class Case:
    """What is sent, the statuses of all answers in order, what the last one says, and its ``error``."""

    data: bytes
    statuses: tuple[int, ...]
    says: bytes = b""
    error: str = ""


WINDOW: Final = GOOD[GOOD.index(b"[") : -1]
CASES: Final[dict[str, Case]] = {
    "good": Case(post(GOOD), (200,), b'"latent"'),
    "no body": Case(post(b""), (400,), b"the body is empty", "invalid_json"),
    "no JSON": Case(post(b"<xml/>"), (400,), b"invalid character (byte 0)", "invalid_json"),
    "wrong type": Case(
        post(GOOD, b"Content-Type: text/plain"),
        (415,),
        b"content type 'text/plain'",
        "unsupported_media_type",
    ),
    "gzip": Case(
        post(gzip.compress(b"0" * 10_000_000), b"Content-Encoding: gzip"),
        (415,),
        b"content encoding 'gzip'",
        "unsupported_media_type",
    ),
    "gzip unnamed": Case(post(gzip.compress(GOOD)), (400,), b"invalid character (byte 0)", "invalid_json"),
    "missing key": Case(post(b"{}"), (400,), b"missing required field `x`", "invalid_body"),
    "key twice": Case(
        post(GOOD[:-1] + b', "x": []}'), (400,), b"x: the key is there more than once", "invalid_body"
    ),
    "further key": Case(post(GOOD[:-1] + b', "y": 1}'), (400,), b"unknown field `y`", "invalid_body"),
    "ragged": Case(
        post(json.dumps({"x": [[0] * 9] * 99 + [[0] * 8]}).encode()),
        (400,),
        b"x[99]: 8 values, expected 9",
        "window_shape",
    ),
    "NaN": Case(post(first(b"NaN")), (400,), b"x[0][0]: nan is not a finite float32", "window_value"),
    "Infinity": Case(
        post(first(b"-Infinity")), (400,), b"x[0][0]: -inf is not a finite float32", "window_value"
    ),
    "1e400": Case(post(first(b"1e400")), (400,), b"x[0][0]: Number out of range", "invalid_body"),
    "beyond float32": Case(
        post(first(b"1e39")), (400,), b"x[0][0]: 1e+39 is not a finite float32", "window_value"
    ),
    "boolean": Case(post(first(b"true")), (400,), b"x[0][0]: Expected `float`, got `bool`", "invalid_body"),
    "text": Case(post(first(b'"1"')), (400,), b"x[0][0]: Expected `float`, got `str`", "invalid_body"),
    "deep": Case(post(b'{"x":' + b"[" * 500_000), (400,), b"x: 500000 arrays", "invalid_body"),
    "invalid UTF-8": Case(post(b'{"\xff\xfe": 1}'), (400,), b"not UTF-8: invalid start byte", "invalid_json"),
    "NUL": Case(post(b"\0" * 100), (400,), b"invalid character (byte 0)", "invalid_json"),
    "too long": Case(post(b" " * 1_000_001), (413,), b"1000000 bytes", "too_large"),
    "too long in chunks": Case(chunked(*[b" " * 100_000] * 11), (413,), b"1000000 bytes", "too_large"),
    "chunks of one byte": Case(
        chunked(*[b" "] * 20_000), (400,), b"Input data was truncated", "invalid_json"
    ),
    "chunk extensions": Case(
        POST + b"Transfer-Encoding: chunked\r\n\r\n2;a=b;c\r\n{}\r\n0;d\r\n\r\n",
        (400,),
        b"missing required field `x`",
        "invalid_body",
    ),
    "trailers": Case(
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nA: b\r\n\r\n",
        (400,),
        b"missing required field `x`",
        "invalid_body",
    ),
    "chunk size no number": Case(
        POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        (400,),
        b"Invalid character in chunk size",
        "invalid_http",
    ),
    "chunk size beyond": Case(
        POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
        (400,),
        b"Chunk size overflow",
        "invalid_http",
    ),
    "length and chunks": Case(
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        (400,),
        b"Transfer-Encoding can't be present with Content-Length",
        "invalid_http",
    ),
    "two lengths": Case(
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        (400,),
        b"Duplicate Content-Length",
        "invalid_http",
    ),
    "negative length": Case(
        POST + b"Content-Length: -1\r\n\r\n", (400,), b"Invalid character in Content-Length", "invalid_http"
    ),
    "huge length": Case(
        POST + b"Content-Length: 99999999999999999999\r\n\r\n",
        (400,),
        b"Content-Length overflow",
        "invalid_http",
    ),
    "length beyond what is read": Case(
        POST + b"Content-Length: 5000000000\r\n\r\n", (413,), b"more than 1000000 bytes", "too_large"
    ),
    "length too short": Case(
        POST + b"Content-Length: %d\r\n\r\n" % (len(GOOD) - 5) + GOOD,
        (400,),
        b"Input data was truncated",
        "invalid_json",
    ),
    "huge header": Case(
        GET + b"A: " + b"a" * 100_000 + b"\r\n\r\n", (431,), b"more than 32768 bytes", "head_too_large"
    ),
    "many headers": Case(
        GET + b"A: b\r\n" * 20_000 + b"\r\n", (431,), b"more than 32768 bytes", "head_too_large"
    ),
    "huge path": Case(
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        (431,),
        b"more than 32768 bytes",
        "head_too_large",
    ),
    "space in a header": Case(GET + b"A b: c\r\n\r\n", (400,), b"Invalid header token", "invalid_http"),
    "folded header": Case(
        GET + b"A: b\r\n c\r\n\r\n", (400,), b"Unexpected whitespace after header value", "invalid_http"
    ),
    "bare line feeds": Case(
        b"GET /healthz HTTP/1.1\nHost: x\n\n", (400,), b"Expected CRLF after version", "invalid_http"
    ),
    "NUL in a header": Case(GET + b"A: b\0c\r\n\r\n", (400,), b"Invalid header value char", "invalid_http"),
    "HTTP/1.0": Case(b"GET /healthz HTTP/1.0\r\n\r\n", (200,), b'"ok":true'),
    "HTTP/0.9": Case(b"GET /healthz\r\n\r\n", (400,), b"neither HTTP/1.1 nor HTTP/1.0", "invalid_http"),
    "HTTP/9.9": Case(b"GET /healthz HTTP/9.9\r\n\r\n", (400,), b"Invalid HTTP version", "invalid_http"),
    "TLS": Case(
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
        (400,),
        b"Invalid method encountered",
        "invalid_http",
    ),
    "absolute form": Case(b"GET http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n", (200,), b'"ok":true'),
    "escaped path": Case(
        b"GET /%ff%00%2e%2e/healthz HTTP/1.1\r\nHost: x\r\n\r\n", (404,), b"/healthz: not found", "not_found"
    ),
    "TRACE": Case(
        b"TRACE /infer HTTP/1.1\r\nHost: x\r\n\r\n", (405,), b"allowed are POST", "method_not_allowed"
    ),
    "PUT": Case(post(GOOD).replace(b"POST", b"PUT", 1), (405,), b"allowed are POST", "method_not_allowed"),
    "PATCH": Case(
        post(GOOD).replace(b"POST", b"PATCH", 1), (405,), b"allowed are POST", "method_not_allowed"
    ),
    "DELETE": Case(
        b"DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", (405,), b"allowed are GET", "method_not_allowed"
    ),
    "OPTIONS": Case(b"OPTIONS /infer HTTP/1.1\r\nHost: x\r\n\r\n", (200,)),
    "connect": Case(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", (400,), b"no proxy", "invalid_http"),
    "unknown method": Case(
        b"BREW /infer HTTP/1.1\r\nHost: x\r\n\r\n", (400,), b"Invalid method encountered", "invalid_http"
    ),
    "websocket": Case(GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", (200,), b'"ok":true'),
    "h2c by upgrade": Case(
        GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        (200,),
        b'"ok":true',
    ),
    "h2c by upgrade, with a body": Case(
        post(GOOD, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        (200,),
        b'"latent"',
    ),
    "h2c": Case(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,), b"PRI/Upgrade", "invalid_http"),
    "expects to go on": Case(post(GOOD, b"Expect: 100-continue"), (200,), b'"latent"'),
    "expects something": Case(
        post(b"{}", b"Expect: something"), (400,), b"missing required field `x`", "invalid_body"
    ),
    "pipelined": Case(post(GOOD) * 5, (200,) * 5, b'"latent"'),
    "pipelined, one bad": Case(post(GOOD) + post(b"{}") + post(GOOD), (200, 400, 200), b'"latent"'),
    "batch with one bad": Case(
        post(b'{"x": [%s, [[1]]]}' % WINDOW), (400,), b"x[1]: 1 rows, expected 100", "window_shape"
    ),
    "batch with one NaN": Case(
        post(b'{"x": [%s, %s]}' % (WINDOW, first(b"NaN")[5:-1])),
        (400,),
        b"invalid character (byte 18348)",
        "invalid_json",
    ),
}


def asked(port: int, case: Case, *, ends: bool, piece: int = 0) -> list[tuple[int, bytes]]:
    """Status and body of each answer.

    Args:
        port: The server's.
        case: What is sent, and how many answers are due.
        ends: Say that no more is sent, and read until the server closes.
        piece: Bytes that are sent at a time; 0 for all at once.
    """
    answers: list[tuple[int, bytes]] = []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):
            for start in range(0, len(case.data), piece or len(case.data)):
                peer.sendall(case.data[start : start + (piece or len(case.data))])
        if ends:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
        stream = peer.makefile("rb")
        with suppress(ConnectionError):
            while ends or len(answers) < len(case.statuses):
                answer = one_answer(stream)
                if answer is None:
                    break
                answers.append(answer[:2])
    return answers


def one_answer(stream: IO[bytes]) -> tuple[int, bytes, bool] | None:
    """Its status, its body, and whether it says that the connection ends."""
    status = stream.readline()
    if not status:
        return None
    assert status.startswith(b"HTTP/1.1 ")
    length, ends = 0, False
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        ends = ends or line.lower() == b"connection: close\r\n"
    if status.startswith(b"HTTP/1.1 100"):
        return one_answer(stream)
    return int(status[9:12]), stream.read(length), ends


@contextmanager
def others(server: RuntimeServer) -> Iterator[list[str]]:
    """Somebody who asks meanwhile, and whom nothing of it may touch."""
    amiss: list[str] = []
    asked_for: list[int] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            while not done.wait(0.02):
                try:
                    answers = client.get("/healthz"), client.post("/infer", content=GOOD)
                except httpx.TransportError as error:
                    amiss.append(repr(error))
                    continue
                asked_for.append(len(answers))
                amiss.extend(each.text[:200] for each in answers if each.status_code != 200)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield amiss
    finally:
        done.set()
        asking.join()
    assert len(asked_for) > 20


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "stays"])
@pytest.mark.parametrize("name", CASES)
def test_each_is_answered_by_its_status_and_reason(server: RuntimeServer, name: str, ends: bool) -> None:
    case = CASES[name]
    answers = asked(server.port, case, ends=ends)
    assert tuple(status for status, _ in answers) == case.statuses
    assert case.says in answers[-1][1]
    assert case.error == (json.loads(answers[-1][1])["error"] if answers[-1][0] >= 400 else "")
    for status, body in answers:
        if status >= 400 and case.data.startswith(b"POST"):
            assert infer_errors()[json.loads(body)["error"]][0] == status
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize(
    "name", ["good", "key twice", "two lengths", "pipelined, one bad", "chunk extensions"]
)
def test_however_it_is_cut_the_answers_are_the_same(server: RuntimeServer, name: str) -> None:
    """The end of a request is not where a piece ends."""
    case = CASES[name]
    for piece in (1 if len(case.data) < 1000 else 997, 4096):
        answers = asked(server.port, case, ends=False, piece=piece)
        assert tuple(status for status, _ in answers) == case.statuses
        assert case.says in answers[-1][1]


BODY_TO_COME: Final = ("length beyond what is read",)
"""What is sent next is still its body."""


@pytest.mark.parametrize("name", sorted({*CASES} - {*BODY_TO_COME}))
def test_a_connection_is_good_for_the_next_request_or_says_that_it_ends(
    server: RuntimeServer, name: str
) -> None:
    """A pool keeps what is not said to end, and its next window must not be lost or read as another's."""
    case = CASES[name]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
        with suppress(ConnectionError):
            peer.sendall(case.data)
        stream = peer.makefile("rb")
        answers = [one_answer(stream) for _ in case.statuses]
        assert [answer and answer[0] for answer in answers] == list(case.statuses)
        last = answers[-1]
        assert last is not None
        if last[2]:
            with suppress(ConnectionError):
                assert stream.read() == b""
            return
        for _ in range(2):
            peer.sendall(post(GOOD))
            answer = one_answer(stream)
            assert answer is not None
            assert (answer[0], b'"latent"' in answer[1], answer[2]) == (200, True, False)


def test_a_window_that_comes_byte_by_byte_is_answered_as_any(server: RuntimeServer) -> None:
    octets = imu_windows(1, seed=2)[0].astype("<f4").tobytes()
    fields = (b"Content-Type: application/octet-stream", b"Accept: application/json")
    whole = asked(server.port, CASES["good"], ends=False)
    for data in (post(GOOD), chunked(GOOD), post(octets, *fields)):
        assert asked(server.port, Case(data, (200,)), ends=False, piece=1) == whole


def test_connections_that_a_pool_keeps_are_kept_and_keep_nobody_waiting(server: RuntimeServer) -> None:
    """500 that were used and are idle: others are answered, and so is each of them later."""
    with ExitStack() as stack, httpx.Client(base_url=server.url, timeout=20) as client:
        peers = []
        for _ in range(500):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            peer.sendall(GET + b"\r\n")
            peers.append((peer, stack.enter_context(peer.makefile("rb"))))
        assert [(one_answer(stream) or (0,))[0] for _, stream in peers] == [200] * 500
        for _ in range(20):
            assert client.get("/healthz").status_code == 200
            assert client.post("/infer", content=GOOD).status_code == 200
        for peer, _ in peers:
            peer.sendall(GET + b"\r\n")
        assert [(one_answer(stream) or (0,))[0] for _, stream in peers] == [200] * 500


def held(pid: int) -> tuple[int, int, int]:
    """Open files, threads, and resident MiB."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir())), pages * 4096 >> 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_grows_and_nobody_else_notices(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    with running_server(
        tmp_path, RELEASE_STORE=str(tmp_path), REQUEST_TIMEOUT="2", LOG_LEVEL="ERROR"
    ) as server:
        (worker,) = server.children()
        everything(server)
        before = held(worker)
        with others(server) as amiss:
            for _ in range(6):
                everything(server)
        wait_for(lambda: held(worker)[0] <= before[0] + 3, "connections that end")
        files, threads, mebibytes = held(worker)
        assert (files - before[0] <= 3, threads == before[1]) == (True, True)
        assert mebibytes - before[2] < 30
        assert amiss == []
        assert server.children() == [worker]
        assert "Traceback" not in server.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_silent_connections_and_dripped_requests_keep_nobody_waiting(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    with running_server(tmp_path, RELEASE_STORE=str(tmp_path), REQUEST_TIMEOUT="2") as server:
        (worker,) = server.children()
        before = held(worker)
        with others(server) as amiss:
            address = ("127.0.0.1", server.port)
            silent = [socket.create_connection(address, timeout=20) for _ in range(500)]
            with socket.create_connection(address, timeout=20) as peer:
                answer = b""
                peer.settimeout(0.05)
                for byte in post(GOOD):  # each byte is in time, and the whole is not
                    with suppress(TimeoutError):
                        answer = answer or peer.recv(100)
                    if answer:
                        break
                    peer.sendall(bytes([byte]))
            assert answer.startswith(b"HTTP/1.1 408")
            for peer in silent:
                peer.close()
        assert amiss == []
        wait_for(lambda: held(worker)[0] <= before[0] + 3, "connections that end")
        assert held(worker)[2] - before[2] < 30


@pytest.mark.parametrize(("hard", "soft"), [(1024, "1024"), (8192, "4096")])
def test_silent_connections_leave_files_for_everybody_else(tmp_path: Path, hard: int, soft: str) -> None:
    """Many containers begin with a soft limit of 1024; asyncio complains at length."""
    ReleaseSimulator().publish(tmp_path, "stable")
    settings = tmp_path / "settings.py"
    ours = ROOT / "runtime/gunicorn.conf.py"
    settings.write_text(
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, {hard}))\n"
        f"exec(compile(open({str(ours)!r}).read(), {str(ours)!r}, 'exec'))\n"
    )
    with ExitStack() as stack:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 4096), limits[1]))
        server = stack.enter_context(running_server(tmp_path, settings=settings, RELEASE_STORE=str(tmp_path)))
        (worker,) = server.children()
        files = Path(f"/proc/{worker}/limits").read_text().partition("Max open files")[2].split()
        assert files[:2] == [soft, str(hard)]
        kept = stack.enter_context(httpx.Client(base_url=server.url, timeout=20))
        assert kept.post("/infer", content=GOOD).status_code == 200
        for _ in range(1500):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        assert httpx.get(f"{server.url}/healthz", timeout=20).status_code == 200
        assert kept.post("/infer", content=GOOD).status_code == 200
        assert "out of system resource" not in server.stderr


def everything(server: RuntimeServer) -> None:
    """All cases, and what takes its time or ends in a reset."""
    for case in CASES.values():
        asked(server.port, case, ends=True)
    slow = []
    for _ in range(60):
        peer = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        peer.sendall(POST[:10])
        slow.append(peer)
    for number in range(120):
        peer = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        peer.sendall(post(GOOD)[: -5 if number % 2 else None])
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # a reset, before the end of a request and right after it
    for _ in range(100):
        socket.create_connection(("127.0.0.1", server.port), timeout=20).close()
    unread = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    with suppress(OSError):
        unread.settimeout(0.5)
        unread.sendall(post(GOOD) * 400)
    deadline = time.monotonic() + 20
    for peer in slow:  # a head that does not end is answered
        peer.settimeout(max(0.1, deadline - time.monotonic()))
        assert peer.recv(20).startswith(b"HTTP/1.1 408")
        peer.close()
    unread.close()
