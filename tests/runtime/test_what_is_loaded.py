"""What the runtime loads: verified bytes, and only a model that repeats every golden window."""

from __future__ import annotations

import io
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.active_model import ModelHolder
from runtime.contract.errors import GoldenMismatchError, PipelineError, StoreError
from runtime.contract.motifs import MotifScorer
from runtime.contract.store import Release
from runtime.engines import Engine, open_engine
from runtime.engines.emulator import EmulatorEngine
from runtime.release_choice import ReleaseChoice
from tests.doubles.hailo import HailoDouble
from tests.doubles.tiny_hef import tiny_hef
from tests.runtime.hailo import open_on
from tests.runtime.test_active_model import ZEROS, config, with_golden
from tests.simulators import (
    ARTIFACT,
    GOLDEN,
    TINY_ENCODER,
    ReleaseSimulator,
    npz_bytes,
)


def test_a_pickle_in_the_golden_windows_never_runs(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    pickled = np.array([Payload()], dtype=object)
    data = npz_bytes(windows=pickled, artifact=ZEROS)
    settings = with_golden(data)(tmp_path)
    assert ModelHolder.load(settings).state.code == "golden_mismatch"  # type: ignore[union-attr]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [ARTIFACT, GOLDEN])
def test_the_verified_bytes_are_the_loaded_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file that is swapped after it was verified is seen: nothing is read without its digest."""
    ReleaseSimulator().publish(tmp_path, "stable")
    other = ReleaseSimulator(golden_offset=0.01, model=other_model()).contents()[name]
    verify = Release.verify

    def swapped_after(release: Release) -> None:
        verify(release)
        path = release.directory / name
        assert path.read_bytes() != other
        path.unlink()
        path.write_bytes(other)

    monkeypatch.setattr(Release, "verify", swapped_after)
    state = ModelHolder.load(config(tmp_path)).state
    assert isinstance(state, PipelineError), "served what was never verified"
    assert (state.code, name in state.where) == ("digest_mismatch", True)


def swap_before_the_engine_reads(monkeypatch: pytest.MonkeyPatch, name: str, other: bytes) -> None:
    """All that is verified has been; what the engine reads next is another file that runs as well."""

    def opened(release: Release, lock_folder: Path | None = None) -> Engine:
        path = release.directory / name
        assert path.read_bytes() != other
        path.unlink()
        path.write_bytes(other)
        return open_engine(release, lock_folder)

    monkeypatch.setattr("runtime.active_model.open_engine", opened)


def test_the_emulator_loads_no_other_bytes_than_were_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    with closing(EmulatorEngine(ReleaseSimulator(model=other_model()).place(tmp_path / "other"))):
        pass  # The other one runs: nothing but its digest tells.
    swap_before_the_engine_reads(monkeypatch, ARTIFACT, other_model())
    state = ModelHolder.load(config(tmp_path)).state
    assert isinstance(state, PipelineError), "serves what was never verified"
    assert (state.code, ARTIFACT in state.where) == ("digest_mismatch", True)


def test_hailort_is_given_no_other_bytes_than_were_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chip: HailoDouble
) -> None:
    release = ReleaseSimulator(target="hailo8").publish(tmp_path, "stable")
    other = tiny_hef(timestamp_ms=1_700_000_000_000)
    with open_on(chip, ReleaseSimulator(target="hailo8", hef=other).place(tmp_path / "other")):
        pass
    swap_before_the_engine_reads(monkeypatch, release.manifest.artifact, other)
    state = ModelHolder.load(config(tmp_path, hailo_lock_dir=chip.folder)).state
    assert isinstance(state, PipelineError), "serves what was never verified"
    assert (state.code, release.manifest.artifact in state.where) == ("digest_mismatch", True)


def other_model() -> bytes:
    """A graph that loads as well, with another name for its maker."""
    model = TINY_ENCODER.read_bytes()
    return model + b"\x12\x03abc"


def test_every_golden_window_counts(tmp_path: Path) -> None:
    with np.load(io.BytesIO(ReleaseSimulator().contents()[GOLDEN])) as archive:
        arrays = dict(archive)
    arrays["artifact"][-1, -1] += 0.5
    state = ModelHolder.load(with_golden(npz_bytes(**arrays))(tmp_path)).state
    assert isinstance(state, GoldenMismatchError)
    assert "golden window 3, dimension 63 differs by 16 LSB, at most 2" in state.what


def test_a_score_that_is_no_number_is_never_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    monkeypatch.setattr(MotifScorer, "scores", lambda self, latents: np.full(12, np.nan))
    state = ModelHolder.load(config(tmp_path)).state
    assert isinstance(state, GoldenMismatchError)
    assert "a motif score" in state.what


def test_an_unreadable_place_is_no_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without rights, which the one who runs the tests may have."""

    def denied(path: Path, **options: Any) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", denied)
    for settings in (config(tmp_path), config(tmp_path, hef_path=tmp_path / "release")):
        with pytest.raises(StoreError, match="Permission denied"):
            ReleaseChoice(settings).find()
