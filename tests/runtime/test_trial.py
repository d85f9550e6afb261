"""A release is tried in a child: what it dies of is an answer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.trial import CrashedOnLoadError, TrialCutShortError, TrialFailedError, try_release
from tests.doubles.hailo import HailoDouble
from tests.doubles.tiny_hef import tiny_hef
from tests.keys import use_test_keys
from tests.runtime.following import HangingTrial
from tests.simulators import ARTIFACT, ReleaseSimulator, flip_bit, wait_for


@pytest.fixture(autouse=True)
def the_tests_keys() -> None:
    use_test_keys()


def test_a_good_release_passes(tmp_path: Path) -> None:
    try_release(ReleaseSimulator().publish(tmp_path))


def test_what_the_child_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    flip_bit(release.directory / ARTIFACT)
    with pytest.raises(TrialFailedError, match="sha256 is") as caught:
        try_release(release)
    assert caught.value.code == "digest_mismatch"


def test_golden_windows_are_run(tmp_path: Path) -> None:
    with pytest.raises(TrialFailedError) as caught:
        try_release(ReleaseSimulator(golden_offset=1.0).publish(tmp_path))
    assert caught.value.code == "golden_mismatch"


def test_a_hef_that_kills_its_reader_is_named(tmp_path: Path, chip: HailoDouble) -> None:
    chip.set(doomed={hashlib.sha256(tiny_hef()).hexdigest(): "hef"})
    with pytest.MonkeyPatch.context() as environment:
        for name, value in chip.environment.items():
            environment.setenv(name, value)
        release = ReleaseSimulator(target="hailo8").publish(tmp_path / "store")
        with pytest.raises(CrashedOnLoadError, match="ended a trial with SIGABRT"):
            try_release(release)
        chip.set(doomed={})
        try_release(release)
    assert [line.split()[0] for line in chip.journal()] == ["segfault"]
    (chip.folder / "journal").unlink()


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    with pytest.raises(CrashedOnLoadError, match=r"more than 0\.01 s"):
        try_release(release, seconds=0.01)


def test_one_that_nobody_waits_for_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, hanging = ReleaseSimulator().publish(tmp_path / "store"), HangingTrial(tmp_path, monkeypatch)
    with pytest.raises(TrialCutShortError, match="something else"):
        try_release(release, lambda: "something else" if hanging.pids else "")
    assert len(hanging.pids) == 2
    wait_for(lambda: not hanging.alive, "the end of the child and of its child")


def test_it_ends_with_who_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A serving process that is killed ends nothing in order."""
    release = ReleaseSimulator().publish(tmp_path / "store")
    hanging = HangingTrial(tmp_path, monkeypatch, where="run")
    code = (
        "import sys; from pathlib import Path; from runtime.trial import try_release; "
        "from runtime.contract.release_directory import open_release; "
        "try_release(open_release(Path(sys.argv[1])))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(release.directory)]) as parent:
        wait_for(lambda: hanging.pids, "the trial")
        parent.kill()
    wait_for(lambda: not hanging.alive, "the end of the trial")


def test_without_anybody_who_waits_it_does_not_pass(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    reading, writing = os.pipe()
    os.close(writing)
    command = [sys.executable, "-m", "runtime.trial", str(release.directory)]
    with os.fdopen(reading) as orphaned:
        done = subprocess.run(command, stdin=orphaned, capture_output=True, check=False)
    assert done.returncode == 4


SETTLED = """
import os, signal, sys, runtime.trial as trial

def told(directory):
    print(os.getpriority(os.PRIO_PROCESS, 0) - BEFORE, open("/proc/self/oom_score_adj").read().strip())
    print(sorted(set(sys.modules) & {"numpy", "onnxruntime"}))
    print([each.name for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) != signal.SIG_IGN])
    print(0 < signal.alarm(0) <= trial.TRIAL_SECONDS + 1)

BEFORE = os.getpriority(os.PRIO_PROCESS, 0)
trial._run = told
trial.main(["directory"])
"""


def test_it_is_out_of_the_way_before_it_loads_anything() -> None:
    """What loads may start threads, which keep their priority; memory that ends must not end the server."""
    command = [sys.executable, "-c", SETTLED]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines() == ["10 1000", "[]", "[]", "True"]
