"""Is this ONNX graph one that Hailo's Dataflow Compiler is known to parse? Asked before hours are spent.

What is accepted here has a precedent (Hailo's model zoo, people's published conversions); that it compiles
for this encoder was never tried. What is refused might parse all the same: nobody is known to have done it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from assets.toolchain.dfc_errors import DfcUnsupportedError
from runtime.contract.window import GRAPH_INPUT_NAME, GRAPH_INPUT_SHAPE

OPSETS: Final = (11, 17)
NEWEST_IR: Final = 8
OPERATORS: Final = ("Add", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "Pad", "Relu", "Slice")
"""``Slice`` and ``Pad`` on the channel axis only: on the time axis no example is known on these chips."""
LONGEST_KERNEL: Final = 7
LARGEST_DILATION: Final = 16
"""No table of kernel and dilation is published; wider ones than these are not known to map."""
_TIME_AXIS: Final = 3
_AXES: Final = 4

Attributes = dict[str, Any]
Constants = dict[str, Any]


def check_graph(data: bytes) -> tuple[str, ...]:
    """Refuse a graph that is not known to parse.

    Args:
        data: A serialized ONNX model, valid as such.

    Returns:
        What is unusual about it and accepted, a sentence each.

    Raises:
        DfcUnsupportedError: Names every node that is in the way, with the reason.
    """
    model = onnx.load_from_string(data)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    problems = [*_model_problems(model), *_input_problems(model)]
    for node in model.graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type not in OPERATORS:
            problems.append(f"{node.name or node.output[0]}: operator {node.op_type} has no known precedent")
        elif check := _CHECKS.get(node.op_type):
            said = check(node, attributes, constants)
            problems += [f"{node.name or node.output[0]}: {problem}" for problem in said]
    if problems:
        raise DfcUnsupportedError(
            f"the graph is not one that the Dataflow Compiler is known to parse: {'; '.join(problems)}",
            where="onnx_model",
            hint="rewrite it as rank-4 Conv, Relu, Add, GlobalAveragePool, Gemm, as `onnx_model` writes it",
        )
    return _unusual(model)


def _model_problems(model: onnx.ModelProto) -> list[str]:
    problems = []
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        problems.append(f"opset {opset}, known are {OPSETS[0]} to {OPSETS[1]}")
    if model.ir_version > NEWEST_IR:
        problems.append(f"ir_version {model.ir_version}, at most {NEWEST_IR} is known")
    return problems


def _input_problems(model: onnx.ModelProto) -> list[str]:
    inputs = [
        each for each in model.graph.input if each.name not in {t.name for t in model.graph.initializer}
    ]
    if len(inputs) != 1:
        return [f"{len(inputs)} inputs, expected one"]
    shape = tuple(axis.dim_value for axis in inputs[0].type.tensor_type.shape.dim)
    if len(shape) != _AXES:
        return [
            f"input {inputs[0].name} has rank {len(shape)}, the DFC reads 4 (batch, channels, height, width)"
        ]
    if (inputs[0].name, shape) != (GRAPH_INPUT_NAME, GRAPH_INPUT_SHAPE):
        return [f"input {inputs[0].name} {shape}, expected {GRAPH_INPUT_NAME} {GRAPH_INPUT_SHAPE}"]
    return []


def _convolution(node: onnx.NodeProto, attributes: Attributes, constants: Constants) -> list[str]:
    weight = constants.get(node.input[1])
    if weight is None:
        return ["its weights are no constants"]
    if weight.ndim != _AXES:
        return [f"weights of rank {weight.ndim}: a Conv1d parses wrongly, a Conv2d of height 1 does not"]
    problems = []
    height, width = weight.shape[2:]
    dilations = attributes.get("dilations", [1, 1])
    if height != 1 or width > LONGEST_KERNEL:
        problems.append(f"kernel {height}x{width}, known are 1x1 to 1x{LONGEST_KERNEL}")
    if dilations[0] != 1 or dilations[1] > LARGEST_DILATION:
        problems.append(f"dilation {list(dilations)}, known are 1 to {LARGEST_DILATION} along time")
    if attributes.get("group", 1) != 1:
        problems.append(f"{attributes['group']} groups, known is 1")
    return problems


def _slice(node: onnx.NodeProto, attributes: Attributes, constants: Constants) -> list[str]:
    axes = constants.get(node.input[3]) if len(node.input) > 3 else None
    if axes is None:
        return ["a Slice whose axes are no constants"]
    return ["a Slice along time"] if any(axis % _AXES == _TIME_AXIS for axis in np.ravel(axes)) else []


def _pad(node: onnx.NodeProto, attributes: Attributes, constants: Constants) -> list[str]:
    pads = constants.get(node.input[1]) if len(node.input) > 1 else None
    if pads is None or len(pads) != 2 * _AXES:
        return ["a Pad whose widths are no constants of 4 axes"]
    return ["a Pad along time"] if pads[_TIME_AXIS] or pads[_AXES + _TIME_AXIS] else []


_CHECKS: Final[dict[str, Callable[[onnx.NodeProto, Attributes, Constants], list[str]]]] = {
    "Conv": _convolution,
    "Slice": _slice,
    "Pad": _pad,
}


def _unusual(model: onnx.ModelProto) -> tuple[str, ...]:
    lopsided = 0
    for node in model.graph.node:
        pads = next((each.ints for each in node.attribute if each.name == "pads"), ())
        lopsided += list(pads[: len(pads) // 2]) != list(pads[len(pads) // 2 :])
    if not lopsided:
        return ()
    return (
        f"{lopsided} convolutions pad one side only: other people's have compiled, this encoder's not yet",
    )
