"""A version folder is what it says, or is refused with words that help."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assets.version_folder import CHECKSUMS
from assets.weights import find_version, parse_model, read_files
from runtime.contract.errors import WeightsError
from tests.chain import SAMPLE_VERSION

pytestmark = pytest.mark.build

State = dict[str, Any]


def sample_files() -> dict[str, bytes]:
    """The sample's files, to be changed: without the checksums, which would see it."""
    return {name: data for name, data in read_files(SAMPLE_VERSION).items() if name != CHECKSUMS}


def sample_state() -> State:
    """The sample's checkpoint."""
    import torch

    state: State = torch.load(io.BytesIO(sample_files()["tcn_vae.pth"]), weights_only=True)
    return state


def saved(state: object) -> bytes:
    """A checkpoint file."""
    import torch

    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def files_with(change: Callable[[State], None]) -> dict[str, bytes]:
    """The sample's files with a changed checkpoint."""
    state = sample_state()
    change(state)
    return {**sample_files(), "tcn_vae.pth": saved(state)}


def with_json(name: str, change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """The sample's files with a changed document."""
    files = sample_files()
    document = json.loads(files[name])
    change(document)
    return {**files, name: json.dumps(document).encode()}


def test_sample_is_read_whole() -> None:
    trained = parse_model(read_files(SAMPLE_VERSION))
    assert trained.source == "checkpoint"
    assert [block.conv1.dilation for block in trained.encoder.blocks] == [1, 2, 4]
    assert trained.encoder.parameter_count == 441_984
    assert trained.head is not None
    assert trained.head.provenance == "checkpoint"
    assert {"rest", "walk", "run"} <= set(trained.head.names)


def test_folded_weights_are_what_pytorch_convolves_with() -> None:
    """Weight norm by hand, in float64, against the folded tensors."""
    files, state = sample_files(), sample_state()
    direction = state["tcn_encoder.network.1.conv2.weight_v"].double()
    length = state["tcn_encoder.network.1.conv2.weight_g"].double()
    by_hand = direction * length / direction.pow(2).sum(dim=(1, 2), keepdim=True).sqrt()
    folded = parse_model(files).encoder.blocks[1].conv2.weight
    np.testing.assert_allclose(folded, by_hand.numpy(), rtol=1e-6)


def _drop(key: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        del state[key]

    return change


def _poison(key: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[key] = state[key].clone()
        state[key].view(-1)[3] = float("nan")

    return change


def _reshape(key: str, *shape: int) -> Callable[[State], None]:
    def change(state: State) -> None:
        import torch

        state[key] = torch.zeros(shape)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop("fc_mu.weight"), ["fc_mu.weight", "no latent"]),
        (_drop("tcn_encoder.network.1.conv1.weight_g"), ["network.1.conv1.weight_g"]),
        (_poison("fc_mu.bias"), ["fc_mu.bias", "1 of 64", "not finite"]),
        (_poison("tcn_encoder.network.0.downsample.weight"), ["downsample.weight", "not finite"]),
        (_reshape("fc_mu.weight", 32, 256), ["fc_mu.weight", "(32, 256)", "(64, channels"]),
        (_reshape("tcn_encoder.network.0.conv1.weight_v", 64, 6, 3), ["TCN encoder"]),
        (_reshape("tcn_encoder.network.2.net.4.bias", 256), ["net.4.bias", "differ"]),
        (_reshape("activity_classifier.weight", 12, 32), ["activity_classifier", "(12, 32)"]),
        (lambda state: state.update({"activity_classifier.0.weight": state["fc_mu.bias"]}), ["one linear"]),
        (lambda state: state.clear(), ["tcn_encoder.network"]),
        (lambda state: state.update({3: state["fc_mu.bias"]}), ["named 3"]),
        (lambda state: state.update({"epoch": 7}), ["holds a int named 'epoch'"]),
        (lambda state: state.update({"fc_mu.bias": state["fc_mu.bias"].long()}), ["fc_mu.bias", "int64"]),
        (lambda state: state.update({"fc_mu.bias": state["fc_mu.bias"].to_sparse()}), ["without plain"]),
        (lambda state: state.update({"activity_classifier.bias": state["fc_mu.bias"][0]}), ["one linear"]),
    ],
)
def test_broken_checkpoint_is_refused_by_name(change: Callable[[State], None], words: list[str]) -> None:
    with pytest.raises(WeightsError) as refusal:
        parse_model(files_with(change))
    for word in words:
        assert word in str(refusal.value)


def test_both_spellings_of_weight_norm_are_read() -> None:
    """``torch.nn.utils.parametrizations.weight_norm`` writes other names for the same tensors."""

    def renamed(state: State) -> None:
        for key in [key for key in state if key.endswith((".weight_g", ".weight_v"))]:
            number = "0" if key.endswith("_g") else "1"
            state[f"{key[:-9]}.parametrizations.weight.original{number}"] = state.pop(key)

    sample = parse_model(read_files(SAMPLE_VERSION)).encoder
    for (name, tensor), (_, other) in zip(
        sample.tensors(), parse_model(files_with(renamed)).encoder.tensors(), strict=True
    ):
        assert np.array_equal(tensor, other), name


