"""Journeys against the real server: gunicorn in a process of its own, asked over TCP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.infer_body import MAX_BODY_BYTES
from tests.requirements import program
from tests.simulators import (
    ARTIFACT,
    ROOT,
    ReleaseSimulator,
    RuntimeServer,
    clean_environment,
    flip_bit,
    free_port,
    imu_windows,
    infer_body,
    running_server,
    wait_for,
)

JSON = {"Content-Type": "application/json"}
BODY = infer_body(imu_windows(1, seed=2)[0])


@pytest.fixture(name="server", scope="module")
def a_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeServer]:
    store = tmp_path_factory.mktemp("store")
    ReleaseSimulator().publish(store, "stable")
    with running_server(store, RELEASE_STORE=str(store), NUM_MOTIFS="12") as server:
        yield server


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
    pieces = [chunk(b" " * 65536)] * (4 * MAX_BODY_BYTES // 65536)
    status, text = raw(server, CHUNKED, *pieces, b"0\r\n\r\n")
    assert status == 413
    assert json.loads(text)["error"] == "too_large"
    assert resident_bytes(worker) - before < 3 * MAX_BODY_BYTES


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


def publish_nothing(store: Path) -> dict[str, str]:
    return {}


def name_a_bare_file(store: Path) -> dict[str, str]:
    (store / "bare.onnx").write_bytes(ReleaseSimulator().model)
    return {"HEF_PATH": str(store / "bare.onnx")}


def expect_other_motifs(store: Path) -> dict[str, str]:
    ReleaseSimulator(motifs=5).publish(store, "stable")
    return {"NUM_MOTIFS": "12"}


def publish_two_targets(store: Path) -> dict[str, str]:
    ReleaseSimulator().publish(store, "stable")
    ReleaseSimulator(target="hailo8", kind="hef").publish(store, "stable")
    return {}


def want_another_target(store: Path) -> dict[str, str]:
    return {"HEF_PATH": str(ReleaseSimulator().publish(store).directory), "TARGET": "hailo8l"}


def flip_one_bit(store: Path) -> dict[str, str]:
    flip_bit(ReleaseSimulator().publish(store, "stable").directory / ARTIFACT, 5000, 3)
    return {}


def compute_otherwise(store: Path) -> dict[str, str]:
    ReleaseSimulator(golden_offset=1.0).publish(store, "stable")
    return {}


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (publish_nothing, "no_release"),
        (name_a_bare_file, "no_manifest"),
        (expect_other_motifs, "num_motifs"),
        (publish_two_targets, "target_ambiguous"),
        (want_another_target, "target_mismatch"),
        (flip_one_bit, "digest_mismatch"),
        (compute_otherwise, "golden_mismatch"),
    ],
)
def test_each_reason_for_no_model_is_told(
    tmp_path: Path, prepare: Callable[[Path], dict[str, str]], reason: str
) -> None:
    environment = {"RELEASE_STORE": str(tmp_path), **prepare(tmp_path)}
    with running_server(tmp_path, **environment) as server:
        health = httpx.get(f"{server.url}/healthz")
        assert health.status_code == 503
        assert (health.json()["ok"], health.json()["reason"]) == (False, reason)
        answer = httpx.post(f"{server.url}/infer", content=BODY)
        assert answer.status_code == 503
        assert (answer.json()["error"], answer.json()["reason"]) == ("model_unavailable", reason)
        assert "hailo_model_loaded 0.0" in httpx.get(f"{server.url}/metrics").text
        assert "\nTraceback" not in server.stderr
    lines = [json.loads(line) for line in server.stdout.splitlines()]
    assert [line["reason"] for line in lines if line["level"] == "ERROR" and "reason" in line] == [reason]


def test_sigterm_drains_and_leaves_no_process(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    with running_server(tmp_path, RELEASE_STORE=str(tmp_path)) as server:
        (worker,) = server.children()
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        begun = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        head = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        begun.sendall(head + BODY[:100])
        # Answered by the same event loop: what was sent before has been seen.
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert idle.recv(4096) == b""  # closed by the worker, which so has heard the signal
        begun.sendall(BODY[100:])
        assert begun.recv(4096).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        assert server.wait_until_ended() == 0
        assert time.monotonic() - began < 6
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


def test_web_concurrency_does_not_add_workers(tmp_path: Path) -> None:
    with running_server(tmp_path, RELEASE_STORE=str(tmp_path), WEB_CONCURRENCY="4") as server:
        assert len(server.children()) == 1


def ended(logs: Path, **environment: str) -> tuple[int, list[str]]:
    """Start a server that cannot start; its exit code and what it says apart from gunicorn's INFO."""
    server = RuntimeServer(logs, **environment)
    code = server.wait_until_ended(20)
    return code, [line for line in server.stderr.splitlines() if "[INFO]" not in line]


def test_a_busy_port_is_one_line(tmp_path: Path, server: RuntimeServer) -> None:
    began = time.monotonic()
    code, lines = ended(tmp_path, PORT=str(server.port), RELEASE_STORE=str(tmp_path))
    assert code == 1
    assert len(lines) == 1
    assert f"127.0.0.1:{server.port}" in lines[0]
    assert "already in use" in lines[0]
    assert time.monotonic() - began < 4  # gunicorn itself repeats for 5 s


@pytest.mark.parametrize("port", ["0", "http", "70000"])
def test_a_wrong_setting_is_one_line(tmp_path: Path, port: str) -> None:
    code, lines = ended(tmp_path, PORT=port, LOG_LEVEL="LOUD")
    assert code == 1
    assert len(lines) == 1
    assert f"PORT={port!r}" in lines[0]
    assert "LOG_LEVEL='LOUD'" in lines[0]


def test_more_workers_by_command_line_are_refused(tmp_path: Path) -> None:
    code, lines = ended(tmp_path, GUNICORN_CMD_ARGS="--workers 3", RELEASE_STORE=str(tmp_path))
    assert code == 1
    assert len(lines) == 1
    assert "one process owns the chip" in lines[0]


def test_without_the_settings_file_a_wrong_value_still_ends_it(tmp_path: Path) -> None:
    """The app checks by itself: gunicorn gives up instead of starting workers for ever."""
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-b",
        f"127.0.0.1:{free_port()}",
        "-k",
        "asgi",
        "--no-control-socket",
    ]
    done = subprocess.run(
        [*command, "runtime.asgi:app"],
        cwd=ROOT,
        env=clean_environment() | {"NUM_MOTIFS": "many"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 3
    assert "NUM_MOTIFS='many'" in done.stderr
    assert "Traceback" not in done.stderr


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
