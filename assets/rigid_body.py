"""Rotation as the gyroscope reads it, held against what it must do to field and gravity.

A direction fixed in the world turns in the sensor's frame by dv/dt = -ω x v. Swapped or mirrored axes,
another sampling rate and another scale all break this, on any set and without a model: a frame with
two axes swapped is left-handed, and the product changes its sign.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from assets.physical import GRAVITY, lengths
from assets.strata import Floats, Mask, deviations, of_sensor
from runtime.contract.parity import Finding
from runtime.contract.window import SAMPLING_RATE_HZ, FloatArray

SPAN: Final = 10
"""Samples over which a turn is compared: long enough for noise, short enough for a linear sum."""
STEP: Final = 5
QUASI_STATIC: Final = 0.5  # m/s²: |acc| this near to gravity for a whole span is gravity turning
MIN_WINDOWS: Final = 16
MAX_WINDOWS: Final = 300
"""Those in which the sensor turns most are enough."""
MIN_TURNED: Final = {"magnetometer": 1.0, "accelerometer": 0.3}
"""Root mean square of what a span is predicted to turn, µT and m/s²: below, there is only noise."""
CLEAR: Final = {"magnetometer": 0.8, "accelerometer": 0.7}
"""Correlation from which another arrangement of the axes is an explanation. Steps of a walk keep the
length near gravity for a moment by chance, and agree with some arrangement up to 0.67."""
MARGIN: Final = {"magnetometer": 0.4, "accelerometer": 0.4}
SATURATED: Final = 0.0005
"""Share of samples at a channel's very end from which the gyroscope clips; it says nothing there."""
RATE: Final = (0.5, 1.5)
SURE: Final = 0.9
RATE_WARN: Final = (0.75, 1.25)


def _signed_axes() -> Iterator[tuple[tuple[int, int], ...]]:
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield tuple(zip(order, signs, strict=True))


ARRANGEMENTS: Final = tuple(_signed_axes())
"""The 48 ways to name and point three axes; the first is as given."""


@dataclass(frozen=True, kw_only=True)
class Turning:
    """How well a sensor turns as the gyroscope says.

    Args:
        windows: How many windows had something to compare.
        turned: Root mean square of the predicted change over a span, in the sensor's unit.
        agreement: Correlation of predicted and found change, as the axes are given.
        rate: Found over predicted change, least squares: 1 for the right rate and scale.
        best: Highest correlation of all arrangements of the gyroscope's axes.
        arrangement: Which that is: (axis, sign) that x, y and z would have to be read from.
    """

    windows: int
    turned: float
    agreement: float
    rate: float
    best: float
    arrangement: tuple[tuple[int, int], ...]


def turning(windows: FloatArray, sensor: str) -> Turning | None:
    """Compare one sensor with the gyroscope; None where nothing turns.

    Args:
        windows: float32 (N, 100, 9), in physical units.
        sensor: ``magnetometer``, or ``accelerometer``, which is looked at where it reads gravity alone.
    """
    keep = _comparable(windows, sensor)
    turned = np.where(keep.any(axis=1), deviations(windows, sensor), -1.0)
    chosen = np.argsort(-turned, kind="stable")[:MAX_WINDOWS]
    windows, keep = windows[chosen], keep[chosen]
    if not keep.any():
        return None
    vector = of_sensor(windows, sensor).astype(np.float64)
    changes = (vector[:, SPAN:] - vector[:, :-SPAN])[:, ::STEP]
    terms, found = _terms(windows, vector)[:, keep].reshape(9, -1), changes[keep].ravel()
    gram, cross, power = terms @ terms.T, terms @ found, float(found @ found)
    fits = []
    for arrangement in ARRANGEMENTS:
        weights = _weights(arrangement)
        predicted, both = float(weights @ gram @ weights), float(weights @ cross)
        fits.append((both / np.sqrt(predicted * power) if predicted * power > 0 else 0.0, both, predicted))
    best = max(range(len(fits)), key=lambda place: fits[place][0])
    agreement, both, predicted = fits[0]
    return Turning(
        windows=int(keep.any(axis=1).sum()),
        turned=float(np.sqrt(predicted / keep.sum())),
        agreement=agreement,
        rate=both / predicted if predicted else 0.0,
        best=fits[best][0],
        arrangement=ARRANGEMENTS[best],
    )


def _comparable(windows: FloatArray, sensor: str) -> Mask:
    """Spans that can be compared: bool (N, spans)."""
    bad = clipped(windows)
    if sensor == "accelerometer":
        bad = bad | (np.abs(lengths(windows, sensor) - GRAVITY) >= QUASI_STATIC)
    worst: Mask = np.lib.stride_tricks.sliding_window_view(bad, SPAN + 1, axis=1).max(axis=-1)
    return ~worst[:, ::STEP]


