"""The windows that a build uses: which, from where, in which units, and that they are apart."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from assets.product import Product, Workbench
from runtime.contract.document import from_json, sha256_bytes
from runtime.contract.errors import CalibrationError, PipelineError
from runtime.contract.window import CHANNELS, SAMPLING_RATE_HZ, UNITS, WINDOW_SHAPE, FloatArray

INDEX: Final = "index.json"
SETS: Final = ("calibration", "evaluation", "golden")
ORIGINS: Final = ("captured", "synthetic")
MIN_WINDOWS: Final = {"calibration": 64, "evaluation": 64, "golden": 16}


@dataclass(frozen=True, kw_only=True)
class SetRecord:
    """One set in the index: its file, its digests, and how many windows of each label."""

    file: str
    count: int
    sha256: str
    windows_sha256: str
    labels: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class WindowIndex:
    """``index.json``: where the windows come from and what they are."""

    schema: int
    origin: str
    generator: str
    sampling_rate_hz: int
    channel_order: tuple[str, ...]
    units: dict[str, str]
    sets: dict[str, SetRecord]


@dataclass(frozen=True, kw_only=True)
class WindowSet:
    """Windows in physical units.

    Args:
        windows: float32 (N, 100, 9) = (window, time, channel).
        labels: N activity names.
        sha256: Digest of the windows' C-contiguous little-endian bytes.
    """

    windows: FloatArray
    labels: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WindowSets:
    """What a build reads: disjoint sets for calibration, evaluation and golden windows."""

    index: WindowIndex
    calibration: WindowSet
    evaluation: WindowSet
    golden: WindowSet


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
        index = from_json(WindowIndex, data, where)
    except PipelineError as error:
        raise CalibrationError(error.what, where=error.where, hint="see calib_data/README.md") from error
    expected: tuple[tuple[str, object, object], ...] = (
        ("schema", index.schema, 1),
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
    return index


def parse_sets(files: dict[str, bytes], where: str = "calib_data") -> WindowSets:
    """Read the sets out of their files and check that they are what the index says.

    Raises:
        CalibrationError: A digest, count, shape or label differs, a value is not finite, a set has
            fewer different windows than ``MIN_WINDOWS``, or two sets share a window.
    """
    index = _index(files[INDEX], f"{where}/{INDEX}")
    sets = {name: _read_set(files, index.sets[name], f"{where}: {name}") for name in SETS}
    for name, fewest in MIN_WINDOWS.items():
        count = len({window.tobytes() for window in sets[name].windows})
        if count < fewest:
            raise CalibrationError(
                f"{count} different windows, at least {fewest} are needed", where=f"{where}: {name}"
            )
    _check_disjoint(sets, where)
    return WindowSets(index=index, **sets)


def _read_set(files: dict[str, bytes], record: SetRecord, where: str) -> WindowSet:
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
            hint="save both with numpy.savez: see calib_data/README.md",
        ) from error
    if windows.dtype != np.dtype("<f4") or windows.shape != (record.count, *WINDOW_SHAPE):
        raise CalibrationError(
            f"{windows.dtype} {windows.shape}, expected float32 {(record.count, *WINDOW_SHAPE)}", where=where
        )
    values: FloatArray = np.ascontiguousarray(windows, np.float32)
    digest = sha256_bytes(values.tobytes())
    counts = {label: labels.count(label) for label in sorted(set(labels))}
    if digest != record.windows_sha256 or counts != record.labels or len(labels) != record.count:
        raise CalibrationError("windows or labels are not what the index says", where=where)
    if not np.isfinite(values).all():
        window, time, channel = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise CalibrationError(
            f"a value is not finite: window {window}, time {time}, {CHANNELS[channel]}", where=where
        )
    return WindowSet(windows=values, labels=labels, sha256=digest)


def _check_disjoint(sets: dict[str, WindowSet], where: str) -> None:
    """No window may both shape an artifact and judge it."""
    owners: dict[str, str] = {}
    for name, window_set in sets.items():
        for position, window in enumerate(window_set.windows):
            digest = sha256_bytes(window.tobytes())
            if owners.setdefault(digest, name) != name:
                raise CalibrationError(
                    f"window {position} of {name} is also in {owners[digest]}",
                    where=where,
                    hint="judge on windows that were not calibrated on",
                )


def make_calibration_set(bench: Workbench, folder: Path) -> tuple[Product, WindowSets]:
    """Read the window sets, check them, and keep their files.

    Raises:
        CalibrationError: The sets are not what their index says, or not apart.
    """
    files = read_files(folder)
    sets = parse_sets(files, str(folder))
    return bench.put("calibration_set", files, facts={"origin": sets.index.origin}), sets
