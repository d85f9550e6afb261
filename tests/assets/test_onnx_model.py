"""One canonical graph: the same bytes for the same weights, and what the source says."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from assets.encoder import Block, Convolution, EncoderWeights, named_convolutions
from assets.onnx_model import canonical_graph, check_agreement, make_onnx_model, source_latents
from assets.onnx_run import run_graph
from assets.onnx_source import load_source, read_encoder
from assets.product import Workbench
from assets.weights import find_version, make_model_weights, parse_model, read_files
from runtime.contract.errors import OnnxModelError, PipelineError, WeightsError
from runtime.contract.window import FloatArray, normalize
from tests.chain import ROOT, SAMPLE_VERSION, Chain

pytestmark = pytest.mark.build


def small_encoder(seed: int = 0, widths: tuple[int, ...] = (9, 8, 8, 6)) -> EncoderWeights:
    """Random weights; the middle block has no residual convolution."""
    rng = np.random.default_rng(seed)

    def convolution(inputs: int, outputs: int, kernel: int, dilation: int) -> Convolution:
        weight = rng.normal(0, 0.3, (outputs, inputs, kernel)).astype(np.float32)
        return Convolution(weight=weight, bias=rng.normal(size=outputs).astype(np.float32), dilation=dilation)

    blocks = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        dilation = 2**index
        residual = convolution(inputs, outputs, 1, 1) if inputs != outputs else None
        first, second = (convolution(n, outputs, 3, dilation) for n in (inputs, outputs))
        blocks.append(Block(conv1=first, conv2=second, residual=residual))
    weight = rng.normal(size=(64, widths[-1])).astype(np.float32)
    bias = rng.normal(size=64).astype(np.float32)
    return EncoderWeights(blocks=tuple(blocks), latent_weight=weight, latent_bias=bias)


def foreign_graph(weights: EncoderWeights, *, opset: int, style: str) -> bytes:
    """The same encoder as other exporters write it: rank 3, constants as nodes, odd names.

    ``style``: ``chomp`` pads both sides and slices; ``pad`` pads explicitly; ``causal`` pads in Conv.
    ``centred`` pads both sides with half and ``late`` slices the start off: other functions of the same
    weights.
    """
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, FloatArray] = {}

    def constant(values: list[int]) -> str:
        name = f"c{len(nodes)}"
        tensor = numpy_helper.from_array(np.asarray(values, np.int64), name)
        nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def convolve(source: str, convolution: Convolution) -> str:
        name = f"w{len(tensors)}"
        tensors[name], tensors[f"{name}b"] = convolution.weight, convolution.bias
        padding = convolution.padding
        both = [padding, padding]
        pads = {"chomp": both, "late": both, "causal": [padding, 0], "pad": [0, 0]}.get(style)
        pads = pads or [padding // 2, padding // 2]
        if style == "pad" and padding:
            source = add("Pad", source, constant([0, 0, padding, 0, 0, 0]))
        dilations = [convolution.dilation]
        out = add("Conv", source, name, f"{name}b", pads=pads, dilations=dilations)
        if style == "chomp" and padding:
            out = add("Slice", out, constant([0]), constant([-padding]), constant([2]))
        if style == "late" and padding:
            out = add("Slice", out, constant([padding]), constant([10**6]), constant([2]))
        return out

    current = add("Transpose", "windows", perm=[0, 2, 1])
    for block in weights.blocks:
        side = convolve(current, block.residual) if block.residual else current
        inner = add("Relu", convolve(add("Relu", convolve(current, block.conv1)), block.conv2))
        current = add("Relu", add("Add", side, inner))
    pooled = add("Squeeze", add("GlobalAveragePool", current), *([constant([2])] if opset >= 13 else []))
    if opset < 13:
        nodes[-1].attribute.append(helper.make_attribute("axes", [2]))
    tensors["fc"], tensors["fcb"] = np.ascontiguousarray(weights.latent_weight.T), weights.latent_bias
    product = add("MatMul", pooled, "fc")
    nodes.append(helper.make_node("Add", ["fcb", product], ["out"]))
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, [1, 100, 9])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    data: bytes = model.SerializeToString()
    return data


def test_graph_is_the_one_that_was_promised(chain: Chain) -> None:
    model = onnx.load_from_string(chain.bench.read(chain.products["onnx_model"]))
    assert [(e.domain, e.version) for e in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, [d.dim_value for d in given.type.tensor_type.shape.dim]) == (
        "imu_window",
        [1, 9, 1, 100],
    )
    assert (made.name, [d.dim_value for d in made.type.tensor_type.shape.dim]) == ("latent", [1, 64])
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    kinds = {node.op_type for node in model.graph.node}
    assert kinds == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    for node in convolutions:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        (height, width), (_, dilation) = attributes["kernel_shape"], attributes["dilations"]
        assert height == 1
        assert attributes["pads"] == [0, dilation * (width - 1), 0, 0]
    assert not model.metadata_props
    assert not any(node.doc_string for node in model.graph.node)


def test_export_agrees_with_pytorch(chain: Chain) -> None:
    assert chain.agreement["max_abs_difference"] <= 1e-4
    assert chain.agreement["max_cosine_distance"] <= 1e-6


def test_same_bytes_in_another_process_with_other_hashes(chain: Chain, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.chain import *; from hashlib import sha256\n"
        "trained = make_model_weights(Workbench(Path(sys.argv[1])), SAMPLE_WEIGHTS)[1]\n"
        "from assets.onnx_model import canonical_graph\n"
        "print(sha256(canonical_graph(trained.encoder)).hexdigest())"
    )
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == chain.products["onnx_model"].digest


@pytest.mark.parametrize("style", ["chomp", "pad", "causal"])
@pytest.mark.parametrize("opset", [11, 13, 17])
def test_foreign_graphs_come_back_to_the_same_bytes(style: str, opset: int) -> None:
    weights = small_encoder()
    foreign = foreign_graph(weights, opset=opset, style=style)
    read = read_encoder(load_source(foreign, "foreign.onnx"), "foreign.onnx")
    assert [named for block in read.blocks for named, _ in named_convolutions(block)].count("residual") == 2
    assert canonical_graph(read) == canonical_graph(weights)
    windows = np.random.default_rng(1).normal(size=(3, 100, 9)).astype(np.float32)
    np.testing.assert_allclose(
        run_graph(foreign, windows), run_graph(canonical_graph(read), windows), atol=1e-4
    )


def test_canonical_graph_reads_back_to_itself(chain: Chain) -> None:
    data = chain.bench.read(chain.products["onnx_model"])
    assert canonical_graph(read_encoder(load_source(data, "own"), "own")) == data


def test_the_users_onnx_and_a_checkpoint_of_its_weights_give_the_same_bytes(upstream: Path) -> None:
    import torch

    from assets.checkpoint import encoder_of

    trained = parse_model(read_files(find_version(upstream / "weights")))
    state = {}
    for index, block in enumerate(trained.encoder.blocks):
        for name, convolution in named_convolutions(block):
            prefix = f"tcn_encoder.network.{index}." + name.replace("residual", "downsample")
            weight = torch.tensor(convolution.weight)
            state[f"{prefix}.bias"] = torch.tensor(convolution.bias)
            if name == "residual":
                state[f"{prefix}.weight"] = weight
            else:
                state[f"{prefix}.weight_v"] = weight
                state[f"{prefix}.weight_g"] = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
    state["fc_mu.weight"] = torch.tensor(trained.encoder.latent_weight)
    state["fc_mu.bias"] = torch.tensor(trained.encoder.latent_bias)
    assert canonical_graph(encoder_of(state, "made")) == canonical_graph(trained.encoder)


def _graph_without(operator: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == operator:
                node.op_type = "Sigmoid"

    return change


@pytest.mark.parametrize("operator", ["Relu", "GlobalAveragePool"])
def test_a_graph_that_is_no_tcn_encoder_is_refused_by_node(operator: str) -> None:
    model = onnx.load_from_string(canonical_graph(small_encoder()))
    _graph_without(operator)(model)
    with pytest.raises(WeightsError, match="Sigmoid"):
        read_encoder(model, "other.onnx")


def test_old_opsets_and_dynamic_shapes_are_refused() -> None:
    old = onnx.load_from_string(canonical_graph(small_encoder()))
    old.opset_import[0].version = 9
    with pytest.raises(WeightsError, match="opset 9"):
        load_source(old.SerializeToString(), "old.onnx")
    dynamic = onnx.load_from_string(canonical_graph(small_encoder()))
    dynamic.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    dynamic.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(WeightsError, match="static sizes"):
        load_source(dynamic.SerializeToString(), "dynamic.onnx")
    with pytest.raises(WeightsError, match="not a valid ONNX"):
        load_source(b"\x08\x08garbage", "bad.onnx")


def test_weights_in_constant_nodes_are_read() -> None:
    model = onnx.load_from_string(canonical_graph(small_encoder()))
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    for number, tensor in enumerate(tensors):
        model.graph.node.insert(number, helper.make_node("Constant", [], [tensor.name], value=tensor))
    read = read_encoder(load_source(model.SerializeToString(), "constants"), "constants")
    assert canonical_graph(read) == canonical_graph(small_encoder())


def test_other_precisions_are_refused_by_name() -> None:
    model = onnx.load_from_string(canonical_graph(small_encoder()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in model.graph.initializer:
        wide = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        tensor.CopyFrom(wide)
    with pytest.raises(WeightsError, match="DOUBLE, expected float32"):
        load_source(model.SerializeToString(), "wide.onnx")


def test_a_second_output_is_refused_by_name() -> None:
    """A VAE's mean and variance look alike: taking the first would release the wrong one."""
    model = onnx.load_from_string(canonical_graph(small_encoder()))
    model.graph.node.append(helper.make_node("Relu", ["flatten.out"], ["logvar"]))
    model.graph.output.append(helper.make_tensor_value_info("logvar", TensorProto.FLOAT, [1, 6]))
    with pytest.raises(WeightsError, match=r"2 outputs \(latent, logvar\)"):
        load_source(model.SerializeToString(), "vae.onnx")