def test_checkpoint_without_a_classifier_has_no_head() -> None:
    def change(state: State) -> None:
        for key in [key for key in state if key.startswith("activity_classifier")]:
            del state[key]

    assert parse_model(files_with(change)).head is None


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    import torch

    out = io.BytesIO()
    torch.save({"fc_mu.weight": Bomb(tmp_path / "ran")}, out)
    with pytest.raises(WeightsError, match="nothing in it was run"):
        parse_model({**sample_files(), "tcn_vae.pth": out.getvalue()})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"PLACEHOLDER for weights\n", "text file"),
        ("Plätze für Gewichte\n".encode() * 99, "text file that begins 'Plätze"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\x80\x02garbage", "no checkpoint"),
    ],
)
def test_what_only_poses_as_a_checkpoint_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        parse_model({**sample_files(), "tcn_vae.pth": data})


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_truncated_checkpoint_is_refused(kept: float) -> None:
    files = read_files(SAMPLE_VERSION)
    data = files["tcn_vae.pth"]
    with pytest.raises(WeightsError, match=r"truncated.*copy it again"):
        parse_model({**files, "tcn_vae.pth": data[: int(len(data) * kept)]})


def _std(value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["normalization"]["zscore_std"][4] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_std(0.0), ["std[gy]", "0.0"]),
        (_std(-1.0), ["std[gy]", "-1.0"]),
        (_std(None), ["numbers for zscore_std"]),
        (lambda d: d["normalization"].pop("zscore_std"), ["no list of numbers for std", "zscore_std or std"]),
        (lambda d: d["normalization"].update(mean=[0.0] * 9), ["zscore_mean and mean differ"]),
        (lambda d: d["normalization"].update(units={"gyroscope": "deg/s"}), ["gyroscope", "deg/s", "rad/s"]),
        (lambda d: d["units"].update(gyro="deg/s"), ["units of 'gyro'", "gyroscope"]),
        (lambda d: d["normalization"].update(method="min-max score"), ["min-max score", "z-score"]),
        (lambda d: d.update(model_specs={"input_shape": [1, 100, 6]}), ["input_shape is [1, 100, 6]"]),
        (lambda d: d.update(model_specs={"latent_dimension": 32}), ["latent_dimension is 32"]),
        (lambda d: d["normalization"]["zscore_mean"].pop(), ["8 values, expected 9"]),
        (lambda d: d["channel_order"].reverse(), ["channel order"]),
        (lambda d: d["units"].update(gyroscope="deg/s"), ["gyroscope", "deg/s", "rad/s"]),
        (lambda d: d["normalization"]["zscore_mean"].__setitem__(0, 0.5), ["different statistics"]),
        (lambda d: d["normalization"]["zscore_mean"].__setitem__(0, 10**400), ["zscore_mean", "bits"]),
        (lambda d: d["normalization"].update(method="minmax"), ["minmax", "z-score"]),
        (lambda d: d["normalization"].update(per_channel=False), ["for each channel"]),
        (lambda d: d.update(sampling_rate_hz=50), ["sampling_rate_hz is 50"]),
        (lambda d: d.update(window_size=200), ["window_size is 200"]),
        (lambda d: d.update(units=["m/s²"]), ["units is not an object"]),
    ],
)
def test_broken_normalization_is_refused_by_name(
    change: Callable[[dict[str, Any]], None], words: list[str]
) -> None:
    with pytest.raises(WeightsError) as refusal:
        parse_model(with_json("normalization.json", change))
    for word in words:
        assert word in str(refusal.value)


def test_normalization_is_needed() -> None:
    files = read_files(SAMPLE_VERSION)
    with pytest.raises(WeightsError, match=r"neither normalization\.json nor model_config\.json"):
        parse_model({"tcn_vae.pth": files["tcn_vae.pth"]})


def test_the_users_encoder_is_read(upstream: Path) -> None:
    trained = parse_model(read_files(find_version(upstream / "weights")))
    assert trained.source == "onnx"
    assert trained.head is None
    assert trained.encoder.parameter_count == 441_984


@pytest.mark.parametrize(
    ("folder", "keep", "words"),
    [
        ("lfs_pointer", ".pth", "git lfs pull"),
        ("placeholder", ".pth", "is a text file that begins 'PLACEHOLDER"),
        ("placeholder", ".onnx", "is a text file that begins"),
        ("placeholder", "", "is a text file that begins 'PLACEHOLDER"),
        ("mismatched", ".pth", r"has no fc_mu\.weight and 1 more .*an encoder without fc_mu has no latent"),
        (
            "mismatched",
            "",
            r"tcn_encoder_for_edgeinfer\.pth: blocks\.0\.conv1\.weight is not that of "
            r"tcn_encoder_for_edgeinfer\.onnx: largest difference 1\.13.*"
            r"sha256 95a1795007e2 and 589f4e7e7e0a; 18 of 18 .*another training",
        ),
    ],
)
def test_the_users_bad_files_are_refused(upstream: Path, folder: str, keep: str, words: str) -> None:
    """The whole folder, and each of its weights files alone: none may hide behind the other."""
    files = read_files(upstream / "bad_weights" / folder)
    dropped = {name for name in files if keep and Path(name).suffix in {".pth", ".onnx"} - {keep}}
    with pytest.raises(WeightsError, match=words):
        parse_model({name: data for name, data in files.items() if name not in dropped})
