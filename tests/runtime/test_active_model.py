"""From a channel to a ready model: each way in which it fails has its own reason."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import active_model
from runtime.active_model import ActiveModel, ModelHolder, load_active_model
from runtime.config import RuntimeConfig
from runtime.contract.document import sha256_bytes
from runtime.contract.errors import EngineError, PipelineError
from runtime.contract.hef_errors import HefError
from runtime.contract.motifs import MotifScorer
from runtime.contract.release import GoldenRecord, OutputQuantization
from runtime.contract.window import ChannelStatistics
from runtime.engines import open_engine
from runtime.release_choice import ReleaseChoice
from tests.hef_writer import make_hef
from tests.keys import MANAGER, a_store
from tests.simulators import (
    ARTIFACT,
    GOLDEN,
    REPORT,
    STATISTICS,
    TINY_ENCODER,
    ReleaseSimulator,
    flip_bit,
    imu_windows,
    npz_bytes,
    parity,
    reference_latents,
)

Prepare = Callable[[Path], RuntimeConfig]


def config(store: Path, **settings: Any) -> RuntimeConfig:
    return RuntimeConfig(release_store=store, trust_root=Path(os.environ["TRUST_ROOT"]), **settings)


def test_a_channels_release_is_served(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path, "stable")
    model = load_active_model(config(tmp_path, num_motifs=12))
    assert (model.release_id, model.target, model.artifact) == (release.id, "emulator", ARTIFACT)
    assert (model.numbers, model.motif_head, model.motifs) == ("emulated", "checkpoint", 12)
    assert (model.keys, model.sequence, model.alarm) == ("development keys", 1, "")
    assert model.memory == "this process only: STATE_DIR is not set"
    window = imu_windows(1, seed=77)
    latent, scores = model.infer(window[0])
    expected = reference_latents(TINY_ENCODER.read_bytes(), window, STATISTICS)[0]
    np.testing.assert_allclose(latent, expected, atol=0.07)
    np.testing.assert_array_equal(scores, MotifScorer(release.manifest.motif_head).scores(latent))
    model.close()
    with pytest.raises(EngineError):
        model.infer(window[0])


def test_many_windows_give_what_each_gives_alone(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    model = load_active_model(config(tmp_path))
    windows = imu_windows(5, seed=78)
    latents, scores = model.infer_batch(windows)
    assert (latents.shape, scores.shape) == ((5, 64), (5, 12))
    for window, latent, score in zip(windows, latents, scores, strict=True):
        alone = model.infer(window)
        np.testing.assert_array_equal(alone[0], latent)
        np.testing.assert_array_equal(alone[1], score)
    model.close()


def test_the_releases_own_normalization_counts(tmp_path: Path) -> None:
    """The same artifact with other statistics gives other latents, or is refused by its golden windows."""
    other = ChannelStatistics(mean=STATISTICS.std, std=STATISTICS.std)
    ReleaseSimulator(statistics=other).publish(tmp_path, "stable")
    assert ModelHolder.load(config(tmp_path)).state.code == "golden_mismatch"  # type: ignore[union-attr]


def test_the_log_says_what_is_served_and_on_what_it_was_calibrated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = ReleaseSimulator().publish(tmp_path, "stable")
    with caplog.at_level(logging.INFO, "runtime.model"):
        ModelHolder.load(config(tmp_path))
    (record,) = caplog.records
    assert record.getMessage() == f"serving {ARTIFACT}, calibrated on synthetic windows"
    assert record.fields == {  # type: ignore[attr-defined]
        "event": "model_loaded",
        "release": release.id,
        "target": "emulator",
        "numbers": "emulated",
        "calibration_origin": "synthetic",
        "keys": "development keys",
    }


@pytest.mark.parametrize(
    "way", ["directory", "artifact", "link to directory", "link to artifact", "relative"]
)
def test_a_path_names_a_release(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    path = release.directory
    if way == "artifact":
        path = path / ARTIFACT
    elif way.startswith("link"):
        link = tmp_path / "current"
        link.symlink_to(path / ARTIFACT if way == "link to artifact" else path)
        path = link
    elif way == "relative":
        monkeypatch.chdir(tmp_path)
        path = path.relative_to(tmp_path)
    assert load_active_model(config(tmp_path / "none", hef_path=path)).release_id == release.id


def no_store(root: Path) -> RuntimeConfig:
    return config(root / "nowhere")


def empty_channel(root: Path) -> RuntimeConfig:
    ReleaseSimulator().publish(root, "canary")
    return config(root)


def missing_path(root: Path) -> RuntimeConfig:
    return config(root, hef_path=root / "none.hef")


def bare_file(root: Path) -> RuntimeConfig:
    shutil.copy(TINY_ENCODER, root / "bare.onnx")
    return config(root, hef_path=root / "bare.onnx")


def bare_directory(root: Path) -> RuntimeConfig:
    return config(root, hef_path=root)


def another_file_of_a_release(root: Path) -> RuntimeConfig:
    return config(root, hef_path=ReleaseSimulator().publish(root).directory / REPORT)


def two_targets(root: Path) -> RuntimeConfig:
    ReleaseSimulator().publish(root, "stable")
    ReleaseSimulator(target="hailo8", kind="hef").publish(root, "stable")
    return config(root)


def path_for_another_target(root: Path) -> RuntimeConfig:
    return config(root, hef_path=ReleaseSimulator().publish(root).directory, target="hailo8")


def other_motif_count(root: Path) -> RuntimeConfig:
    ReleaseSimulator(motifs=5).publish(root, "stable")
    return config(root, num_motifs=12)


def flipped(name: str) -> Prepare:
    def prepare(root: Path) -> RuntimeConfig:
        flip_bit(ReleaseSimulator().publish(root, "stable").directory / name, 20)
        return config(root)

    return prepare


def broken_manifest(root: Path) -> RuntimeConfig:
    release = ReleaseSimulator().publish(root)
    data = b'{"schema": 1}'
    directory = release.directory.with_name(sha256_bytes(data))
    directory.mkdir()
    (directory / "manifest.json").write_bytes(data)
    return config(root, hef_path=directory)


def no_hailort(root: Path) -> RuntimeConfig:
    ReleaseSimulator(target="hailo8").publish(root, "stable")
    return config(root)


def hef_for(data: bytes, target: str = "hailo8") -> Prepare:
    """A release that came around the gate, with this file as its HEF."""

    def prepare(root: Path) -> RuntimeConfig:
        release = ReleaseSimulator(target=target, hef=data).place(root)
        a_store(root).point("stable", release, actor="test", reason="around the gate", key=MANAGER)
        return config(root)

    return prepare


def built_otherwise(root: Path) -> RuntimeConfig:
    ReleaseSimulator(golden_offset=0.5).publish(root, "stable")
    return config(root)


def with_golden(data: bytes, **changes: Any) -> Prepare:
    def prepare(root: Path) -> RuntimeConfig:
        ReleaseSimulator(files={GOLDEN: data}, changes=changes).publish(root, "stable")
        return config(root)

    return prepare


def around_the_gate(root: Path) -> RuntimeConfig:
    release = ReleaseSimulator(changes={"parity": parity(b"another artifact")}).place(root)
    return config(root, hef_path=release.directory)


def links_in_a_circle(root: Path) -> RuntimeConfig:
    (root / "loop").symlink_to("loop")
    return config(root, hef_path=root / "loop")


def store_in_a_circle(root: Path) -> RuntimeConfig:
    (root / "loop").symlink_to("loop")
    return config(root / "loop")


def too_long_a_path(root: Path) -> RuntimeConfig:
    return config(root, hef_path=root / ("a" * 5000))


def too_long_a_store(root: Path) -> RuntimeConfig:
    return config(root / ("a" * 5000))


def channels_is_a_file(root: Path) -> RuntimeConfig:
    ReleaseSimulator().publish(root, "stable")
    shutil.rmtree(root / "channels")
    (root / "channels").write_bytes(b"")
    return config(root)


def unreadable_artifact(root: Path) -> RuntimeConfig:
    release = ReleaseSimulator().publish(root, "stable")
    (release.directory / ARTIFACT).unlink()
    (release.directory / ARTIFACT).symlink_to(ARTIFACT)
    return config(root)


def pipe_for_an_artifact(root: Path) -> RuntimeConfig:
    release = ReleaseSimulator().publish(root, "stable")
    (release.directory / ARTIFACT).unlink()
    os.mkfifo(release.directory / ARTIFACT)
    return config(root)


def pipe_for_a_manifest(root: Path) -> RuntimeConfig:
    os.mkfifo(root / "manifest.json")
    return config(root, hef_path=root)


def golden_of_nothing_but_a_head(root: Path) -> RuntimeConfig:
    """An array that says that it has 10**12 windows."""
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 100, 9)}
    np.lib.format.write_array_header_1_0(buffer, header)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("windows.npy", buffer.getvalue())
    return with_golden(archive.getvalue())(root)


ZEROS = np.zeros((4, 64), np.float32)
NO_WINDOWS = GoldenRecord(
    file=GOLDEN,
    windows=0,
    full_precision_tolerance=1.0,
    artifact_tolerance=1.0,
    output=OutputQuantization(scale=1 / 32, zero_point=128),
    kernel_family="elsewhere",
)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (no_store, "no_release"),
        (empty_channel, "no_release"),
        (missing_path, "no_release"),
        (bare_file, "no_manifest"),
        (bare_directory, "no_manifest"),
        (another_file_of_a_release, "no_manifest"),
        (two_targets, "target_ambiguous"),
        (path_for_another_target, "target_mismatch"),
        (other_motif_count, "num_motifs"),
        (flipped(ARTIFACT), "digest_mismatch"),
        (flipped(GOLDEN), "digest_mismatch"),
        (flipped(REPORT), "digest_mismatch"),
        (flipped("manifest.json"), "digest_mismatch"),
        (broken_manifest, "manifest"),
        (no_hailort, "no_hailort"),
        (hef_for(make_hef(arch="HAILO15H", version=3)), "hef_architecture"),
        (hef_for(make_hef(arch="HAILO8P"), "hailo8l"), "hef_architecture"),
        (hef_for(make_hef(outputs=[])), "hef_interface"),
        (hef_for(b'{"mock_hef": true}'), "hef_json"),
        (hef_for(make_hef()[:40]), "hef_short"),
        (around_the_gate, "publication_refused"),
        (links_in_a_circle, "store"),
        (store_in_a_circle, "store"),
        (too_long_a_path, "store"),
        (too_long_a_store, "store"),
        (channels_is_a_file, "store"),
        (unreadable_artifact, "store"),
        (pipe_for_an_artifact, "digest_mismatch"),
        (pipe_for_a_manifest, "no_manifest"),
        (built_otherwise, "golden_mismatch"),
        (golden_of_nothing_but_a_head, "golden_mismatch"),
        (with_golden(npz_bytes(windows=imu_windows(4) * np.nan, artifact=ZEROS)), "golden_mismatch"),
        (with_golden(b"not an archive"), "golden_mismatch"),
        (with_golden(npz_bytes(windows=imu_windows(4))), "golden_mismatch"),
        (with_golden(npz_bytes(windows=imu_windows(3), artifact=ZEROS)), "golden_mismatch"),
        (with_golden(npz_bytes(windows=imu_windows(4).astype("f8"), artifact=ZEROS)), "golden_mismatch"),
        (with_golden(npz_bytes(windows=imu_windows(4), artifact=ZEROS * np.nan)), "golden_mismatch"),
        (
            with_golden(npz_bytes(windows=imu_windows(0), artifact=ZEROS[:0]), golden=NO_WINDOWS),
            "golden_mismatch",
        ),
    ],
)
def test_each_failure_has_its_reason(
    tmp_path: Path, prepare: Prepare, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = prepare(tmp_path)
    with caplog.at_level(logging.ERROR, "runtime.model"):
        holder = ModelHolder.load(settings)
    assert isinstance(holder.state, PipelineError)
    assert holder.state.code == reason
    assert holder.model is None
    (record,) = [record for record in caplog.records if record.name == "runtime.model"]
    assert str(holder.state) in record.getMessage()


def test_with_target_set_the_store_may_hold_others(tmp_path: Path) -> None:
    settings = dataclasses.replace(two_targets(tmp_path), target="emulator")
    assert load_active_model(settings).target == "emulator"


def test_everything_is_verified_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(active_model, "open_engine", lambda *given: opened.append(given))
    ModelHolder.load(flipped(REPORT)(tmp_path))
    assert opened == []


def test_an_engine_that_fails_its_golden_windows_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def remember(release: Any, lock_folder: Any) -> Any:
        opened.append(open_engine(release, lock_folder))
        return opened[-1]

    monkeypatch.setattr(active_model, "open_engine", remember)
    ModelHolder.load(built_otherwise(tmp_path))
    with pytest.raises(EngineError, match="closed"):
        opened[0].infer(imu_windows(1)[0])


def test_a_mistake_of_ours_is_a_reason_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def crash(release: Any, lock_folder: Any) -> Any:
        raise ZeroDivisionError("a mistake")

    ReleaseSimulator().publish(tmp_path, "stable")
    monkeypatch.setattr(active_model, "open_engine", crash)
    holder = ModelHolder.load(config(tmp_path))
    assert isinstance(holder.state, PipelineError)
    assert holder.state.code == "internal"
    assert "a mistake" in caplog.text


@pytest.mark.parametrize(
    ("target", "data"),
    [("hailo8", make_hef(arch="HAILO10H")), ("hailo8l", make_hef()), ("hailo8", b"")],
    ids=["10H on 8", "8P on 8L", "empty"],
)
def test_a_hef_for_another_chip_never_reaches_the_engine(
    tmp_path: Path, target: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_model, "open_engine", lambda *_: pytest.fail("the engine saw it"))
    with pytest.raises(HefError):
        load_active_model(hef_for(data, target)(tmp_path))


def test_a_smaller_chips_hef_is_loaded_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ReleaseSimulator(target="hailo8", hef=make_hef(arch="HAILO8L")).publish(tmp_path, "stable")
    with caplog.at_level(logging.WARNING, "runtime.model"), pytest.raises(EngineError):
        load_active_model(config(tmp_path))
    assert "a HAILO8 runs it, more slowly" in caplog.text


def test_the_holder_gives_back_what_it_held(tmp_path: Path) -> None:
    ReleaseSimulator().publish(tmp_path, "stable")
    holder = ModelHolder.load(config(tmp_path))
    before = holder.state
    error = EngineError("gone")
    assert holder.replace(error) is before
    assert holder.model is None
    assert isinstance(before, ActiveModel)
    before.close()


def test_a_released_channel_is_found_without_loading(tmp_path: Path) -> None:
    release = ReleaseSimulator(target="hailo8", kind="hef").publish(tmp_path, "stable")
    assert ReleaseChoice(config(tmp_path)).find().release.id == release.id
    assert a_store(tmp_path).targets() == ["hailo8"]
