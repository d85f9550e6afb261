"""The windows that a build uses: which, from where, in which units, and that they are apart.

``python -m assets.calibration --help`` says how captured windows become such sets.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from assets.input_gate import check_physical, refuse
from assets.product import Product, Workbench
from assets.set_comparison import check_overlap, check_pair, check_strata, digests_of
from assets.strata import (
    StrataDefinition,
    check_definition,
    check_references,
    counts_of,
    known_labels,
    strata_of,
)
from runtime.contract.document import from_json, sha256_bytes
from runtime.contract.errors import CalibrationError, PipelineError
from runtime.contract.parity import Finding
from runtime.contract.window import CHANNELS, SAMPLING_RATE_HZ, UNITS, WINDOW_SHAPE, FloatArray

INDEX: Final = "index.json"
SETS: Final = ("calibration", "evaluation", "golden")
ORIGINS: Final = ("captured", "synthetic")
SCHEMA: Final = 2
COMMAND: Final = (
    "write the sets and their index with: python -m assets.calibration (see calib_data/README.md)"
)


@dataclass(frozen=True, kw_only=True)
class SetRecord:
    """One set in the index.

    Args:
        file: Its name in the folder.
        count: How many windows.
        sha256: Digest of the file.
        windows_sha256: Digest of the windows' values: the identity of the set.
        labels: How many windows each label has; one empty label where nobody labelled them.
        strata: How many windows each stratum has.
        digests: SHA-256 of each window's values, in order.
    """

    file: str
    count: int
    sha256: str
    windows_sha256: str
    labels: dict[str, int]
    strata: dict[str, int]
    digests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class WindowIndex:
    """``index.json``: where the windows come from and what they are."""

    schema: int
    origin: str
    generator: str
    sampling_rate_hz: int
    channel_order: tuple[str, ...]
    units: dict[str, str]
    strata: StrataDefinition
    sets: dict[str, SetRecord]


@dataclass(frozen=True, kw_only=True)
class WindowSet:
    """Windows in physical units.

    Args:
        windows: float32 (N, 100, 9) = (window, time, channel).
        labels: N activity names, all empty where nobody labelled them.
        strata: N stratum names, by the index's definition.
        sha256: Digest of the windows' C-contiguous little-endian bytes.
    """

    windows: FloatArray
    labels: tuple[str, ...]
    strata: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WindowSets:
    """What a build reads: disjoint sets for calibration, evaluation and golden windows.

    ``findings`` is what the gate warns of; what it refuses never gets here.
    """

    index: WindowIndex
    calibration: WindowSet
    evaluation: WindowSet
    golden: WindowSet
    findings: tuple[Finding, ...] = ()


def read_files(folder: Path) -> dict[str, bytes]:
    """The index and the files that it names, by name.

    Raises:
        CalibrationError: A file is missing.
    """
    names = [INDEX]
    files: dict[str, bytes] = {}
    while names:
        name = names.pop()
        path = folder / name
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            raise CalibrationError(
                f"cannot be read: {error.strerror}", where=str(path), hint="see calib_data/README.md"
            ) from error
        if name == INDEX:
            index = _index(files[INDEX], str(path))
            names = sorted({record.file for record in index.sets.values()})
    return files


def _index(data: bytes, where: str) -> WindowIndex:
    try:
        index = from_json(WindowIndex, data, where, upgrade=_present_schema)
    except PipelineError as error:
        raise CalibrationError(error.what, where=error.where or where, hint=COMMAND) from error
    expected: tuple[tuple[str, object, object], ...] = (
        ("sampling_rate_hz", index.sampling_rate_hz, SAMPLING_RATE_HZ),
        ("channel_order", index.channel_order, CHANNELS),
        ("units", index.units, UNITS),
        ("sets", tuple(sorted(index.sets)), tuple(sorted(SETS))),
    )
    for name, found, wanted in expected:
        if found != wanted:
            raise CalibrationError(f"{name} is {found}, expected {wanted}", where=where)
    files = [record.file for record in index.sets.values()]
    if any(Path(name).name != name or name == INDEX for name in files) or len(set(files)) != len(files):
        raise CalibrationError(f"files are {files}, expected one plain name for each set", where=where)
    if index.origin not in ORIGINS:
        raise CalibrationError(f"origin {index.origin!r} is none of {', '.join(ORIGINS)}", where=where)
    check_definition(index.strata, where)
    return index


def _present_schema(document: dict[str, object]) -> dict[str, object]:
    """Refuse an older index in words of its own: it says nothing of strata, which cannot be made up."""
    if document.get("schema") != SCHEMA:
        raise CalibrationError(f"schema is {document.get('schema')}, expected {SCHEMA}")
    return document


def parse_sets(files: dict[str, bytes], where: str = "calib_data") -> WindowSets:
    """Read the sets out of their files, check that they are what the index says, and gate them.

    Raises:
        CalibrationError: A digest, count, shape, label or stratum differs, a value is not finite, or the
            gate refuses a set; then the message holds every refusal.
    """
    index = _index(files[INDEX], f"{where}/{INDEX}")
    sets = {name: _read_set(files, index, name, where) for name in SETS}
    check_references(index.strata, sets["calibration"].windows, f"{where}/{INDEX}")
    findings = refuse(gate_sets(sets, index.strata), where)
    return WindowSets(index=index, **sets, findings=findings)


def gate_sets(sets: Mapping[str, WindowSet], strata: StrataDefinition) -> list[Finding]:
    """Everything that the gate finds in the sets without a model.

    Args:
        sets: ``calibration``, ``evaluation`` and ``golden``.
        strata: The calibration set's definition.
    """
    findings = []
    for name, each in sets.items():
        findings.extend(check_physical(each.windows, known_labels(strata, each.labels), name=name))
    findings.extend(check_overlap({name: each.windows for name, each in sets.items()}))
    findings.extend(check_strata({name: each.strata for name, each in sets.items()}))
    findings.extend(check_pair(sets["calibration"].windows, sets["evaluation"].windows))
    return findings


def make_set(windows: FloatArray, labels: Sequence[str], strata: StrataDefinition) -> WindowSet:
    """A set of windows with its strata and digest."""
    values: FloatArray = np.ascontiguousarray(windows, np.float32)
    return WindowSet(
        windows=values,
        labels=tuple(labels),
        strata=strata_of(strata, values, labels),
        sha256=sha256_bytes(values.tobytes()),
    )


def describe_set(window_set: WindowSet, file: str, data: bytes) -> SetRecord:
    """The index entry of a set whose file holds these bytes."""
    return SetRecord(
        file=file,
        count=len(window_set.windows),
        sha256=sha256_bytes(data),
        windows_sha256=window_set.sha256,
        labels=counts_of(window_set.labels),
        strata=counts_of(window_set.strata),
        digests=digests_of(window_set.windows),
    )


def _read_set(files: dict[str, bytes], index: WindowIndex, name: str, folder: str) -> WindowSet:
    record, where = index.sets[name], f"{folder}: {name}"
    data = files.get(record.file, b"")
    if sha256_bytes(data) != record.sha256:
        raise CalibrationError(f"{record.file} is not the file that the index names", where=where)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            windows: npt.NDArray[np.generic] = archive["windows"]
            labels = tuple(str(label) for label in archive["labels"])
    except Exception as error:  # numpy, zipfile and zlib share no base class for "no such file"
        raise CalibrationError(
            f"{record.file} does not hold windows and labels: {type(error).__name__}: {error}",
            where=where,
            hint=COMMAND,
        ) from error
    if windows.dtype != np.dtype("<f4") or windows.shape != (record.count, *WINDOW_SHAPE):
        raise CalibrationError(
            f"{windows.dtype} {windows.shape}, expected float32 {(record.count, *WINDOW_SHAPE)}", where=where
        )
    if len(labels) != record.count:
        raise CalibrationError(f"{len(labels)} labels for {record.count} windows", where=where)
    values: FloatArray = np.ascontiguousarray(windows, np.float32)
    if not np.isfinite(values).all():
        window, time, channel = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise CalibrationError(
            f"a value is not finite: window {window}, time {time}, {CHANNELS[channel]}", where=where
        )
    found = make_set(values, labels, index.strata)
    if describe_set(found, record.file, data) != record:
        raise CalibrationError(
            "windows, labels or strata are not what the index says", where=where, hint=COMMAND
        )
    return found


def make_calibration_set(bench: Workbench, folder: Path) -> tuple[Product, WindowSets]:
    """Read the window sets, check them, and keep their files.

    Raises:
        CalibrationError: The sets are not what their index says, or the gate refuses them.
    """
    files = read_files(folder)
    sets = parse_sets(files, str(folder))
    return bench.put("calibration_set", files, facts={"origin": sets.index.origin}), sets


if __name__ == "__main__":
    from assets.calibration_command import main

    sys.exit(main())