def clipped(windows: FloatArray) -> Mask:
    """Samples at which the gyroscope has come to the end of its range: bool (N, 100)."""
    rotation = of_sensor(windows, "gyroscope")
    ends = (rotation == rotation.max(axis=(0, 1))) | (rotation == rotation.min(axis=(0, 1)))
    often = ends.mean(axis=(0, 1)) > SATURATED
    # A gyroscope that reads few values is at its ends by chance: an end is clipping where it is held.
    held = ends[:, 1:] & (rotation[:, 1:] == rotation[:, :-1])
    steps = np.count_nonzero(rotation[:, 1:] != rotation[:, :-1], axis=(0, 1)) > 0
    return np.asarray((ends & often & steps & (held.sum(axis=(0, 1)) > 0)).any(axis=-1))


def _terms(windows: FloatArray, vector: Floats) -> Floats:
    """What rotation ``j`` read as about axis ``i`` does to the vector over each span: (9, N, spans, 3)."""
    rotation = of_sensor(windows, "gyroscope").astype(np.float64) / SAMPLING_RATE_HZ
    terms = []
    for axis in np.eye(3):
        turned = -np.cross(axis, vector)
        for column in range(3):
            summed = np.cumsum(rotation[:, :, column : column + 1] * turned, axis=1)
            terms.append((summed[:, SPAN:] - summed[:, :-SPAN])[:, ::STEP])
    return np.stack(terms)


def _weights(arrangement: tuple[tuple[int, int], ...]) -> Floats:
    matrix = np.zeros((3, 3))
    for axis, (source, sign) in enumerate(arrangement):
        matrix[axis, source] = sign
    return matrix.ravel()


def check_turning(windows: FloatArray, name: str) -> list[Finding]:
    """Findings where field or gravity do not turn as the gyroscope says.

    Only what another arrangement of the axes, or another rate, explains well is refused: a disturbed
    magnetometer agrees with nothing, and is no mistake of whoever wrote the file.
    """
    findings = []
    for sensor in ("magnetometer", "accelerometer"):
        found = turning(windows, sensor)
        if found is None or found.windows < MIN_WINDOWS or found.turned < MIN_TURNED[sensor]:
            continue
        if found.best > CLEAR[sensor] and found.best - found.agreement > MARGIN[sensor]:
            findings.append(_axes_finding(found, sensor, name))
        elif sensor == "magnetometer" and found.agreement > 0.7:
            findings.extend(_rate_findings(found, name))
    return findings


def field_proves_rotation(windows: FloatArray) -> bool:
    """Whether the field turns as fast as the gyroscope says: its unit and axes are then right."""
    found = turning(windows, "magnetometer")
    return (
        found is not None
        and found.windows >= MIN_WINDOWS
        and found.turned >= MIN_TURNED["magnetometer"]
        and found.agreement > CLEAR["magnetometer"]
        and RATE_WARN[0] <= found.rate <= RATE_WARN[1]
    )


def _axes_finding(found: Turning, sensor: str, name: str) -> Finding:
    what = "field" if sensor == "magnetometer" else "gravity"
    return Finding(
        check="axes",
        severity="refuse",
        channel="gyroscope" if sensor == "magnetometer" else sensor,
        measured=f"{name}: {what} and gyroscope turn alike with correlation {found.agreement:.2f}, and with "
        f"{found.best:.2f} where the gyroscope's axes are read as {_read_as(found.arrangement)}",
        expected="the axes as given agree best",
        cause=_axes_cause(found.arrangement, sensor),
    )


def _read_as(arrangement: tuple[tuple[int, int], ...]) -> str:
    return " ".join(("" if sign > 0 else "-") + "xyz"[source] for source, sign in arrangement)


def _axes_cause(arrangement: tuple[tuple[int, int], ...], sensor: str) -> str:
    negatives = sum(sign < 0 for _, sign in arrangement)
    if arrangement == tuple((axis, -1) for axis in range(3)):
        return (
            "a left-handed frame: two axes swapped or one mirrored on all sensors, or time runs backwards; "
            "write the sensor's own axes, right-handed"
        )
    if all(source == axis for axis, (source, _) in enumerate(arrangement)):
        others = "the others" if negatives == 2 else "one"
        return f"a sign: {others} of {sensor} or gyroscope is mirrored; give both the same right-handed axes"
    return f"axes of the gyroscope or the {sensor} are swapped: give both the same right-handed axes"


def _rate_findings(found: Turning, name: str) -> Iterator[Finding]:
    if RATE_WARN[0] <= found.rate <= RATE_WARN[1]:
        return
    # An offset of the magnetometer makes the field seem to turn less, and agree less.
    refused = found.rate > RATE[1] or (found.rate < RATE[0] and found.agreement > SURE)
    offset = "an offset of the magnetometer (hard iron), " if found.rate < 1 else ""
    yield Finding(
        check="turning_rate",
        severity="refuse" if refused else "warn",
        channel="gyroscope",
        measured=f"{name}: the field turns at {found.rate:.2f} of what the gyroscope says",
        expected=f"{RATE[0]:g} to {RATE[1]:g}" if refused else f"{RATE_WARN[0]:g} to {RATE_WARN[1]:g}",
        cause=f"{offset}another sampling rate than {SAMPLING_RATE_HZ} Hz (about "
        f"{SAMPLING_RATE_HZ / found.rate:.0f} Hz), or a scale of the gyroscope; resample, do not pad",
    )
