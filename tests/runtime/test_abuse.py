"""Bytes that no client of ours sends: refused or closed; nothing grows, and everybody else is answered."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.simulators import (
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


CASES: Final[dict[str, tuple[bytes, tuple[int, ...]]]] = {
    "no body": (post(b""), (400,)),
    "no JSON": (post(b"<xml/>"), (400,)),
    "wrong type": (post(GOOD, b"Content-Type: text/plain"), (415,)),
    "gzip": (post(gzip.compress(b"0" * 10_000_000), b"Content-Encoding: gzip"), (415,)),
    "gzip unnamed": (post(gzip.compress(GOOD)), (400,)),
    "missing key": (post(b"{}"), (400,)),
    "key twice": (post(GOOD[:-1] + b', "x": 1}'), (400,)),
    "further key": (post(GOOD[:-1] + b', "y": 1}'), (400,)),
    "ragged": (post(json.dumps({"x": [[0] * 9] * 99 + [[0] * 8]}).encode()), (400,)),
    "NaN": (post(GOOD.replace(b"[[", b"[[NaN, ", 1)), (400,)),
    "1e400": (post(GOOD.replace(b"[[", b"[[1e400, ", 1)), (400,)),
    "deep": (post(b'{"x":' + b"[" * 500_000), (400,)),
    "invalid UTF-8": (post(b'{"\xff\xfe": 1}'), (400,)),
    "NUL": (post(b"\0" * 100), (400,)),
    "too long": (post(b" " * 1_000_001), (413,)),
    "too long in chunks": (chunked(*[b" " * 100_000] * 11), (413,)),
    "chunks of one byte": (chunked(*[b" "] * 20_000), (400,)),
    "chunk size no number": (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", (400,)),
    "chunk size beyond": (POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n", (400,)),
    "length and chunks": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400,)),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", (400,)),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", (400,)),
    "huge length": (POST + b"Content-Length: 99999999999999999999\r\n\r\n", (400,)),
    "length beyond what is read": (POST + b"Content-Length: 5000000000\r\n\r\n", (413,)),
    "huge header": (GET + b"A: " + b"a" * 100_000 + b"\r\n\r\n", (431, 400)),
    "many headers": (GET + b"A: b\r\n" * 20_000 + b"\r\n", (431, 400)),
    "huge path": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (431, 400, 404)),
    "space in a header": (GET + b"A b: c\r\n\r\n", (400,)),
    "NUL in a header": (GET + b"A: b\0c\r\n\r\n", (400,)),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", (200,)),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", (400,)),
    "HTTP/9.9": (b"GET /healthz HTTP/9.9\r\n\r\n", (400,)),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100, (400,)),
    "absolute form": (b"GET http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n", (200, 404, 400)),
    "escaped path": (b"GET /%ff%00%2e%2e/healthz HTTP/1.1\r\nHost: x\r\n\r\n", (404,)),
    "other methods": (b"TRACE /infer HTTP/1.1\r\nHost: x\r\n\r\n", (405, 400)),
    "connect": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", (400, 404, 405)),
    "unknown method": (b"BREW /infer HTTP/1.1\r\nHost: x\r\n\r\n", (400, 405)),
    "websocket": (GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", (200,)),
    "h2c": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    "expectation": (POST + b"Expect: something\r\nContent-Length: 2\r\n\r\n{}", (400, 417)),
    "pipelined": (post(GOOD) * 5, (200,)),
    "batch with one bad": (post(b'{"x": [%s, [[1]]]}' % GOOD[6:-1]), (400,)),
}


def asked(port: int, data: bytes) -> int:
    """The first status; 0 where the connection was closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        with suppress(ConnectionError):
            peer.sendall(data)
        with suppress(ConnectionError, OSError):
            peer.shutdown(socket.SHUT_WR)
        received = b""
        with suppress(ConnectionError):
            while piece := peer.recv(65536):
                received += piece
    return int(received[9:12]) if received.startswith(b"HTTP/1.1 ") else 0


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


@pytest.mark.parametrize("name", CASES)
def test_each_is_refused_by_its_status(server: RuntimeServer, name: str) -> None:
    data, statuses = CASES[name]
    assert asked(server.port, data) in statuses
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert "Traceback" not in server.stderr


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


def everything(server: RuntimeServer) -> None:
    """All cases, and what takes its time or ends in a reset."""
    for data, _ in CASES.values():
        asked(server.port, data)
    slow = []
    for _ in range(60):
        peer = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        peer.sendall(POST[:10])
        slow.append(peer)
    for _ in range(60):
        peer = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        peer.sendall(post(GOOD)[:-5])
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # a reset
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
