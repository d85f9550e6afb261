"""``python -m orchestration.build``: materialize the whole chain once, here, with progress shown."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg

READY = "instance.ready"
"""In ``--report``: Dagster's databases are there, others may open them."""
RELEASES = "releases.json"
"""In ``--report``: target to the id of the release that this build published."""
ROOT = Path(__file__).resolve().parent.parent


def dagster_home() -> Path:
    """DAGSTER_HOME, or the project's own; made, with settings, where it is not there yet."""
    home = Path(os.environ.get("DAGSTER_HOME") or ROOT / "artifacts" / "dagster_home").resolve()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copy(ROOT / "orchestration" / "dagster.yaml", home / "dagster.yaml")
    return home


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for one build; a second one waits and says so.

    Two builds would take each other's latest products, and two that make Dagster's SQLite
    databases at once leave them with two migration heads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"  another build is at work in {folder}: waiting", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(report: Path | None) -> bool:
    """Materialize the chain in a locked home; whether every asset was made and no check blocked."""
    from dagster import DagsterInstance

    from orchestration.definitions import BUILD_DIR, build_canary, defs

    started = time.monotonic()
    with alone_in(Path(BUILD_DIR)), DagsterInstance.get() as instance:
        # Asking for a storage makes its database.
        for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
            assert storage is not None
        if report:
            (report / READY).touch()
        result = defs.resolve_job_def(build_canary.name).execute_in_process(
            instance=instance, raise_on_error=False, run_config={"loggers": {"progress": {}}}
        )
    if report:
        (report / RELEASES).write_text(json.dumps(published(result)))
    verdict = "built" if result.success else "FAILED"
    print(f"  {verdict} in {time.monotonic() - started:.1f} s, Dagster run {result.run_id}", flush=True)
    return result.success


def published(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Target to release id, from the materializations of a run."""
    releases = {}
    for event in result.all_events:
        if event.is_step_materialization:
            materialization = event.step_materialization_data.materialization
            target, *rest = materialization.asset_key.path
            if rest == ["canary_release"]:
                releases[target] = str(materialization.metadata["digest"].value)
    return releases


def main(argv: list[str] | None = None) -> int:
    """Build; 0 where every asset was made and every blocking check passed."""
    parser = argparse.ArgumentParser(prog="python -m orchestration.build", description=__doc__)
    parser.add_argument("--report", type=Path, help="a folder for what the caller wants to know")
    report = parser.parse_args(argv).report
    home = dagster_home()
    os.environ["DAGSTER_HOME"] = str(home)
    # Dagster announces its own renamings on every start; nobody here can act on them.
    warnings.filterwarnings("ignore", module="dagster")
    with alone_in(home):
        return 0 if build(report) else 1


if __name__ == "__main__":
    sys.exit(main())
