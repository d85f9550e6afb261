"""A load generator in a process of its own: closed loop, keep-alive, raw sockets.

``python -m bench.load PORT CONNECTIONS COUNT SECONDS BODY_FILE [ROUTE [octets]]`` prints one JSON object.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

WAIT_SECONDS = 10.0


@dataclass
class _Connection:
    socket: socket.socket
    sent_at: float = 0.0
    received: bytes = b""


def run(port: int, connections: int, count: int, seconds: float, request: bytes) -> dict[str, object]:
    """Send at most ``count`` requests for at most ``seconds``, one open request a connection.

    Returns:
        ``requests``, ``seconds``, ``wrong`` (answers other than 200) and ``latencies_ms``, sorted.

    Raises:
        TimeoutError: Nothing came for 10 s.
        ConnectionError: The server closed a connection.
    """
    selector = selectors.DefaultSelector()
    latencies: list[float] = []
    wrong = sent = 0
    begin = perf_counter()
    for _ in range(connections):
        peer = socket.create_connection(("127.0.0.1", port))
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(peer)
        selector.register(peer, selectors.EVENT_READ, connection)
        _send(connection, request)
        sent += 1
    while len(latencies) < sent:
        ready = selector.select(WAIT_SECONDS)
        if not ready:
            raise TimeoutError(f"nothing came for {WAIT_SECONDS:g} s")
        for key, _ in ready:
            status = _receive(key.data)
            if status is None:
                continue
            latencies.append((perf_counter() - key.data.sent_at) * 1000)
            wrong += status != 200
            if sent < count and perf_counter() - begin < seconds:
                _send(key.data, request)
                sent += 1
    elapsed = perf_counter() - begin
    for key in list(selector.get_map().values()):
        key.data.socket.close()
    return {
        "requests": len(latencies),
        "seconds": elapsed,
        "wrong": wrong,
        "latencies_ms": sorted(round(latency, 4) for latency in latencies),
    }


def _send(connection: _Connection, request: bytes) -> None:
    connection.sent_at = perf_counter()
    connection.received = b""
    connection.socket.sendall(request)


def _receive(connection: _Connection) -> int | None:
    """The status where the answer is complete, else None."""
    data = connection.socket.recv(65536)
    if not data:
        raise ConnectionError("the server closed a connection")
    connection.received += data
    head, blank, body = connection.received.partition(b"\r\n\r\n")
    if not blank:
        return None
    lower = head.lower()
    start = lower.index(b"content-length:") + 15
    length = int(lower[start:].split(b"\r\n", 1)[0])
    return int(head[9:12]) if len(body) >= length else None


def post_request(port: int, body: bytes, route: str = "/infer", kind: str = "application/json") -> bytes:
    """The bytes of one ``POST``, whose answer is asked for in kind."""
    head = (
        f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nAccept: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main(arguments: Sequence[str]) -> int:
    """Run one load and print what came."""
    port, connections, count, seconds, path, *rest = arguments
    kind = "application/octet-stream" if "octets" in rest[1:] else "application/json"
    request = post_request(int(port), Path(path).read_bytes(), rest[0] if rest else "/infer", kind)
    print(json.dumps(run(int(port), int(connections), int(count), float(seconds), request)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
