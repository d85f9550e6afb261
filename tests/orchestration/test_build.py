"""Builds take turns, in a workbench and in a home of Dagster's, and say what went wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from orchestration.build import alone_in, make_home
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
