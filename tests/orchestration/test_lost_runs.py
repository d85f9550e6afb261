"""A run whose worker is gone is marked, and no other one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from orchestration.lost_runs import lost_runs, works
from tests.simulators import wait_for

pytestmark = pytest.mark.build
WORKER = "import multiprocessing, time; time.sleep(600)"


def a_run(instance: dg.DagsterInstance, pid: int | None, *, by_server: bool = True) -> str:
    """A run at work, started by a code server as process ``pid``."""
    tags = {GRPC_INFO_TAG: "{}"} if by_server else {}
    run = create_run_for_test(instance, job_name="build", status=dg.DagsterRunStatus.STARTED, tags=tags)
    if pid is not None:
        said = f"Started process for run (pid: {pid})."
        instance.report_engine_event(said, run, EngineEventData.in_process(pid))
    return str(run.run_id)


def look(instance: dg.DagsterInstance) -> str:
    result = lost_runs(dg.build_sensor_context(instance))
    assert isinstance(result, dg.SkipReason)
    return str(result.skip_message)


def status(instance: dg.DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return str(run.status.value)


def test_a_run_is_marked_once_its_worker_is_gone() -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORKER])
    with dg.DagsterInstance.ephemeral() as instance:
        try:
            run = a_run(instance, worker.pid)
            wait_for(lambda: works(worker.pid), "its start")
            assert look(instance) == "every run at work has its worker"
            assert status(instance, run) == "STARTED"
            worker.kill()
            # A zombie is gone, too: nobody waits for it once Dagster's thread has ended.
            wait_for(lambda: not works(worker.pid), "its end")
            assert run in look(instance)
            assert status(instance, run) == "FAILURE"
        finally:
            worker.kill()
            worker.wait()


def test_another_process_with_its_id_is_not_its_worker() -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    with dg.DagsterInstance.ephemeral() as instance:
        try:
            run = a_run(instance, stranger.pid)
            cmdline = Path(f"/proc/{stranger.pid}/cmdline")
            wait_for(lambda: b"sleep" in cmdline.read_bytes(), "its start")
            look(instance)
            assert status(instance, run) == "FAILURE"
        finally:
            stranger.kill()
            stranger.wait()


def test_a_run_that_no_code_server_started_is_left_alone() -> None:
    """As those of ``orchestration.build``, which work in the build's own process."""
    with dg.DagsterInstance.ephemeral() as instance:
        run = a_run(instance, None)
        said = f"Executing steps in process (pid: {os.getpid()})"
        instance.report_engine_event(said, instance.get_run_by_id(run), EngineEventData.in_process(2**22))
        assert look(instance) == "every run at work has its worker"
        assert status(instance, run) == "STARTED"


def test_a_run_of_another_machine_is_left_alone() -> None:
    """A container's worker says the same words, and its process id means nothing here."""
    with dg.DagsterInstance.ephemeral() as instance:
        run = a_run(instance, 2**22, by_server=False)
        assert look(instance) == "every run at work has its worker"
        assert status(instance, run) == "STARTED"
