"""Who hears that a run failed: a real run, a real sensor evaluation, a real server."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_status_sensor_definition import RunStatusSensorCursor

from orchestration.notices import MOST_HOURS, MOST_POSTS, WAITS, NoticeError, failure_notice, notice_of, post
from orchestration.resources import failures
from runtime.contract.errors import StoreError
from tests.running import free_ports

pytestmark = pytest.mark.build


class Hook(HTTPServer):
    """Takes what is posted to it."""

    status = 200

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.posted: list[dict[str, Any]] = []
        self.refused: set[str] = set()


class Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Hook)
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refused = told["run_id"] in self.server.refused
        if not refused:
            self.server.posted.append(told)
        self.send_response(400 if refused else self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: Hook) -> Iterator[Hook]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(name="hook")
def a_hook() -> Iterator[Hook]:
    with serving(Hook(("127.0.0.1", 0), Taking)) as server:
        yield server


@dg.op
def full() -> None:
    with failures():
        raise StoreError("No space left on device", where="/store", hint="make room")


@dg.job(executor_def=dg.in_process_executor)
def build() -> None:
    full()


class Look:
    """The sensor as the daemon evaluates it: what it says is its next cursor."""

    def __init__(self, instance: dg.DagsterInstance, url: str, ui_url: str = "http://ui:3000") -> None:
        self.instance, self.now = instance, 1000.0
        self.slept: list[float] = []
        self.cursor: str | None = None
        self.sensor = failure_notice(url, ui_url, now=lambda: self.now, sleep=self.sleep)
        assert "from now on" in self.look()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def look(self) -> str:
        with dg.build_sensor_context(self.instance, self.cursor) as context:
            told = self.sensor.evaluate_tick(context)
        self.cursor = told.cursor
        assert not told.run_requests
        return told.skip_message or ""

    def fails(self) -> str:
        """A run that fails; its id."""
        return build.execute_in_process(instance=self.instance, raise_on_error=False).run_id


def address(port: int) -> str:
    return f"http://127.0.0.1:{port}/hooks/secret"


@pytest.fixture(name="instance")
def an_instance(caplog: pytest.LogCaptureFixture) -> Iterator[dg.DagsterInstance]:
    caplog.set_level(logging.ERROR, "orchestration.notices")
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_a_failed_run_is_posted_once_with_its_reason(
    hook: Hook, instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    look = Look(instance, address(hook.server_port))
    run_id = look.fails()
    assert look.look() == "told of 1"
    assert look.look() == "nobody to tell of a failure"
    (told,) = hook.posted
    assert told["text"].startswith("build failed at full: /store: No space left on device (make room)")
    assert (told["job"], told["run_id"], told["url"]) == ("build", run_id, f"http://ui:3000/runs/{run_id}")
    assert told["steps"][0]["step"] == "full"
    assert caplog.text.count(told["text"]) == 1


def test_without_an_address_the_log_says_it(
    instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    look = Look(instance, "", "")
    run_id = look.fails()
    assert look.look() == "1 failed, written to the log"
    assert "No space left on device" in caplog.text
    told = notice_of(instance, run_id)
    assert told is not None
    assert told["url"] == ""


def test_what_cannot_be_sent_is_sent_when_somebody_answers(
    instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is down first, then cannot, then takes it; the sensor's cursor is all that is kept."""
    (port,) = free_ports(1)
    look = Look(instance, address(port))
    runs = [look.fails()]
    assert f"1 not sent yet (127.0.0.1:{port}: nobody was told" in look.look()
    assert tuple(look.slept) == WAITS  # a new one is tried again at once, with growing waits
    runs.append(look.fails())
    assert "2 not sent yet" in look.look()
    assert tuple(look.slept) == WAITS  # nobody answers the oldest: the others are not tried either
    with serving(Hook(("127.0.0.1", port), Taking)) as hook:
        hook.status = 503
        assert "2 not sent yet" in look.look()
        hook.posted.clear()
        hook.status = 200
        assert look.look() == "told of 2"
        assert [each["run_id"] for each in hook.posted] == runs
        assert look.look() == "nobody to tell of a failure"
    assert "secret" not in caplog.text


def test_one_that_is_refused_keeps_no_other_from_being_sent(hook: Hook, instance: dg.DagsterInstance) -> None:
    look = Look(instance, address(hook.server_port))
    hook.refused = {look.fails()}
    sent = [look.fails() for _ in range(MOST_POSTS)]
    assert look.look().startswith(f"told of {MOST_POSTS - 1}; 2 not sent yet")
    assert look.look().startswith("told of 1; 1 not sent yet")
    assert look.slept == []  # its answer would be the same
    assert sorted(each["run_id"] for each in hook.posted) == sorted(sent)
    hook.refused = set()
    assert look.look() == "told of 1"


def test_what_nobody_takes_for_a_day_is_given_up_and_said(
    instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    look = Look(instance, address(port))
    first = look.fails()
    look.look()
    look.now += MOST_HOURS * 3600 - 1
    assert "1 not sent yet" in look.look()
    look.now += 1
    second = look.fails()
    assert "1 not sent yet" in look.look()
    assert f"given up: nobody was told that run {first} failed (tried for 24 hours)" in caplog.text
    monkeypatch.setattr("orchestration.notices.MOST_UNSENT", 2)
    third, fourth = look.fails(), look.fails()
    assert "2 not sent yet" in look.look()
    assert f"given up: nobody was told that run {second} failed (2 others wait)" in caplog.text
    with serving(Hook(("127.0.0.1", port), Taking)) as hook:
        assert look.look() == "told of 2"
        assert [each["run_id"] for each in hook.posted] == [third, fourth]


def test_the_memory_of_dagsters_own_failure_sensor_is_gone_on_from(
    hook: Hook, instance: dg.DagsterInstance
) -> None:
    look = Look(instance, address(hook.server_port))
    look.fails()
    look.look()
    newest = json.loads(look.cursor or "")["record_id"]
    theirs = RunStatusSensorCursor(record_id=newest - 1, update_timestamp=None)  # type: ignore[no-untyped-call]
    look.cursor = theirs.to_json()
    assert look.look() == "told of 1"


def test_what_belongs_to_a_run_that_was_deleted_is_forgotten(instance: dg.DagsterInstance) -> None:
    (port,) = free_ports(1)
    look = Look(instance, address(port))
    run_id = look.fails()
    look.look()
    instance.delete_run(run_id)
    assert look.look() == "nobody to tell of a failure"


def test_a_notice_that_nobody_takes_is_an_error_that_keeps_the_address(hook: Hook) -> None:
    hook.status = 500
    (port,) = free_ports(1)
    for url, words in (
        (f"http://127.0.0.1:{hook.server_port}/hooks/secret", "answered 500"),
        (f"http://127.0.0.1:{port}/hooks/secret", "refused"),
        ("file:///etc/secret", "no http address"),
        ("secret", "no http address"),
        ("http://127.0.0.1/hooks/secret x", "InvalidURL"),
    ):
        with pytest.raises(NoticeError) as caught:
            post(url, {"run_id": "r", "text": "t"})
        assert words in str(caught.value)
        assert "secret" not in str(caught.value)
