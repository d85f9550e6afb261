"""The canonical ONNX graph of an encoder: one form, the same bytes for the same weights."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from assets.checkpoint import torch_latents
from assets.encoder import Convolution, EncoderWeights
from assets.onnx_run import run_graph
from assets.product import Product, Workbench
from assets.weights import TrainedModel, read_model
from runtime.contract.errors import OnnxModelError
from runtime.contract.window import (
    GRAPH_INPUT_NAME,
    GRAPH_INPUT_SHAPE,
    GRAPH_OUTPUT_NAME,
    LATENT_SIZE,
    FloatArray,
    normalize,
)

OPSET: Final = 17
IR_VERSION: Final = 8
OPERATORS: Final = ("Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm")
MAX_ABSOLUTE_DIFFERENCE: Final = 1e-4
MAX_COSINE_DISTANCE: Final = 1e-6
PRODUCER: Final = "hailo-pipeline"


def canonical_graph(weights: EncoderWeights) -> bytes:
    """Write the encoder as Hailo's compiler parses it.

    One input ``imu_window`` [1,9,1,100] (NCHW), one output ``latent`` [1,64], both float32;
    opset 17, ir_version 8. Each Conv1d is a Conv2d of height 1 with zeros before the first step
    only; normalization stays outside.

    Returns:
        The serialized model: equal weights give equal bytes, in any process or directory.

    Raises:
        OnnxModelError: The simplifier added nodes, or an operator appeared that is not in ``OPERATORS``.
    """
    return serialize(canonicalize(_simplify(_build(weights))))


def serialize(model: onnx.ModelProto) -> bytes:
    """Serialize with map entries in order: equal models give equal bytes."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _build(weights: EncoderWeights) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []

    def convolve(convolution: Convolution, name: str, source: str) -> str:
        out = f"{name}.out"
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(
            helper.make_node("Conv", inputs, [out], name=name, **_convolution_attributes(convolution))
        )
        return out

    def apply(operator: str, name: str, *sources: str) -> str:
        nodes.append(helper.make_node(operator, list(sources), [f"{name}.out"], name=name))
        return f"{name}.out"

    current = GRAPH_INPUT_NAME
    for index, block in enumerate(weights.blocks):
        scope = f"blocks.{index}"
        inner = convolve(block.conv1, f"{scope}.conv1", current)
        inner = apply("Relu", f"{scope}.relu1", inner)
        inner = convolve(block.conv2, f"{scope}.conv2", inner)
        inner = apply("Relu", f"{scope}.relu2", inner)
        if block.residual:
            current = convolve(block.residual, f"{scope}.residual", current)
        current = apply("Relu", f"{scope}.relu", apply("Add", f"{scope}.add", inner, current))
    current = apply("Flatten", "flatten", apply("GlobalAveragePool", "pool", current))
    gemm = [current, "latent.weight", "latent.bias"]
    nodes.append(helper.make_node("Gemm", gemm, [GRAPH_OUTPUT_NAME], name="latent", transB=1))
    return _model(nodes, weights)


def _convolution_attributes(convolution: Convolution) -> dict[str, Any]:
    return {
        "dilations": [1, convolution.dilation],
        "group": 1,
        "kernel_shape": [1, int(convolution.weight.shape[2])],
        "pads": [0, convolution.padding, 0, 0],
        "strides": [1, 1],
    }


