"""Journeys against the real server: gunicorn in a process of its own, asked over TCP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.infer_body import MAX_BODY_BYTES
from tests.requirements import program
from tests.simulators import (
    ReleaseSimulator,
    RuntimeServer,
    imu_windows,
    infer_body,
    running_server,
    wait_for,
)

JSON = {"Content-Type": "application/json"}
BODY = infer_body(imu_windows(1, seed=2)[0])


def test_two_windows_over_one_connection(server: RuntimeServer) -> None:
    with httpx.Client(base_url=server.url) as client:
        answers = [
            client.post("/infer", content=infer_body(window), headers=JSON) for window in imu_windows(2)
        ]
    assert [answer.status_code for answer in answers] == [200, 200]
    latents = [answer.json()["latent"] for answer in answers]
    assert latents[0] != latents[1]
    assert len(latents[0]) == 64
    assert len(answers[0].json()["motif_scores"]) == 12
    assert answers[0].headers["x-release"] == httpx.get(f"{server.url}/healthz").json()["release"]


def test_one_worker_and_quiet_standard_output(server: RuntimeServer) -> None:
    assert len(server.children()) == 1
    for line in server.stdout.splitlines():
        json.loads(line)


def test_metrics_parse(server: RuntimeServer) -> None:
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.status_code == 200
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {"hailo_build_info", "hailo_model_loaded", "process_cpu_seconds"} <= names
    assert "\nhailo_model_loaded 1.0\n" in answer.text


@pytest.mark.needs("promtool")
def test_promtool_accepts_the_metrics(server: RuntimeServer) -> None:
    httpx.post(f"{server.url}/infer", content=BODY)
    text = httpx.get(f"{server.url}/metrics").content
    command = [str(program("promtool")), "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def raw(server: RuntimeServer, *pieces: bytes) -> tuple[int, str]:
    """Send bytes as they are; read one answer's status and text."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
        for piece in pieces:
            peer.sendall(piece)
        answer = http.client.HTTPResponse(peer)
        answer.begin()
        return answer.status, answer.read().decode()


