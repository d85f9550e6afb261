"""Strata of a set of windows: the given labels, else how much each window moves; and who is at rest.

How much a window moves is the deviation over time of its accelerometer and gyroscope, each relative to
the set's own reference. A factor on a sensor cancels: wrong units cannot hide who is at rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import CalibrationError
from runtime.contract.window import UNITS, FloatArray

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

BY_LABELS: Final = "labels"
BY_MOTION: Final = "motion"
SENSORS: Final = tuple(UNITS)
"""``accelerometer``, ``gyroscope``, ``magnetometer``: three channels each, in this order."""
MOVING: Final = SENSORS[:2]
QUANTILE: Final = 0.9
TOP: Final = (0.995, 0.25)
"""Where nearly all windows rest, their 90th percentile is rest: a reference is no less than this share of
the most violent ones."""
NAMES: Final = ("still", "gentle", "brisk", "violent")
EDGES: Final = (0.1, 0.4, 0.85)
"""Between ``NAMES``, in units of the set's 90th percentile. Windows at rest measure about 0.005 on a table
and up to 0.05 on a person; a vehicle about 0.13; walking about 0.25."""
FEWEST_OF_LABEL: Final = 4
"""Windows of a label from which it may speak for all that rest."""
STEADY: Final = 0.3
"""Of the set's reference of rotation, from which a window without deviation is no rest."""
HINT: Final = "write the index with: python -m assets.calibration"
LABELS_MEASURE: Final = "the label that each window was given"
MOTION_MEASURE: Final = (
    "the larger of accelerometer and gyroscope deviation over the window (square root of the three axes' "
    "summed variance), each divided by its reference: the 90th percentile of the calibration set, or a "
    "quarter of the 99.5th where that is more; edges divide the names"
)


@dataclass(frozen=True, kw_only=True)
class StrataDefinition:
    """How windows are put into strata, as the index records it.

    Args:
        by: ``labels`` or ``motion``.
        measure: The same in words.
        references: ``accelerometer`` [m/s²] and ``gyroscope`` [rad/s]: the deviation that counts as 1;
            empty for labels.
        names: Strata from stillest to most violent; empty for labels.
        edges: One fewer, rising, in units of the references; empty for labels.
    """

    by: str
    measure: str
    references: dict[str, float]
    names: tuple[str, ...]
    edges: tuple[float, ...]

    def text(self) -> str:
        """One line for people."""
        if self.by == BY_LABELS:
            return self.measure
        units = (f"{name} {self.references[name]:g} {UNITS[name]}" for name in MOVING)
        edges = ", ".join(f"{edge:g}" for edge in self.edges)
        return f"{', '.join(self.names)}, divided at {edges}: {self.measure} ({', '.join(units)})"


def labelled(labels: Sequence[str]) -> bool:
    """Whether windows were given labels: without, every label is empty."""
    return any(labels)


def deviations(windows: FloatArray, sensor: str) -> Floats:
    """How much one sensor varies within each window: float64 (N,), in the sensor's unit.

    Args:
        windows: float32 (N, 100, 9) = (window, time, channel).
        sensor: One of ``SENSORS``.

    Returns:
        The square root of the three axes' summed variance over time.
    """
    summed: Floats = np.var(of_sensor(windows, sensor), axis=1, dtype=np.float64).sum(axis=1)
    return np.sqrt(summed)


def of_sensor(windows: FloatArray, sensor: str) -> FloatArray:
    """The three channels of one sensor: (..., 3)."""
    first = 3 * SENSORS.index(sensor)
    return windows[..., first : first + 3]


def references_of(windows: FloatArray) -> dict[str, float]:
    """What counts as 1 for each moving sensor, of the set itself, to six digits: for the index."""
    return {
        name: float(f"{_reference(deviations(windows, name)):.6g}") if len(windows) else 0.0
        for name in MOVING
    }


def _reference(values: Floats) -> float:
    top, share = TOP
    return max(float(np.quantile(values, QUANTILE)), share * float(np.quantile(values, top)))


def motion_of(windows: FloatArray, references: dict[str, float] | None = None) -> Floats:
    """How much each window moves: float64 (N,), 1 where it moves as the references do.

    Args:
        windows: float32 (N, 100, 9), in any units.
        references: What counts as 1 for each moving sensor; without, the set's own.
    """
    references = references_of(windows) if references is None else references
    # A sensor that never varies says nothing of motion; where neither does, nobody is known to rest.
    known = [name for name in MOVING if references[name] > 0]
    if not known or not len(windows):
        return np.ones(len(windows))
    motion: Floats = np.max([deviations(windows, name) / references[name] for name in known], axis=0)
    return motion


