"""The likeliest cause of what a gate found, worked out from the numbers, and what to do about it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from assets.physical import (
    FIELD,
    GRAVITY,
    MIXED_SHARE,
    PEAK_ROTATION,
    REST_ACCELERATION,
    REST_ROTATION,
    Measured,
    measure,
    within,
)
from assets.strata import SENSORS, of_sensor
from runtime.contract.window import CHANNELS, WINDOW_SHAPE, FloatArray

DEGREES: Final = 180 / np.pi
ORDER: Final = "channel_order"
LAYOUT: Final = "layout"

BRISK_ROTATION: Final = 15.0
"""rad/s that hardly anybody reaches: a set of deg/s is beyond it."""

_ACCELERATION: Final = (("g", GRAVITY), ("milli-g", GRAVITY / 1000), ("cm/s²", 0.01), ("ft/s²", 0.3048))
_ROTATION: Final = (("deg/s", 1 / DEGREES), ("milli-deg/s", 0.001 / DEGREES))
_FIELD: Final = (
    ("gauss", 100.0),
    ("milligauss", 0.1),
    ("nT", 0.001),
    ("mT", 1000.0),
    ("T", 1e6),
)


def rearranged(windows: FloatArray, labels: Sequence[str], measured: Measured) -> tuple[str, str] | None:
    """Whether the same numbers in another arrangement are those of a sensor on earth.

    Args:
        windows: float32 (N, 100, 9), which do not fit as they are.
        labels: N names, or all empty.
        measured: Of these windows.

    Returns:
        The name of the check, ``channel_order`` or ``layout``, and the cause; None where none fits.
    """
    if measured.fits():
        return None
    for check, cause, arrange in _arrangements():
        if measure(arrange(windows), labels).fits():
            return check, cause
    return None


def _arrangements() -> Iterator[tuple[str, str, Callable[[FloatArray], FloatArray]]]:
    for order in itertools.permutations(range(3)):
        if order == (0, 1, 2):
            continue
        # Sensor i stands where sensor order[i] is expected; taken back, the sensors are in order.
        found = ", ".join(SENSORS[sensor] for sensor in order)
        columns = np.concatenate([np.arange(3) + 3 * order.index(sensor) for sensor in range(3)])
        cause = f"channels swapped: the sensors come in the order {found}; write them as {' '.join(CHANNELS)}"
        yield ORDER, cause, lambda windows, columns=columns: windows[..., columns]  # type: ignore[misc]
    time, channels = WINDOW_SHAPE
    layouts: tuple[tuple[str, Callable[[FloatArray], FloatArray]], ...] = (
        (
            "(9, 100) data was reshaped to (100, 9), not transposed",
            lambda w: w.reshape(-1, channels, time).transpose(0, 2, 1),
        ),
        (
            "(100, 9) data was reshaped to (9, 100) and then transposed",
            lambda w: w.transpose(0, 2, 1).reshape(-1, time, channels),
        ),
    )
    for text, arrange in layouts:
        yield LAYOUT, f"{text}: transpose (channel, time) windows, and never reshape them", arrange


def looks_normalized(windows: FloatArray) -> bool:
    """Whether every sensor is about as wide as a z-score, and the field is nowhere near the earth's."""
    values = windows.astype(np.float64)
    widths = np.std(values, axis=(0, 1))
    field = np.median(np.linalg.norm(of_sensor(values, "magnetometer"), axis=-1))  # type: ignore[arg-type]
    return bool(np.all((widths > 0.02) & (widths < 4)) and 0.02 < field < 14)


NORMALIZED: Final = (
    "already normalized: every channel is about as wide as a z-score (it would be normalized twice); give "
    "windows in physical units, as the sensor's driver gives them"
)


def of_acceleration(windows: FloatArray, measured: Measured) -> str:
    """Why the accelerometer's length at rest is not gravity."""
    if MIXED_SHARE < measured.odd_acceleration < 1 - MIXED_SHARE:
        return mixed("accelerometer", measured.odd_acceleration)
    unit = _unit(measured.acceleration, _ACCELERATION, (9.0, 10.6))
    if unit and not (looks_normalized(windows) and measured.acceleration_spread > 0.15):
        return f"{unit[0]} given for m/s²: multiply by {unit[1]:.6g}"
    if looks_normalized(windows):
        return NORMALIZED
    if measured.acceleration < 2.0:
        return "gravity removed (linear or user acceleration): give the accelerometer's own reading"
    return (
        f"a scale that is off by {measured.acceleration / GRAVITY:.3g}: check the sensor's full-scale range"
    )


def of_rotation(windows: FloatArray, measured: Measured) -> str:
    """Why the gyroscope turns at rest, or faster than gyroscopes read."""
    if MIXED_SHARE < measured.odd_rotation < 1 - MIXED_SHARE:
        return mixed("gyroscope", measured.odd_rotation)
    for name, factor in _ROTATION if measured.peak > BRISK_ROTATION else ():
        rest, peak = measured.rotation * factor, measured.peak * factor
        if within(peak, PEAK_ROTATION) and not rest > REST_ROTATION[1]:
            return f"{name} given for rad/s: divide by {1 / factor:.4g}"
    if looks_normalized(windows):
        return NORMALIZED
    if within(measured.rotation, REST_ACCELERATION):
        return f"it reads as gravity does: an accelerometer in the gyroscope's place; {_ORDER_HINT}"
    return "a bias, a scale, or another sensor in its place: compare one window at rest with the data sheet"


_ORDER_HINT: Final = f"write the channels as {' '.join(CHANNELS)}"


def of_field(windows: FloatArray, measured: Measured) -> str:
    """Why the magnetometer's length is not that of the earth's field."""
    if looks_normalized(windows) and not within(measured.acceleration, REST_ACCELERATION):
        return NORMALIZED
    if MIXED_SHARE < measured.odd_field < 1 - MIXED_SHARE:
        return mixed("magnetometer", measured.odd_field)
    if unit := _unit(measured.field, _FIELD, FIELD):
        return f"{unit[0]} given for µT: multiply by {unit[1]:.6g}"
    if measured.field == 0:
        return "no magnetometer: the model was trained with one"
    return "a magnet or a steel part near the sensor, or raw counts: calibrate the magnetometer (hard iron)"


def _unit(
    value: float, units: Sequence[tuple[str, float]], expected: tuple[float, float]
) -> tuple[str, float] | None:
    """The unit that would put a value where it is expected, and its factor."""
    return next((unit for unit in units if within(value * unit[1], expected)), None)


def mixed(sensor: str, share: float) -> str:
    """Why some windows of a set are out of bounds, and most are not."""
    return f"a mixture: {share:.0%} of these windows have the {sensor} in other units or from another device"
