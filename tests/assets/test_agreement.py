"""A checkpoint beside an ONNX file: one training, or refused; and the order in which faults are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assets.agreement import check_agreement, check_structure, difference, digest
from assets.encoder import EncoderWeights, named_convolutions
from assets.motif_head import head_from_centres
from assets.onnx_model import canonical_graph
from assets.version_folder import CHECKSUMS, MODEL_CONFIG, MOTIF_HEAD, NORMALIZATION, find_version
from assets.weights import parse_model, read_files
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.errors import WeightsError
from runtime.contract.window import FloatArray
from tests.assets.test_onnx_model import foreign_graph, small_encoder
from tests.assets.test_weights import State, sample_files, sample_state, saved
from tests.chain import build_chain

pytestmark = pytest.mark.build

NAMES = ("a.pth", "a.onnx")
BOTH = ("weight", "bias")


def with_onnx(encoder: EncoderWeights | None = None) -> dict[str, bytes]:
    """The sample's checkpoint beside an ONNX file, of its own weights where none are given."""
    files = sample_files()
    encoder = encoder or parse_model(files).encoder
    return {**files, "tcn_vae.onnx": foreign_graph(encoder, opset=11, style="chomp")}


def test_both_of_one_training_are_accepted_and_the_checkpoints_are_used() -> None:
    alone = parse_model(sample_files())
    trained = parse_model(with_onnx())
    assert (trained.source, trained.weights_file) == ("checkpoint", "tcn_vae.pth")
    assert (trained.agrees_with, alone.agrees_with) == ("tcn_vae.onnx", None)
    assert trained.head == alone.head
    for (name, mine), (_, other) in zip(trained.encoder.tensors(), alone.encoder.tensors(), strict=True):
        assert np.array_equal(mine, other), name


def test_another_training_is_refused_with_tensor_difference_and_both_digests() -> None:
    encoder = parse_model(sample_files()).encoder
    changed = encoder.latent_bias.copy()
    changed[5] += np.float32(0.25)
    with pytest.raises(WeightsError) as refusal:
        parse_model(with_onnx(replace(encoder, latent_bias=changed)))
    text = str(refusal.value)
    assert "tcn_vae.pth: latent.bias is not that of tcn_vae.onnx: largest difference 0.25" in text
    assert f"sha256 {digest(encoder.latent_bias)} and {digest(changed)}" in text
    assert "1 of 20 common tensors differ" in text
    assert digest(changed) == sha256_bytes(changed.tobytes())[:12]


@pytest.mark.parametrize("largest", [1e-3, 1.0, 3e4])
def test_rounding_is_measured_against_the_tensors_largest_weight(largest: float) -> None:
    values = np.asarray([-largest, largest / 3, 0.0], np.float32)
    for share, same in ((0.9e-6, True), (1.2e-6, False)):
        apart = values.astype(np.float64) + share * largest
        assert (difference(values.astype(np.float64), apart) == "") is same  # type: ignore[arg-type]


def test_what_is_not_finite_in_both_is_left_to_the_check_of_tensors() -> None:
    values = np.asarray([1.0, np.nan, np.inf], np.float32)
    assert difference(values, values.copy()) == ""
    assert "1 of 3 values are finite in one alone" in difference(
        values, np.asarray([1, 2, np.inf], np.float32)
    )
    assert difference(values, values[:2]) == "shapes are (3,) and (2,)"
    assert difference(np.zeros(3, np.float32), np.asarray([0, 0, 1e-30], np.float32))


def test_only_tensors_that_both_have_are_compared() -> None:
    one: dict[str, FloatArray] = {"a": np.ones(3, np.float32)}
    check_agreement(one, {**one, "b": np.ones(2, np.float32)}, NAMES)
    check_agreement({}, one, NAMES)
    with pytest.raises(WeightsError, match="1 of 1 common"):
        check_agreement(one, {"a": np.zeros(3, np.float32)}, NAMES)