def define_strata(windows: FloatArray, labels: Sequence[str]) -> StrataDefinition:
    """The strata that a calibration set defines; evaluation and golden windows are put into the same.

    Args:
        windows: float32 (N, 100, 9), the calibration set.
        labels: N names, or all empty where nobody labelled them.
    """
    if labelled(labels):
        return StrataDefinition(by=BY_LABELS, measure=LABELS_MEASURE, references={}, names=(), edges=())
    return StrataDefinition(
        by=BY_MOTION,
        measure=MOTION_MEASURE,
        references=references_of(windows),
        names=NAMES,
        edges=EDGES,
    )


def known_labels(definition: StrataDefinition, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels where they are the strata; all empty where motion is."""
    return tuple(labels) if definition.by == BY_LABELS else ("",) * len(labels)


def check_definition(definition: StrataDefinition, where: str) -> None:
    """Refuse a definition that this version does not know.

    Raises:
        CalibrationError: Names what differs.
    """
    if definition.by not in (BY_LABELS, BY_MOTION):
        raise CalibrationError(f"strata by {definition.by!r}, expected labels or motion", where=where)
    motion = definition.by == BY_MOTION
    wanted = (NAMES, EDGES, set(MOVING)) if motion else ((), (), set())
    if (definition.names, definition.edges, set(definition.references)) != wanted:
        raise CalibrationError(
            f"strata {definition.names} with edges {definition.edges} and references of "
            f"{sorted(definition.references)}, expected {wanted[0]}, {wanted[1]} and {sorted(wanted[2])}",
            where=where,
            hint=HINT,
        )


def check_references(definition: StrataDefinition, windows: FloatArray, where: str) -> None:
    """Refuse references that are not those of the calibration set.

    Raises:
        CalibrationError: Names the sensor.
    """
    for name, stated in definition.references.items():
        measured = references_of(windows)[name]
        if not np.isclose(stated, measured, rtol=1e-4):
            raise CalibrationError(
                f"the {name}'s reference is {stated:g} {UNITS[name]}, the windows have {measured:g}",
                where=where,
                hint=HINT,
            )


def strata_of(definition: StrataDefinition, windows: FloatArray, labels: Sequence[str]) -> tuple[str, ...]:
    """The stratum of each window: N names."""
    if definition.by == BY_LABELS:
        return tuple(labels)
    places = np.digitize(motion_of(windows, definition.references), definition.edges)
    return tuple(definition.names[place] for place in places)


def counts_of(strata: Sequence[str]) -> dict[str, int]:
    """How many windows each stratum has, by name."""
    names, counts = np.unique(np.asarray(strata, dtype=np.str_), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def at_rest(windows: FloatArray, labels: Sequence[str]) -> Mask:
    """Which windows are at rest, whatever the units: bool (N,).

    Those of the stillest label where it names rest, else (no labels, or labels that hold rest and motion
    alike) every window below the first edge that does not turn steadily; all relative to the set itself.
    None where nothing is clearly stiller than the set: a set of rest alone has nothing to be still against.

    Args:
        windows: float32 (N, 100, 9).
        labels: N names, or all empty.
    """
    motion = motion_of(windows)
    if labelled(labels):
        given = np.asarray(labels, dtype=np.str_)
        stillest, measure = stillest_label(motion, given)
        if measure < EDGES[0] and np.sum(given == stillest) >= FEWEST_OF_LABEL:
            return np.equal(given, stillest)
    return np.less(motion, EDGES[0]) & ~_turning_steadily(windows)


def _turning_steadily(windows: FloatArray) -> Mask:
    """Which windows turn without a change, as on a turntable: their gyroscope hardly deviates."""
    squares = np.square(of_sensor(windows, "gyroscope"), dtype=np.float64).sum(axis=2)
    sizes: Floats = np.sqrt(squares.mean(axis=1))
    reference = _reference(sizes) if len(windows) else 0.0
    return np.greater(sizes, STEADY * reference) if reference > 0 else np.zeros(len(windows), dtype=bool)


def stillest_label(motion: Floats, labels: npt.NDArray[np.str_]) -> tuple[str, float]:
    """The label whose median window moves least, and how much that is."""
    medians = {str(name): float(np.median(motion[labels == name])) for name in np.unique(labels)}
    name = min(medians, key=lambda label: (medians[label], label))
    return name, medians[name]
