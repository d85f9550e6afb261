"""Layer noise says which tensor is to blame, in numbers that can be checked another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from assets.encoder import EncoderWeights
from assets.onnx_model import canonical_graph
from assets.onnx_run import run_graph
from assets.toolchain import Built
from assets.toolchain.emulator import EmulatorToolchain
from assets.toolchain.emulator_noise import CEILING_DB, MOST_WINDOWS
from assets.toolchain.emulator_ranges import spread
from runtime.contract.document import to_json
from runtime.contract.parity import LayerNoise, LayerRecord
from runtime.contract.window import GRAPH_INPUT_NAME, FloatArray
from tests.assets.test_onnx_model import small_encoder
from tests.conformance.test_toolchain import some_windows

pytestmark = pytest.mark.build

WINDOWS = some_windows(64, seed=1)
LAYERS = (
    *("imu_window", "blocks.0.relu1.out", "blocks.0.relu2.out", "blocks.0.residual.out", "blocks.0.relu.out"),
    *("blocks.1.relu1.out", "blocks.1.relu2.out", "blocks.1.relu.out"),
    *("blocks.2.relu1.out", "blocks.2.relu2.out", "blocks.2.residual.out", "blocks.2.relu.out"),
    *("pool.out", "latent"),
)
Change = Callable[[str, np.ndarray], np.ndarray]


class Case:
    """One encoder, quantized."""

    def __init__(self, encoder: EncoderWeights) -> None:
        self.toolchain = EmulatorToolchain()
        self.parsed = self.toolchain.parse(canonical_graph(encoder))
        self.quantized = self.toolchain.optimize(self.parsed, WINDOWS)

    def noise(self, quantized: Built | None = None, windows: FloatArray = WINDOWS) -> LayerNoise:
        found = self.toolchain.layer_noise(self.parsed, quantized or self.quantized, windows)
        assert found is not None
        return found

    def changed(self, change: Change) -> Built:
        """The quantized model with other initializers."""
        model = onnx.load_from_string(self.quantized.data)
        for tensor in model.graph.initializer:
            array = change(tensor.name, numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return replace(self.quantized, data=model.SerializeToString())


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(small_encoder())


@pytest.fixture(scope="module")
def noise(case: Case) -> LayerNoise:
    return case.noise()


def layer(noise: LayerNoise, name: str) -> LayerRecord:
    return next(record for record in noise.layers if record.name == name)


def sqnr_db(reference: FloatArray, found: FloatArray) -> float:
    wide = reference.astype(np.float64)
    return float(10 * np.log10(np.sum(wide**2) / np.sum((found - wide) ** 2)))


def test_every_quantized_activation_is_there_in_the_graphs_order(noise: LayerNoise) -> None:
    assert [record.name for record in noise.layers] == list(LAYERS)
    operators = {record.name: record.operator for record in noise.layers}
    assert operators["imu_window"] == "input"
    assert operators["blocks.0.residual.out"] == "Conv"
    assert operators["blocks.1.relu.out"] == "Relu"
    assert (operators["pool.out"], operators["latent"]) == ("GlobalAveragePool", "Gemm")
    assert (noise.windows, noise.provenance) == (64, "emulated")
    assert "qdq_loss_debug" in noise.tool


def test_weights_are_there_in_the_graphs_order(case: Case, noise: LayerNoise) -> None:
    graph = onnx.load_from_string(case.parsed.data).graph
    constants = {tensor.name for tensor in graph.initializer}
    expected = [name for node in graph.node for name in node.input if name in constants]
    assert [record.name for record in noise.weights] == expected


def test_only_on_is_what_rounding_the_input_by_hand_gives(case: Case, noise: LayerNoise) -> None:
    model = onnx.load_from_string(case.quantized.data)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scale, zero_point = values["imu_window_scale"], int(values["imu_window_zero_point"])
    integers = np.clip(np.rint(WINDOWS / scale) + zero_point, 0, 255)
    rounded = ((integers - zero_point) * scale).astype(np.float32)
    found = sqnr_db(run_graph(case.parsed.data, WINDOWS), run_graph(case.parsed.data, rounded))
    record = layer(noise, GRAPH_INPUT_NAME)
    assert record.only_on_db == pytest.approx(found, abs=0.01)
    assert record.up_to_db == pytest.approx(sqnr_db(WINDOWS, rounded), abs=0.01)
    assert record.range_low == pytest.approx(-zero_point * scale, rel=1e-6)
    assert record.range_high == pytest.approx((255 - zero_point) * scale, rel=1e-6)
    assert (record.seen_low, record.seen_high) == (float(WINDOWS.min()), float(WINDOWS.max()))


def test_noise_up_to_the_output_is_that_of_the_whole_model(case: Case, noise: LayerNoise) -> None:
    """Float kernels between the pairs there, integer kernels here: the same to a few hundredths."""
    reference, found = (case.toolchain.infer(built, WINDOWS) for built in (case.parsed, case.quantized))
    assert layer(noise, "latent").up_to_db == pytest.approx(sqnr_db(reference, found), abs=0.1)
    assert layer(noise, "latent").only_on_db > layer(noise, "latent").up_to_db


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("imu_window", "imu_window_scale"),
        ("blocks.1.relu1.out", "blocks.1.relu1.out_scale"),
        ("blocks.2.residual.out", "blocks.2.residual.out_scale"),
        ("blocks.1.relu.out", "blocks.1.relu.out_scale"),
        ("pool.out", "pool.out_scale"),
        ("latent", "latent_scale"),
    ],
)
def test_a_range_narrowed_by_hand_is_named_first(
    case: Case, noise: LayerNoise, name: str, scale: str
) -> None:
    narrowed = case.changed(lambda found, array: array * np.float32(0.3) if found == scale else array)
    found = case.noise(narrowed)
    assert found.promote[0].name == name
    gains = {promotion.name: promotion.gain_db for promotion in noise.promote}
    assert found.promote[0].gain_db > gains.get(name, 0.0) + 3
    assert all(other.gain_db < found.promote[0].gain_db / 2 for other in found.promote[1:])
    assert layer(found, name).clipped_share > max(0.01, layer(noise, name).clipped_share)
    assert layer(found, name).only_on_db == min(record.only_on_db for record in found.layers)


def test_what_a_relu_kills_is_not_called_clipped(noise: LayerNoise) -> None:
    record = layer(noise, "blocks.2.residual.out")
    assert record.seen_low < 1.2 * record.range_low
    assert record.clipped_share == 0


def test_a_coarse_weight_is_the_worst_of_the_weights(case: Case, noise: LayerNoise) -> None:
    name = "blocks.1.conv2.weight"

    def coarsen(found: str, array: np.ndarray) -> np.ndarray:
        return (array // 32 * 32).astype(array.dtype) if found == f"{name}_quantized" else array

    found = case.noise(case.changed(coarsen))
    worst = min(found.weights, key=lambda record: record.error_db)
    assert worst.name == name
    assert worst.only_on_db == min(record.only_on_db for record in found.weights)
    before = {record.name: record for record in noise.weights}
    assert worst.error_db < before[name].error_db - 6
    assert worst.only_on_db < before[name].only_on_db - 6
    assert all(record == before[record.name] for record in found.weights if record.name != name)


def test_a_layer_that_says_nothing_has_a_finite_ceiling(case: Case) -> None:
    """A convolution of zeros is exact in 8 bits; infinity would be no JSON."""
    encoder = small_encoder()
    middle = encoder.blocks[1]
    silent = replace(
        middle.conv2, weight=np.zeros_like(middle.conv2.weight), bias=np.zeros_like(middle.conv2.bias)
    )
    blocks = (encoder.blocks[0], replace(middle, conv2=silent), encoder.blocks[2])
    found = Case(replace(encoder, blocks=blocks)).noise()
    record = layer(found, "blocks.1.relu2.out")
    assert record.only_on_db == record.up_to_db == CEILING_DB
    weight = next(record for record in found.weights if record.name == "blocks.1.conv2.weight")
    assert weight.error_db == weight.only_on_db == CEILING_DB
    json.loads(to_json(found))


def test_an_encoder_that_answers_zero_still_gets_a_record() -> None:
    encoder = small_encoder()
    silent = replace(
        encoder,
        latent_weight=np.zeros_like(encoder.latent_weight),
        latent_bias=np.zeros_like(encoder.latent_bias),
    )
    json.loads(to_json(Case(silent).noise()))


def test_the_same_question_gives_the_same_answer(case: Case, noise: LayerNoise) -> None:
    assert to_json(case.noise()) == to_json(noise)


def test_a_large_set_is_looked_at_in_part(case: Case) -> None:
    many = some_windows(130, seed=2)
    found = case.noise(windows=many)
    assert found.windows == MOST_WINDOWS
    chosen = case.noise(windows=many[spread(130, MOST_WINDOWS)])
    assert found == chosen
