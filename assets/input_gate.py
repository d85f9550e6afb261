"""The input gate: what a set of windows must be before anything is calibrated or judged with it.

``check_physical`` needs the windows alone, ``check_normalized`` the model's normalization too; what two
sets owe each other is in ``assets.set_comparison``. All are plain functions that return findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from assets import causes
from assets.findings import REFUSE, WARN, make_finding
from assets.physical import (
    FIELD,
    FIELD_POSSIBLE,
    MIXED_SHARE,
    PEAK_ROTATION,
    REST_ACCELERATION,
    REST_ROTATION,
    Measured,
    measure,
    within,
)
from assets.repetition import check_repetition, distinct
from assets.rigid_body import check_turning, field_proves_rotation
from assets.strata import (
    EDGES,
    MOVING,
    SENSORS,
    Floats,
    StrataDefinition,
    at_rest,
    known_labels,
    labelled,
    motion_of,
    of_sensor,
    stillest_label,
)
from runtime.contract.errors import CalibrationError
from runtime.contract.parity import Finding
from runtime.contract.window import CHANNELS, UNITS, ChannelStatistics, FloatArray

if TYPE_CHECKING:
    from assets.calibration import WindowSet, WindowSets

FEWEST: Final = {"calibration": 64, "evaluation": 64, "golden": 16}
ENOUGH: Final = {"emulator": 256}
ENOUGH_FOR_HAILO: Final = 1024
"""What Hailo's compiler asks for; its emulator's ranges settle at 256."""
FEWEST_AT_REST: Final = {"calibration": 4, "evaluation": 4, "golden": 1}
FEWEST_FOR_SHARE: Final = 16
"""Windows at rest of which one in five is no accident."""
Z_SPREAD: Final = ((0.05, 5.0), (0.15, 5.0))
"""Spread beyond which to refuse and to warn: a set that mostly rests is narrow, a unit is off by more."""
Z_PEAK: Final = 40.0
Z_PEAK_QUANTILE: Final = 0.999
Z_MEAN: Final = {"accelerometer": 1.5, "gyroscope": 1.5, "magnetometer": 2.5}
"""From which distance to training's mean to warn; a pose or a place is no mistake by itself."""
Z_REACH: Final = 2.5
"""How far the most violent samples of a channel reach from its mean, in training's deviations, below which
to warn: of a set like training's they reach 4.5 and more, but a place on the body has quiet axes."""
Z_REACH_REFUSED: Final = {"accelerometer": 2.5, "gyroscope": 0.0}
"""The same of a sensor's farthest axis, below which to refuse: then there is no burst on any axis. A back
hardly turns, whatever it does: of the gyroscope it says nothing."""
POSED: Final = 5.0  # m/s²: a mean acceleration above this says that training had a preferred pose
POSE_ANGLE: Final = 55.0  # degrees
POSE_COMMON: Final = 0.8
"""Length of the mean gravity direction at rest, below which the set has no common pose."""


def refuse(findings: Iterable[Finding], where: str) -> tuple[Finding, ...]:
    """Let warnings through.

    Returns:
        The findings that warn.

    Raises:
        CalibrationError: There is a refusal; its message holds the sentence of each.
    """
    found = tuple(findings)
    refusals = [finding.sentence() for finding in found if finding.severity == REFUSE]
    if refusals:
        raise CalibrationError(
            ". ".join(refusals),
            where=where,
            hint="correct the windows, then write the sets with: python -m assets.calibration",
        )
    return tuple(finding for finding in found if finding.severity == WARN)


def gate_for_model(sets: WindowSets, statistics: ChannelStatistics, target: str) -> tuple[Finding, ...]:
    """The gate before optimize and before parity: what only shows beside the model and the target.

    Args:
        sets: As ``parse_sets`` gives them: their physical units are checked already.
        statistics: The model's normalization.
        target: ``emulator``, ``hailo8`` or ``hailo8l``.

    Returns:
        Every warning, those of ``parse_sets`` first.

    Raises:
        CalibrationError: Calibration or evaluation set is refused.
    """
    found = {"calibration": sets.calibration, "evaluation": sets.evaluation}
    findings = model_findings(found, sets.index.strata, statistics)
    findings.extend(check_enough(sets.calibration.windows, name="calibration", target=target))
    return (*sets.findings, *refuse(findings, "calibration_set, beside the model's normalization"))