@pytest.mark.parametrize("change", ["weight", "order"])
def test_gate_sees_a_graph_that_differs_from_its_source(chain: Chain, change: str) -> None:
    """The gate that protects the export: a small error, and the right values in the wrong place."""
    windows = normalize(chain.sets.golden.windows, chain.trained.statistics)
    reference = source_latents(chain.trained, windows)
    encoder = chain.trained.encoder
    if change == "weight":
        other = replace(encoder, latent_bias=encoder.latent_bias + np.float32(2e-4))
    else:
        other = replace(encoder, latent_weight=np.ascontiguousarray(encoder.latent_weight[::-1]))
    with pytest.raises(OnnxModelError, match="differs from its source"):
        check_agreement(reference, run_graph(canonical_graph(other), windows))


def test_each_half_of_the_gate_stops_alone() -> None:
    reference = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    tiny = np.float32(1e-3) * reference
    turned = tiny.copy()
    turned[3, 0] += np.float32(5e-5)
    with pytest.raises(OnnxModelError, match="1 - cosine"):
        check_agreement(tiny, turned)
    assert float(np.abs(tiny - turned).max()) < 1e-4
    louder = np.float32(1 + 1e-3) * reference
    with pytest.raises(OnnxModelError, match="max abs"):
        check_agreement(reference, louder)
    assert check_agreement(reference, reference)["max_abs_difference"] == 0
    reference[5] = 0
    with pytest.raises(OnnxModelError, match="golden window 5 is zero"):
        check_agreement(reference, reference)


