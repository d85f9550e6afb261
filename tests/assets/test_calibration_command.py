"""Captured windows become the sets of a build through one command, or are refused and nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from assets.calibration import INDEX, WindowSets, parse_sets, read_files
from assets.calibration_command import main, take_golden
from assets.window_files import WindowFile
from runtime.contract.errors import CalibrationError
from sample import motions
from tests.assets.test_input_gate import SAMPLE
from tests.chain import CALIB_DATA, ROOT, SAMPLE_VERSION
from tests.mistakes import MISTAKES, Labels

pytestmark = pytest.mark.build

CALIBRATION, LABELS = motions.draw_set(24, 120)
EVALUATION, EVALUATION_LABELS = motions.draw_set(12, 121)


def write(folder: Path, name: str, windows: object, labels: Labels | None = None) -> str:
    arrays = {"windows": windows} if labels is None else {"windows": windows, "labels": labels}
    np.savez_compressed(folder / name, **arrays)  # type: ignore[arg-type]
    return str(folder / name)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Good files with labels; golden windows are to be taken out of evaluation."""
    calibration = write(tmp_path, "one.npz", CALIBRATION, LABELS)
    evaluation = write(tmp_path, "two.npz", EVALUATION, EVALUATION_LABELS)
    return ["--calibration", calibration, "--evaluation", evaluation, "--origin", "captured"]


def read(folder: Path) -> WindowSets:
    return parse_sets(read_files(folder))


def test_files_become_sets_that_a_build_reads(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*arguments, "--generator", "wrist, 3 people", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "calibration.npz",
        "evaluation.npz",
        "golden.npz",
        INDEX,
    ]
    sets = read(out)
    assert (sets.index.origin, sets.index.generator) == ("captured", "wrist, 3 people")
    assert [len(each.windows) for each in (sets.calibration, sets.evaluation, sets.golden)] == [288, 120, 24]
    assert sets.index.sets["golden"].strata == dict.fromkeys(sorted(motions.MOTIFS), 2)
    assert len(sets.index.sets["evaluation"].digests) == 120
    assert main([*arguments, "--generator", "wrist, 3 people", "--out", str(tmp_path / "again")]) == 0
    assert read_files(tmp_path / "again") == read_files(out)


