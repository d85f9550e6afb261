"""``releasectl selftest``: does a release run here, and give what it gave where it was made."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import selftest, window_file
from runtime.cli import main
from runtime.contract.cpu import kernel_family, this_cpu
from runtime.contract.release import MANIFEST_NAME, OutputQuantization
from runtime.contract.store import Release, open_release
from runtime.contract.window import FloatArray
from runtime.engines import Engine
from tests.hef_writer import make_hef
from tests.simulators import (
    ARTIFACT,
    GOLDEN,
    ROOT,
    STATISTICS,
    TINY_ENCODER,
    FakeEngine,
    ReleaseSimulator,
    clean_environment,
    flip_bit,
    imu_windows,
    npz_bytes,
    parity,
    reference_latents,
)

Capture = pytest.CaptureFixture[str]
HERE = kernel_family(*this_cpu())
STEP = 1 / 32
"""The tiny encoder's."""


def report(capsys: Capture, *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main(["selftest", *map(str, arguments), "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, answer


def candidate(root: Path, **changes: Any) -> Release:
    """A release that nobody judged yet, outside of any store."""
    return ReleaseSimulator(changes={"parity": not_judged()}, **changes).place(root)


def not_judged() -> Any:
    return dataclasses.replace(
        parity(TINY_ENCODER.read_bytes()), metrics={}, thresholds={}, windows=0, passed=False
    )


def test_a_good_release_says_everything(tmp_path: Path, capsys: Capture) -> None:
    release = ReleaseSimulator(kernel_family=HERE).publish(tmp_path)
    code, answer = report(capsys, release.id[:8], "--store", tmp_path)
    assert code == 0
    assert answer.pop("engine").startswith("onnxruntime ")
    golden = answer.pop("golden")
    assert golden == {
        "windows": 4,
        "kernel_family": HERE,
        "recorded_kernel_family": HERE,
        "unit": "LSB",
        "worst": 0,
        "window": 0,
        "dimension": 0,
        "allowed": 0,
        "exact": True,
    }
    assert answer == {
        "ok": True,
        "problems": [],
        "release": release.id,
        "target": "emulator",
        "model": "tiny",
        "version": "v1.0.0",
        "artifact": ARTIFACT,
        "artifact_sha256": release.manifest.primary.sha256,
        "numbers": "emulated",
        "calibration_origin": "synthetic",
        "publishable": True,
        "refused": "",
        "latents": None,
    }


def test_a_terminal_sees_the_same(tmp_path: Path, capsys: Capture) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    assert main(["selftest", str(release.directory)]) == 0
    out = capsys.readouterr().out
    for text in (
        release.id,
        "tiny v1.0.0",
        "numbers emulated",
        "SYNTHETIC windows, not captured",
        "onnxruntime",
        f"{HERE} here, recorded on recorded-elsewhere",
        "4 windows, exact: yes",
        "0 LSB, at most 2 allowed",
        "publishable yes",
        "result      ok",
    ):
        assert text in out
    assert all(len(line) <= 80 for line in out.splitlines())


def moved(steps: int) -> dict[str, bytes]:
    """Golden windows of which one recorded output is so many steps off."""
    windows = imu_windows(4, seed=3)
    latents = reference_latents(TINY_ENCODER.read_bytes(), windows, STATISTICS)
    latents[2, 17] += np.float32(steps * STEP)
    return {GOLDEN: npz_bytes(windows=windows, artifact=latents)}


@pytest.mark.parametrize(
    ("family", "steps", "allowed", "ok"),
    [
        (HERE, 1, 0, False),
        (HERE, -1, 0, False),
        ("elsewhere", 2, 2, True),
        ("elsewhere", -2, 2, True),
        ("elsewhere", 3, 2, False),
    ],
)
def test_a_step_counts_where_the_kernels_are_the_same(
    tmp_path: Path, family: str, steps: int, allowed: int, ok: bool, capsys: Capture
) -> None:
    release = ReleaseSimulator(kernel_family=family, files=moved(steps)).publish(tmp_path)
    code, answer = report(capsys, release.directory)
    assert (code, answer["ok"]) == ((0, True) if ok else (1, False))
    golden = answer["golden"]
    assert (golden["worst"], golden["window"], golden["dimension"]) == (abs(steps), 2, 17)
    assert (golden["allowed"], golden["exact"]) == (allowed, False)
    if not ok:
        (problem,) = answer["problems"]
        for text in ("golden window 2, dimension 17", f"{abs(steps)} LSB", HERE, family):
            assert text in problem


def test_a_candidate_needs_no_verdict(tmp_path: Path, capsys: Capture) -> None:
    code, answer = report(capsys, candidate(tmp_path).directory)
    assert (code, answer["ok"], answer["publishable"]) == (0, True, False)
    assert "no thresholds" in answer["refused"]
    assert main(["selftest", str(candidate(tmp_path / "again").directory)]) == 0
    assert "publishable no: parity failed" in capsys.readouterr().out


@pytest.mark.parametrize("name", [ARTIFACT, GOLDEN, "parity.json"])
def test_a_changed_file_is_named_and_nothing_is_run(tmp_path: Path, name: str, capsys: Capture) -> None:
    release = candidate(tmp_path)
    flip_bit(release.directory / name, 10)
    code, answer = report(capsys, release.directory)
    assert (code, answer["ok"], answer["engine"], answer["golden"]) == (1, False, "", None)
    assert str(release.directory / name) in answer["problems"][0]


def test_an_extra_file_is_a_problem(tmp_path: Path, capsys: Capture) -> None:
    release = candidate(tmp_path)
    (release.directory / "note.txt").write_text("hello")
    code, answer = report(capsys, release.directory)
    assert code == 1
    assert "note.txt: is not named by the manifest" in answer["problems"][0]


def test_no_engine_is_a_problem_in_words(tmp_path: Path, capsys: Capture) -> None:
    release = ReleaseSimulator(target="hailo8").publish(tmp_path)
    code, answer = report(capsys, release.id, "--store", tmp_path)
    assert (code, answer["golden"]) == (1, None)
    assert "no HailoRT engine" in answer["problems"][0]


def test_a_hef_for_another_chip_is_a_problem_in_words(tmp_path: Path, capsys: Capture) -> None:
    release = ReleaseSimulator(target="hailo8l", hef=make_hef(arch="HAILO8P")).place(tmp_path)
    code, answer = report(capsys, release.directory)
    assert (code, answer["golden"]) == (1, None)
    assert "was compiled for HAILO8P, a HAILO8L takes HAILO8L" in answer["problems"][0]


@pytest.mark.parametrize("scale", [1000.0, 2 * STEP, 1.001 * STEP, 1e30])
def test_a_step_that_rounds_differences_away_is_refused(
    tmp_path: Path, scale: float, capsys: Capture
) -> None:
    """With steps of 1000 every output would be the integer 0."""
    simulator = ReleaseSimulator(kernel_family=HERE)
    golden = simulator.manifest(simulator.contents()).golden
    wide = dataclasses.replace(golden, output=OutputQuantization(scale=scale, zero_point=0))
    release = ReleaseSimulator(changes={"golden": wide}).place(tmp_path)
    code, answer = report(capsys, release.directory)
    assert code == 1
    assert "no whole number of steps" in answer["problems"][0]


@pytest.mark.parametrize("wild", [3e38, -3e38])
def test_a_wild_output_is_no_small_difference(
    tmp_path: Path, wild: float, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Beyond int64 the difference would wrap around and look small."""
    release = ReleaseSimulator().publish(tmp_path)

    def broken(release: Release) -> Engine:
        return FakeEngine(release.manifest, lambda _: np.full(64, wild, np.float32))

    monkeypatch.setattr(selftest, "open_engine", broken)
    code, answer = report(capsys, release.directory)
    assert (code, answer["engine"]) == (1, "fake 1")
    assert answer["golden"]["worst"] > 1e15


def saved(root: Path, **arrays: Any) -> Path:
    path = root / "windows.npz"
    path.write_bytes(npz_bytes(**arrays))
    return path


def test_given_windows_are_run(tmp_path: Path, capsys: Capture) -> None:
    release = candidate(tmp_path)
    windows = imu_windows(7, seed=5)
    out = tmp_path / "out" / "latents.npz"
    before = sorted(release.directory.iterdir())
    code, answer = report(
        capsys, release.directory, "--windows", saved(tmp_path, windows=windows), "--latents", out
    )
    assert (code, answer["latents"]) == (0, {"file": str(out), "windows": 7})
    with np.load(out) as archive:
        assert archive.files == ["latents"]
        latents = archive["latents"]
    assert (latents.dtype, latents.shape) == (np.float32, (7, 64))
    expected = reference_latents(TINY_ENCODER.read_bytes(), windows, STATISTICS)
    np.testing.assert_allclose(latents, expected, rtol=0, atol=2 * STEP)
    assert sorted(release.directory.iterdir()) == before


def test_compressed_windows_are_read_too(tmp_path: Path, capsys: Capture) -> None:
    path, out = tmp_path / "windows.npz", tmp_path / "latents.npz"
    np.savez_compressed(path, other=np.zeros(3), windows=imu_windows(2))
    assert report(capsys, candidate(tmp_path).directory, "--windows", path, "--latents", out)[0] == 0
    assert np.load(out)["latents"].shape == (2, 64)


def test_no_latents_from_an_artifact_that_fails(tmp_path: Path, capsys: Capture) -> None:
    release = candidate(tmp_path, kernel_family=HERE, files=moved(1))
    out = tmp_path / "latents.npz"
    path = saved(tmp_path, windows=imu_windows(1))
    code, answer = report(capsys, release.directory, "--windows", path, "--latents", out)
    assert (code, answer["latents"], out.exists()) == (1, None, False)


def spoiled(place: tuple[int, int, int], value: float) -> FloatArray:
    windows = imu_windows(3)
    windows[place] = value
    return windows


def truncated(root: Path) -> Path:
    path = saved(root, windows=imu_windows(3))
    path.write_bytes(path.read_bytes()[:-9000])
    return path


def announced(count: int, later: bool = False) -> Callable[[Path], Path]:
    """A header for so many windows before the values of one."""

    def make(root: Path) -> Path:
        path = root / "windows.npz"
        write = np.lib.format.write_array_header_2_0 if later else np.lib.format.write_array_header_1_0
        with zipfile.ZipFile(path, "w") as archive, archive.open("windows.npy", "w") as member:
            write(member, {"descr": "<f4", "fortran_order": False, "shape": (count, 100, 9)})
            member.write(imu_windows(1).tobytes())
        return path

    return make


def more_than_announced(root: Path) -> Path:
    path = root / "windows.npz"
    data = npz_bytes(windows=imu_windows(1))
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(path, "w") as longer:
        longer.writestr("windows.npy", archive.read("windows.npy") + b"more")
    return path


def changed_byte(root: Path) -> Path:
    path = saved(root, windows=imu_windows(3))
    flip_bit(path, 5000)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "none.npz", "no such file of windows"),
        (lambda root: root, "no such file of windows"),
        (lambda root: saved(root, other=imu_windows(1)), "is no npz with 'windows'"),
        (lambda root: saved(root, windows=imu_windows(1).astype("f8")), "float64 (1, 100, 9)"),
        (lambda root: saved(root, windows=imu_windows(1).astype(">f4")), ">f4 (1, 100, 9)"),
        (lambda root: saved(root, windows=imu_windows(1)[0]), "float32 (100, 9)"),
        (lambda root: saved(root, windows=imu_windows(2).transpose(0, 2, 1).copy()), "float32 (2, 9, 100)"),
        (lambda root: saved(root, windows=np.asfortranarray(imu_windows(2))), "column by column"),
        (lambda root: saved(root, windows=imu_windows(0)), "0 windows"),
        (lambda root: saved(root, windows=spoiled((2, 31, 4), np.nan)), "window 2: nan is not finite"),
        (lambda root: saved(root, windows=spoiled((1, 3, 4), 3.4e38)), "window 1.x[3][4]"),
        (truncated, "is no npz"),
        (announced(50_000), "ends within window 1 of 50000"),
        (announced(0), "0 windows, 1 to 100000"),
        (announced(10**12), "1 to 100000 are read"),
        (announced(1, later=True), "array format 2.0"),
        (more_than_announced, "more bytes than 1 windows"),
        (changed_byte, "is no npz"),
    ],
)
def test_windows_that_are_none_are_2(
    tmp_path: Path, make: Callable[[Path], Path], message: str, capsys: Capture
) -> None:
    out = tmp_path / "latents.npz"
    release = candidate(tmp_path)
    code = main(["selftest", str(release.directory), "--windows", str(make(tmp_path)), "--latents", str(out)])
    printed, err = capsys.readouterr()
    assert (code, printed, out.exists()) == (2, "", False)
    assert message in err
    assert err.count("\n") == 1


def test_too_many_windows_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(window_file, "MAX_WINDOWS", 2)
    out = tmp_path / "latents.npz"
    path = saved(tmp_path, windows=imu_windows(3))
    code, answer = report(capsys, candidate(tmp_path).directory, "--windows", path, "--latents", out)
    assert (code, answer["ok"], answer["error"]) == (2, False, "window_shape")
    assert "1 to 2 are read" in answer["problems"][0]


def test_a_place_that_cannot_be_written_is_1(tmp_path: Path, capsys: Capture) -> None:
    path = saved(tmp_path, windows=imu_windows(1))
    release = candidate(tmp_path)
    code, answer = report(capsys, release.directory, "--windows", path, "--latents", path / "under" / "x")
    assert (code, answer["error"]) == (1, "store")


@pytest.mark.parametrize("option", ["--windows", "--latents"])
def test_one_without_the_other_is_2(tmp_path: Path, option: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["selftest", str(candidate(tmp_path).directory), option, "x.npz"])
    assert caught.value.code == 2
    assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["f" * 12, "abc", "no/such/place"])
def test_what_is_not_there_is_2(tmp_path: Path, name: str, capsys: Capture) -> None:
    ReleaseSimulator().publish(tmp_path)
    code, answer = report(capsys, name, "--store", tmp_path)
    assert (code, answer["ok"], answer["error"]) == (2, False, "no_release")


def test_a_renamed_directory_is_1(tmp_path: Path, capsys: Capture) -> None:
    release = candidate(tmp_path)
    renamed = release.directory.rename(tmp_path / "renamed")
    code, answer = report(capsys, renamed)
    assert (code, answer["error"]) == (1, "digest_mismatch")
    assert open_release(renamed.rename(release.directory)).id == release.id
    (release.directory / MANIFEST_NAME).unlink()
    assert report(capsys, release.directory)[0] == 1


def test_as_a_process_from_a_directory_without_a_store(tmp_path: Path) -> None:
    """As the build side asks."""
    release = candidate(tmp_path)
    path, out = saved(tmp_path, windows=imu_windows(2)), tmp_path / "latents.npz"
    command = [sys.executable, "-m", "runtime.cli", "selftest", str(release.directory), "--json"]
    done = subprocess.run(
        [*command, "--windows", str(path), "--latents", str(out)],
        cwd=ROOT,
        env=clean_environment() | {"RELEASE_STORE": str(tmp_path / "nowhere")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ok"] is True
    assert np.load(out)["latents"].shape == (2, 64)
