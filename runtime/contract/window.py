"""The window: 1 s of 9-axis IMU data, its channels, units, checks and normalization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import ManifestError, WindowShapeError, WindowValueError

FloatArray = npt.NDArray[np.float32]
"""float32 array; the shape is said where it is used."""

Window = FloatArray
"""float32 (100, 9) = (time, channel), physical units, 100 Hz."""

CHANNELS: Final = ("ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz")
UNITS: Final = {"accelerometer": "m/s²", "gyroscope": "rad/s", "magnetometer": "µT"}
WINDOW_LENGTH: Final = 100
SAMPLING_RATE_HZ: Final = 100
WINDOW_SHAPE: Final = (WINDOW_LENGTH, len(CHANNELS))
GRAPH_INPUT_NAME: Final = "imu_window"
GRAPH_INPUT_SHAPE: Final = (1, len(CHANNELS), 1, WINDOW_LENGTH)
GRAPH_OUTPUT_NAME: Final = "latent"
LATENT_SIZE: Final = 64


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel, in the channel's unit.

    Args:
        mean: 9 finite numbers, in the order of ``CHANNELS``.
        std: 9 finite numbers above zero, same order and units.

    Raises:
        ManifestError: A count is not 9, a number is not finite, or a standard deviation is not
            above zero as float32; names the channel.

    Source: ``normalization.json`` beside the weights; ``input.normalization`` in a release.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != len(CHANNELS):
                raise ManifestError(
                    f"{len(values)} values, expected {len(CHANNELS)}", where=f"normalization.{name}"
                )
            for channel, value in zip(CHANNELS, values, strict=True):
                if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
                    raise ManifestError(
                        f"{value} is not a finite float32", where=f"normalization.{name}[{channel}]"
                    )
        for channel, value in zip(CHANNELS, self.std, strict=True):
            if np.float32(value) <= 0:
                raise ManifestError(
                    f"standard deviation is {value}",
                    where=f"normalization.std[{channel}]",
                    hint="it divides the input: measure it on the training windows",
                )

    def arrays(self) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation as float32 (9,) each."""
        return np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)


def normalize(windows: FloatArray, statistics: ChannelStatistics) -> FloatArray:
    """Scale raw windows to what the encoder was trained on.

    Args:
        windows: float32 (..., 100, 9) = (time, channel) at 100 Hz. Channels: ax ay az [m/s²],
            gx gy gz [rad/s], mx my mz [µT].
        statistics: Mean and standard deviation of each channel, same units.

    Returns:
        float32, same shape, dimensionless z-scores.

    Source: ``input.normalization`` in the release manifest, never code.
    """
    mean, std = statistics.arrays()
    return np.divide(np.subtract(windows, mean, dtype=np.float32), std, dtype=np.float32)


def to_graph_layout(normalized: FloatArray) -> FloatArray:
    """Lay out one normalized window as the canonical graph takes it.

    Args:
        normalized: float32 (100, 9).

    Returns:
        float32 (1, 9, 1, 100), C-contiguous: NCHW, as Hailo's compiler parses it. Its NHWC form
        (1, 1, 100, 9) is the window's own bytes.
    """
    return np.ascontiguousarray(normalized.T).reshape(GRAPH_INPUT_SHAPE)


def check_window(values: Sequence[Sequence[float]] | npt.NDArray[np.generic], where: str = "x") -> Window:
    """Turn rows of numbers into a window, or say which place is wrong.

    Args:
        values: 100 rows of 9 finite numbers, physical units.
        where: How the caller names the window in messages.

    Returns:
        float32 (100, 9), C-contiguous.

    Raises:
        WindowShapeError: Not 100 rows, or a row without 9 values; names the row.
        WindowValueError: A value is not a finite float32; names its (time, channel).
    """
    if len(values) != WINDOW_LENGTH:
        raise WindowShapeError(
            f"{len(values)} rows, expected {WINDOW_LENGTH}",
            where=where,
            hint=f"send exactly 1 s at {SAMPLING_RATE_HZ} Hz",
        )
    for row, channels in enumerate(values):
        if len(channels) != len(CHANNELS):
            raise WindowShapeError(
                f"{len(channels)} values, expected {len(CHANNELS)}",
                where=f"{where}[{row}]",
                hint="one value each for " + " ".join(CHANNELS),
            )
    with np.errstate(over="ignore"):
        window: FloatArray = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(window)
    if not finite.all():
        row, channel = (int(i) for i in np.argwhere(~finite)[0])
        raise WindowValueError(
            f"{values[row][channel]} is not a finite float32 (time {row}, channel {CHANNELS[channel]})",
            where=f"{where}[{row}][{channel}]",
        )
    return window
