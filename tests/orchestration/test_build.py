"""Builds take turns, in a workbench and in a home of Dagster's, and say what went wrong."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.dagster_run import DagsterRun, RunOpConcurrency
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from orchestration.build import alone_in, builder, end_interrupted, make_home
from orchestration.parity_view import REPORT_KEY
from orchestration.progress import progress_logger
from tests.chain import ROOT, SAMPLE_VERSION

pytestmark = pytest.mark.build
SECOND = """
import sys
from pathlib import Path
from orchestration.build import alone_in, make_home
with alone_in(Path(sys.argv[1])):
    print("inside", flush=True)
"""


def test_a_second_build_says_that_it_waits_and_then_takes_its_turn(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    with alone_in(folder):
        second = subprocess.Popen(
            [sys.executable, "-c", SECOND, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert second.stdout is not None
        said = second.stdout.readline()
        assert str(folder) in said
        assert "waiting" in said
        assert second.poll() is None
    rest, _ = second.communicate(timeout=60)
    assert (rest, second.returncode) == ("inside\n", 0)


@contextlib.contextmanager
def started_build(root: Path, **places: Path) -> Iterator[subprocess.Popen[str]]:
    """``python -m orchestration.build`` in folders of its own."""
    settings = {"DAGSTER_HOME": root / "home", "BUILD_DIR": root / "bench", "RELEASE_STORE": root / "store"}
    environment = {name: str(path) for name, path in {**settings, **places}.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration.build"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("place", ["home", "bench"])
def test_a_build_waits_for_another_one_in_its_home_and_in_its_bench(tmp_path: Path, place: str) -> None:
    with alone_in(tmp_path / place), started_build(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"  another build is at work in {tmp_path / place}: waiting\n"


BUILDER = """
import sys
import dagster as dg
@dg.op(pool="builds")
def builds() -> None:
    print("builds", flush=True)
    sys.stdin.read()
@dg.job(executor_def=dg.in_process_executor)
def by_the_daemon() -> None:
    builds()
with dg.DagsterInstance.get() as instance:
    by_the_daemon.execute_in_process(instance=instance)
"""


def test_a_build_waits_for_a_run_that_builds_in_its_home(tmp_path: Path) -> None:
    """As one that the daemon of a `dagster dev` there started."""
    home = make_home(tmp_path / "home")
    other = subprocess.Popen(
        [sys.executable, "-c", BUILDER],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "builds\n"
        with started_build(tmp_path) as process:
            assert process.stdout is not None
            said = iter(process.stdout.readline, "")
            assert next(said).split()[0] == "model_weights"
            waits = next(said)
            assert re.fullmatch(r"  run [0-9a-f-]{36} \(by_the_daemon\) builds in .*: waiting .*\n", waits)
            with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home))) as instance:
                jobs = {run.job_name for run in instance.get_runs()}
                assert jobs == {"observe_weights", "by_the_daemon"}
            other.communicate("", timeout=60)
            assert next(said).split()[0] == "calibration_set"
    finally:
        other.kill()
        other.communicate()


@pytest.mark.parametrize(
    ("server", "status"),
    [('{"host": "localhost", "socket": "/tmp/s"}', "FAILURE"), ('{"port": 1}', "STARTED")],
)
def test_a_build_does_not_wait_for_a_worker_that_is_gone(server: str, status: str) -> None:
    """Where it would be a process of this machine: another machine's ids mean nothing here."""
    with dg.DagsterInstance.ephemeral() as instance:
        run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags={GRPC_INFO_TAG: server})
        said = f"Started process for run (pid: {2**22})."
        instance.report_engine_event(said, run, EngineEventData.in_process(2**22))
        end_interrupted(instance)
        again = instance.get_run_by_id(run.run_id)
        assert again is not None
        assert again.status.value == status


