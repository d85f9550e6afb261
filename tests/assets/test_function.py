"""An ONNX file must compute what its weights mean: pads and slices are no part of the weights."""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext

import numpy as np
import onnx
import pytest

from assets.agreement import FUNCTION_TOLERANCE, check_function
from assets.checkpoint import torch_latents
from assets.encoder import EncoderWeights
from assets.onnx_child import trial_windows
from assets.onnx_model import canonical_graph
from assets.onnx_run import run_graph
from assets.onnx_source import load_source, trial_latents
from assets.weights import parse_model
from runtime.contract.errors import WeightsError
from tests.assets.test_onnx_model import foreign_graph, small_encoder
from tests.assets.test_weights import sample_files, saved

pytestmark = pytest.mark.build

ELSE = r"o\.onnx: computes something else than its weights in a causal encoder.*causal pads .* a slice"


def with_graph(graph: bytes, *, checkpoint: bool) -> dict[str, bytes]:
    """The sample with an ONNX file, in place of its checkpoint or beside it."""
    files = {k: v for k, v in sample_files().items() if checkpoint or k != "tcn_vae.pth"}
    config = json.loads(files["model_config.json"])
    config.pop("motifs", None)
    return {**files, "model_config.json": json.dumps(config).encode(), "o.onnx": graph}


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("style", ["centred", "late"])
def test_equal_weights_behind_other_pads_are_refused(style: str, checkpoint: bool) -> None:
    encoder = parse_model(sample_files()).encoder
    with pytest.raises(WeightsError, match=ELSE):
        parse_model(with_graph(foreign_graph(encoder, opset=13, style=style), checkpoint=checkpoint))


@pytest.mark.parametrize(
    ("style", "opset"), [*itertools.product(["chomp", "pad", "causal"], [11, 13, 17]), ("canonical", 17)]
)
def test_every_causal_spelling_is_accepted(style: str, opset: int) -> None:
    encoder = parse_model(sample_files()).encoder
    made = (
        canonical_graph(encoder) if style == "canonical" else foreign_graph(encoder, opset=opset, style=style)
    )
    for checkpoint in (True, False):
        assert parse_model(with_graph(made, checkpoint=checkpoint)).encoder.parameter_count == 441_984


def test_the_child_and_the_parent_try_the_same_windows() -> None:
    graph = foreign_graph(small_encoder(), opset=17, style="chomp")
    load_source(graph, "e.onnx")
    assert np.array_equal(trial_latents(graph, "e.onnx"), run_graph(graph, trial_windows()))
    assert (trial_windows().shape, trial_windows().dtype) == ((3, 100, 9), np.float32)


def test_numpys_latents_are_pytorchs() -> None:
    """The forward pass that judges is written a second time: hold it against the first."""
    files, windows = sample_files(), trial_windows()
    mine = parse_model(files).encoder.latents(windows)
    np.testing.assert_allclose(mine, torch_latents(files["tcn_vae.pth"], windows, "w"), atol=1e-5)


def test_a_kernel_of_one_step_is_an_encoder_too() -> None:
    """It has no surplus to cut off. PyTorch, numpy and the canonical graph say the same."""
    import torch

    from assets.tcn_vae import TcnEncoder

    torch.manual_seed(0)
    data = saved(TcnEncoder((9, 4, 6), kernel=1, motifs=3).state_dict())
    trained = parse_model({**sample_files(), "model_config.json": b"{}", "tcn_vae.pth": data})
    source = torch_latents(data, trial_windows(), "w")
    np.testing.assert_allclose(trained.encoder.latents(trial_windows()), source, atol=1e-5)
    np.testing.assert_allclose(
        run_graph(canonical_graph(trained.encoder), trial_windows()), source, atol=1e-5
    )


def test_what_pytorch_cannot_compute_is_our_error() -> None:
    with pytest.raises(WeightsError, match="w: PyTorch cannot compute with it"):
        torch_latents(sample_files()["tcn_vae.pth"], np.zeros((1, 100, 8), np.float32), "w")


@pytest.mark.parametrize("channels", [9, 8])
def test_pytorch_answers_on_one_thread_and_leaves_the_setting(channels: int) -> None:
    """More threads would change last bits, which parity records. Eight channels make it raise."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    windows, seen = np.zeros((2, 100, channels), np.float32), set()
    before = torch.get_num_threads()
    hook = register_module_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    try:
        torch.set_num_threads(3)
        with pytest.raises(WeightsError) if channels == 8 else nullcontext():
            torch_latents(sample_files()["tcn_vae.pth"], windows, "w")
        assert (seen, torch.get_num_threads()) == ({1}, 3)
    finally:
        hook.remove()
        torch.set_num_threads(before)


def check(share: float, encoder: EncoderWeights) -> None:
    expected = encoder.latents(trial_windows())
    apart = expected.copy()
    apart[1, 7] += share * np.abs(expected).max()
    check_function(encoder, trial_windows(), apart, "o.onnx")  # type: ignore[arg-type]


def test_the_tolerance_is_a_ten_thousandth_of_the_largest_number() -> None:
    assert FUNCTION_TOLERANCE == 1e-4
    check(0.9e-4, small_encoder())
    with pytest.raises(WeightsError, match=ELSE):
        check(1.1e-4, small_encoder())
    with pytest.raises(WeightsError, match="not finite"):
        check(float("nan"), small_encoder())


def test_a_latent_for_each_step_is_refused() -> None:
    with pytest.raises(WeightsError, match="gives 6 numbers for a window, expected 64"):
        check_function(small_encoder(), trial_windows(), np.zeros((3, 6), np.float32), "o.onnx")


def test_a_relu_after_the_latent_is_another_function() -> None:
    """Nothing may hide between the layers either, whatever the reader of weights thinks of it."""
    model = onnx.load_from_string(foreign_graph(small_encoder(), opset=13, style="causal"))
    model.graph.node.append(onnx.helper.make_node("Identity", ["out"], ["again"]))
    model.graph.output[0].name = "again"
    assert parse_model(with_graph(model.SerializeToString(), checkpoint=False)).source == "onnx"
    model.graph.node[-1].op_type = "Relu"
    with pytest.raises(WeightsError):
        parse_model(with_graph(model.SerializeToString(), checkpoint=False))
