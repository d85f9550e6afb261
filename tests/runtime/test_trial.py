"""A release is tried in a child: what it dies of is an answer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from runtime.trial import CrashedOnLoadError, TrialFailedError, try_release
from tests.doubles.hailo import HailoDouble
from tests.doubles.tiny_hef import tiny_hef
from tests.keys import use_test_keys
from tests.simulators import ARTIFACT, ReleaseSimulator, flip_bit


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