def test_a_dilation_that_a_checkpoint_cannot_say_is_heeded() -> None:
    """Equal tensors, another function: the ONNX alone knows its dilations."""
    encoder = parse_model(sample_files()).encoder
    block = encoder.blocks[1]
    other = replace(block, conv1=replace(block.conv1, dilation=3))
    changed = replace(encoder, blocks=(encoder.blocks[0], other, encoder.blocks[2]))
    with pytest.raises(WeightsError, match=r"tcn_vae\.onnx: blocks\.1\.conv1 has dilation 3; .* read with 2"):
        parse_model(with_onnx(changed))


def test_a_convolution_in_one_alone_is_refused() -> None:
    blocks = small_encoder().blocks
    with pytest.raises(WeightsError, match=r"a\.pth: has no blocks\.0\.residual, which a\.onnx has"):
        check_structure([replace(blocks[0], residual=None)], blocks[:1], NAMES)
    with pytest.raises(WeightsError, match=r"a\.onnx: has no blocks\.1\.conv1, which a\.pth has"):
        check_structure(blocks[:2], blocks[:1], NAMES)


def test_the_bare_layout_is_known() -> None:
    """``network.*``: the encoder saved by itself, here with the rest of the model beside it."""
    state = {key.removeprefix("tcn_encoder."): value for key, value in sample_state().items()}
    bare = parse_model({**sample_files(), "tcn_vae.pth": saved(state)})
    for (name, mine), (_, other) in zip(
        bare.encoder.tensors(), parse_model(sample_files()).encoder.tensors(), strict=True
    ):
        assert np.array_equal(mine, other), name
    both = {**sample_state(), **state}
    with pytest.raises(WeightsError, match=r"holds tcn_encoder\.network\.\S+ under two names"):
        parse_model({**sample_files(), "tcn_vae.pth": saved(both)})


def test_agreement_is_judged_before_what_is_missing(upstream: Path) -> None:
    """The user's own case: the ``.pth`` lacks ``fc_mu``, but first of all it is another training."""
    files = read_files(find_version(upstream / "bad_weights" / "mismatched"))
    with pytest.raises(WeightsError, match="18 of 18 common tensors differ"):
        parse_model(files)


def test_the_users_onnx_beside_a_checkpoint_of_its_weights_gives_the_same_bytes(upstream: Path) -> None:
    """Alone, as a checkpoint, and both together: one canonical graph. Weight norm folds within rounding."""
    import torch

    files = read_files(find_version(upstream / "weights"))
    onnx = "tcn_encoder_for_edgeinfer.onnx"
    encoder = parse_model(files).encoder
    state: State = {f"fc_mu.{part}": torch.tensor(dict(encoder.tensors())[f"latent.{part}"]) for part in BOTH}
    for index, block in enumerate(encoder.blocks):
        for name, convolution in named_convolutions(block):
            prefix = f"network.{index}." + name.replace("residual", "downsample")
            weight = torch.tensor(convolution.weight)
            length = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
            parts = {"weight": weight} if name == "residual" else {"weight_v": weight, "weight_g": length}
            for part, tensor in {**parts, "bias": torch.tensor(convolution.bias)}.items():
                state[f"{prefix}.{part}"] = tensor
    both = parse_model({**files, "made.pth": saved(state)})
    alone = parse_model({**{k: v for k, v in files.items() if k != onnx}, "made.pth": saved(state)})
    assert (both.source, both.agrees_with, alone.agrees_with) == ("checkpoint", onnx, None)
    assert canonical_graph(both.encoder) == canonical_graph(alone.encoder) == canonical_graph(encoder)


def test_the_users_encoder_builds(upstream: Path, tmp_path: Path) -> None:
    """Every link as far as a parity that passes, with a head that says that it was fitted."""
    built = build_chain(tmp_path, weights=upstream / "weights")
    assert built.trained.source == "onnx"
    assert built.evidence.motif_head.provenance == "fitted"
    assert built.evidence.result.passed, built.evidence.result


