"""Values that cannot be right are answered, counted by kind, and named."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.contract.telemetry import GYROSCOPE_LIMIT
from runtime.plausibility import KINDS, Plausibility
from tests.runtime.service import Service
from tests.simulators import STATISTICS, imu_windows, infer_body

MEAN, STD = STATISTICS.arrays()


@pytest.mark.parametrize("seed", range(20))
def test_windows_as_in_training_are_plausible(seed: int) -> None:
    assert Plausibility(STATISTICS).kinds(imu_windows(1, seed)[0]) == ()


@pytest.mark.parametrize(
    ("channel", "value", "kinds", "named"),
    [
        (4, GYROSCOPE_LIMIT - 14, (), ""),
        (4, -GYROSCOPE_LIMIT - 0.1, ("gyroscope_unit", "z_beyond_40"), "gyroscope_unit=gy; z_beyond_40=gy"),
        (0, MEAN[0] + 39 * STD[0], (), ""),
        (0, MEAN[0] - 41 * STD[0], ("z_beyond_40",), "z_beyond_40=ax"),
        (8, MEAN[8] + 41 * STD[8], ("z_beyond_40",), "z_beyond_40=mz"),
    ],
)
def test_one_value_is_enough(channel: int, value: float, kinds: tuple[str, ...], named: str) -> None:
    window = imu_windows(1, seed=3)[0]
    window[50, channel] = value
    found = Plausibility(STATISTICS)
    assert found.kinds(window) == kinds
    assert found.named(window) == named


def test_the_limit_in_rad_per_s_holds_where_the_statistics_are_wide() -> None:
    wide = type(STATISTICS)(mean=STATISTICS.mean, std=tuple([100.0] * 9))
    window = imu_windows(1, seed=3)[0]
    window[50, 3] = 36.0
    assert Plausibility(wide).kinds(window) == ("gyroscope_unit",)


@pytest.mark.parametrize("channel", range(9))
def test_a_channel_that_never_changes_is_constant(channel: int) -> None:
    window = imu_windows(1, seed=3)[0]
    window[:, channel] = MEAN[channel]
    assert Plausibility(STATISTICS).kinds(window) == ("constant_channel",)


def test_they_are_answered_named_and_counted(service: Service) -> None:
    service = Service(service.holder)
    window = imu_windows(1, seed=3)[0]
    window[:, 6] = 0.0
    window[1, 4] = 2000.0
    answer = service.post(infer_body(window))
    assert answer.status_code == 200
    assert answer.headers["x-implausible"] == "gyroscope_unit=gy; z_beyond_40=gy; constant_channel=mx"
    batch = np.stack([imu_windows(1)[0], window, window])
    answer = service.post(batch.tobytes(), headers={"Content-Type": "application/octet-stream"})
    assert answer.headers["x-implausible"] == "constant_channel; gyroscope_unit; z_beyond_40"
    for kind in KINDS:
        assert service.sample("hailo_runtime_implausible_windows_total", kind=kind) == 3
    assert service.sample("hailo_runtime_windows_total") == 4
    assert "x-implausible" not in service.post(infer_body(imu_windows(1)[0])).headers


def test_many_at_once_are_each_alone() -> None:
    windows = imu_windows(30, seed=4)
    windows[3, 50, 4] = 60.0
    windows[3, :, 0] = 9.0
    windows[17, :, 8] = MEAN[8]
    windows[29, 0, 0] = 1e6
    found = Plausibility(STATISTICS)
    assert found.kinds_of_each(windows) == [kind for window in windows for kind in found.kinds(window)]
    assert found.kinds_of_each(windows[:3]) == []
