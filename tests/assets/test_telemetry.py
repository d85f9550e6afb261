"""What runtimes kept becomes candidates: read within bounds, gated, offered; nothing in a file is trusted."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets import captured as captured_module
from assets.calibration import INDEX, read_files
from assets.calibration_command import gate_files, write_sets
from assets.captured import read_folder
from assets.normalization import read_statistics
from assets.telemetry import CANDIDATES, REPORT, TO_LABEL, files_of, main, report_of
from assets.telemetry_offer import Offer, offer
from assets.window_files import WindowFile, parse_window_file, read_window_files
from runtime.contract.telemetry import (
    MOST_FILE_BYTES,
    KeptWindow,
    Origin,
    TelemetryError,
    encode_file,
    encode_window,
)
from runtime.contract.window import FloatArray
from sample import motions
from tests.chain import CALIB_DATA, SAMPLE_VERSION
from tests.contract.test_telemetry_file import GOOD, a_file, kept

pytestmark = pytest.mark.build
RELEASE, OTHER = "ab" * 32, "cd" * 32


def moving(count: int, seed: int = 0) -> FloatArray:
    """Windows of the sample's motions, all of them mixed."""
    windows, _ = motions.draw_set(-(-count // 12), seed)
    return windows[np.random.default_rng(seed).permutation(len(windows))[:count]]


def kept_windows(windows: FloatArray, reason: str = "low_margin", release: str = RELEASE) -> list[KeptWindow]:
    return [
        kept(number, window=window, reasons=(reason,), release=release)
        for number, window in enumerate(windows)
    ]


def put(folder: Path, name: str, windows: list[KeptWindow], machine: str = "pi-1") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    origin = Origin(runtime_version="0.1.0", machine=machine, cpu="a Pi")
    (folder / f"{name}.jsonl.gz").write_bytes(encode_file([encode_window(each) for each in windows], origin))


def test_windows_of_several_pis_become_candidates(tmp_path: Path) -> None:
    put(tmp_path / "a", "one", kept_windows(moving(90, 1)), "pi-1")
    put(tmp_path / "b", "one", kept_windows(moving(60, 2), "disagreement", OTHER), "pi-2")
    put(tmp_path / "b", "two", kept_windows(moving(5, 3), "constant_channel"), "pi-2")
    offered = offer(read_folder(tmp_path))
    assert [(group.release, group.reason, group.windows, group.verdict) for group in offered.groups] == [
        (RELEASE, "constant_channel", 5, "not offered"),
        (RELEASE, "low_margin", 90, "offered"),
        (OTHER, "disagreement", 60, "offered"),
    ]
    assert (len(offered.candidates), len(offered.captured.windows)) == (150, 155)
    files = files_of(offered)
    windows = parse_window_file(files[CANDIDATES], CANDIDATES, "x").windows
    assert windows.shape == (150, 100, 9)
    listed = [json.loads(line) for line in files[TO_LABEL].splitlines()]
    assert len(listed) == 155
    assert {line["machine"] for line in listed} == {"pi-1", "pi-2"}
    assert {line["candidate"] is None for line in listed if "constant_channel" in line["reasons"]} == {True}
    for line in listed:
        assert len(line["motifs"]) == 2
        assert line["margin"] == pytest.approx(0.05)
        assert (line["label"], (tmp_path / line["file"]).is_file()) == ("", True)
    assert sorted(line["candidate"] for line in listed if line["candidate"] is not None) == list(range(150))
    assert json.loads(files[REPORT])["origin"] == "captured"


def test_the_same_files_under_other_names_give_the_same_windows(tmp_path: Path) -> None:
    windows = kept_windows(moving(40, 4))
    put(tmp_path / "x", "b", windows[:20])
    put(tmp_path / "x", "a", windows[20:])
    put(tmp_path / "y", "whole", windows)
    put(tmp_path / "y", "again", windows[5:10])  # copied twice
    x, y = (offer(read_folder(tmp_path / name)) for name in "xy")
    assert files_of(x)[CANDIDATES] == files_of(y)[CANDIDATES]
    assert files_of(x) == files_of(offer(read_folder(tmp_path / "x")))


def test_a_window_kept_twice_is_one_with_both_reasons(tmp_path: Path) -> None:
    window = kept(1)
    put(tmp_path, "a", [window])
    put(tmp_path, "b", [dataclasses.replace(window, reasons=("disagreement",), time=kept(9).time)])
    (found,) = read_folder(tmp_path).windows
    assert found.kept.reasons == ("disagreement", "low_margin")
    assert (found.kept.time, found.file) == (window.time, "a.jsonl.gz")


def test_windows_in_wrong_units_are_refused_and_the_rest_is_offered(tmp_path: Path) -> None:
    put(tmp_path, "good", kept_windows(moving(90, 1)))
    wrong = moving(90, 2)
    wrong[:, :, :3] /= np.float32(9.80665)  # in g
    put(tmp_path, "wrong", kept_windows(wrong, "far_from_calibration", OTHER))
    offered = offer(read_folder(tmp_path))
    verdicts = {group.reason: group.verdict for group in offered.groups}
    assert verdicts == {"low_margin": "offered", "far_from_calibration": "refused"}
    assert len(offered.candidates) == 90
    (refused,) = [group for group in offered.groups if group.verdict == "refused"]
    assert any("accelerometer" in finding.channel for finding in refused.findings)


def test_nothing_is_offered_where_all_is_wrong_and_the_list_remains(tmp_path: Path) -> None:
    wrong = moving(90, 2)
    wrong[:, :, :3] /= np.float32(9.80665)
    put(tmp_path / "in", "wrong", kept_windows(wrong))
    offered = offer(read_folder(tmp_path / "in"))
    assert offered.candidates == ()
    assert set(files_of(offered)) == {TO_LABEL, REPORT}
    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1


def still_in_g(count: int) -> FloatArray:
    """Windows at rest whose acceleration is in g."""
    windows = moving(600, 3)
    windows = windows[np.argsort(windows[:, :, :6].std(axis=1).sum(axis=1))[:count]]
    windows[:, :, :3] /= np.float32(9.80665)
    return windows


def degrees() -> FloatArray:
    """A window of violent motion whose gyroscope is in deg/s, beyond what one in rad/s can read."""
    window: FloatArray = max(moving(90, 1), key=lambda each: float(np.abs(each[:, 3:6]).max())).copy()
    window[:, 3:6] *= np.float32(57.3)
    return window


def dead() -> FloatArray:
    window: FloatArray = moving(40, 8)[0]
    window[:, 3] = 0.5
    return window


def diagonal() -> FloatArray:
    """Each axis within what one reads, and all three together beyond: nothing that a runtime notices."""
    window: FloatArray = moving(40, 9)[0]
    window[:, 3:6] = np.random.default_rng(1).uniform(30, 34, (100, 3))
    return window


def why(offered: Offer, window: FloatArray) -> str:
    (found,) = [each for each in offered.captured.windows if each.kept.window.tobytes() == window.tobytes()]
    return offered.why_not.get(found.id, "")


def test_a_window_that_cannot_be_right_is_left_out_whatever_it_was_kept_for(tmp_path: Path) -> None:
    """Kept for a dispute, by a runtime that named nothing else."""
    put(tmp_path, "good", kept_windows(moving(80, 1)))
    put(tmp_path, "odd", kept_windows(np.stack([degrees(), dead(), diagonal()]), "disagreement"))
    statistics = read_statistics(
        {"normalization.json": json.loads((SAMPLE_VERSION / "normalization.json").read_bytes())}
    )
    offered = offer(read_folder(tmp_path), statistics)
    assert len(offered.candidates) == 80
    assert {group.reason: (group.verdict, group.offered) for group in offered.groups} == {
        "disagreement": ("not offered", 0),
        "low_margin": ("offered", 80),
    }
    assert why(offered, dead()) == "cannot be right: constant_channel"
    assert why(offered, degrees()) == "cannot be right: gyroscope_unit, z_beyond_40, peak_rotation"
    assert "peak_rotation" in why(offered, diagonal())
    listed = [json.loads(line) for line in files_of(offered)[TO_LABEL].splitlines()]
    assert {line["candidate"] is None for line in listed if line["why_not"]} == {True}
    assert sum(bool(line["why_not"]) for line in listed) == 3
    assert sum(report_of(offered)["not_offered"].values()) == 3


def test_one_that_cannot_be_right_does_not_refuse_its_group(tmp_path: Path) -> None:
    put(tmp_path, "good", kept_windows(np.concatenate([moving(80, 1), diagonal()[None]])))
    offered = offer(read_folder(tmp_path))
    (group,) = offered.groups
    assert (group.verdict, group.windows, group.offered) == ("partly offered", 81, 80)
    assert group.why == "1 cannot be right: peak_rotation"
    assert len(offered.candidates) == 80


def test_a_few_windows_that_nobody_could_judge_give_way_to_those_that_passed(tmp_path: Path) -> None:
    """Fifteen at rest in g: too few to be judged apart, enough to refuse all of what came with them."""
    put(tmp_path, "good", kept_windows(moving(40, 1)))
    put(tmp_path, "few", kept_windows(still_in_g(15), "disagreement", OTHER))
    offered = offer(read_folder(tmp_path))
    assert {group.reason: group.verdict for group in offered.groups} == {
        "low_margin": "offered",
        "disagreement": "not offered",
    }
    assert len(offered.candidates) == 40
    (few,) = [group for group in offered.groups if group.reason == "disagreement"]
    assert few.why.startswith("15 too few of a kind to be judged apart, and refused with the others: ")


def test_where_nothing_is_offered_it_says_why_and_no_group_says_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = np.concatenate([still_in_g(12), moving(12, 2)])
    put(tmp_path / "in", "a", kept_windows(wrong[:12]))
    put(tmp_path / "in", "b", kept_windows(wrong[12:], "disagreement", OTHER))
    offered = offer(read_folder(tmp_path / "in"))
    assert {group.verdict for group in offered.groups} == {"not offered"}
    assert offered.why_none().startswith("24 refused all together: ")
    assert report_of(offered)["why_none"] == offered.why_none()
    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert "no window can be offered: 24 refused all together" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert offer(read_folder(tmp_path / "none")).why_none() == "no window was captured"


def test_a_device_in_gauss_is_refused_with_its_cause(tmp_path: Path) -> None:
    """Each window fails alone; what the gate says of all of them is what helps."""
    wrong = moving(40, 2)
    wrong[:, :, 6:] /= np.float32(100)
    put(tmp_path, "wrong", kept_windows(wrong))
    (group,) = offer(read_folder(tmp_path)).groups
    assert (group.verdict, group.why) == ("refused", "40 cannot be right: magnetic_field")
    assert any("gauss" in finding.cause for finding in group.findings)


def test_bad_files_are_named_and_left_out(tmp_path: Path) -> None:
    put(tmp_path, "good", kept_windows(moving(20, 1)))
    (tmp_path / "cut.jsonl.gz").write_bytes(GOOD[:-20])
    (tmp_path / "pickle.jsonl.gz").write_bytes(b"\x80\x04cos\nsystem\n")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".part-windows.jsonl.gz").write_bytes(b"half")
    (tmp_path / "link.jsonl.gz").symlink_to(tmp_path / "good.jsonl.gz")
    os.mkfifo(tmp_path / "pipe.jsonl.gz")
    (tmp_path / "large.jsonl.gz").write_bytes(bytes(MOST_FILE_BYTES + 1))
    captured = read_folder(tmp_path)
    assert (captured.files, len(captured.windows)) == (1, 20)
    why = {each.file: each.why for each in captured.left_out}
    assert set(why) == {f"{name}.jsonl.gz" for name in ("cut", "pickle", "link", "pipe", "large")} | {
        "notes.txt"
    }
    assert "cut short" in why["cut.jsonl.gz"]
    assert "not gzip" in why["pickle.jsonl.gz"]
    assert "link" in why["link.jsonl.gz"]
    assert [each["file"] for each in report_of(offer(captured))["left_out"]] == list(why)


def test_bounds_hold_over_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        put(tmp_path, name, kept_windows(moving(10, ord(name))))
    monkeypatch.setattr(captured_module, "MOST_WINDOWS", 25)
    captured = read_folder(tmp_path)
    assert (len(captured.windows), [each.file for each in captured.left_out]) == (20, ["c.jsonl.gz"])
    monkeypatch.setattr(captured_module, "MOST_FILES", 1)
    assert [each.file for each in read_folder(tmp_path).left_out] == ["b.jsonl.gz", "c.jsonl.gz"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.integers(0, len(GOOD)).map(lambda cut: GOOD[:cut] + b"x"))
def test_no_file_stops_the_others(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "junk.jsonl.gz").write_bytes(data)
    (tmp_path / "good.jsonl.gz").write_bytes(a_file(kept(1)))
    captured = read_folder(tmp_path)
    assert (captured.files, [each.file for each in captured.left_out]) == (1, ["junk.jsonl.gz"])


def test_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match="is no folder"):
        read_folder(tmp_path / "nowhere")
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 1