def faults() -> list[tuple[str, Callable[[State, dict[str, bytes]], None], str]]:
    """One fault of each kind, in the order in which they must be named."""

    def pickled(state: State, _files: dict[str, bytes]) -> None:
        state["epoch"] = 3

    def layout(state: State, _files: dict[str, bytes]) -> None:
        for key in [key for key in state if key.startswith("tcn_encoder.")]:
            state[f"module.{key}"] = state.pop(key)

    def training(state: State, _files: dict[str, bytes]) -> None:
        state["tcn_encoder.network.0.downsample.bias"] += 1

    def missing(state: State, _files: dict[str, bytes]) -> None:
        del state["fc_mu.weight"]

    def poisoned(state: State, _files: dict[str, bytes]) -> None:
        state["fc_logvar.bias"][0] = float("nan")

    def shaped(state: State, _files: dict[str, bytes]) -> None:
        state["tcn_encoder.network.2.net.4.bias"] = state["fc_mu.bias"]

    def sums(_state: State, files: dict[str, bytes]) -> None:
        files[CHECKSUMS] = f"{'0' * 64}  tcn_vae.pth\n{'0' * 64}  tcn_vae.onnx\n".encode()

    def normalization(_state: State, files: dict[str, bytes]) -> None:
        files[NORMALIZATION] = files[NORMALIZATION].replace(b"3.989875", b"0.0")

    def config(_state: State, files: dict[str, bytes]) -> None:
        files[MODEL_CONFIG] = b"{"

    def head(_state: State, files: dict[str, bytes]) -> None:
        centres = str(np.eye(64).tolist()).encode()
        files[MOTIF_HEAD] = to_json(head_from_centres(centres, "c.json"))

    return [
        ("holds more", pickled, "holds a int named 'epoch'"),
        ("unknown layout", layout, "unknown layout"),
        ("another training", training, "another training"),
        ("missing", missing, "has no fc_mu.weight"),
        ("not finite", poisoned, "not finite"),
        ("shape", shaped, "net.4.bias"),
        ("checksums", sums, "sha256sum.txt lists"),
        ("normalization", normalization, "standard deviation is 0.0"),
        ("head", head, "has a motif head of its own"),
    ]


def test_faults_are_named_in_the_stated_order() -> None:
    """A folder with every fault shows the first; without it, the next; without any, it builds."""
    onnx = with_onnx()["tcn_vae.onnx"]
    listed = faults()
    for first in range(len(listed) + 1):
        state, files = sample_state(), {**sample_files(), "tcn_vae.onnx": onnx}
        for _, spoil, _ in reversed(listed[first:]):  # by their usual names
            spoil(state, files)
        files["tcn_vae.pth"] = saved(state)
        if first == len(listed):
            assert parse_model(files).agrees_with == "tcn_vae.onnx"
            continue
        with pytest.raises(WeightsError) as refusal:
            parse_model(files)
        assert listed[first][2] in str(refusal.value), listed[first][0]
        assert refusal.value.hint


@pytest.mark.parametrize(
    ("checkpoint", "onnx", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", b"", r"tcn_vae\.pth: is a Git LFS pointer"),
        (None, b"", r"tcn_vae\.onnx: is empty"),
        (None, b"DUMMY", r"tcn_vae\.onnx: is a text file"),
        (b"PK\x03\x04\x00\x01", b"\x00\x01", r"tcn_vae\.pth: is truncated"),
        (None, b"\x00\x01", r"tcn_vae\.onnx: is not a valid ONNX model"),
    ],
)
def test_each_file_is_judged_before_they_are_compared(
    checkpoint: bytes | None, onnx: bytes, words: str
) -> None:
    files = sample_files()
    files = {**files, "tcn_vae.pth": checkpoint or files["tcn_vae.pth"], "tcn_vae.onnx": onnx}
    with pytest.raises(WeightsError, match=words):
        parse_model(files)
