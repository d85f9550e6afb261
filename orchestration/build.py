"""``python -m orchestration.build``: materialize the whole chain once, here, with progress shown."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from pathlib import Path

READY = "instance.ready"
"""Touched in DAGSTER_HOME once its databases are there."""
ROOT = Path(__file__).resolve().parent.parent


def dagster_home() -> Path:
    """DAGSTER_HOME, or the project's own; made, with settings, where it is not there yet."""
    home = Path(os.environ.get("DAGSTER_HOME") or ROOT / "artifacts" / "dagster_home").resolve()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copy(ROOT / "orchestration" / "dagster.yaml", home / "dagster.yaml")
    return home


def main() -> int:
    """Build; 0 where every asset was made and every blocking check passed."""
    home = dagster_home()
    os.environ["DAGSTER_HOME"] = str(home)
    # Dagster announces its own renamings on every start; nobody here can act on them.
    warnings.filterwarnings("ignore", module="dagster")
    import dagster as dg

    from orchestration.definitions import build_canary, defs

    started = time.monotonic()
    with dg.DagsterInstance.get() as instance:
        # Two processes that make the SQLite databases at once leave them with two migration heads:
        # whoever else wants this instance waits for the mark.
        for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
            assert storage is not None
        (home / READY).touch()
        result = defs.resolve_job_def(build_canary.name).execute_in_process(
            instance=instance, raise_on_error=False, run_config={"loggers": {"progress": {}}}
        )
    verdict = "built" if result.success else "FAILED"
    print(f"  {verdict} in {time.monotonic() - started:.1f} s, Dagster run {result.run_id}", flush=True)
    return 0 if result.success else 1


if __name__ == "__main__":
    sys.exit(main())