def model_findings(
    sets: Mapping[str, WindowSet], strata: StrataDefinition, statistics: ChannelStatistics
) -> list[Finding]:
    """Findings of ``check_normalized`` on several sets.

    Args:
        sets: By name; golden windows are too few to have a mean and a spread.
        strata: The calibration set's definition.
        statistics: The model's normalization.
    """
    return [
        finding
        for name, each in sets.items()
        for finding in check_normalized(
            each.windows, known_labels(strata, each.labels), statistics, name=name
        )
    ]


def check_physical(
    windows: FloatArray, labels: Sequence[str], *, name: str, target: str = ""
) -> list[Finding]:
    """What one set says by itself, in physical units.

    Args:
        windows: float32 (N, 100, 9), finite.
        labels: N activity names, or all empty: then motion alone says who is at rest.
        name: ``calibration``, ``evaluation`` or ``golden``.
        target: For how many windows are enough; empty where it is not known yet.

    Returns:
        Findings in the order in which to read them; empty for a good set.
    """
    findings = [*check_count(windows, name=name), *check_repetition(windows, name)]
    if target:
        findings.extend(check_enough(windows, name=name, target=target))
    if not len(windows):
        return findings
    measured = measure(windows, labels)
    moved = causes.rearranged(windows, labels, measured)
    units = _check_units(windows, labels, measured, name)
    if moved:
        check, cause = moved
        what = "the windows do not fit as given, and fit in another arrangement"
        findings.append(make_finding(check, REFUSE, "all", name, what, "as given", cause))
        units = [_with_cause(finding, f"see {check}") for finding in units]
    findings.extend(units)
    if measured.fits():
        findings.extend(check_turning(windows, name))
    return findings


def _with_cause(finding: Finding, cause: str) -> Finding:
    return Finding(
        check=finding.check,
        severity=finding.severity,
        channel=finding.channel,
        measured=finding.measured,
        expected=finding.expected,
        cause=cause,
    )


def _range(bounds: tuple[float, float], unit: str) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}{' ' * bool(unit)}{unit}"


def check_count(windows: FloatArray, *, name: str) -> list[Finding]:
    """Refuse too few different windows to calibrate with or to judge on."""
    count, fewest = distinct(windows), FEWEST[name]
    if count >= fewest:
        return []
    cause = "too few windows, or copies of a few: capture more, of every activity"
    return [
        make_finding("count", REFUSE, "all", name, f"{count} different windows", f"at least {fewest}", cause)
    ]


def check_enough(windows: FloatArray, *, name: str, target: str) -> list[Finding]:
    """Warn of a calibration set that its target's ranges do not settle on."""
    count, enough = distinct(windows), ENOUGH.get(target, ENOUGH_FOR_HAILO)
    if name != "calibration" or not FEWEST[name] <= count < enough:
        return []
    cause = "ranges that few windows give clip what the others do: capture more"
    measured = f"{count} different windows for {target}"
    return [make_finding("count", WARN, "all", name, measured, f"at least {enough}", cause)]


def _check_units(windows: FloatArray, labels: Sequence[str], measured: Measured, name: str) -> list[Finding]:
    if measured.resting < FEWEST_AT_REST[name]:
        findings = [] if name == "golden" else [_no_rest(windows, labels, measured, name)]
    else:
        findings = _check_rest(windows, measured, name)
    if not within(measured.peak, PEAK_ROTATION):
        text, cause = f"99.9% below {measured.peak:.4g} rad/s", causes.of_rotation(windows, measured)
        expected = f"below {PEAK_ROTATION[1]:g} rad/s"
        findings.append(make_finding("peak_rotation", REFUSE, "gyroscope", name, text, expected, cause))
    if not within(measured.field, FIELD):
        text, cause = f"median |mag| {measured.field:.4g} µT", causes.of_field(windows, measured)
        severity = WARN if within(measured.field, FIELD_POSSIBLE) else REFUSE
        expected = _range(FIELD, "µT")
        findings.append(make_finding("magnetic_field", severity, "magnetometer", name, text, expected, cause))
    else:
        odd = measured.odd_field
        findings.extend(_check_mixed("magnetometer", odd, FIELD_POSSIBLE, "windows", name))
    return findings


