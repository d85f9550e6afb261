"""Two releases on one chip: the new one is configured beside the old, and may break what both are on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runtime.switching import LONGEST_WAIT
from tests.doubles.hailo import HailoDouble
from tests.doubles.tiny_hef import tiny_hef
from tests.runtime.following import Following
from tests.simulators import ReleaseSimulator

OTHER_HEF = tiny_hef(timestamp_ms=1_700_000_000_000)


@pytest.fixture(name="pi")
def a_pi(tmp_path: Path, chip: HailoDouble) -> Iterator[Following]:
    ReleaseSimulator(target="hailo8").publish(tmp_path / "store", "stable")
    with closing(Following(tmp_path, hailo_lock_dir=chip.folder)) as following:
        yield following


def test_the_device_stays_open_through_a_switch(pi: Following, tmp_path: Path, chip: HailoDouble) -> None:
    second = ReleaseSimulator(target="hailo8", motifs=13).publish(tmp_path / "store", "stable")
    pi.run(1)
    assert pi.model.release_id == second.id
    assert [line.split()[0] for line in chip.journal()] == ["open"]


def test_a_hef_that_breaks_the_device_ends_with_the_old_one_serving(
    pi: Following, tmp_path: Path, chip: HailoDouble
) -> None:
    first = pi.model.release_id
    chip.set(doomed={hashlib.sha256(OTHER_HEF).hexdigest(): "run"})
    bad = ReleaseSimulator(target="hailo8", hef=OTHER_HEF, motifs=13).publish(tmp_path / "store", "stable")
    pi.run(2 * 0.5)
    told = pi.told()
    assert told is not None
    assert (told["wanted"], pi.model.release_id) == (bad.id, first)
    assert pi.model.alarm_kind == told["reason"]
    assert [line.split()[0] for line in chip.journal()] == ["open", "release", "open"]
    chip.set(doomed={})
    pi.run(LONGEST_WAIT / 2)  # An attempt takes the chip from who is served: not soon.
    assert pi.model.release_id == first
    pi.run(LONGEST_WAIT / 2)
    assert (pi.told(), pi.model.release_id) == (None, bad.id)
