"""Windows out of files: ``.npz``, ``.npy``, and JSON lines as EdgeInfer sends them; every error is placed."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from runtime.contract.errors import CalibrationError, PipelineError
from runtime.contract.window import CHANNELS, WINDOW_SHAPE, FloatArray, Window, check_window

ENDINGS: Final = (".npz", ".npy", ".jsonl", ".json")
MAX_FILE_BYTES: Final = 1 << 30
HINT: Final = "one window is 100 rows of " + " ".join(CHANNELS) + ", physical units, not normalized"


@dataclass(frozen=True, kw_only=True)
class WindowFile:
    """What a file, or several, held.

    Args:
        windows: float32 (N, 100, 9) = (window, time, channel), finite.
        labels: N activity names, all empty where the files have none.
    """

    windows: FloatArray
    labels: tuple[str, ...]


def read_window_files(paths: Sequence[Path]) -> WindowFile:
    """Read several files as one set, in the order given.

    Raises:
        CalibrationError: A file cannot be read, holds something else, or some have labels and others not;
            names the file, the line or window, and the place in it.
    """
    files = [read_window_file(path) for path in paths]
    labelled = {path: any(file.labels) for path, file in zip(paths, files, strict=True)}
    if len(set(labelled.values())) > 1:
        without = next(path for path, has in labelled.items() if not has)
        raise CalibrationError(
            "has no labels, and another file of the same set has",
            where=str(without),
            hint="label all or none",
        )
    return WindowFile(
        windows=np.concatenate([file.windows for file in files]),
        labels=tuple(label for file in files for label in file.labels),
    )


def read_window_file(path: Path) -> WindowFile:
    """Read one file by the ending of its name.

    Raises:
        CalibrationError: As ``read_window_files``.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CalibrationError(
                f"more than {MAX_FILE_BYTES} bytes", where=str(path), hint="split the file"
            )
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return parse_window_file(data, path.name, str(path))


def parse_window_file(data: bytes, name: str, where: str) -> WindowFile:
    """Read the bytes of one file.

    Args:
        data: Its bytes.
        name: Whose ending says what it is: one of ``ENDINGS``.
        where: How to name it in messages.

    Raises:
        CalibrationError: As ``read_window_files``.
    """
    ending = Path(name).suffix.lower()
    if ending not in ENDINGS:
        raise CalibrationError(
            f"the ending {ending!r} is not known", where=where, hint=f"expected one of {' '.join(ENDINGS)}"
        )
    file = _parse_json(data, where) if "json" in ending else _parse_numpy(data, ending, where)
    if not len(file.windows):
        raise CalibrationError("holds no window", where=where, hint=HINT)
    if any(file.labels) and not all(file.labels):
        place = file.labels.index("")
        raise CalibrationError(
            "has no label, and others have", where=f"{where}: window {place}", hint="label all or none"
        )
    return file


def _parse_numpy(data: bytes, ending: str, where: str) -> WindowFile:
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if ending == ".npy":
            windows, labels = np.asarray(loaded), None
        else:
            windows = loaded["windows"]
            labels = loaded["labels"] if "labels" in loaded.files else None
    except Exception as error:  # numpy, zipfile and zlib share no base class
        raise CalibrationError(
            f"cannot be read: {type(error).__name__}: {error}",
            where=where,
            hint="expected an array `windows`, and `labels` where there are any, saved by numpy.savez",
        ) from error
    if windows.dtype.kind not in "fiu" or windows.ndim != 3 or windows.shape[1:] != WINDOW_SHAPE:
        hint = HINT
        if windows.ndim == 3 and windows.shape[1:] == WINDOW_SHAPE[::-1]:
            hint = "transpose it: windows.transpose(0, 2, 1), and do not reshape"
        raise CalibrationError(
            f"windows are {windows.dtype} {windows.shape}, expected numbers (N, 100, 9)",
            where=where,
            hint=hint,
        )
    with np.errstate(over="ignore"):
        values: FloatArray = np.ascontiguousarray(windows, np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        window, time, channel = (int(i) for i in np.argwhere(~finite)[0])
        raise CalibrationError(
            f"{windows[window, time, channel]} is not a finite float32 (time {time}, channel "
            f"{CHANNELS[channel]})",
            where=f"{where}: window {window}",
        )
    return WindowFile(windows=values, labels=_labels(labels, len(values), where))


def _labels(labels: Any, count: int, where: str) -> tuple[str, ...]:
    if labels is None:
        return ("",) * count
    if labels.shape != (count,) or labels.dtype.kind != "U":
        raise CalibrationError(
            f"labels are {labels.dtype} {labels.shape}, expected {count} names",
            where=where,
            hint="name activities in words: a number says nothing to whoever reads the report",
        )
    return tuple(str(label) for label in labels)


def _parse_json(data: bytes, where: str) -> WindowFile:
    """JSON lines, or one document over several lines."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"not UTF-8: {error}", where=where) from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    whole = _document(text)
    if len(lines) > 1 and whole is not None:
        documents = [(where, whole)]
    else:
        documents = [
            (f"{where}: line {number}", _line(line, f"{where}: line {number}")) for number, line in lines
        ]
    pairs = [_window(document, place) for place, document in documents]
    windows = np.stack([window for window, _ in pairs]) if pairs else np.empty((0, *WINDOW_SHAPE), np.float32)
    return WindowFile(windows=windows, labels=tuple(label for _, label in pairs))


def _document(text: str) -> object | None:
    try:
        return _loads(text)
    except (ValueError, RecursionError):
        return None


def _line(text: str, where: str) -> object:
    try:
        return _loads(text)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(
            f"not JSON: {error}", where=where, hint='one window a line: {"x": [[9 numbers] x 100]}'
        ) from error


def _loads(text: str) -> object:
    value: object = json.loads(text, object_pairs_hook=_unique)
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a key twice: {keys}")
    return dict(pairs)


def _window(document: object, where: str) -> tuple[Window, str]:
    if not isinstance(document, dict) or "x" not in document or document.keys() - {"x", "label"}:
        found = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise CalibrationError(
            f"{found}, expected an object of x, and label where there is one", where=where, hint=HINT
        )
    rows, label = document["x"], document.get("label", "")
    if not isinstance(label, str):
        raise CalibrationError(f"label is {type(label).__name__}, expected a name", where=where)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise CalibrationError("x is not a list of rows", where=where, hint=HINT)
    _check_numbers(rows, where)
    try:
        return check_window(rows, "x"), label
    except PipelineError as error:
        raise CalibrationError(
            error.what, where=f"{where}: {error.where}", hint=error.hint or HINT
        ) from error
    except OverflowError as error:
        raise CalibrationError("an integer that no float holds", where=where) from error


def _check_numbers(rows: list[list[object]], where: str) -> None:
    """JSON has more than numbers, and numpy would take true and "1" for some."""
    for time, row in enumerate(rows):
        for place, value in enumerate(row):
            if type(value) not in (int, float):
                channel = CHANNELS[place] if place < len(CHANNELS) else str(place)
                raise CalibrationError(
                    f"{json.dumps(value)[:40]} is not a number (time {time}, channel {channel})", where=where
                )
