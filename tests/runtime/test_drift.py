"""Drift: traffic held against the release's own calibration, by release, and absent where it is not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.errors import EngineError
from runtime.contract.window import FloatArray
from runtime.drift import FEWEST_WINDOWS, Drift, LatestWindows
from runtime.engines.emulator import EmulatorEngine
from tests.runtime.service import Service
from tests.simulators import STATISTICS, ReleaseSimulator, calibration_statistics, imu_windows


class Watched(Service):
    """A service whose drift is looked at after each window, as if half a second had passed."""

    def __init__(self, root: Path, simulator: ReleaseSimulator) -> None:
        release = simulator.publish(root)
        super().__init__(ModelHolder(ActiveModel(release, EmulatorEngine(release))))
        self.drift = Drift(self.holder, self.app.infer.ask)
        self.metrics.drift(self.drift)
        self.drift.step()

    def send(self, windows: FloatArray, *, batch: bool = False) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        for body in [windows.tobytes()] if batch else [window.tobytes() for window in windows]:
            assert self.post(body, headers=headers).status_code == 200
            self.drift.step()


@pytest.fixture(name="watched")
def a_watched_service(tmp_path: Path) -> Watched:
    return Watched(tmp_path, ReleaseSimulator(calibrated=True))


def test_traffic_like_calibration_has_hardly_any(watched: Watched) -> None:
    watched.send(imu_windows(64, seed=20))
    worst = {
        of: max(
            watched.sample("hailo_input_drift", sensor=sensor, of=of) or 0.0 for sensor in ("ax", "gz", "mx")
        )
        for of in ("mean", "spread")
    }
    assert worst["mean"] < 0.05
    assert worst["spread"] < 0.05
    assert (watched.sample("hailo_latent_drift", of="rms") or 9) < 0.3
    assert watched.sample("hailo_drift_windows") == 64


def test_an_offset_a_scale_and_a_dead_channel_show_where_they_are(watched: Watched) -> None:
    windows = imu_windows(64, seed=21)
    windows[:, :, 0] += 2 * STATISTICS.std[0]  # an offset of two standard deviations
    windows[:, :, 5] *= 4  # another unit
    windows[:, :, 8] = 40.0  # a sensor that hangs
    watched.send(windows)
    assert watched.sample("hailo_input_drift", sensor="ax", of="mean") == pytest.approx(2, abs=0.05)
    assert watched.sample("hailo_input_drift", sensor="ax", of="spread") == pytest.approx(0, abs=0.05)
    assert watched.sample("hailo_input_drift", sensor="gz", of="spread") == pytest.approx(2, abs=0.1)
    assert (watched.sample("hailo_input_drift", sensor="mz", of="spread") or 0) > 10
    assert (watched.sample("hailo_input_drift", sensor="ay", of="mean") or 0) < 0.1
    assert (watched.sample("hailo_latent_drift", of="worst") or 0) > 1
    told = watched.drift.told()
    assert told is not None
    assert told["worst_input"] == {"sensor": "ax", "mean": pytest.approx(2, abs=0.05)}


def test_few_windows_say_nothing(watched: Watched) -> None:
    watched.send(imu_windows(FEWEST_WINDOWS - 1))
    assert watched.sample("hailo_input_drift") is None
    assert watched.sample("hailo_drift_windows") == FEWEST_WINDOWS - 1
    told = watched.drift.told()
    assert told is not None
    assert (told["known"], told["windows"]) == (False, FEWEST_WINDOWS - 1)
    watched.send(imu_windows(1))
    assert watched.sample("hailo_input_drift") is not None


def test_a_health_checks_noise_is_no_traffic(watched: Watched) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (FEWEST_WINDOWS, 100, 9)).astype(np.float32)
    watched.send(noise)
    watched.send(noise, batch=True)
    assert watched.sample("hailo_drift_windows") == 0
    watched.send(imu_windows(3), batch=True)
    assert watched.sample("hailo_drift_windows") == 1  # one is asked for at a time


def test_an_older_release_has_no_such_metric_and_says_so(tmp_path: Path) -> None:
    watched = Watched(tmp_path, ReleaseSimulator())
    watched.send(imu_windows(FEWEST_WINDOWS))
    for name in ("hailo_input_drift", "hailo_latent_drift", "hailo_drift_windows"):
        assert watched.sample(name) is None
    told = watched.drift.told()
    assert told is not None
    assert "made before there were any" in str(told["message"])


def test_another_release_begins_anew_and_a_device_that_came_back_does_not(
    watched: Watched, tmp_path: Path
) -> None:
    watched.send(imu_windows(FEWEST_WINDOWS))
    first = watched.holder.model
    assert first is not None
    watched.holder.replace(EngineError("gone"))
    watched.drift.step()
    assert watched.sample("hailo_drift_windows") is None
    assert watched.drift.told() is None
    watched.holder.replace(first)
    watched.drift.step()
    assert watched.sample("hailo_drift_windows", release=first.release_id) == FEWEST_WINDOWS
    release = ReleaseSimulator(calibrated=True, version="v2.0.0").publish(tmp_path)
    watched.holder.replace(ActiveModel(release, EmulatorEngine(release)))
    watched.drift.step()
    assert watched.sample("hailo_drift_windows", release=first.release_id) is None
    assert watched.sample("hailo_drift_windows", release=release.id) == 0


def test_the_latest_windows_count() -> None:
    latest = LatestWindows(calibration_statistics(), STATISTICS, most=FEWEST_WINDOWS)
    latent = np.zeros(64, np.float32)
    for window in imu_windows(FEWEST_WINDOWS, seed=1) + np.float32(50):
        latest.add(window, latent)
    before = latest.values()
    for window in imu_windows(FEWEST_WINDOWS, seed=2):
        latest.add(window, latent)
    after = latest.values()
    assert before is not None
    assert after is not None
    assert max(before.input_mean) > 10
    assert max(after.input_mean) < 0.1
    assert latest.windows == FEWEST_WINDOWS
