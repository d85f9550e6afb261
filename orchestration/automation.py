"""What runs by itself while Dagster's daemon does: folders are watched, and what changed is made anew."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dagster as dg

from assets.version_folder import ANY_WEIGHTS, DECIDING, TELLING
from orchestration.chain import calibration_set, model_weights
from orchestration.conditions import DATA_VERSION_TAG
from orchestration.resources import Places
from runtime.contract.errors import WeightsError

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition as JobLike,
    )

LOOK_SECONDS: Final = 15
"""Seconds between two looks: what changed between them is still being copied."""
MOST_ATTEMPTS: Final = 3
"""Observations of one state that fail: the disk may have been full, or the weights are refused."""
STATE_TAG: Final = "hailo-pipeline/state"
"""Of runs that a watcher asked for: the state of the folder that it saw."""
FRESH_SECONDS: Final = 20.0
INPUTS_TAG: Final = "hailo-pipeline/inputs"
"""Of runs of ``nightly_build``: digest of what they began with."""
UNFINISHED: Final = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
)
WINDOW_FILES: Final = (".npz", ".json")
REST_LOOKS: Final = 5
"""Looks in a row, a second apart, that must show the same before a build takes it."""
MOST_LOOKS: Final = 600

observe_weights = dg.define_asset_job(
    "observe_weights",
    selection=dg.AssetSelection.assets(model_weights.key),
    description="Look at the newest version folder of weights, and accept or refuse it.",
)
read_windows = dg.define_asset_job(
    "read_windows",
    selection=dg.AssetSelection.assets(calibration_set.key),
    description="Read the window sets in CALIB_DIR, and accept or refuse them.",
)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the sensor remembers: the state that it saw last, the one that it had judged, and how often."""

    seen: str = ""
    judged: str = ""
    attempts: int = 0


def state_of(weights_dir: Path) -> str:
    """Digest of names, sizes and times of the files that a version folder below may hold.

    Contents are not read: a look costs a few system calls, also for large files on a network share.
    Other files do not count: a log that grows beside the weights keeps nobody waiting.
    """
    return _digest(_files(weights_dir))


def windows_state_of(calib_dir: Path) -> str:
    """The same of the files that hold the window sets, and of their index."""
    paths = (path for path in sorted(calib_dir.glob("*")) if path.suffix in WINDOW_FILES)
    return _digest({path.name: _found(path) for path in paths})


def _digest(files: Mapping[str, str]) -> str:
    lines = [f"{path} {found}" for path, found in files.items()]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _files(weights_dir: Path) -> dict[str, str]:
    """Size, time and inode of each file that an observation would read; an error where it has none."""
    return {str(path.relative_to(weights_dir)): _found(path) for path in _paths(weights_dir)}


def _paths(weights_dir: Path) -> Iterator[Path]:
    for path in sorted({*weights_dir.glob("*"), *weights_dir.glob("*/*/*")}):
        if path.suffix.lower() in ANY_WEIGHTS or path.name in (*DECIDING, *TELLING):
            yield path


