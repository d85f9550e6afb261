"""What Prometheus and runtimes say, what is no answer, and what they cannot say."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from assets.canary_evidence import Histogram, observe
from assets.canary_source import NoEvidenceError, Prometheus, Runtimes, Sample, Source, fetched
from assets.canary_verdict import verdict_on
from runtime.contract.verdict import HOLD, PROMOTE, ROLL_BACK
from tests.canaries import DIGEST, OLD, POLICY, Change, Scene, Seen, judged, put, slow


@pytest.fixture(name="scene")
def a_scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_source_that_is_down_holds(scene: Scene) -> None:
    def down() -> Source:
        raise NoEvidenceError("does not answer", where="http://127.0.0.1:1")

    found = verdict_on(scene.store, "emulator", down, POLICY, DIGEST)
    assert found is not None
    assert found[1].decision == HOLD
    assert "does not answer" in found[1].reasons()[0]


def test_whatever_goes_wrong_in_a_source_holds(scene: Scene) -> None:
    def broken() -> Source:
        raise ZeroDivisionError("a mistake")

    found = verdict_on(scene.store, "emulator", broken, POLICY, DIGEST)
    assert found is not None
    assert found[1].decision == HOLD
    assert "ZeroDivisionError: a mistake" in found[1].reasons()[0]


RECORDED: dict[str, Any] = {
    "error": {"status": "error", "errorType": "bad_data", "error": "parse error"},
    "a matrix": {"status": "success", "data": {"resultType": "matrix", "result": []}},
    "no data": {"status": "success"},
    "no value": {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}}]}},
    "text": {
        "status": "success",
        "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "x"]}]},
    },
    "a list": [],
}


@pytest.mark.parametrize("name", RECORDED)
def test_an_answer_of_prometheus_that_is_none_is_no_evidence(scene: Scene, name: str) -> None:
    def get(url: str) -> bytes:
        return json.dumps(RECORDED[name]).encode()

    found = verdict_on(scene.store, "emulator", lambda: Prometheus("http://p", 60, get=get), POLICY, DIGEST)
    assert found is not None
    assert found[1].decision == HOLD


def test_prometheus_is_asked_for_this_release_and_job_only() -> None:
    asked: list[str] = []

    def get(url: str) -> bytes:
        asked.append(url)
        return json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}).encode()

    Prometheus("http://p/", 2, 'a"b', get).counted("x_total", "c" * 64)
    query = (
        "max_over_time%28x_total%7Bjob%3D%22a%5C%22b%22%2Crelease%3D%22" + "c" * 64 + "%22%7D%5B120s%5D%29"
    )
    assert asked == [f"http://p/api/v1/query?query={query}"]


def test_every_runtime_must_answer() -> None:
    def get(url: str) -> bytes:
        if "second" in url:
            raise NoEvidenceError("does not answer", where=url)
        return b'x_total{release="a"} 3\n'

    assert Runtimes(["http://first"], get).counted("x_total", "a")[0].value == 3
    with pytest.raises(NoEvidenceError):
        Runtimes(["http://first", "http://second"], get)
    with pytest.raises(NoEvidenceError):
        Runtimes(["http://first"], lambda url: b"x{ 3")


def test_a_quantile_lies_within_its_bucket() -> None:
    found = Histogram((0.1, 0.2, math.inf), (50, 100, 100))
    assert found.quantile(0.5) == pytest.approx(0.1)
    assert found.quantile(0.75) == pytest.approx(0.15)
    assert Histogram((0.1, math.inf), (0, 3)).quantile(0.5) == math.inf
    assert Histogram().quantile(0.5) is None
    assert (found.above(0.1), found.above(0.2), found.above(0.15)) == (50, 0, None)
    assert (found.surely_above(0.15), Histogram().surely_above(0.15)) == (0, 0)


@contextlib.contextmanager
def a_server(*pieces: bytes, goes_on: bool = False) -> Iterator[str]:
    """Answers each connection with these bytes, and closes it or, byte by byte, never ends; its address."""
    done = threading.Event()

    def answer(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.recv(65536)
            for piece in pieces:
                peer.sendall(piece)
            while goes_on and not done.wait(0.02):
                peer.sendall(b"x")

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


OK_HEAD = b"HTTP/1.1 200 OK\r\n"
NO_ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n",
    "a header without end": OK_HEAD + b"X: " + b"a" * 70000 + b"\r\n\r\n",
    "a chunk that is cut": OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n100\r\nabc",
    "a page that is cut": OK_HEAD + b"Content-Length: 20000\r\n\r\nx_total 1\n",
    "an error": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nno\n",
    "somewhere else": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_whole_page_is_no_evidence(name: str) -> None:
    with a_server(NO_ANSWERS[name]) as url:
        for source in (lambda: Prometheus(url, 60), lambda: Runtimes([url])):
            assert observe(source, "a" * 64, "b" * 64).problems
        with pytest.raises(NoEvidenceError):
            fetched(url)


@pytest.mark.parametrize(
    "document", [b"[" * 200_000, b'{"status":"success","data":null}', b"[]", b"7", b'"x"']
)
def test_json_that_is_no_answer_is_no_evidence(document: bytes) -> None:
    with a_server(OK_HEAD + b"\r\n" + document) as url:
        assert observe(lambda: Prometheus(url, 60), "a" * 64, "b" * 64).problems


@pytest.mark.parametrize("head", [OK_HEAD + b"X: ", OK_HEAD + b"\r\n"], ids=["headers", "body"])
def test_a_page_that_trickles_is_cut(head: bytes) -> None:
    """Each byte in time, and the page never: a timeout of the socket alone would wait for ever."""
    with a_server(head, goes_on=True) as url, pytest.raises(NoEvidenceError, match=r"whole|not within"):
        fetched(url, 0.3)


@pytest.mark.parametrize("url", ["ftp://x/", "here", "http://", "http://127.0.0.1:port/", "http://[::1"])
def test_what_is_no_address_is_no_evidence(url: str) -> None:
    with pytest.raises(NoEvidenceError):
        fetched(url)


def test_a_prometheus_that_takes_long_for_each_answer_is_not_asked_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("assets.canary_source.ALL_SECONDS", -1.0)
    seen = observe(lambda: Seen("a" * 64, "").source, "a" * 64, "")
    assert "for its answers" in seen.problems[0]


SERVED_SECONDS, RUNNING = "hailo_release_served_seconds", "hailo_shadow_running"
ELSEWHERE = {"job": "hailo", "instance": "pi-b:9000"}
GAPS: dict[str, tuple[Change, str]] = {
    "down": (put("up", 0, **ELSEWHERE), "hailo pi-b:9000 is down"),
    "no longer serves it": (
        lambda seen: seen.had(SERVED_SECONDS, 90, release=seen.canary, channel="canary", **ELSEWHERE),
        "hailo pi-b:9000 ran it, and does not now",
    ),
    "no longer runs it beside stable": (
        lambda seen: seen.had(RUNNING, 1, release=seen.canary, against=seen.stable, **ELSEWHERE),
        "hailo pi-b:9000 ran it, and does not now",
    ),
    "another process": (
        lambda seen: seen.functions.update({"process_start_time_seconds": [Sample({}, 1)]}),
        "hailo pi-a:9000 restarted",
    ),
    "counters that began anew": (
        lambda seen: seen.functions.update(
            {"hailo_shadow_windows_total": [Sample({"release": seen.canary}, 1)]}
        ),
        "hailo pi-a:9000 restarted",
    ),
}


@pytest.mark.parametrize("name", GAPS)
def test_what_was_counted_and_cannot_be_seen_holds(scene: Scene, name: str) -> None:
    """Of each counter the most is taken: a restart would leave the late windows of the run before out."""
    change, told = GAPS[name]
    seen = scene.seen(served=True)
    change(seen)
    _, verdict, _ = judged(scene, seen)
    assert verdict.decision == HOLD
    assert any(told in reason for reason in verdict.reasons()), verdict.reasons()
    slow(seen)
    assert scene.decision(seen)[0] == ROLL_BACK  # what is broken is broken all the same


def test_what_others_do_is_no_gap(scene: Scene) -> None:
    seen = scene.seen(served=True)
    put("up", 0, job="node", instance="pi-c:9100")(seen)
    seen.had(SERVED_SECONDS, 90, release=scene.canary.id, channel="stable", **ELSEWHERE)
    seen.had(RUNNING, 0, release="", against="", **ELSEWHERE)
    seen.functions["process_start_time_seconds"] = [
        Sample({"instance": "pi-c:9100"}, 3),
        Sample({}, 0),
    ]
    assert scene.decision(seen)[0] == PROMOTE


def test_nothing_older_than_canarys_entry_is_asked_for(scene: Scene) -> None:
    seen = scene.seen()
    scene.decision(seen, age=timedelta(minutes=7))
    assert any("[420s]" in query for query in seen.asked)
    assert not any("[3600s]" in query for query in seen.asked)
    scene.decision(seen, age=OLD)
    assert any("[3600s]" in query for query in seen.asked)
