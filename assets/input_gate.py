"""The input gate: what a set of windows must be before anything is calibrated or judged with it.

``check_physical`` needs the windows alone, ``check_normalized`` the model's normalization too; what two
sets owe each other is in ``assets.set_comparison``. All are plain functions that return findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from assets import causes
from assets.physical import (
    FIELD,
    MIXED_SHARE,
    PEAK_ROTATION,
    REST_ACCELERATION,
    REST_ROTATION,
    Measured,
    measure,
    within,
)
from assets.rigid_body import check_turning
from assets.strata import (
    EDGES,
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

REFUSE: Final = "refuse"
WARN: Final = "warn"
FEWEST: Final = {"calibration": 64, "evaluation": 64, "golden": 16}
ENOUGH: Final = {"emulator": 256}
ENOUGH_FOR_HAILO: Final = 1024
"""What Hailo's compiler asks for; its emulator's ranges settle at 256."""
FEWEST_AT_REST: Final = {"calibration": 4, "evaluation": 4, "golden": 1}
FEWEST_FOR_SHARE: Final = 16
"""Windows at rest of which one in five is no accident."""
COPIES: Final = 0.01
HELD: Final = (0.02, 0.2)
"""Share of samples that repeat the one before, from which to warn and to refuse."""
Z_SPREAD: Final = (0.15, 5.0)
Z_PEAK: Final = 40.0
Z_MEAN: Final = {"accelerometer": (1.5, 3.0), "gyroscope": (1.5, 3.0), "magnetometer": (2.5, 8.0)}
"""From which distance to training's mean to warn and to refuse; a field differs between places."""
Z_REACH: Final = (2.5, 1.5)
"""How far the most violent samples of a channel reach from its mean, in training's deviations, below which
to warn and to refuse: of a set like training's they reach 4.5 and more."""
POSED: Final = 5.0  # m/s²: a mean acceleration above this says that training had a preferred pose
POSE_ANGLE: Final = 55.0  # degrees
POSE_COMMON: Final = 0.5
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
    findings = [*check_count(windows, name=name), *_check_repetition(windows, name)]
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
        findings.append(_finding(check, REFUSE, "all", name, what, "as given", cause))
        units = [_with_cause(finding, f"see {check}") for finding in units]
    findings.extend(units)
    if measured.fits():
        findings.extend(check_turning(windows, name))
    return findings


def _finding(
    check: str, severity: str, channel: str, name: str, measured: str, expected: str, cause: str
) -> Finding:
    return Finding(
        check=check,
        severity=severity,
        channel=channel,
        measured=f"{name}: {measured}",
        expected=expected,
        cause=cause,
    )


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


def distinct(windows: FloatArray) -> int:
    """How many different windows there are."""
    return len({window.tobytes() for window in windows})


def check_count(windows: FloatArray, *, name: str) -> list[Finding]:
    """Refuse too few different windows to calibrate with or to judge on."""
    count, fewest = distinct(windows), FEWEST[name]
    if count >= fewest:
        return []
    cause = "too few windows, or copies of a few: capture more, of every activity"
    return [_finding("count", REFUSE, "all", name, f"{count} different windows", f"at least {fewest}", cause)]


def check_enough(windows: FloatArray, *, name: str, target: str) -> list[Finding]:
    """Warn of a calibration set that its target's ranges do not settle on."""
    count, enough = distinct(windows), ENOUGH.get(target, ENOUGH_FOR_HAILO)
    if name != "calibration" or not FEWEST[name] <= count < enough:
        return []
    cause = "ranges that few windows give clip what the others do: capture more"
    measured = f"{count} different windows for {target}"
    return [_finding("count", WARN, "all", name, measured, f"at least {enough}", cause)]


def _check_repetition(windows: FloatArray, name: str) -> list[Finding]:
    """Copies, constant windows and channels, samples that repeat the one before."""
    if not len(windows):
        return []
    findings = []
    copies = len(windows) - distinct(windows)
    constant = np.all(windows == windows[:, :1], axis=1)
    for check, count, what, cause in (
        ("repeated", copies, "copies of other windows", "windows written several times: keep one of each"),
        (
            "constant",
            int(constant.all(axis=1).sum()),
            "windows without any change",
            "a sensor that hung, or padding: a real one is never still to the last digit; leave them out",
        ),
    ):
        if count:
            share = count / len(windows)
            severity = REFUSE if share > COPIES else WARN
            measured = f"{count} {what} of {len(windows)}"
            findings.append(_finding(check, severity, "all", name, measured, f"at most {COPIES:.0%}", cause))
    dead = constant.mean(axis=0)
    if dead.min() > COPIES:
        dead[:] = 0  # said above: whole windows, not channels
    for channel, share in zip(CHANNELS, dead.tolist(), strict=True):
        if share > 0.5:
            cause = "a dead channel, or one that was filled in: connect it, or capture again"
            measured = f"constant in {share:.0%} of the windows"
            findings.append(_finding("constant", REFUSE, channel, name, measured, "at most 50%", cause))
    held = float(np.mean(np.all(windows[:, 1:] == windows[:, :-1], axis=2)))
    if held > HELD[0]:
        severity, bound = (REFUSE, HELD[1]) if held > HELD[1] else (WARN, HELD[0])
        cause = "padding, or a slower sensor whose samples were repeated: capture or resample at 100 Hz"
        measured = f"{held:.0%} of all samples repeat the one before in every channel"
        findings.append(
            _finding("held_samples", severity, "all", name, measured, f"at most {bound:.0%}", cause)
        )
    return findings


