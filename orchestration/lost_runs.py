"""Marks runs whose worker is gone, where nobody else does.

Dagster's gRPC server looks after the workers that it started, in a thread that ends for good where a worker
dies while the database is away; a server that was started anew knows nothing of its predecessor's workers.
This sensor is evaluated in the server's process, on the machine where the workers are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import dagster as dg

LOOK_SECONDS: Final = 15
_STARTED: Final = "Started process for run"
"""How a worker tells that it began (``dagster/_grpc/impl.py``)."""
_BY_SERVER: Final = ".dagster/grpc_info"
"""Tag of runs that a gRPC server was asked to start; those of containers and clusters say the same words, and
their process ids are not of this machine."""


@dg.sensor(
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose worker is gone: killed while the database was away, or "
    "before the code server was started again.",
)
def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look at every run that is said to be at work."""
    lost = mark_lost(context.instance, lambda run: _started_here(context, run))
    return dg.SkipReason(
        f"marked as failed: {', '.join(lost)}" if lost else "every run at work has its worker"
    )


def mark_lost(instance: dg.DagsterInstance, started_here: Callable[[dg.DagsterRun], bool]) -> list[str]:
    """Mark runs whose worker is gone, of those whose worker would be a process of this machine.

    Returns:
        Their ids.
    """
    lost = []
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        pid = worker_of(instance, run.run_id) if started_here(run) else None
        if pid is None or works(pid):
            continue
        # Its last word before its end is how the run ended: asked again, now that it is gone.
        again = instance.get_run_by_id(run.run_id)
        if again is not None and not again.is_finished:
            instance.report_run_failed(again, f"its worker (process {pid}) is gone, and did not say why")
            lost.append(run.run_id)
    return lost


def by_a_local_server(run: dg.DagsterRun) -> bool:
    """Whether a code server of this very machine started it: one on a socket, as that of ``dagster dev``."""
    try:
        return bool(json.loads(run.tags.get(_BY_SERVER, "{}")).get("socket"))
    except ValueError:
        return False


def _started_here(context: dg.SensorEvaluationContext, run: dg.DagsterRun) -> bool:
    """Whether this code location's server was asked to start it; another one may be on another machine."""
    if _BY_SERVER not in run.tags:
        return False
    here, there = context.code_location_origin, run.remote_job_origin
    return here is None or there is None or here.location_name == there.location_name


def worker_of(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """Process id of a run's worker; None where no code server started one.

    A build of ``orchestration.build`` works in its own process, and is not ours to judge.
    """
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records
    for record in reversed(records):
        event = record.event_log_entry.dagster_event
        if event is None or not (event.message or "").startswith(_STARTED):
            continue
        if found := re.search(r"\(pid: (\d+)\)", event.message or ""):
            return int(found[1])
    return None


def works(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether the process is there, not a zombie, and a worker: ids are given out again."""
    try:
        command = (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False
    # A zombie has no command line. Workers are started by Python's multiprocessing.
    return b"multiprocessing" in command
