"""Windows are what their index says, and the sets are apart."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from assets.calibration import INDEX, WindowSets, parse_sets, read_files
from runtime.contract.document import sha256_bytes
from runtime.contract.errors import CalibrationError
from tests.chain import CALIB_DATA

pytestmark = pytest.mark.build

Index = dict[str, Any]


@pytest.fixture
def files() -> dict[str, bytes]:
    return read_files(CALIB_DATA)


def with_set(files: dict[str, bytes], name: str, windows: Any, labels: Any) -> dict[str, bytes]:
    """The files with one set replaced, and an index that is true to it."""
    out = io.BytesIO()
    np.savez_compressed(out, windows=windows, labels=np.asarray(labels))
    index = json.loads(files[INDEX])
    record = index["sets"][name]
    record["count"] = len(windows)
    record["sha256"] = sha256_bytes(out.getvalue())
    record["windows_sha256"] = sha256_bytes(np.ascontiguousarray(windows, np.float32).tobytes())
    record["labels"] = record["strata"] = {label: list(labels).count(label) for label in set(labels)}
    record["digests"] = [sha256_bytes(np.ascontiguousarray(each, np.float32).tobytes()) for each in windows]
    return {**files, record["file"]: out.getvalue(), INDEX: json.dumps(index).encode()}


def load(files: dict[str, bytes], name: str) -> tuple[Any, list[str]]:
    archive = np.load(io.BytesIO(files[f"{name}.npz"]))
    return archive["windows"].copy(), [str(label) for label in archive["labels"]]


def test_sample_sets_are_read(files: dict[str, bytes]) -> None:
    sets: WindowSets = parse_sets(files)
    assert sets.index.origin == "synthetic"
    assert [len(s.windows) for s in (sets.calibration, sets.evaluation, sets.golden)] == [1200, 480, 24]
    assert set(sets.golden.labels) == set(sets.calibration.labels)
    assert sets.golden.strata == sets.golden.labels
    assert sets.findings == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i.update(origin="guessed"), "origin 'guessed'"),
        (lambda i: i["units"].update(gyroscope="deg/s"), "units"),
        (lambda i: i["channel_order"].reverse(), "channel_order"),
        (lambda i: i.update(sampling_rate_hz=50), "sampling_rate_hz is 50"),
        (lambda i: i["sets"].pop("golden"), "sets"),
        (lambda i: i["sets"]["golden"].update(sha256="0" * 64), "not the file"),
        (lambda i: i["sets"]["golden"].update(count=23), "expected float32"),
        (lambda i: i["sets"]["golden"]["labels"].update(rest=9), "not what the index says"),
        (lambda i: i["sets"]["golden"].update(windows_sha256="0" * 64), "not what the index says"),
        (lambda i: i["sets"]["golden"]["strata"].update(rest=9), "not what the index says"),
        (lambda i: i["sets"]["golden"]["digests"].reverse(), "not what the index says"),
        (lambda i: i["strata"].update(by="colour"), "strata by 'colour'"),
        (lambda i: i["strata"].update(names=["still"]), "strata"),
        (lambda i: i["strata"].update(by="motion"), "strata"),
        (lambda i: i.update(extra=1), "unknown key 'extra'"),
        (lambda i: i["sets"]["golden"].update(file="phone/golden.npz"), "plain name"),
        (lambda i: i["sets"]["golden"].update(file="index.json"), "plain name"),
        (lambda i: i["sets"]["golden"].update(file="evaluation.npz"), "plain name"),
    ],
)
def test_index_that_is_not_true_is_refused(
    files: dict[str, bytes], change: Callable[[Index], Any], words: str
) -> None:
    index = json.loads(files[INDEX])
    change(index)
    with pytest.raises(CalibrationError, match=words):
        parse_sets({**files, INDEX: json.dumps(index).encode()})


def test_a_shared_window_is_refused_by_place(files: dict[str, bytes]) -> None:
    windows, labels = load(files, "evaluation")
    windows[7] = load(files, "calibration")[0][100]
    with pytest.raises(CalibrationError, match="window 7 of evaluation is also in calibration"):
        parse_sets(with_set(files, "evaluation", windows, labels))


def test_values_that_are_not_finite_and_too_few_are_refused(files: dict[str, bytes]) -> None:
    windows, labels = load(files, "calibration")
    with pytest.raises(CalibrationError, match="63 different windows, expected at least 64"):
        parse_sets(with_set(files, "calibration", windows[:63], labels[:63]))
    for name, fewest in (("evaluation", 64), ("golden", 16)):
        few, names = (values[: fewest - 1] for values in load(files, name))
        with pytest.raises(
            CalibrationError, match=f"{fewest - 1} different windows, expected at least {fewest}"
        ):
            parse_sets(with_set(files, name, few, names))
    windows[3, 4, 5] = np.inf
    with pytest.raises(CalibrationError, match="not finite"):
        parse_sets(with_set(files, "calibration", windows, labels))


def test_copies_of_one_window_are_one_window(files: dict[str, bytes]) -> None:
    windows, labels = load(files, "evaluation")
    with pytest.raises(CalibrationError, match="1 different windows, expected at least 64"):
        parse_sets(with_set(files, "evaluation", np.repeat(windows[:1], 480, axis=0), labels))


def _npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros((24, 100, 9), np.float32))
    return out.getvalue()


@pytest.mark.parametrize("data", [b"PK\x03\x04 and then nothing", b"text", b"", _npy()])
def test_a_file_that_is_no_archive_is_refused_by_name(files: dict[str, bytes], data: bytes) -> None:
    index = json.loads(files[INDEX])
    index["sets"]["golden"]["sha256"] = sha256_bytes(data)
    with pytest.raises(CalibrationError, match=r"golden\.npz does not hold windows and labels"):
        parse_sets({**files, "golden.npz": data, INDEX: json.dumps(index).encode()})


def test_missing_file_is_named(tmp_path: Any) -> None:
    with pytest.raises(CalibrationError, match=r"index.json.*calib_data/README.md"):
        read_files(tmp_path)