def _check_units(windows: FloatArray, labels: Sequence[str], measured: Measured, name: str) -> list[Finding]:
    if measured.resting < FEWEST_AT_REST[name]:
        findings = [] if name == "golden" else [_no_rest(windows, labels, measured, name)]
    else:
        findings = _check_rest(windows, measured, name)
    if not within(measured.peak, PEAK_ROTATION):
        text, cause = f"99.9% below {measured.peak:.4g} rad/s", causes.of_rotation(windows, measured)
        expected = f"below {PEAK_ROTATION[1]:g} rad/s"
        findings.append(_finding("peak_rotation", REFUSE, "gyroscope", name, text, expected, cause))
    if not within(measured.field, FIELD):
        text, cause = f"median |mag| {measured.field:.4g} µT", causes.of_field(windows, measured)
        expected = _range(FIELD, "µT")
        findings.append(_finding("magnetic_field", REFUSE, "magnetometer", name, text, expected, cause))
    else:
        findings.extend(_check_mixed("magnetometer", measured.odd_field, FIELD, "windows", name))
    return findings


def _no_rest(windows: FloatArray, labels: Sequence[str], measured: Measured, name: str) -> Finding:
    motion = motion_of(windows)
    if labelled(labels):
        label, least = stillest_label(motion, np.asarray(labels, dtype=np.str_))
        what = f"the stillest label, {label}, moves {least:.2f} of the set's p90"
    else:
        what = (
            f"{measured.resting} windows are at rest; the stillest moves {motion.min():.2f} of the set's p90"
        )
    cause = "only one kind of motion, or none at all: capture every activity, at rest included"
    if causes.looks_normalized(windows):
        cause = f"noise, or {cause}; the values look like z-scores, give physical units"
    return _finding("coverage", REFUSE, "all", name, what, f"windows below {EDGES[0]:g}", cause)


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
        findings.append(_finding("rest_acceleration", REFUSE, "accelerometer", name, text, expected, cause))
    elif several:
        odd = measured.odd_acceleration
        findings.extend(_check_mixed("accelerometer", odd, REST_ACCELERATION, "windows at rest", name))
    if not within(measured.rotation, REST_ROTATION):
        text, cause = f"{at} |gyro| {measured.rotation:.4g} rad/s", causes.of_rotation(windows, measured)
        expected = f"below {REST_ROTATION[1]:g} rad/s"
        findings.append(_finding("rest_rotation", REFUSE, "gyroscope", name, text, expected, cause))
    elif several:
        odd = measured.odd_rotation
        findings.extend(_check_mixed("gyroscope", odd, REST_ROTATION, "windows at rest", name))
    return findings


def _check_mixed(sensor: str, share: float, bounds: tuple[float, float], of: str, name: str) -> list[Finding]:
    if share <= MIXED_SHARE:
        return []
    text = f"{share:.0%} of the {of} are outside {_range(bounds, UNITS[sensor])}"
    cause = causes.mixed(sensor, share)
    return [_finding("mixed_units", REFUSE, sensor, name, text, f"at most {MIXED_SHARE:.0%}", cause)]


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
        findings.extend(_check_scores(scores[:, :, place], channel, list(UNITS)[place // 3], name))
    if pose_checkable(statistics):
        findings.extend(_check_pose(windows[at_rest(windows, labels)], statistics, name))
    return findings


def _check_scores(scores: Floats, channel: str, sensor: str, name: str) -> list[Finding]:
    mean, spread, peak = float(scores.mean()), float(scores.std()), float(np.abs(scores).max())
    reach = float(np.quantile(np.abs(scores - mean), 0.999))
    warn, refused = Z_MEAN[sensor]
    usual, least = Z_REACH
    # The spread of a field says where somebody lives and turned, not how.
    moved, within_sd = sensor != "magnetometer", f"99.9% within {reach:.3g} sd of training"
    other = "another unit or scale than training had, or the normalization of another model"
    place = "another pose or place than training had, an offset of the sensor, or another axis"
    still = "motions that training had are missing (no bursts): capture them, or what they do is clipped"
    rows = (
        (not within(spread, Z_SPREAD), "z_spread", REFUSE, f"sd {spread:.3g}", _range(Z_SPREAD, ""), other),
        (peak >= Z_PEAK, "z_peak", REFUSE, f"|z| up to {peak:.3g}", f"below {Z_PEAK:g}", other),
        (abs(mean) > refused, "z_mean", REFUSE, f"mean z {mean:.3g}", f"within ±{refused:g}", place),
        (warn < abs(mean) <= refused, "z_mean", WARN, f"mean z {mean:.3g}", f"within ±{warn:g}", place),
        (moved and reach < least, "z_reach", REFUSE, within_sd, f"beyond {least:g} sd", still),
        (moved and least <= reach < usual, "z_reach", WARN, within_sd, f"beyond {usual:g} sd", still),
    )
    return [_finding(c, s, channel, name, text, e, cause) for bad, c, s, text, e, cause in rows if bad]


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
        return [_finding("resting_pose", WARN, "accelerometer", name, text, f"{POSE_COMMON:g}", cause)]
    angle = float(np.degrees(np.arccos(np.clip(mean @ pose / common, -1, 1))))
    if angle <= POSE_ANGLE:
        return []
    text = (
        f"gravity at rest points along {_direction(mean / common)}, {angle:.0f}° from training's "
        f"{_direction(pose)}"
    )
    cause = "axes permuted or a sign turned (some phones give gravity the other sign), or worn another way"
    return [_finding("resting_pose", REFUSE, "accelerometer", name, text, f"within {POSE_ANGLE:g}°", cause)]


def _direction(vector: Floats) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in vector) + ")"