def test_a_dilation_without_meaning_does_not_change_the_bytes() -> None:
    """A kernel of one tap: exporters write any dilation there."""
    weights = small_encoder()
    model = onnx.load_from_string(foreign_graph(weights, opset=17, style="causal"))
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and shapes[node.input[1]][2] == 1:
            next(a for a in node.attribute if a.name == "dilations").ints[:] = [4]
    read = read_encoder(load_source(model.SerializeToString(), "test"), "test")
    assert canonical_graph(read) == canonical_graph(weights)


def test_export_is_gated_where_it_is_made(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Dilation is not in a checkpoint: were it read wrongly, nothing may come out."""
    import assets.onnx_model as module

    def wrong(weights: EncoderWeights) -> bytes:
        first = weights.blocks[1]
        blocks = (
            weights.blocks[0],
            replace(first, conv1=replace(first.conv1, dilation=1)),
            weights.blocks[2],
        )
        return canonical_graph(replace(weights, blocks=blocks))

    monkeypatch.setattr(module, "canonical_graph", wrong)
    bench = Workbench(tmp_path)
    weights, _ = make_model_weights(bench, SAMPLE_VERSION)
    with pytest.raises(PipelineError, match="differs from its source"):
        make_onnx_model(bench, model_weights=weights, golden=chain.sets.golden.windows)
    assert not (tmp_path / "onnx_model").exists()
