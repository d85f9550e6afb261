"""What a set of windows measures in physical units, and what a body on earth allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from assets.strata import Floats, at_rest, of_sensor
from runtime.contract.window import FloatArray

GRAVITY: Final = 9.80665
REST_ACCELERATION: Final = (8.8, 10.8)  # m/s²
REST_ROTATION: Final = (0.0, 0.5)  # rad/s
PEAK_ROTATION: Final = (0.0, 36.0)  # rad/s: gyroscopes end at 2000 deg/s, 35 rad/s
FIELD: Final = (15.0, 90.0)  # µT: the earth's is 22 to 67
FIELD_POSSIBLE: Final = (11.0, 300.0)
"""µT near a magnet, in a car, of a magnetometer that nobody calibrated: beyond, it is a unit, or no field."""
PEAK_QUANTILE: Final = 0.999
MIXED_SHARE: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One set of windows; NaN where there is nothing to measure it on.

    Args:
        resting: How many windows are at rest.
        acceleration: Median of the accelerometer's length at rest, m/s².
        acceleration_spread: Its spread over the windows at rest: 10th to 90th percentile of their
            medians, relative to the median.
        rotation: Median of the gyroscope's length at rest, rad/s.
        peak: 99.9th percentile of the gyroscope's length, rad/s.
        field: Median of the magnetometer's length, µT.
        odd_acceleration: Share of the windows at rest whose own median length is out of bounds.
        odd_rotation: The same of the gyroscope.
        odd_field: Share of all windows whose own median length of the magnetometer is beyond what
            a field can be.
    """

    resting: int
    acceleration: float
    acceleration_spread: float
    rotation: float
    peak: float
    field: float
    odd_acceleration: float
    odd_rotation: float
    odd_field: float

    def fits(self) -> bool:
        """Whether every measure is within its bounds, and something is at rest."""
        pairs = (
            (self.acceleration, REST_ACCELERATION),
            (self.rotation, REST_ROTATION),
            (self.peak, PEAK_ROTATION),
            (self.field, FIELD),
        )
        return self.resting > 0 and all(within(value, bounds) for value, bounds in pairs)


def within(value: float, bounds: tuple[float, float]) -> bool:
    """Whether a value lies in a range; NaN does not."""
    return bounds[0] <= value <= bounds[1]


def lengths(windows: FloatArray, sensor: str) -> Floats:
    """Length of one sensor's vector: float64 (N, 100)."""
    return np.asarray(np.linalg.norm(of_sensor(windows, sensor).astype(np.float64), axis=-1))


def measure(windows: FloatArray, labels: Sequence[str]) -> Measured:
    """Measure a set.

    Args:
        windows: float32 (N, 100, 9), at least one.
        labels: N names, or all empty: they say who is at rest.
    """
    resting = at_rest(windows, labels)
    rotation, field = lengths(windows, "gyroscope"), lengths(windows, "magnetometer")
    rest_acceleration, rest_rotation = lengths(windows[resting], "accelerometer"), rotation[resting]
    medians = np.median(rest_acceleration, axis=1)
    acceleration = _median(rest_acceleration)
    low, high = np.quantile(medians, (0.1, 0.9)) if len(medians) else (np.nan, np.nan)
    return Measured(
        resting=int(resting.sum()),
        acceleration=acceleration,
        acceleration_spread=float((high - low) / acceleration) if acceleration else float("inf"),
        rotation=_median(rest_rotation),
        peak=float(np.quantile(rotation, PEAK_QUANTILE)),
        field=_median(field),
        odd_acceleration=_share_out(rest_acceleration, REST_ACCELERATION),
        odd_rotation=_share_out(rest_rotation, REST_ROTATION),
        odd_field=_share_out(field, FIELD_POSSIBLE),
    )


def _median(values: Floats) -> float:
    return float(np.median(values)) if values.size else float("nan")


def _share_out(values: Floats, bounds: tuple[float, float]) -> float:
    """Share of windows whose median is out of bounds; 0 where there are none."""
    if not values.size:
        return 0.0
    medians = np.median(values, axis=1)
    return float(np.mean((medians < bounds[0]) | (medians > bounds[1])))