def test_without_labels_motion_makes_the_strata(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--strata", "motion", "--out", str(tmp_path / "out")]) == 0
    sets = read(tmp_path / "out")
    assert sets.index.strata.by == "motion"
    assert sets.index.strata.references.keys() == {"accelerometer", "gyroscope"}
    assert set(sets.golden.strata) == set(sets.calibration.strata) == set(sets.index.strata.names)
    assert len(sets.golden.windows) == 16
    assert set(sets.calibration.labels) == {""}
    # Read back, empty labels are none: the same sets again.
    again = ["--origin", "captured", "--out", str(tmp_path / "again")]
    for name in ("calibration", "evaluation", "golden"):
        again += [f"--{name}", str(tmp_path / "out" / f"{name}.npz")]
    assert main(again) == 0
    assert read_files(tmp_path / "again") == read_files(tmp_path / "out")


def test_given_golden_windows_are_taken(arguments: list[str], tmp_path: Path) -> None:
    golden, labels = motions.draw_set(2, 122)
    given = write(tmp_path, "three.npz", golden, labels)
    assert main([*arguments, "--golden", given, "--out", str(tmp_path / "out")]) == 0
    sets = read(tmp_path / "out")
    assert np.array_equal(sets.golden.windows, golden)
    assert len(sets.evaluation.windows) == 144


def test_a_refused_set_writes_nothing_and_says_everything(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 0
    (out / "README.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rng = np.random.default_rng(0)
    wrong, labels = MISTAKES["gyro in deg/s"].apply(CALIBRATION, LABELS, SAMPLE, rng)
    wrong, labels = MISTAKES["acc in g"].apply(wrong, labels, SAMPLE, rng)
    arguments[1] = write(tmp_path, "wrong.npz", wrong, labels)
    capsys.readouterr()
    assert main([*arguments, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("refused: ")
    for words in (
        "refuse rest_acceleration [accelerometer]",
        "g given for m/s²",
        "refuse peak_rotation [gyroscope]",
        "deg/s given for rad/s",
        "expected  8.8 to 10.8 m/s²",
        "nothing was written",
    ):
        assert words in said.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main([*arguments, "--out", str(tmp_path / "new")]) == 1
    assert not (tmp_path / "new").exists()


def test_a_written_folder_keeps_what_else_is_in_it(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not list(tmp_path.glob(".writing-*"))


def test_check_writes_nothing_and_json_holds_everything(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--check", "--json", "--target", "hailo8"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["written"]) == (True, None)
    assert document["sets"]["golden"]["windows"] == 24
    assert [(each["check"], each["severity"]) for each in document["findings"]] == [("count", "warn")]


def test_the_models_stage_sees_the_pose(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    turn = MISTAKES["axes turned x>y>z"].apply
    for place, name, windows, labels in (
        (1, "one", CALIBRATION, LABELS),
        (3, "two", EVALUATION, EVALUATION_LABELS),
    ):
        arguments[place] = write(tmp_path, f"{name}.npz", *turn(windows, labels, SAMPLE, rng))
    assert main([*arguments, "--check"]) == 0
    assert "resting pose: not checked: no --normalization" in capsys.readouterr().out
    normalization = str(SAMPLE_VERSION / "normalization.json")
    assert main([*arguments, "--check", "--normalization", normalization]) == 1
    said = capsys.readouterr().err
    assert "refuse resting_pose [accelerometer]" in said
    assert "resting pose: checked against training's" in said


def test_errors_of_files_and_options(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [*arguments, "--check", "--normalization", str(tmp_path / "none.json")]
    assert main(missing) == 1
    assert "none.json" in capsys.readouterr().err
    unlabelled = write(tmp_path, "bare.npz", EVALUATION)
    assert main(["--calibration", arguments[1], "--evaluation", unlabelled, *arguments[4:], "--check"]) == 1
    assert "--strata motion" in capsys.readouterr().err
    assert main(["--calibration", str(tmp_path / "gone.npy"), *arguments[2:], "--check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["where"].endswith("gone.npy")
    for wrong in (arguments, [*arguments[:4], "--check"], [*arguments, "--check", "--out", "x"]):
        with pytest.raises(SystemExit):
            main(wrong)
    assert main([*arguments, "--out", str(tmp_path / "one.npz")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_golden_windows_do_not_depend_on_the_order_of_files() -> None:
    labels = tuple(str(label) for label in EVALUATION_LABELS)
    golden, rest = take_golden(WindowFile(windows=EVALUATION, labels=labels), labels)
    order = np.random.default_rng(5).permutation(len(EVALUATION))
    shuffled = tuple(labels[place] for place in order)
    again, _ = take_golden(WindowFile(windows=EVALUATION[order], labels=shuffled), shuffled)
    assert {each.tobytes() for each in again.windows} == {each.tobytes() for each in golden.windows}
    assert len(golden.windows) + len(rest.windows) == len(EVALUATION)
    assert {label: golden.labels.count(label) for label in golden.labels} == dict.fromkeys(labels, 2)
    few = WindowFile(windows=EVALUATION[:20], labels=labels[:20])
    with pytest.raises(CalibrationError, match="16 golden windows cannot be taken out of 20 windows"):
        take_golden(few, few.labels)


def test_a_rare_stratum_gives_what_it_has() -> None:
    labels = ("rare", *("often",) * 30, *("few",) * 3, *("more",) * 14)
    golden, rest = take_golden(WindowFile(windows=EVALUATION[:48], labels=labels), labels)
    assert {name: golden.labels.count(name) for name in set(labels)} == {
        "rare": 1,
        "few": 1,
        "often": 10,
        "more": 4,
    }
    assert len(rest.windows) == 32


def test_golden_windows_that_lack_a_stratum_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden, labels = motions.draw_set(2, 122)
    keep = labels != "fall"
    given = write(tmp_path, "three.npz", golden[keep], labels[keep])
    assert main([*arguments, "--golden", given, "--check"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("refused: 1 refusals")
    assert "golden: 0 windows of fall, calibration has 24" in said
    assert "add windows of it to --golden" in said
    once = keep | (np.arange(len(labels)) == np.flatnonzero(~keep)[0])
    given = write(tmp_path, "four.npz", golden[once], labels[once])
    assert main([*arguments, "--golden", given, "--check"]) == 0
    assert "golden: 1 windows of fall" in capsys.readouterr().out


@pytest.mark.parametrize("moves", range(1, 5))
def test_an_interrupted_write_leaves_old_sets_or_new_ones(
    arguments: list[str], tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 0
    before = read(out)
    other = write(tmp_path, "other.npz", *motions.draw_set(24, 130))
    again = [
        "--calibration",
        other,
        *arguments[2:],
        "--golden",
        write(tmp_path, "g.npz", *motions.draw_set(2, 122)),
    ]
    replace, done = Path.replace, 0

    def stop(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done == moves:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            main([*again, "--out", str(out)])
    assert read(out).calibration.sha256 == before.calibration.sha256
    assert main([*again, "--out", str(out)]) == 0
    assert read(out).calibration.sha256 != before.calibration.sha256
    named = {record.file for record in read(out).index.sets.values()}
    assert named <= {path.name for path in out.iterdir()}
    assert main([*again, "--out", str(out)]) == 0
    assert {record.file for record in read(out).index.sets.values()} == named


def test_an_index_of_an_older_schema_is_refused_with_the_command() -> None:
    files = read_files(CALIB_DATA)
    index = json.loads(files[INDEX])
    index["schema"] = 1
    for record in index["sets"].values():
        del record["strata"], record["digests"]
    del index["strata"]
    with pytest.raises(CalibrationError, match=r"schema is 1, expected 2 .*python -m assets\.calibration"):
        parse_sets({**files, INDEX: json.dumps(index).encode()})


def test_the_command_runs_and_explains_itself() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "assets.calibration", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for words in ("--calibration FILE", "--origin", "m/s²", "example:", "Split by recording"):
        assert words in run.stdout
