"""Calibration statistics: measured, carried by a release, and missing in older ones without harm."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.calibration_statistics import (
    FILE_NAME,
    CalibrationStatistics,
    LatentDistance,
    measure_calibration,
    read_calibration_statistics,
)
from runtime.contract.document import from_json, to_json
from runtime.contract.errors import ManifestError
from runtime.engines.emulator import EmulatorEngine
from tests.runtime.older import config
from tests.simulators import (
    STATISTICS,
    TINY_ENCODER,
    ReleaseSimulator,
    calibration_statistics,
    imu_windows,
    reference_latents,
)


def test_they_are_means_and_deviations_as_defined() -> None:
    random = np.random.default_rng(4)
    windows = random.normal(2, 3, (50, 100, 9)).astype(np.float32)
    latents = random.normal(-1, 0.5, (50, 64)).astype(np.float32)
    latents[:, 7] = 0.25  # a dimension that says nothing
    found = measure_calibration(windows, latents, latent_step=0.1, windows_sha256="00" * 32)
    assert (found.windows, found.latents) == (50, "full_precision")
    assert found.input_mean == pytest.approx(windows.astype(float).mean((0, 1)).tolist())
    assert found.input_sd == pytest.approx(windows.astype(float).std((0, 1)).tolist())
    assert found.latent_mean == pytest.approx(latents.astype(float).mean(0).tolist())
    assert found.latent_sd[7] == 0
    assert found.latent_scale()[7] == 0.1
    # 1 % of the calibration windows are beyond the rim.
    distances = np.sqrt([LatentDistance(found).squared(latent) for latent in latents])
    assert np.quantile(distances, 0.99) == pytest.approx(1, rel=1e-5)
    assert from_json(CalibrationStatistics, to_json(found), "x") == found


@pytest.mark.parametrize(
    "change",
    [
        {"input_mean": (0.0,) * 8},
        {"latent_sd": (-1.0,) + (1.0,) * 63},
        {"latent_mean": (1e39,) * 64},
        {"latent_step": 0.0},
        {"distance": 0.0},
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match=next(iter(change))):
        dataclasses.replace(calibration_statistics(), **change)


def test_far_is_what_calibration_never_saw() -> None:
    distance = LatentDistance(calibration_statistics())

    def of(windows: Any) -> float:
        latents = reference_latents(TINY_ENCODER.read_bytes(), windows, STATISTICS)
        return float(np.sqrt(np.median([distance.squared(latent) for latent in latents])))

    windows = imu_windows(32, seed=5)
    assert of(windows) < 1
    assert of(windows * np.float32(4)) > 2


def test_a_release_carries_them_and_an_older_one_says_that_it_does_not(tmp_path: Path) -> None:
    release = ReleaseSimulator(calibrated=True).publish(tmp_path, "stable")
    found = read_calibration_statistics(release)
    assert found == calibration_statistics()
    assert isinstance(ModelHolder.load(config(tmp_path)).model, ActiveModel)
    older = ReleaseSimulator().publish(tmp_path)
    said = read_calibration_statistics(older)
    assert isinstance(said, str)
    assert "made before" in said
    model = ActiveModel(older, EmulatorEngine(older))
    assert (model.calibration, model.distance) == (said, None)


def changed(**changes: Any) -> ReleaseSimulator:
    document = json.loads(to_json(calibration_statistics())) | changes
    return ReleaseSimulator(calibrated=True, files={FILE_NAME: to_json(document)})


def test_a_later_schema_is_not_read_and_the_release_is_served(tmp_path: Path) -> None:
    changed(schema=2, more=[1]).publish(tmp_path, "stable")
    model = ModelHolder.load(config(tmp_path)).model
    assert model is not None
    assert model.calibration == "its calibration statistics are of schema 2, this version reads 1"


@pytest.mark.parametrize(
    "changes", [{"windows_sha256": "11" * 32}, {"latent_sd": [1.0]}, {"more": 1}, {"latent_step": None}]
)
def test_a_release_whose_statistics_are_wrong_is_not_served(tmp_path: Path, changes: Any) -> None:
    changed(**changes).publish(tmp_path, "stable")
    state = ModelHolder.load(config(tmp_path)).state
    assert state.code == "manifest"  # type: ignore[union-attr]
    assert FILE_NAME in str(state)
