"""What runs by itself: the weights are watched while Dagster's daemon runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import dagster as dg

from orchestration.chain import model_weights
from orchestration.resources import Places

LOOK_SECONDS: Final = 15
"""Seconds between two looks: what changed between them is still being copied."""
FRESH_SECONDS: Final = 20.0
REST_SECONDS: Final = 1.0

observe_weights = dg.define_asset_job(
    "observe_weights",
    selection=dg.AssetSelection.assets(model_weights.key),
    description="Look at the newest version folder of weights, and accept or refuse it.",
)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the sensor remembers: the state that it saw last, and the one that it had judged."""

    seen: str = ""
    judged: str = ""


def state_of(weights_dir: Path) -> str:
    """Digest of names, sizes and times of the files that a version folder below may hold.

    Contents are not read: a look costs a few system calls, also for large files on a network share.
    A file that vanishes meanwhile counts as gone.
    """
    lines = [
        f"{path.relative_to(weights_dir)} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        for path, status in _files(weights_dir)
    ]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _files(weights_dir: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in sorted({*weights_dir.glob("*"), *weights_dir.glob("*/*/*")}):
        with contextlib.suppress(FileNotFoundError):
            yield path, path.stat()


def wait_for_rest(weights_dir: Path, say: Callable[[str], None]) -> None:
    """Wait while a copy into the folder is under way; at once where nothing changed for a while."""
    newest = max((status.st_ctime for _, status in _files(weights_dir)), default=0.0)
    if abs(time.time() - newest) > FRESH_SECONDS:
        return
    before, now = "", state_of(weights_dir)
    while before != now:
        if before:
            say(f"files in {weights_dir} still change: waiting")
        before = now
        time.sleep(REST_SECONDS)
        now = state_of(weights_dir)


def look(watch: Watch, state: str) -> tuple[Watch, str]:
    """Compare a state with what was seen before.

    Returns:
        What to remember, and why nothing is to be judged now; empty where it is.
    """
    if state == watch.judged:
        return Watch(seen=state, judged=state), "nothing changed since the last observation"
    if state != watch.seen:
        return Watch(seen=state, judged=watch.judged), "changed just now: perhaps it is still being copied"
    return Watch(seen=state, judged=state), ""


@dg.sensor(
    job=observe_weights,
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Observes model_weights when a file in WEIGHTS_DIR changed and then stayed as it is.",
)
def weights_watch(context: dg.SensorEvaluationContext, places: Places) -> dg.SensorResult:
    """Ask for an observation once a changed folder has come to rest."""
    watch = Watch(**json.loads(context.cursor)) if context.cursor else Watch()
    watch, waits = look(watch, state_of(Path(places.weights_dir)))
    return dg.SensorResult(
        run_requests=[] if waits else [dg.RunRequest()],
        skip_reason=waits or None,
        cursor=json.dumps(asdict(watch)),
    )
