"""What a request leaves in the log and in the metrics."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import pytest

from runtime.contract.errors import DeviceInUseError, EngineError
from runtime.infer_body import read_body
from runtime.logs import JsonFormatter
from runtime.request_record import ERRORS_A_SECOND
from tests.runtime.service import Service, logged
from tests.runtime.test_infer_body import GOOD


def test_durations_are_seconds_in_metrics_and_milliseconds_in_logs(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests of 250 ms each, on a clock of our own: it only moves while a request runs."""
    now = [100.0]

    def take_long(body: bytes) -> object:
        now[0] += 0.25
        return read_body(body)

    monkeypatch.setattr("runtime.infer_endpoint.read_body", take_long)
    counted = Service(service.holder, lambda: now[0])
    with logged("INFO") as lines:
        counted.post(GOOD)
        counted.post(b"")
    name = "hailo_runtime_request_duration_seconds"
    assert [line["latency_ms"] for line in lines] == [250.0, 250.0]
    assert counted.sample(f"{name}_count", route="/infer") == 2
    assert counted.sample(f"{name}_sum", route="/infer") == 0.5
    assert counted.sample(f"{name}_bucket", route="/infer", le="0.1") == 0
    assert counted.sample(f"{name}_bucket", route="/infer", le="0.25") == 2


def lines_of(service: Service, level: str, *bodies: bytes) -> list[dict[str, Any]]:
    with logged(level) as lines:
        for body in bodies:
            service.post(body, headers={"X-Request-Id": "my-id"})
    return lines


def test_a_log_line_carries_what_is_not_utf_8() -> None:
    place = os.fsdecode(b"/store/\xff")
    try:
        raise FileNotFoundError(2, "No such file", place)
    except FileNotFoundError:
        record = logging.LogRecord("runtime", logging.ERROR, "", 0, "no %s", (place,), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "no /store/\\udcff"
    assert "FileNotFoundError" in line["traceback"]


def test_each_request_is_one_line_without_its_body(service: Service) -> None:
    lines = lines_of(service, "INFO", GOOD, b'{"secret": 1}')
    assert [line["status"] for line in lines] == [200, 400]
    assert lines[0]["request_id"] == "my-id"
    assert (lines[0]["method"], lines[0]["route"]) == ("POST", "/infer")
    assert lines[0]["release"] == service.holder.model.release_id  # type: ignore[union-attr]
    assert 0 < lines[0]["latency_ms"] < 10_000
    assert "secret" not in json.dumps(lines)


def test_the_log_level_is_respected(service: Service) -> None:
    assert lines_of(service, "WARNING", GOOD, b"") == []


def test_an_engine_that_fails_for_every_window_does_not_fill_the_disk(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise EngineError("broken", where="engine")

    monkeypatch.setattr(service.holder.model._engine, "infer", fail)  # type: ignore[union-attr]
    now = [100.0]
    failing = Service(service.holder, lambda: now[0])
    with logged("ERROR") as lines:
        for _ in range(100):
            assert failing.post(GOOD).status_code == 503
        now[0] += 1.0
        failing.post(GOOD)
    told = [line for line in lines if line["message"].startswith("engine:")]
    assert len(told) == ERRORS_A_SECOND + 1
    assert told[-1]["unlogged"] == 100 - ERRORS_A_SECOND


def test_a_chip_that_is_in_use_is_no_failure(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_use(*_: object) -> None:
        raise DeviceInUseError("a release that is loaded has the chip", where="device")

    monkeypatch.setattr(service.holder.model._engine, "infer", in_use)  # type: ignore[union-attr]
    asked = Service(service.holder)
    with logged("ERROR") as lines:
        answer = asked.post(GOOD)
    assert (answer.status_code, answer.json["error"], answer.headers["retry-after"]) == (
        503,
        "device_in_use",
        "1",
    )
    assert lines == []
    assert not asked.sample("hailo_runtime_engine_errors_total")
