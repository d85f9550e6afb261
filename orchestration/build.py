"""``python -m orchestration.build``: materialize the whole chain once, here, with progress shown."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestration.settings import ROOT, BuildSettings
from runtime.contract.errors import PipelineError
from runtime.contract.files import write_document

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun, ExecuteInProcessResult

READY: Final = "instance.ready"
"""In ``--report``: Dagster's databases are there, others may open them."""
RELEASES: Final = "releases.json"
"""In ``--report``: target to the id of the release that this build published."""
REPORTS: Final = "reports.json"
"""In ``--report``: target to the parity report that this build wrote, also where it failed."""
INTERRUPTED: Final = 130
LOOK_SECONDS: Final = 1.0
"""Between two looks at who builds."""
OUR_SETTINGS: Final = "# Instance settings of "
"""How ``dagster.yaml`` begins, now and in earlier versions; what begins otherwise is somebody's own."""
OURS: Final = {"hailo-pipeline/by": "orchestration.build"}
"""Tag of the runs of this module."""


def make_home(home: Path) -> Path:
    """Make Dagster's home, with the project's settings; those that somebody wrote there stay."""
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    # A link is somebody's choice: the two-host settings are put there as one.
    ours = not settings.exists() or settings.read_text(errors="replace").startswith(OUR_SETTINGS)
    if ours and not settings.is_symlink():
        write_document(settings, (ROOT / "orchestration" / "dagster.yaml").read_bytes())
    return home


@contextlib.contextmanager
def alone_in(*folders: Path) -> Iterator[None]:
    """Hold folders for one build; a second build waits and says so.

    Two builds would take each other's latest products, and two that make Dagster's SQLite
    databases at once leave them with two migration heads.
    """
    with contextlib.ExitStack() as held:
        # Each once and always in the same order, so that no two builds wait for one another.
        for folder in sorted({folder.resolve() for folder in folders}):
            folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((folder / ".lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"  another build is at work in {folder}: waiting", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(report: Path | None) -> bool:
    """Observe the weights and materialize the chain; whether they were accepted and no check blocked."""
    from dagster import DagsterInstance

    from orchestration.automation import observe_weights, wait_for_rest
    from orchestration.definitions import SETTINGS, build_canary
    from orchestration.parity_view import REPORT_KEY

    started = time.monotonic()
    with DagsterInstance.get() as instance:
        # Asking for a storage makes its database.
        for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
            assert storage is not None
        end_interrupted(instance)
        if report:
            (report / READY).touch()
        wait_for_rest(SETTINGS.weights_dir, lambda line: print(f"  {line}", flush=True))
        result = run_job(observe_weights.name, instance)
        if result.success:
            wait_for_turn(instance)
            result = run_job(build_canary.name, instance)
    if report:
        (report / RELEASES).write_text(json.dumps(made(result, "canary_release", "digest")))
        (report / REPORTS).write_text(json.dumps(made(result, "parity_report", REPORT_KEY)))
    verdict = "built" if result.success else "FAILED"
    print(f"  {verdict} in {time.monotonic() - started:.1f} s, Dagster run {result.run_id}", flush=True)
    return result.success


def run_job(name: str, instance: DagsterInstance) -> ExecuteInProcessResult:
    """Run one of the code location's jobs here, with progress shown."""
    from orchestration.definitions import defs

    job = defs.resolve_job_def(name)
    return job.execute_in_process(
        instance=instance,
        raise_on_error=False,
        run_config={"loggers": {"progress": {}}},
        tags=OURS,
        # Named, so that the run says what it was to make: what fails here is not begun again by the daemon.
        asset_selection=list(job.asset_layer.executable_asset_keys),
    )


def wait_for_turn(instance: DagsterInstance) -> None:
    """Wait while a run that Dagster's daemon started builds in this home: what builds is in one pool.

    The daemon keeps its queue waiting for us by itself. What it starts between our last look and our run is
    not kept apart: then the lineage check is what refuses a mixture.
    """
    said = ""
    while holder := builder(instance):
        if holder.run_id != said:
            said = holder.run_id
            print(
                f"  run {holder.run_id} ({holder.job_name}) builds in this DAGSTER_HOME: waiting "
                "(cancel it in the UI where it is not to go on)",
                flush=True,
            )
        time.sleep(LOOK_SECONDS)


def builder(instance: DagsterInstance) -> DagsterRun | None:
    """The run that holds the pool of what builds; None where nobody does."""
    from dagster import DagsterRunStatus, RunsFilter

    from orchestration.chain import BUILDS

    # As Dagster's queue counts them: one that is queued, or only made, holds nothing.
    active = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    for run in instance.get_runs(RunsFilter(statuses=active)):
        if run.run_op_concurrency and BUILDS in (run.run_op_concurrency.all_pools or ()):
            return run
    return None


def end_interrupted(instance: DagsterInstance) -> None:
    """Mark builds as failed that were killed: nobody else would, and we hold their home alone.

    Also those of a ``dagster dev`` that is gone, for which we would wait.
    """
    from dagster import DagsterRunStatus, RunsFilter

    from orchestration.lost_runs import by_a_local_server, mark_lost

    mark_lost(instance, by_a_local_server)
    unfinished = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED]
    for run in instance.get_runs(RunsFilter(tags=OURS, statuses=unfinished)):
        instance.report_run_failed(run, "the build was killed before it ended")


def made(result: ExecuteInProcessResult, asset: str, entry: str) -> dict[str, str]:
    """Target to what the materializations of a target's asset say under ``entry``."""
    found = {}
    for event in result.all_events:
        if event.is_step_materialization:
            materialization = event.step_materialization_data.materialization
            target, *rest = materialization.asset_key.path
            if rest == [asset] and entry in materialization.metadata:
                found[target] = str(materialization.metadata[entry].value)
    return found


def main(argv: list[str] | None = None) -> int:
    """Build; 0 where every asset was made and every blocking check passed."""
    parser = argparse.ArgumentParser(prog="python -m orchestration.build", description=__doc__)
    parser.add_argument("--report", type=Path, help="a folder for what the caller wants to know")
    report = parser.parse_args(argv).report
    # Dagster announces its own renamings on every start; nobody here can act on them.
    warnings.filterwarnings("ignore", module="dagster")
    try:
        settings = BuildSettings.from_environment(os.environ)
        home = make_home(settings.dagster_home)
        os.environ["DAGSTER_HOME"] = str(home)
        with alone_in(home, settings.build_dir):
            return 0 if build(report) else 1
    except (PipelineError, OSError) as error:
        print(f"build: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