def _found(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"error {error.errno}"  # gone meanwhile, or a link that leads nowhere: a state like any other
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _changed_at(path: Path) -> float:
    try:
        # Not the time of modification, which `cp -p` and rsync bring along.
        return path.lstat().st_ctime
    except OSError:
        return 0.0


def wait_for_rest(
    weights_dir: Path,
    say: Callable[[str], None],
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait while a copy into the folder is under way; at once where nothing changed for a while.

    Raises:
        WeightsError: A file still changes after ``MOST_LOOKS`` seconds; names it.
    """
    newest = max(map(_changed_at, _paths(weights_dir)), default=0.0)
    if now() - newest > FRESH_SECONDS:  # a clock that is ahead counts as fresh
        return
    say(f"{weights_dir} changed just now: waiting until it stays as it is")
    files, quiet, changing = _files(weights_dir), 0, ""
    for _ in range(MOST_LOOKS):
        sleep(1.0)
        later = _files(weights_dir)
        differing = sorted(name for name in {*files, *later} if files.get(name) != later.get(name))
        quiet = 0 if differing else quiet + 1
        changing = differing[0] if differing else changing
        files = later
        if quiet == REST_LOOKS:
            return
    raise WeightsError(
        f"still changes after {MOST_LOOKS} s",
        where=str(weights_dir / changing),
        hint="let the copy end first",
    )


def look(watch: Watch, state: str, outcome: str) -> tuple[Watch, str]:
    """Compare a state with what was seen before.

    Args:
        watch: What was remembered.
        state: What is there now.
        outcome: What became of the observation of this state: ``succeeded``, ``failed``, ``runs``, or
            empty where there is none.

    Returns:
        What to remember, and why nothing is to be judged now; empty where it is.
    """
    seen = replace(watch, seen=state)
    if state != watch.judged:
        if state != watch.seen:
            return seen, "changed just now: perhaps it is still being copied"
        return Watch(seen=state, judged=state, attempts=1), ""
    if outcome in ("failed", "") and watch.attempts < MOST_ATTEMPTS:
        return replace(seen, attempts=watch.attempts + 1), ""
    if outcome == "failed":
        return seen, f"looking at it failed {watch.attempts} times: see the failed runs"
    return seen, "it is being looked at" if outcome == "runs" else "nothing changed since it was looked at"


def outcome_of(instance: dg.DagsterInstance, state: str) -> str:
    """What became of the latest observation of a state, in the words of ``look``."""
    found = instance.get_runs(dg.RunsFilter(tags={STATE_TAG: state}), limit=1)
    if not found:
        return ""
    if not found[0].is_finished:
        return "runs"
    return "succeeded" if found[0].is_success else "failed"


@dg.sensor(
    job=observe_weights,
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Observes model_weights when a file in WEIGHTS_DIR changed and then stayed as it is.",
)
def weights_watch(context: dg.SensorEvaluationContext, places: Places) -> dg.SensorResult:
    """Ask for an observation once a changed folder has come to rest."""
    return _watched(context, state_of(Path(places.weights_dir)))


@dg.sensor(
    job=read_windows,
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reads calibration_set anew when a file in CALIB_DIR changed and then stayed as it is.",
)
def calibration_watch(context: dg.SensorEvaluationContext, places: Places) -> dg.SensorResult:
    """Ask for the window sets to be read once a changed folder has come to rest."""
    return _watched(context, windows_state_of(Path(places.calib_dir)))


def rebuild_what_changed(builds: str) -> dg.AutomationConditionSensorDefinition:
    """Makes what changed, at once; ``builds`` is one of ``settings.BUILD_TIMES``."""
    running, stopped = dg.DefaultSensorStatus.RUNNING, dg.DefaultSensorStatus.STOPPED
    return dg.AutomationConditionSensorDefinition(
        "rebuild_what_changed",
        target=dg.AssetSelection.all(),
        minimum_interval_seconds=LOOK_SECONDS,
        default_status=running if builds == "at_once" else stopped,
        use_user_code_server=True,  # where our own condition is
        run_tags={"hailo-pipeline/by": "rebuild_what_changed"},
        description="Makes what follows changed weights, windows, code or policy, up to a canary; nothing "
        "where they came out the same. Never moves stable.",
    )


def nightly_build(
    job: JobLike, links: Sequence[dg.AssetsDefinition], builds: str, cron: str, timezone: str
) -> dg.ScheduleDefinition:
    """Builds at night what changed by day, where compiles are too long for the day.

    Args:
        job: Makes the whole chain.
        links: What it makes.
        builds: One of ``settings.BUILD_TIMES``.
        cron: When, in ``timezone``.
    """
    running, stopped = dg.DefaultScheduleStatus.RUNNING, dg.DefaultScheduleStatus.STOPPED

    @dg.schedule(
        job=job,
        cron_schedule=cron,
        execution_timezone=timezone,
        default_status=running if builds == "nightly" else stopped,
        description="Makes the whole chain once a night where weights, windows, code, tools or policy are "
        "others than those of the last build that succeeded.",
    )
    def nightly_build(context: dg.ScheduleEvaluationContext, places: Places) -> dg.RunRequest | dg.SkipReason:
        inputs = inputs_of(context.instance, Path(places.calib_dir), links)
        if not inputs:
            return dg.SkipReason("no weights were observed yet: see weights_watch")
        # The last one only: what was built before it, and is back, is to be built again.
        by_night = dg.RunsFilter(
            tags={"dagster/schedule_name": "nightly_build"},
            statuses=[dg.DagsterRunStatus.SUCCESS, *UNFINISHED],
        )
        last = context.instance.get_runs(by_night, limit=1)
        if last and last[0].tags.get(INPUTS_TAG) == inputs:
            return dg.SkipReason(f"nothing changed since run {last[0].run_id}")
        # Named, so that the run says what it was to make: see ``inputs_or_code_changed``.
        return dg.RunRequest(tags={INPUTS_TAG: inputs}, asset_selection=[link.key for link in links])

    return nightly_build


def inputs_of(instance: dg.DagsterInstance, calib_dir: Path, links: Sequence[dg.AssetsDefinition]) -> str:
    """Digest of what a build of the whole chain would begin with; empty where no weights were observed.

    The links' own code versions hold our code, the policy, and the compilers with their configuration.
    """
    observed = instance.fetch_observations(model_weights.key, limit=1).records
    observation = observed[0].asset_observation if observed else None
    if observation is None:
        return ""
    weights = (observation.tags or {}).get(DATA_VERSION_TAG, "")
    code = [f"{link.key.to_user_string()} {link.code_versions_by_key[link.key]}" for link in links]
    parts = [weights, windows_state_of(calib_dir), *code]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _watched(context: dg.SensorEvaluationContext, state: str) -> dg.SensorResult:
    watch = Watch(**json.loads(context.cursor)) if context.cursor else Watch()
    watch, waits = look(watch, state, outcome_of(context.instance, state))
    return dg.SensorResult(
        run_requests=[] if waits else [dg.RunRequest(tags={STATE_TAG: state})],
        skip_reason=waits or None,
        cursor=json.dumps(asdict(watch)),
    )