def _no_rest(windows: FloatArray, labels: Sequence[str], measured: Measured, name: str) -> Finding:
    motion = motion_of(windows)
    if labelled(labels):
        label, least = stillest_label(motion, np.asarray(labels, dtype=np.str_))
        what = f"the stillest label, {label}, moves {least:.2f} of the set's p90"
    else:
        what = f"the stillest of {len(windows)} windows moves {motion.min():.2f} of the set's p90"
    what = f"{measured.resting} windows are at rest; {what}"
    cause = "only one kind of motion, or none at all: capture every activity, at rest included"
    if measured.resting:
        cause = "too few windows at rest to tell the units by: capture more, a device on a table will do"
    if causes.looks_normalized(windows):
        cause = f"noise, or {cause}; the values look like z-scores, give physical units"
    expected = f"{FEWEST_AT_REST[name]} or more windows below {EDGES[0]:g}"
    return make_finding("coverage", REFUSE, "all", name, what, expected, cause)


def _check_rest(windows: FloatArray, measured: Measured, name: str) -> list[Finding]:
    findings = []
    several = measured.resting >= FEWEST_FOR_SHARE
    at = f"at rest ({measured.resting} windows) median"
    if not within(measured.acceleration, REST_ACCELERATION):
        text, cause = (
            f"{at} |acc| {measured.acceleration:.4g} m/s²",
            causes.of_acceleration(windows, measured),
        )
        expected = _range(REST_ACCELERATION, "m/s²")
        findings.append(
            make_finding("rest_acceleration", REFUSE, "accelerometer", name, text, expected, cause)
        )
    elif several:
        odd = measured.odd_acceleration
        findings.extend(_check_mixed("accelerometer", odd, REST_ACCELERATION, "windows at rest", name))
    if not within(measured.rotation, REST_ROTATION):
        text, cause = f"{at} |gyro| {measured.rotation:.4g} rad/s", causes.of_rotation(windows, measured)
        expected, severity = f"below {REST_ROTATION[1]:g} rad/s", REFUSE
        if field_proves_rotation(windows):
            severity, cause = WARN, "the field turns as fast: the unit is right, and nobody quite rests"
        findings.append(make_finding("rest_rotation", severity, "gyroscope", name, text, expected, cause))
    elif several and measured.odd_rotation > MIXED_SHARE and not field_proves_rotation(windows):
        odd = measured.odd_rotation
        findings.extend(_check_mixed("gyroscope", odd, REST_ROTATION, "windows at rest", name))
    return findings


def _check_mixed(sensor: str, share: float, bounds: tuple[float, float], of: str, name: str) -> list[Finding]:
    if share <= MIXED_SHARE:
        return []
    text = f"{share:.0%} of the {of} are outside {_range(bounds, UNITS[sensor])}"
    cause = causes.mixed(sensor, share)
    return [make_finding("mixed_units", REFUSE, sensor, name, text, f"at most {MIXED_SHARE:.0%}", cause)]


def pose_checkable(statistics: ChannelStatistics) -> bool:
    """Whether training had a preferred pose, against which a set's can be held."""
    return float(np.linalg.norm(statistics.mean[:3])) > POSED


