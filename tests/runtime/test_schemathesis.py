"""Requests that a fuzzer makes from our own document, against the real server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.simulators import ReleaseSimulator, running_server

CHECKS = (
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.response_headers_conformance,
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_request_that_the_document_allows_or_forbids_breaks_it(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    with running_server(tmp_path, RELEASE_STORE=str(tmp_path), LOG_LEVEL="ERROR") as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        unhealthy: list[int] = []
        done = threading.Event()

        def ask() -> None:
            with httpx.Client() as client:
                while not done.wait(0.05):
                    status = client.get(f"{server.url}/healthz").status_code
                    unhealthy.extend([status] if status != 200 else [])

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for result in schema.get_all_operations():
                run(result.ok(), server.url)  # type: ignore[union-attr]
        finally:
            done.set()
            asking.join()
        assert unhealthy == []
        assert "Traceback" not in server.stderr
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def run(operation: Any, url: str) -> None:
    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(case=operation.as_strategy())
    def test(case: Any) -> None:
        case.validate_response(case.call(base_url=url), checks=CHECKS)

    test()
