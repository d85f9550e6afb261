"""What the sets of a build owe each other: no window in common, the same strata, the same ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from assets.strata import Floats, counts_of
from runtime.contract.document import sha256_bytes
from runtime.contract.parity import Finding
from runtime.contract.window import CHANNELS, FloatArray

FEWEST_OF_STRATUM: Final = 4
THIN: Final = 0.25
"""Calibration's share of a stratum, relative to evaluation's, below which to warn."""
FEWEST_GOLDEN: Final = 2
SPREAD_DRIFT: Final = (1.6, 2.5)
"""Ratio of the spreads of a channel, either way, from which to warn and to refuse."""
OUTSIDE: Final = (0.002, 0.01)
"""Share of evaluation samples outside calibration's range, from which to warn and to refuse."""
WIDER: Final = 0.1
"""By how much of itself the range is widened first: the farthest of few windows is a matter of luck."""
SHARED_SAMPLES: Final = 0.01


def digests_of(windows: FloatArray) -> tuple[str, ...]:
    """SHA-256 of each window's C-contiguous little-endian bytes."""
    return tuple(sha256_bytes(window.tobytes()) for window in np.ascontiguousarray(windows, dtype="<f4"))


def check_overlap(sets: Mapping[str, FloatArray]) -> list[Finding]:
    """No window, and no stretch of a recording, may both shape an artifact and judge it.

    Args:
        sets: float32 (N, 100, 9) each, by name; calibration first.
    """
    owners: dict[str, str] = {}
    shared: dict[tuple[str, str], list[int]] = {}
    for name, windows in sets.items():
        for position, digest in enumerate(digests_of(windows)):
            owner = owners.setdefault(digest, name)
            if owner != name:
                shared.setdefault((name, owner), []).append(position)
    findings = [
        _overlap(f"window {places[0]} of {name} is also in {owner} ({len(places)} such windows)", "none")
        for (name, owner), places in shared.items()
    ]
    return findings or _check_shared_samples(sets)


def _check_shared_samples(sets: Mapping[str, FloatArray]) -> list[Finding]:
    """Windows cut from one recording with overlap share samples without being equal."""
    first, *others = sets
    known = _samples(sets[first])
    findings = []
    for name in others:
        share = float(np.mean(np.isin(_samples(sets[name]), known))) if len(sets[name]) else 0.0
        if share > SHARED_SAMPLES:
            text = f"{share:.0%} of the samples of {name} are also in {first}"
            findings.append(_overlap(text, f"at most {SHARED_SAMPLES:.0%}"))
    return findings


def _samples(windows: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """One number for each sample, nearly always another for another: uint64 (100 N,)."""
    bits = np.ascontiguousarray(windows, dtype="<f4").view("<u4").reshape(-1, len(CHANNELS))
    odd = np.arange(1, 2 * len(CHANNELS), 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (bits.astype(np.uint64) + np.uint64(1)) * odd
    return np.unique((mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64))


def _overlap(measured: str, expected: str) -> Finding:
    return Finding(
        check="overlap",
        severity="refuse",
        channel="all",
        measured=measured,
        expected=expected,
        cause="parity would judge on what calibration saw: split by recording or by person",
    )


def check_strata(strata: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Every stratum that is judged must have been calibrated, and the other way round.

    Args:
        strata: Each window's stratum, by set; ``calibration``, ``evaluation`` and ``golden``.
    """
    counts = {name: counts_of(each) for name, each in strata.items()}
    calibration = counts["calibration"]
    findings = []
    if len(calibration) == 1:
        cause = "only one motion: a range that calibration never saw is clipped; capture every activity"
        findings.append(_coverage("refuse", f"calibration: all windows are {next(iter(calibration))}", cause))
    for name in ("evaluation", "golden"):
        for stratum, count in counts.get(name, {}).items():
            findings.extend(_check_stratum(stratum, name, count / len(strata[name]), calibration))
        findings.extend(
            _coverage(
                "warn",
                f"{name}: {counts[name].get(stratum, 0)} windows of {stratum}, calibration has {count}",
                "what calibration knows is not judged there: add windows of it",
            )
            for stratum, count in calibration.items()
            if name in counts and counts[name].get(stratum, 0) < FEWEST_GOLDEN
        )
    return findings


def _check_stratum(stratum: str, name: str, share: float, calibration: Mapping[str, int]) -> list[Finding]:
    count = calibration.get(stratum, 0)
    text = f"calibration: {count} windows of {stratum}, which is {share:.0%} of {name}"
    cause = "what calibration did not see is clipped: add windows of it to the calibration set"
    if count < FEWEST_OF_STRATUM:
        return [_coverage("refuse", text, cause)]
    if name == "evaluation" and count / sum(calibration.values()) < THIN * share:
        return [_coverage("warn", text, cause)]
    return []


def _coverage(severity: str, measured: str, cause: str) -> Finding:
    return Finding(
        check="coverage",
        severity=severity,
        channel="all",
        measured=measured,
        expected=f"at least {FEWEST_OF_STRATUM} of each stratum, and about the same share",
        cause=cause,
    )


def check_pair(calibration: FloatArray, evaluation: FloatArray) -> list[Finding]:
    """Whether two sets come from the same sensor, moved alike; no unit matters.

    Args:
        calibration: float32 (N, 100, 9).
        evaluation: float32 (M, 100, 9), in the same units.
    """
    findings = []
    for place, channel in enumerate(CHANNELS):
        one, other = (each[:, :, place].astype(np.float64) for each in (calibration, evaluation))
        if one.size and other.size:
            findings.extend(_check_channel(one, other, channel))
    return findings


def _check_channel(one: Floats, other: Floats, channel: str) -> list[Finding]:
    findings = []
    spread, judged = float(np.std(one)), float(np.std(other))
    ratio = 1.0 if judged == spread else judged / spread if spread else float("inf")
    cause = "other units, another device or other motions in one of the sets: compare how they were captured"
    drift = max(ratio, 1 / ratio) if ratio else float("inf")
    for severity, bound in (("refuse", SPREAD_DRIFT[1]), ("warn", SPREAD_DRIFT[0])):
        if drift > bound:
            text = f"evaluation varies {ratio:.3g} times as much as calibration"
            expected = f"{1 / bound:.2g} to {bound:g}"
            findings.append(_of_pair("drift", severity, channel, text, expected, cause))
            break
    wider = WIDER * (one.max() - one.min())
    low, high = one.min() - wider, one.max() + wider
    outside = float(np.mean((other < low) | (other > high)))
    for severity, bound in (("refuse", OUTSIDE[1]), ("warn", OUTSIDE[0])):
        if outside > bound:
            text = f"{outside:.2%} of evaluation is far outside calibration's range, {low:.4g} to {high:.4g}"
            findings.append(_of_pair("outside_range", severity, channel, text, f"at most {bound:.1%}", cause))
            break
    return findings


def _of_pair(check: str, severity: str, channel: str, measured: str, expected: str, cause: str) -> Finding:
    return Finding(
        check=check, severity=severity, channel=channel, measured=measured, expected=expected, cause=cause
    )
