"""What the sets of a build owe each other: no window in common, the same strata, the same ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from assets.strata import Floats, Mask, counts_of
from runtime.contract.document import sha256_bytes
from runtime.contract.parity import Finding
from runtime.contract.window import CHANNELS, FloatArray

FEWEST_OF_STRATUM: Final = 4
THIN: Final = 0.25
"""Calibration's share of a stratum, relative to evaluation's, below which to warn."""
FEWEST_GOLDEN: Final = 2
RARE: Final = 0.02
"""Share of the evaluation set up to which a stratum that calibration lacks is worth a word only."""
SPREAD_DRIFT: Final = (1.6, 5.0)
"""Ratio of the spreads of a channel, either way, from which to warn and to refuse: the least that a unit is
off by is 9.8; one person rests twice as much as another."""
OUTSIDE: Final = (0.002, 0.1)
"""Share of evaluation samples outside calibration's range, from which to warn and to refuse: between two
halves of one recording of an arm it was 0.07."""
WIDER: Final = 0.1
"""By how much of itself the range is widened first: the farthest of few windows is a matter of luck."""
SHARED_SAMPLES: Final = 0.01
STRETCH: Final = 10
"""Samples in a row that must be the same: with coarse steps, single ones are by chance."""
FEWEST_CHANGES: Final = 18
"""Values of a stretch that must differ from the one before: at rest hardly any does, and rest is alike."""


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
    """Windows cut from one recording with overlap share stretches of samples without being equal."""
    first, *others = sets
    keys, telling = _stretches(sets[first])
    known = np.unique(keys[telling])
    findings = []
    for name in others:
        if not len(sets[name]):
            continue
        keys, telling = _stretches(sets[name])
        shared = np.isin(keys, known) & telling
        covered = np.zeros(sets[name].shape[:2], dtype=bool)
        for offset in range(STRETCH):
            covered[:, offset : offset + shared.shape[1]] |= shared
        share = float(covered.mean())
        if share > SHARED_SAMPLES:
            text = f"{share:.0%} of the samples of {name} are also in {first}"
            findings.append(_overlap(text, f"at most {SHARED_SAMPLES:.0%}"))
    return findings


def _stretches(windows: FloatArray) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint64]], Mask]:
    """A number for each stretch of samples, nearly always another for another, and whether it says much.

    Returns:
        uint64 and bool, (N, 101 - STRETCH).
    """
    bits = np.ascontiguousarray(windows, dtype="<f4").view("<u4")
    odd = np.arange(1, 2 * len(CHANNELS), 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (bits.astype(np.uint64) + np.uint64(1)) * odd
    samples = (mixed ^ (mixed >> np.uint64(29))).sum(axis=2, dtype=np.uint64)
    changes = np.pad(np.count_nonzero(bits[:, 1:] != bits[:, :-1], axis=2), ((0, 0), (1, 0)))
    count = windows.shape[1] - STRETCH + 1
    keys = np.zeros((len(windows), count), dtype=np.uint64)
    told = np.zeros((len(windows), count), dtype=np.int64)
    for offset in range(STRETCH):
        keys = keys * np.uint64(0x100000001B3) + samples[:, offset : offset + count]
        told += changes[:, offset : offset + count] if offset else 0
    return keys, told >= FEWEST_CHANGES


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
        cause = "only one motion: a range that calibration never saw is clipped; capture every activity, or, "
        cause += "where one label stands for all, leave labels out of account: --strata motion"
        findings.append(_coverage("refuse", f"calibration: all windows are {next(iter(calibration))}", cause))
    for name in ("evaluation", "golden"):
        for stratum, count in counts.get(name, {}).items():
            findings.extend(_check_stratum(stratum, name, count / len(strata[name]), calibration))
        if name in counts:
            findings.extend(_check_span(name, counts[name], calibration))
    return findings


def _check_span(name: str, counts: Mapping[str, int], calibration: Mapping[str, int]) -> Iterator[Finding]:
    """Golden windows hold every stratum of the calibration set; those of evaluation had better, too."""
    for stratum, calibrated in calibration.items():
        count = counts.get(stratum, 0)
        if count >= FEWEST_GOLDEN:
            continue
        cause = "what calibration knows is not judged there: add windows of it"
        severity = "warn"
        if name == "golden" and not count and calibrated >= FEWEST_OF_STRATUM:
            severity = "refuse"
            cause += " to --golden, or to the evaluation files that golden windows are taken out of"
        yield _coverage(
            severity, f"{name}: {count} windows of {stratum}, calibration has {calibrated}", cause
        )


def _check_stratum(stratum: str, name: str, share: float, calibration: Mapping[str, int]) -> list[Finding]:
    count = calibration.get(stratum, 0)
    text = f"calibration: {count} windows of {stratum}, which is {share:.1%} of {name}"
    cause = "what calibration did not see is clipped: add windows of it to the calibration set"
    if count < FEWEST_OF_STRATUM:
        refused = name == "evaluation" and share > RARE
        return [_coverage("refuse" if refused else "warn", text, cause)]
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
    findings: list[Finding] = []
    for place, channel in enumerate(CHANNELS):
        one, other = (each[:, :, place].astype(np.float64) for each in (calibration, evaluation))
        if one.size and other.size:
            findings.extend(_check_channel(one, other, channel))
    return findings


def _check_channel(one: Floats, other: Floats, channel: str) -> Iterator[Finding]:
    spread, judged = float(np.std(one)), float(np.std(other))
    ratio = 1.0 if judged == spread else judged / spread if spread else float("inf")
    drift = max(ratio, 1 / ratio) if ratio else float("inf")
    # A field differs between places and devices, and turns with whoever faces another way.
    moved = channel not in CHANNELS[6:]
    wider = WIDER * (one.max() - one.min())
    low, high = one.min() - wider, one.max() + wider
    outside = float(np.mean((other < low) | (other > high)))
    for check, value, (usual, most), text in (
        ("drift", drift, SPREAD_DRIFT, f"evaluation varies {ratio:.3g} times as much as calibration"),
        (
            "outside_range",
            outside,
            OUTSIDE,
            f"{outside:.2%} of evaluation is far outside calibration's range, {low:.4g} to {high:.4g}",
        ),
    ):
        if value > usual:
            severity, bound = ("refuse", most) if moved and value > most else ("warn", usual)
            expected = f"{1 / bound:.2g} to {bound:g}" if check == "drift" else f"at most {bound:.1%}"
            yield _of_pair(check, severity, channel, text, expected, _CAUSES[check])


_CAUSES: Final = {
    "drift": "other units, another device, or much more rest in one of the sets: compare how they were "
    "captured, and mix recordings of every kind into both",
    "outside_range": "motions or poses that calibration never saw, other units or another device in one of "
    "the sets: move a recording of them into the calibration set",
}


def _of_pair(check: str, severity: str, channel: str, measured: str, expected: str, cause: str) -> Finding:
    return Finding(
        check=check, severity=severity, channel=channel, measured=measured, expected=expected, cause=cause
    )