CHUNKED = (
    b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_a_chunked_body_is_a_body(server: RuntimeServer) -> None:
    pieces = [chunk(BODY[start : start + 1000]) for start in range(0, len(BODY), 1000)]
    assert raw(server, CHUNKED, *pieces, b"0\r\n\r\n")[0] == 200


def test_the_limit_holds_for_chunked_bodies(server: RuntimeServer) -> None:
    (worker,) = server.children()
    before = resident_bytes(worker)
    sent = 6 * 1024 * 1024
    pieces = [chunk(b" " * 65536)] * (sent // 65536)
    status, text = raw(server, CHUNKED, *pieces, b"0\r\n\r\n")
    assert status == 413
    assert json.loads(text)["error"] == "too_large"
    assert resident_bytes(worker) - before < sent / 2


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_limit_holds_for_a_stated_length(server: RuntimeServer) -> None:
    assert httpx.post(f"{server.url}/infer", content=b" " * (MAX_BODY_BYTES + 1)).status_code == 413
    assert httpx.post(f"{server.url}/infer", content=BODY).status_code == 200


def test_who_asks_before_sending_is_answered(server: RuntimeServer) -> None:
    head = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(
        BODY
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
        peer.sendall(head)
        assert peer.recv(100).startswith(b"HTTP/1.1 100")
        peer.sendall(BODY)
        answer = http.client.HTTPResponse(peer)
        answer.begin()
        assert answer.status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
)
def test_abuse_is_refused_and_serving_goes_on(server: RuntimeServer, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
        try:
            peer.sendall(request_bytes)
            status = peer.recv(100)[:12]
        except ConnectionError:
            status = b""
    assert status == b"" or status.startswith(b"HTTP/1.1 4") or status.startswith(b"HTTP/1.1 505")
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_client_that_leaves_changes_nothing(server: RuntimeServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{")
    assert httpx.post(f"{server.url}/infer", content=BODY).status_code == 200


def test_a_body_that_does_not_come_is_answered_and_counted(tmp_path: Path) -> None:
    """As after 30 s, with a server that waits for 1 s."""
    ReleaseSimulator().publish(tmp_path, "stable")
    length = b" / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n"
    requests = {
        b"POST" + length.replace(b"/ ", b"/infer ", 1): 408,
        b"POST" + length: 408,
        b"GET" + length: 408,
        CHUNKED: 408,
        CHUNKED + chunk(BODY): 408,
        b"POST" + length.replace(b"/ ", b"/infer ", 1) + b'{"x": ': 408,
        b"GET /healthz HT": 408,
    }
    with running_server(tmp_path, REQUEST_TIMEOUT="1", RELEASE_STORE=str(tmp_path)) as server:
        peers = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in requests]
        for peer, request in zip(peers, requests, strict=True):
            peer.sendall(request)
        for peer, (request, status) in zip(peers, requests.items(), strict=True):
            answer = http.client.HTTPResponse(peer)
            answer.begin()
            assert (answer.status, answer.getheader("connection")) == (status, "close"), request
            assert {"error", "message"} <= json.loads(answer.read()).keys()
            assert peer.recv(1) == b""
            peer.close()
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'http_requests_total{route="/infer",status="408"} 4.0' in metrics
        assert 'http_requests_total{route="other",status="408"} 1.0' in metrics
        assert "Traceback" not in server.stderr
    lines = [json.loads(line) for line in server.stdout.splitlines()]
    assert [line["status"] for line in lines if line.get("status", 0) >= 400] == [408] * len(requests)


def test_an_idle_connection_is_used_again(server: RuntimeServer) -> None:
    """Longer than gunicorn's own default of 2 s; the minute is in ``test_a_minute_of_idleness``."""
    idle_for(server, 3)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_minute_of_idleness_is_no_reset(server: RuntimeServer) -> None:
    idle_for(server, 65)


def idle_for(server: RuntimeServer, seconds: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/infer", BODY, JSON)
    assert connection.getresponse().read()
    peer = connection.sock
    time.sleep(seconds)  # the passing of time is what is tested
    connection.request("POST", "/infer", BODY, JSON)
    assert connection.getresponse().status == 200
    assert connection.sock is peer
    connection.close()


def test_sigterm_drains_and_leaves_no_process(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    with running_server(tmp_path, RELEASE_STORE=str(tmp_path)) as server:
        (worker,) = server.children()
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = http.client.HTTPResponse(idle)
        answer.begin()
        assert (answer.status, bool(answer.read())) == (200, True)
        begun = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        head = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        begun.sendall(head + BODY[:100])
        # Answered by the same event loop: what was sent before has been seen.
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(4096) == b""  # closed by the worker, which so has heard the signal
        begun.sendall(BODY[100:])
        assert begun.recv(4096).startswith(b"HTTP/1.1 200")
        assert server.wait_until_ended() == 0
        # By itself: a worker that waits for its idle connections is killed instead.
        assert f"Worker exiting (pid: {worker})" in server.stderr
        assert "SIGKILL" not in server.stderr
        assert not Path(f"/proc/{worker}").exists()
        idle.close()
        begun.close()


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    with running_server(tmp_path, RELEASE_STORE=str(tmp_path)) as server:
        (worker,) = server.children()
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: server.children() not in ([], [worker]), "another worker")
        server.wait_until_answering()
        assert httpx.post(f"{server.url}/infer", content=BODY).status_code == 200


def test_many_clients_get_their_own_answers(server: RuntimeServer) -> None:
    windows = imu_windows(8, seed=13)
    expected = [httpx.post(f"{server.url}/infer", content=infer_body(w)).json() for w in windows]
    wrong: list[int] = []

    def ask(index: int) -> None:
        with httpx.Client(base_url=server.url) as client:
            for _ in range(20):
                answer = client.post("/infer", content=infer_body(windows[index]))
                if answer.status_code != 200 or answer.json() != expected[index]:
                    wrong.append(index)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(windows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