def check_normalized(
    windows: FloatArray, labels: Sequence[str], statistics: ChannelStatistics, *, name: str
) -> list[Finding]:
    """What one set is to the model: z-scores within bounds by channel, and the pose at rest.

    Args:
        windows: float32 (N, 100, 9), in physical units.
        labels: N activity names, or all empty.
        statistics: The model's normalization.
        name: ``calibration``, ``evaluation`` or ``golden``.
    """
    # Not the contract's float32: a value that overflows there is to be reported, not lost.
    scores = (windows.astype(np.float64) - np.asarray(statistics.mean)) / np.asarray(statistics.std)
    findings = []
    for place, channel in enumerate(CHANNELS):
        first = 3 * (place // 3)
        widest = float(scores[:, :, first : first + 3].std(axis=(0, 1)).max())
        findings.extend(_check_scores(scores[:, :, place], channel, SENSORS[place // 3], name, widest))
    for place, sensor in enumerate(MOVING):
        findings.extend(_check_reach(scores[:, :, 3 * place : 3 * place + 3], sensor, name))
    if pose_checkable(statistics):
        findings.extend(_check_pose(windows[at_rest(windows, labels)], statistics, name))
    return findings


def _check_scores(scores: Floats, channel: str, sensor: str, name: str, widest: float) -> list[Finding]:
    """One channel; ``widest`` is the spread of its sensor's widest axis, as a unit changes all three."""
    mean, spread, sizes = float(scores.mean()), float(scores.std()), np.abs(scores)
    peak, most = float(sizes.max()), float(np.quantile(sizes, Z_PEAK_QUANTILE))
    refused, usual = Z_SPREAD
    warn = Z_MEAN[sensor]
    # A narrow field says where somebody lives and turned, not how.
    scaled = spread > refused[1] or (sensor != "magnetometer" and widest < refused[0])
    narrow = not scaled and not within(spread, usual)
    other = "another unit or scale than training had, or the normalization of another model"
    quiet = "hardly anything moves, next to training, or the scale is another: compare both"
    place = "another pose or place than training had, an offset of the sensor, or another axis"
    spike = "a glitch, an impact, or another scale: look at the window with the largest value"
    at_most = f"below {Z_PEAK:g}"
    rows = (
        (scaled, "z_spread", REFUSE, f"sd {spread:.3g}", _range(refused, ""), other),
        (narrow, "z_spread", WARN, f"sd {spread:.3g}", _range(usual, ""), quiet),
        (most >= Z_PEAK, "z_peak", REFUSE, f"99.9% of |z| within {most:.3g}", at_most, other),
        (most < Z_PEAK <= peak, "z_peak", WARN, f"|z| up to {peak:.3g}", at_most, spike),
        (abs(mean) > warn, "z_mean", WARN, f"mean z {mean:.3g}", f"within ±{warn:g}", place),
    )
    return [make_finding(c, s, channel, name, text, e, cause) for bad, c, s, text, e, cause in rows if bad]


def _check_reach(scores: Floats, sensor: str, name: str) -> list[Finding]:
    """Motions that training had and the set has not: no burst on any axis, or one axis that is quiet."""
    channels = CHANNELS[3 * SENSORS.index(sensor) :][:3]
    reaches = np.quantile(np.abs(scores - scores.mean(axis=(0, 1))), Z_PEAK_QUANTILE, axis=(0, 1)).tolist()
    least = Z_REACH_REFUSED[sensor]
    severity, bound = (REFUSE, least) if max(reaches) < least else (WARN, Z_REACH)
    cause = "motions that training had are missing (no bursts): capture them, or what they do is clipped"
    return [
        make_finding(
            "z_reach",
            severity,
            channel,
            name,
            f"99.9% within {reach:.3g} sd of training",
            f"beyond {bound:g} sd{' on one axis' if severity == REFUSE else ''}",
            cause,
        )
        for channel, reach in zip(channels, reaches, strict=True)
        if reach < bound
    ]


def _check_pose(resting: FloatArray, statistics: ChannelStatistics, name: str) -> list[Finding]:
    if not len(resting):
        return []
    gravity = np.median(of_sensor(resting, "accelerometer").astype(np.float64), axis=1)
    sizes = np.linalg.norm(gravity, axis=1, keepdims=True)
    mean = np.mean(gravity / np.where(sizes > 0, sizes, 1.0), axis=0)
    pose = np.asarray(statistics.mean[:3]) / np.linalg.norm(statistics.mean[:3])
    common = float(np.linalg.norm(mean))
    if common < POSE_COMMON:
        text = f"gravity at rest has no common direction ({common:.2f} of 1)"
        cause = "devices lie in any way, and training had one pose: capture as the device is worn"
        return [make_finding("resting_pose", WARN, "accelerometer", name, text, f"{POSE_COMMON:g}", cause)]
    angle = float(np.degrees(np.arccos(np.clip(mean @ pose / common, -1, 1))))
    if angle <= POSE_ANGLE:
        return []
    text = (
        f"gravity at rest points along {_direction(mean / common)}, {angle:.0f}° from training's "
        f"{_direction(pose)}"
    )
    cause = (
        "axes permuted or a sign turned (some phones give gravity the other sign), or worn another way: then "
    )
    cause += "the model was not trained for it; train on such windows, or capture as training did"
    return [
        make_finding("resting_pose", REFUSE, "accelerometer", name, text, f"within {POSE_ANGLE:g}°", cause)
    ]


def _direction(vector: Floats) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in vector) + ")"