def test_the_command_writes_what_the_calibration_command_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "in", "one", kept_windows(moving(90, 1)))
    normalization = SAMPLE_VERSION / "normalization.json"
    arguments = [str(tmp_path / "in"), "--normalization", str(normalization), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "90 candidates for the next calibration set, origin captured" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "is there already" in capsys.readouterr().err
    # Added to the present windows, they pass the whole gate, and a build can read them.
    present = {name: CALIB_DATA / f"{name}.npz" for name in ("calibration", "evaluation")}
    added = read_window_files([tmp_path / "out" / CANDIDATES])
    files = {name: read_window_files([path]) for name, path in present.items()}
    unlabelled = {name: dataclasses.replace(f, labels=("",) * len(f.labels)) for name, f in files.items()}
    before = unlabelled["calibration"]
    unlabelled["calibration"] = WindowFile(
        windows=np.concatenate([before.windows, added.windows]), labels=before.labels + added.labels
    )
    statistics = read_statistics({"normalization.json": json.loads(normalization.read_bytes())})
    gated = gate_files(unlabelled, target="emulator", statistics=statistics)
    assert not gated.refused
    sets = write_sets(gated, tmp_path / "sets", origin="captured", generator="telemetry")
    assert (sets.index.origin, INDEX in read_files(tmp_path / "sets")) == ("captured", True)
    assert len(sets.calibration.windows) == len(before.windows) + 90
