"""Lines of the log: written by a thread, sampled, and never waited for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.logs import configure_server_logging
from runtime.request_record import ERRORS_A_SECOND
from tests.runtime.service import Service, logged
from tests.runtime.test_infer_body import GOOD
from tests.simulators import ROOT

WRITER = """
import logging, sys
from runtime.logs import MOST_WAITING, configure_logging
log = configure_logging("INFO")
for number in range(int(sys.argv[1])):
    logging.getLogger("runtime.x").info("line %d " + "x" * 200, number)
print(log.dropped, file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stalls_is_not_waited_for(unbuffered: str) -> None:
    """A pipe holds 64 KiB; what was meant for it is dropped, counted, and the process ends in time."""
    read, write = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", WRITER, "5000"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    assert 2500 < int(done.stderr) < 5000
    os.close(write)
    os.close(read)


def test_what_was_said_before_the_end_is_written() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, "1500"], cwd=ROOT, capture_output=True, timeout=60, check=True
    )
    lines = [json.loads(line)["message"].split(" x")[0] for line in done.stdout.splitlines()]
    assert lines == [f"line {number}" for number in range(1500)]
    assert int(done.stderr) == 0


SERVER = """
import logging, sys
from runtime.logs import configure_server_logging
log = configure_server_logging()
for number in range(50_000):
    logging.getLogger("asyncio").error("no room %d " + "x" * 2000, number)
print("alive", flush=True)
"""


@pytest.mark.parametrize("read", [False, True])
def test_what_asyncio_says_is_sampled_and_not_waited_for(read: bool) -> None:
    """It may say it for each connection, and at the loop's expense."""
    stalled, write = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if read else write,
        timeout=60,
        check=True,
    )
    assert done.stdout == b"alive\n"
    if read:
        assert done.stderr.startswith(b"no room 0 ")
        assert done.stderr.count(b"no room") < 2000
    os.close(write)
    os.close(stalled)


def test_a_file_that_gunicorn_writes_stays_its(tmp_path: Path) -> None:
    names = ("gunicorn.error", "uvicorn.error", "")
    before = [logging.getLogger(name).handlers for name in names]
    file = logging.FileHandler(tmp_path / "log")
    try:
        logging.getLogger("gunicorn.error").handlers = [file]
        configure_server_logging().close()
        assert [logging.getLogger(name).handlers for name in names] == [[file]] * 3
    finally:
        file.close()
        for name, handlers in zip(names, before, strict=True):
            logging.getLogger(name).handlers = handlers


def test_successes_are_sampled_and_none_is_forgotten(service: Service) -> None:
    now = [100.0]
    counted = Service(service.holder, lambda: now[0])
    with logged("INFO") as lines:
        for _ in range(50):
            counted.post(GOOD)
        now[0] += 1.0
        counted.post(GOOD)
    assert [line.get("unlogged") for line in lines] == [None, 49]
    assert counted.sample("hailo_runtime_requests_total", route="/infer", status="200") == 51


def test_refusals_are_logged_up_to_a_bound(service: Service) -> None:
    now = [100.0]
    counted = Service(service.holder, lambda: now[0])
    with logged("INFO") as lines:
        counted.post(GOOD)
        for _ in range(50):
            counted.post(b"{")
        now[0] += 1.0
        counted.post(b"{")
    refused = [line for line in lines if line["status"] == 400]
    assert len(refused) == ERRORS_A_SECOND + 1
    assert refused[-1]["unlogged"] == 50 - ERRORS_A_SECOND


def test_no_request_is_formatted_that_is_not_written(service: Service) -> None:
    with logged("ERROR") as lines:
        service.post(GOOD)
        logging.getLogger("runtime.request").error("shown")
    assert [line["message"] for line in lines] == ["shown"]
