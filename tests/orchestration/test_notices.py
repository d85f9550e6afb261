"""Who hears that a run failed: a real run, a real sensor evaluation, a real server."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest

from orchestration.notices import NoticeError, failure_notice, notice_of, post
from orchestration.resources import failures
from runtime.contract.errors import StoreError
from tests.running import free_ports

pytestmark = pytest.mark.build


class Hook(HTTPServer):
    """Takes what is posted to it."""

    status = 200
    posted: list[dict[str, Any]]


class Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Hook)
        self.server.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(name="hook")
def a_hook() -> Iterator[Hook]:
    with Hook(("127.0.0.1", 0), Taking) as server:
        server.posted = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@dg.op
def full() -> None:
    with failures():
        raise StoreError("No space left on device", where="/store", hint="make room")


@dg.job(executor_def=dg.in_process_executor)
def build() -> None:
    full()


def context_of_a_failed_run(instance: dg.DagsterInstance) -> dg.RunFailureSensorContext:
    result = build.execute_in_process(instance=instance, raise_on_error=False)
    failed = next(event for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE")
    return dg.build_run_status_sensor_context(
        sensor_name="failure_notice",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=failed,
    ).for_run_failure()


def test_a_failed_run_is_posted_with_its_reason(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    url = f"http://127.0.0.1:{hook.server_port}/hooks/secret"
    with dg.DagsterInstance.ephemeral() as instance, caplog.at_level(logging.ERROR, "orchestration.notices"):
        context = context_of_a_failed_run(instance)
        failure_notice(url, "http://ui:3000")(context)
    (told,) = hook.posted
    run_id = context.dagster_run.run_id
    assert told["text"].startswith("build failed at full: /store: No space left on device (make room)")
    assert (told["job"], told["run_id"], told["url"]) == ("build", run_id, f"http://ui:3000/runs/{run_id}")
    assert told["steps"][0]["step"] == "full"
    assert told["text"] in caplog.text


def test_without_an_address_the_log_says_it(caplog: pytest.LogCaptureFixture) -> None:
    with dg.DagsterInstance.ephemeral() as instance, caplog.at_level(logging.ERROR, "orchestration.notices"):
        context = context_of_a_failed_run(instance)
        failure_notice("", "")(context)
        assert notice_of(context)["url"] == ""
    assert "No space left on device" in caplog.text


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