def _model(nodes: list[onnx.NodeProto], weights: EncoderWeights) -> onnx.ModelProto:
    initializers = []
    for name, tensor in weights.tensors():
        height_one = tensor[:, :, None, :] if tensor.ndim == 3 else tensor
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(height_one), name))
    graph = helper.make_graph(
        nodes,
        "tcn_encoder",
        [helper.make_tensor_value_info(GRAPH_INPUT_NAME, TensorProto.FLOAT, GRAPH_INPUT_SHAPE)],
        [helper.make_tensor_value_info(GRAPH_OUTPUT_NAME, TensorProto.FLOAT, (1, LATENT_SIZE))],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Run onnxsim, which must find nothing left to do but renaming and ordering.

    That it left the meaning alone is for the gate to say: ``check_agreement`` on the golden windows.
    """
    import onnxsim

    simplified, _ = onnxsim.simplify(model)
    if len(simplified.graph.node) > len(model.graph.node):
        raise OnnxModelError(
            f"onnxsim made {len(simplified.graph.node)} nodes of {len(model.graph.node)}",
            hint="pin the onnxsim of locks/build.txt",
        )
    result: onnx.ModelProto = simplified
    return result


def canonicalize(model: onnx.ModelProto, *, operators: tuple[str, ...] = OPERATORS) -> onnx.ModelProto:
    """Strip what does not matter and sort what has no order: attributes and initializers.

    Args:
        model: Nodes in topological order, static shapes.
        operators: Accepted operator types.

    Returns:
        A new model without value infos, doc strings or metadata, checked by onnx.

    Raises:
        OnnxModelError: An operator that is not accepted; names the node.
    """
    graph = model.graph
    for node in graph.node:
        if node.op_type not in operators:
            raise OnnxModelError(f"operator {node.op_type} is not one of {operators}", where=node.name)
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        del node.attribute[:]
        node.attribute.extend(attributes)
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    initializers = sorted(graph.initializer, key=lambda tensor: tensor.name)
    canonical = helper.make_model(
        helper.make_graph(
            list(graph.node), "tcn_encoder", list(graph.input), list(graph.output), initializers
        ),
        opset_imports=sorted(model.opset_import, key=lambda entry: entry.domain),
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
    )
    onnx.checker.check_model(canonical, full_check=True)
    return canonical


def check_agreement(reference: FloatArray, found: FloatArray) -> dict[str, float]:
    """Gate: the canonical graph gives what its source gives.

    Args:
        reference: float32 (N, 64), latents of the source checkpoint or ONNX.
        found: float32 (N, 64), latents of the canonical graph on the same windows.

    Returns:
        ``max_abs_difference`` and ``max_cosine_distance`` over the windows.

    Raises:
        OnnxModelError: Larger than 1e-4 or 1e-6.
    """
    wide, other = reference.astype(np.float64), found.astype(np.float64)
    difference = float(np.abs(wide - other).max())
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    if not norms.all():
        raise OnnxModelError(
            f"the latent of golden window {int(np.argmin(norms))} is zero: nothing can be compared",
            hint="the encoder says nothing of that window: look at its training",
        )
    products = np.einsum("nd,nd->n", wide, other)
    distance = float((1.0 - products / norms).max())
    if not (difference <= MAX_ABSOLUTE_DIFFERENCE and distance <= MAX_COSINE_DISTANCE):
        raise OnnxModelError(
            f"differs from its source: max abs {difference:.3g} (at most {MAX_ABSOLUTE_DIFFERENCE}), "
            f"1 - cosine {distance:.3g} (at most {MAX_COSINE_DISTANCE})",
            hint="the weights were read wrongly, or are so large that float32 does not hold the latent to "
            "1e-4: report the folder's files and their layout",
        )
    return {"max_abs_difference": difference, "max_cosine_distance": max(distance, 0.0)}


def source_latents(trained: TrainedModel, windows: FloatArray) -> FloatArray:
    """What the source itself says: the checkpoint in PyTorch, or the given ONNX as it came.

    Args:
        trained: The model as it was read.
        windows: float32 (N, 100, 9), normalized.

    Returns:
        float32 (N, 64).
    """
    if trained.source == "checkpoint":
        return torch_latents(trained.weights_data, windows, trained.weights_file)
    return run_graph(trained.weights_data, windows)


def make_onnx_model(
    bench: Workbench, *, model_weights: Product, golden: FloatArray
) -> tuple[Product, dict[str, float]]:
    """Write the canonical graph and hold it against its source.

    Args:
        bench: Where products lie.
        model_weights: The weights to export.
        golden: float32 (N, 100, 9), physical units; judges the export and does not shape it.

    Returns:
        The product, and how far the graph is from its source.

    Raises:
        OnnxModelError: The graph does not agree with its source.
    """
    _, trained = read_model(bench, model_weights)
    data = canonical_graph(trained.encoder)
    windows = normalize(golden, trained.statistics)
    agreement = check_agreement(source_latents(trained, windows), run_graph(data, windows))
    # Weight norm is folded by torch, whose build (CPU, CUDA) has no part in the bytes.
    torch = f"torch {metadata.version('torch').split('+')[0]}"
    facts = {"exporter": torch if trained.source == "checkpoint" else "onnx"}
    return bench.put("onnx_model", {"encoder.onnx": data}, made_from=[model_weights], facts=facts), agreement
