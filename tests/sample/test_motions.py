"""The sample's windows are physically plausible and reproducible, and its checkpoint is honest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sample import motions, train, windows
from sample.motions import MOTIFS, Floats, Windows

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
CALIB_DATA = ROOT / "calib_data"
WEIGHTS = ROOT / "artifacts/weights/tcn_encoder/v0.1.0"
FRESH_SEED = 100

motifs = st.sampled_from(MOTIFS)
seeds = st.integers(0, 2**32 - 1)


def draw(motif: str, seed: int) -> Windows:
    return motions.draw(motif, np.random.default_rng(seed))


def lengths(window: Windows, sensor: int) -> Floats:
    """Length of one sensor's vector: 0 accelerometer, 1 gyroscope, 2 magnetometer."""
    return np.asarray(np.linalg.norm(window[..., 3 * sensor : 3 * sensor + 3].astype(np.float64), axis=-1))


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def load(name: str) -> tuple[Windows, motions.Labels]:
    with np.load(CALIB_DATA / f"{name}.npz", allow_pickle=False) as file:
        return file["windows"], file["labels"]


@pytest.fixture(scope="module")
def index() -> dict[str, Any]:
    return read_json(CALIB_DATA / "index.json")


@pytest.fixture(scope="module")
def training() -> Windows:
    count = read_json(WEIGHTS / "normalization.json")["computed_from"]["windows"]
    drawn, _ = motions.draw_set(count // len(MOTIFS), motions.SEEDS["training"])
    return drawn


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    import torch

    loaded: dict[str, Tensor] = torch.load(WEIGHTS / "tcn_vae.pth", weights_only=True)
    return loaded


# --- a window is what a sensor could have reported


@given(motif=motifs, seed=seeds)
def test_window_has_the_shape_type_and_resolution_of_the_sensor(motif: str, seed: int) -> None:
    window = draw(motif, seed)
    assert window.shape == (100, 9)
    assert window.dtype == np.float32
    counts = window / np.repeat([2.0**-8, 2.0**-10, 2.0**-4], 3)
    assert np.array_equal(counts, np.round(counts))


@given(motif=motifs, seed=seeds)
def test_values_stay_within_what_bodies_and_the_earth_do(motif: str, seed: int) -> None:
    window = draw(motif, seed)
    assert lengths(window, 0).max() < 80
    assert lengths(window, 1).max() < 36
    assert 15 < np.median(lengths(window, 2)) < 90


@given(seed=seeds)
def test_rest_is_still(seed: int) -> None:
    window = draw("rest", seed)
    assert lengths(window, 0).min() > 8.8
    assert lengths(window, 0).max() < 10.8
    assert lengths(window, 1).max() < 0.5
    assert window.std(0)[:3].max() < 0.1


@given(motif=motifs, seed=seeds)
def test_gyroscope_leads_from_the_first_attitude_to_the_last(motif: str, seed: int) -> None:
    """Angular velocity integrates to the attitude that gravity and the field are rotated by."""
    motion = motions.move(motif, np.random.default_rng(seed))
    attitude = motion.attitude[0]
    for rate in motions.angular_velocity(motion.attitude):
        angle = float(np.linalg.norm(rate)) / motions.RATE_HZ
        x, y, z = rate / max(float(np.linalg.norm(rate)), 1e-300)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        attitude = attitude @ (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)
    np.testing.assert_allclose(attitude, motion.attitude[-1], atol=1e-9)


@given(motif=motifs, seed=seeds)
def test_mounting_turns_the_reading_and_changes_no_length(motif: str, seed: int) -> None:
    motion = motions.move(motif, np.random.default_rng(seed))
    field = np.array([20.0, 0.0, -43.0])
    mounting = motions.rotation(0, 0.3) @ motions.rotation(1, -0.2)
    level, tilted = motions.read(motion, np.eye(3), field), motions.read(motion, mounting, field)
    for sensor in (slice(0, 3), slice(3, 6), slice(6, 9)):
        np.testing.assert_allclose(level[:, sensor] @ mounting, tilted[:, sensor], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(level[:, 6:], axis=1), np.linalg.norm(field))


@given(seed=seeds)
def test_jump_lands_with_the_speed_it_left_the_ground(seed: int) -> None:
    up = motions.move("jump", np.random.default_rng(seed)).acceleration[:, 2]
    airborne = np.flatnonzero(up == -motions.GRAVITY)
    take_off_speed = motions.GRAVITY * len(airborne) / motions.RATE_HZ / 2
    gained = up[airborne[0] :].sum() / motions.RATE_HZ
    assert len(airborne) > 25
    assert gained == pytest.approx(-take_off_speed, abs=0.15)  # a sample of free fall is 0.1 m/s


# --- a set is reproducible and stratified


@given(motif=motifs, seed=seeds)
def test_same_seed_same_window_other_seed_other_window(motif: str, seed: int) -> None:
    assert np.array_equal(draw(motif, seed), draw(motif, seed))
    assert not np.array_equal(draw(motif, seed), draw(motif, seed + 1))


def test_a_longer_set_starts_with_the_shorter_one_and_any_prefix_is_stratified() -> None:
    short, _ = motions.draw_set(2, FRESH_SEED)
    longer, labels = motions.draw_set(3, FRESH_SEED)
    assert np.array_equal(longer[: len(short)], short)
    assert labels.tolist() == list(MOTIFS) * 3


def test_performances_of_a_motif_differ() -> None:
    drawn, labels = motions.draw_set(10, FRESH_SEED)
    for motif in MOTIFS:
        spread = drawn[labels == motif].std(0)
        assert np.median(spread[:, :3]) > 0.3, motif
        assert np.median(spread[:, 6:]) > 2.0, motif


# --- the committed windows


@pytest.mark.parametrize("name", windows.PER_MOTIF)
def test_index_tells_the_truth(index: dict[str, Any], name: str) -> None:
    entry = index["sets"][name]
    drawn, labels = load(name)
    assert drawn.dtype == np.float32
    assert drawn.shape == (entry["count"], 100, 9)
    assert entry["count"] == windows.PER_MOTIF[name] * len(MOTIFS)
    assert hashlib.sha256((CALIB_DATA / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert motions.digest(drawn) == entry["windows_sha256"]
    assert {motif: int((labels == motif).sum()) for motif in MOTIFS} == entry["labels"]


def test_no_window_is_in_two_sets(training: Windows) -> None:
    sets = {name: load(name)[0] for name in windows.PER_MOTIF}
    windows.check_disjoint({**sets, "training": training})


def test_a_shared_window_is_refused_by_name() -> None:
    golden, _ = load("golden")
    fresh, _ = motions.draw_set(1, FRESH_SEED)
    with pytest.raises(windows.OverlappingSetsError, match=r"b\[1\] is the same window as a\[3\]"):
        windows.check_disjoint({"a": golden, "b": np.stack([fresh[0], golden[3]])})


def test_generator_reproduces_the_committed_windows(index: dict[str, Any], tmp_path: Path) -> None:
    again = windows.write_sets(tmp_path)
    for name, entry in index["sets"].items():
        assert again["sets"][name]["windows_sha256"] == entry["windows_sha256"]
    # The bytes of a .npz also depend on the zlib build, so only runs on one machine must agree.
    assert windows.write_sets(tmp_path / "twice") == again


def test_normalized_calibration_windows_suit_the_model_input() -> None:
    statistics = read_json(WEIGHTS / "normalization.json")["normalization"]
    drawn, _ = load("calibration")
    scaled = (drawn - np.array(statistics["zscore_mean"])) / np.array(statistics["zscore_std"])
    assert np.abs(scaled).max() < 40
    assert np.all((scaled.std((0, 1)) > 0.15) & (scaled.std((0, 1)) < 5))
    assert np.percentile(lengths(drawn, 1), 99.9) < 36


# --- the committed checkpoint


def test_checksums_cover_every_file_of_the_version_folder() -> None:
    lines = (WEIGHTS / "sha256sum.txt").read_text().splitlines()
    stated = {name: digest for digest, name in (line.split("  ") for line in lines)}
    actual = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in WEIGHTS.iterdir()}
    actual.pop("sha256sum.txt")
    assert stated == actual


def test_both_json_files_agree_and_name_the_motifs() -> None:
    normalization = read_json(WEIGHTS / "normalization.json")["normalization"]
    config = read_json(WEIGHTS / "model_config.json")
    assert config["normalization"]["mean"] == normalization["zscore_mean"]
    assert config["normalization"]["std"] == normalization["zscore_std"]
    assert config["motifs"]["names"] == list(MOTIFS)


def test_normalization_was_measured_on_the_training_windows(training: Windows) -> None:
    stated = read_json(WEIGHTS / "normalization.json")
    measured = train.Statistics.measure(training)
    assert motions.digest(training) == stated["computed_from"]["windows_sha256"]
    np.testing.assert_allclose(stated["normalization"]["zscore_mean"], measured.mean, atol=2e-6)
    np.testing.assert_allclose(stated["normalization"]["zscore_std"], measured.std, atol=2e-6)


def test_measured_figures_belong_to_the_held_out_windows() -> None:
    metrics = read_json(WEIGHTS / "eval_metrics.json")
    held_out, _ = motions.draw_set(metrics["windows"] // len(MOTIFS), motions.SEEDS["held_out"])
    assert metrics["windows_sha256"] == motions.digest(held_out)
    assert metrics["top1"] >= 0.95


@pytest.mark.build
def test_checkpoint_recognizes_fresh_windows(state: dict[str, Tensor]) -> None:
    import torch

    from assets.tcn_vae import encoder_from_state_dict

    encoder = encoder_from_state_dict(state)
    assert encoder.activity_classifier is not None
    statistics = read_json(WEIGHTS / "normalization.json")["normalization"]
    drawn, labels = motions.draw_set(30, FRESH_SEED + 1)
    mean, std = (np.array(statistics[key], dtype=np.float32) for key in ("zscore_mean", "zscore_std"))
    with torch.inference_mode():
        latent = encoder(torch.from_numpy((drawn - mean) / std))
        scores = encoder.activity_classifier(latent).numpy()
    assert latent.shape == (len(drawn), 64)
    assert (np.array(MOTIFS)[scores.argmax(1)] == labels).mean() >= 0.95


@pytest.mark.build
def test_aliased_tensors_are_stored_once_and_may_not_differ(state: dict[str, Tensor]) -> None:
    from assets.tcn_vae import encoder_from_state_dict

    for name, tensor in state.items():
        if ".conv1." in name or ".conv2." in name:
            alias = name.replace(".conv1.", ".net.0.").replace(".conv2.", ".net.4.")
            assert state[alias].data_ptr() == tensor.data_ptr()
    alias = "tcn_encoder.network.1.net.4.bias"
    with pytest.raises(ValueError, match=r"net\.4\.bias and .*conv2\.bias should be one tensor"):
        encoder_from_state_dict({**state, alias: state[alias] + 1})


@pytest.mark.build
def test_encoder_loads_without_prefix_and_without_the_parts_for_training(state: dict[str, Tensor]) -> None:
    from assets.tcn_vae import encoder_from_state_dict

    served = {
        name.removeprefix("tcn_encoder."): tensor
        for name, tensor in state.items()
        if name.startswith(("tcn_encoder.", "fc_mu."))
    }
    assert encoder_from_state_dict(served).activity_classifier is None
    with pytest.raises(ValueError, match=r"no usable fc_mu\.weight"):
        encoder_from_state_dict({name: served[name] for name in served if name != "fc_mu.weight"})
    with pytest.raises(ValueError, match="Unexpected key"):
        encoder_from_state_dict({**served, "attention.weight": served["fc_mu.weight"]})
