"""Windows from files: three formats, and errors that say where."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assets.window_files import parse_window_file, read_window_files
from runtime.contract.errors import CalibrationError
from sample import motions

pytestmark = pytest.mark.build

WINDOWS, LABELS = motions.draw_set(1, 111)


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def line(window: Any, **more: Any) -> str:
    rows = window.tolist() if isinstance(window, np.ndarray) else window
    return json.dumps({"x": rows, **more})


def test_the_same_windows_from_every_format(tmp_path: Path) -> None:
    lines = "\n".join(line(w, label=str(label)) for w, label in zip(WINDOWS, LABELS, strict=True)) + "\n\n"
    (tmp_path / "a.npz").write_bytes(npz(windows=WINDOWS, labels=LABELS))
    (tmp_path / "a.jsonl").write_text(lines)
    for name in ("a.npz", "a.jsonl"):
        found = read_window_files([tmp_path / name])
        assert np.array_equal(found.windows, WINDOWS)
        assert found.windows.dtype == np.float32
        assert found.labels == tuple(str(label) for label in LABELS)
    (tmp_path / "b.npy").write_bytes(npy(WINDOWS.astype(np.float64)))
    (tmp_path / "c.json").write_text(json.dumps(json.loads(line(WINDOWS[0])), indent=2))
    (tmp_path / "d.json").write_text(line(WINDOWS[1]))
    found = read_window_files([tmp_path / name for name in ("c.json", "d.json", "b.npy")])
    assert np.array_equal(found.windows, np.concatenate([WINDOWS[:2], WINDOWS]))
    assert found.labels == ("",) * 14


def with_value(value: Any) -> list[list[Any]]:
    rows: list[list[Any]] = WINDOWS[0].tolist()
    rows[7][3] = value
    return rows


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("w.csv", b"1,2", r"w\.csv: the ending '\.csv' is not known.*\.npz \.npy \.jsonl"),
        ("w.npz", b"PK nothing", r"w\.npz: cannot be read"),
        ("w.npy", npy(np.asarray([{"a": 1}], dtype=object)), r"w\.npy: cannot be read.*allow_pickle"),
        ("w.npz", npz(samples=WINDOWS), r"w\.npz: cannot be read: KeyError"),
        (
            "w.npy",
            npy(WINDOWS.transpose(0, 2, 1)),
            r"\(12, 9, 100\), expected numbers \(N, 100, 9\).*transpose",
        ),
        ("w.npy", npy(WINDOWS[0]), r"float32 \(100, 9\), expected numbers"),
        ("w.npy", npy(WINDOWS.astype(str)), "expected numbers"),
        ("w.npy", npy(WINDOWS[:0]), "holds no window"),
        ("w.npz", npz(windows=WINDOWS, labels=LABELS[:3]), r"labels are <U5 \(3,\), expected 12 names"),
        ("w.npz", npz(windows=WINDOWS, labels=np.arange(12)), "expected 12 names"),
        ("w.npz", npz(windows=WINDOWS, labels=["", *["a"] * 11]), "window 0: has no label, and others have"),
        ("w.jsonl", b"", "holds no window"),
        ("w.jsonl", b"\xff\xfe", "not UTF-8"),
        ("w.jsonl", (line(WINDOWS[0]) + "\n{").encode(), r"w\.jsonl: line 2: not JSON"),
        ("w.jsonl", ("\n" + line(WINDOWS[0][:99])).encode(), r"line 2: x: 99 rows, expected 100"),
        ("w.jsonl", line(WINDOWS[0].T).encode(), r"line 1: x: 9 rows, expected 100"),
        ("w.jsonl", line(WINDOWS[0][:, :6]).encode(), r"line 1: x\[0\]: 6 values, expected 9"),
        ("w.jsonl", line(with_value(None)).encode(), r"null is not a number \(time 7, channel gx\)"),
        ("w.jsonl", line(with_value("1")).encode(), r'"1" is not a number \(time 7, channel gx\)'),
        ("w.jsonl", line(with_value(True)).encode(), r"true is not a number"),
        (
            "w.jsonl",
            line(with_value(float("nan"))).encode(),
            r"nan is not a finite float32 \(time 7, channel gx",
        ),
        ("w.jsonl", line(with_value(1e39)).encode(), r"is not a finite float32 \(time 7"),
        ("w.jsonl", line(with_value(10**400)).encode(), r"line 1"),
        ("w.jsonl", b'{"x": 3}', "x is not a list of rows"),
        ("w.jsonl", b"[1]", "list, expected an object"),
        ("w.jsonl", line(WINDOWS[0], unit="g").encode(), r"\['unit', 'x'\], expected an object of x"),
        ("w.jsonl", line(WINDOWS[0], label=3).encode(), "label is int, expected a name"),
        ("w.jsonl", b'{"x": [], "x": []}', "a key twice"),
        (
            "w.jsonl",
            (line(WINDOWS[0], label="a") + "\n" + line(WINDOWS[1])).encode(),
            "window 1: has no label, and others have",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(name: str, data: bytes, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        parse_window_file(data, name, name)


def test_a_value_that_is_not_finite_is_placed() -> None:
    windows = WINDOWS.copy()
    windows[3, 4, 5] = np.inf
    with pytest.raises(CalibrationError, match=r"w.npy: window 3: inf .*\(time 4, channel gz\)"):
        parse_window_file(npy(windows), "w.npy", "w.npy")


def test_files_of_one_set_are_labelled_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(npz(windows=WINDOWS, labels=LABELS))
    (tmp_path / "b.npy").write_bytes(npy(WINDOWS))
    with pytest.raises(CalibrationError, match=r"b\.npy: has no labels"):
        read_window_files([tmp_path / "a.npz", tmp_path / "b.npy"])
    with pytest.raises(CalibrationError, match=r"none\.npy: cannot be read: No such file"):
        read_window_files([tmp_path / "none.npy"])


def test_the_users_request_windows_are_read(upstream: Path) -> None:
    paths = sorted((upstream / "windows").glob("*.json"))
    found = read_window_files(paths)
    assert found.windows.shape == (len(paths), 100, 9)
    assert found.labels == ("",) * len(paths)