@pytest.mark.parametrize(
    ("status", "pool", "holds"),
    [
        ("STARTING", "builds", True),
        ("CANCELING", "builds", True),
        ("STARTED", "other", False),
        ("NOT_STARTED", "builds", False),
    ],
)
def test_who_holds_the_pool(status: str, pool: str, holds: bool) -> None:
    concurrency = RunOpConcurrency(
        all_pools={pool}, root_key_counts={pool: 1}, has_unconstrained_root_nodes=False
    )
    run = DagsterRun("build", status=dg.DagsterRunStatus(status), run_op_concurrency=concurrency)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_run(run)
        assert (builder(instance) is not None) == holds


def test_home_and_bench_may_be_one_folder(tmp_path: Path) -> None:
    """It would otherwise wait for itself."""
    both = tmp_path / "both"
    with started_build(tmp_path, DAGSTER_HOME=both, BUILD_DIR=both) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[0] in ("calibration_set", "model_weights")


def test_ctrl_c_ends_a_build_without_a_traceback(tmp_path: Path) -> None:
    with started_build(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in rest


def test_a_build_waits_for_weights_that_came_just_now(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE_VERSION, tmp_path / "weights" / "tcn_encoder" / "v0.1.0")
    with started_build(tmp_path, WEIGHTS_DIR=tmp_path / "weights") as process:
        assert process.stdout is not None
        assert "changed just now" in process.stdout.readline()


@pytest.mark.parametrize("place", ["DAGSTER_HOME", "BUILD_DIR"])
def test_a_file_in_a_folders_place_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with started_build(tmp_path, **{place: tmp_path / "file"}) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(said.splitlines()) == 1
    assert str(tmp_path / "file") in said


def test_one_after_the_other_nobody_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with alone_in(tmp_path):
            pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("blocking", [True, False])
def test_a_check_that_blocked_says_what_missed_and_where_the_report_is(
    capsys: pytest.CaptureFixture[str], blocking: bool
) -> None:
    spec = dg.AssetCheckSpec("parity", asset="judged", blocking=blocking)

    @dg.asset(check_specs=[spec])
    def judged():  # type: ignore[no-untyped-def]
        missed = dg.AssetCheckResult(
            passed=False,
            description="sqnr_db is 5, at least 19 is asked for; gain was not computed",
            metadata={REPORT_KEY: dg.MetadataValue.path("/reports/1.html")},
        )
        return dg.MaterializeResult(metadata={"digest": "d" * 64, "size": 1000000}, check_results=[missed])

    job = dg.define_asset_job("job", [judged])
    defs = dg.Definitions([judged], jobs=[job], loggers={"progress": progress_logger})
    result = defs.resolve_job_def("job").execute_in_process(
        raise_on_error=False, run_config={"loggers": {"progress": {}}}
    )
    assert result.success is not blocking
    _, *failed = capsys.readouterr().out.splitlines()
    told = [
        "  judged                     FAILED  check parity",
        "      sqnr_db is 5, at least 19 is asked for",
        "      gain was not computed",
        "      report: /reports/1.html",
    ]
    assert failed == (told if blocking else [])


def test_dagsters_settings_are_ours_until_somebody_writes_their_own(tmp_path: Path) -> None:
    ours = (ROOT / "orchestration" / "dagster.yaml").read_bytes()
    home = make_home(tmp_path / "home")
    assert (home / "dagster.yaml").read_bytes() == ours
    (home / "dagster.yaml").unlink()
    (home / "dagster.yaml").write_text("# Instance settings of `make run` and `make smoke`; copied\n")
    assert (make_home(home) / "dagster.yaml").read_bytes() == ours
    (home / "dagster.yaml").unlink()
    (home / "dagster.yaml").write_text("# mine\n")
    assert (make_home(home) / "dagster.yaml").read_text() == "# mine\n"


def test_the_two_host_settings_are_never_written_over(tmp_path: Path) -> None:
    theirs = ROOT / "deploy" / "gpusrv" / "dagster.yaml"
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").symlink_to(theirs)
    make_home(home)
    assert (home / "dagster.yaml").resolve() == theirs
    copied = tmp_path / "copied"
    copied.mkdir()
    shutil.copy(theirs, copied / "dagster.yaml")
    make_home(copied)
    assert (copied / "dagster.yaml").read_bytes() == theirs.read_bytes()
