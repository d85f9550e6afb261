"""An encoder given as ONNX, read back to weights: any opset from 11, rank 3 or 4."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from assets import onnx_child
from assets.encoder import Block, Convolution, EncoderWeights, named_convolutions
from runtime.contract.errors import WeightsError
from runtime.contract.window import CHANNELS, WINDOW_LENGTH, FloatArray

MIN_OPSET: Final = 11
MAX_DILATION: Final = 8192
"""Far beyond a window, and small enough for any library to compute with."""
_AGAIN: Final = "copy it again, or export it again"
_LOOPS: Final = frozenset({"Loop", "Scan", "SequenceMap"})
# Operators that only move or cut values. What they do is not interpreted here: what the file computes is
# compared with what its weights mean (agreement.check_function), and that sees any misreading.
_LAYOUT: Final = frozenset(
    {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Pad", "Identity"}
)


def load_source(data: bytes, where: str) -> onnx.ModelProto:
    """Parse, check and simplify an ONNX file.

    What could bring this process down with it is done in another one (``onnx_child``).

    Raises:
        WeightsError: Not ONNX, damaged, with weights in other files, of an opset below 11, or with shapes
            that are not static.
    """
    model = _parsed(data, where)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise WeightsError(
            f"opset {opset}, at least {MIN_OPSET} is read", where=where, hint="export with a newer opset"
        )
    input_layout(model, where)
    if len(model.graph.output) != 1:
        names = ", ".join(output.name for output in model.graph.output)
        raise WeightsError(
            f"{len(model.graph.output)} outputs ({names}), expected the latent alone",
            where=where,
            hint="export the encoder with one output: nothing here says which of these is the latent",
        )
    # What it might change of the meaning is seen later: the source itself runs as it came.
    return onnx.load_from_string(_tried(data, where)[1])


def trial_latents(data: bytes, where: str) -> FloatArray:
    """What a file that ``load_source`` took gives for ``onnx_child.trial_windows``, as it came.

    Returns:
        float32 (3, numbers of one window).
    """
    return _tried(data, where)[0]


def _parsed(data: bytes, where: str) -> onnx.ModelProto:
    """Parse only, and make sure that nothing is to be read from anywhere but ``data``."""
    try:
        model = onnx.load_from_string(data)
        outside = _outside(model.graph)
    except Exception as error:  # protobuf's own, ValueError, RecursionError: all mean the same
        raise WeightsError(
            f"is not a valid ONNX model: {_first_line(error)}", where=where, hint=_AGAIN
        ) from error
    if outside:
        raise WeightsError(outside, where=where, hint="export it as one file that holds its weights")
    if model.functions:
        raise WeightsError(
            "holds functions of its own", where=where, hint="export it with the operators of ONNX alone"
        )
    return model


@functools.lru_cache(maxsize=8)  # every link of a build reads the same file
def _tried(data: bytes, where: str) -> tuple[FloatArray, bytes]:
    """What it computes and the simplified model, from a child that may crash or hang without harm."""
    child = [sys.executable, "-I", str(Path(__file__).with_name("onnx_child.py"))]
    try:
        run = subprocess.run(
            child, input=data, capture_output=True, timeout=onnx_child.PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise WeightsError(
            f"was not read within {onnx_child.PATIENCE_SECONDS} s", where=where, hint="expected a TCN encoder"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"no process could be started to read it: {error.strerror}", where=where, hint="free some memory"
        ) from error
    if run.returncode == onnx_child.REFUSED:
        raise WeightsError(run.stdout.decode(errors="replace"), where=where, hint=_AGAIN)
    if run.returncode != 0:
        last = run.stderr.decode(errors="backslashreplace").strip().splitlines()[-1:]
        raise WeightsError(
            f"makes the libraries that read it crash (status {run.returncode}): {''.join(last)[:200]}",
            where=where,
            hint=_AGAIN,
        )
    latents, model = onnx_child.unpacked(run.stdout)
    return latents, model


def _outside(graph: onnx.GraphProto) -> str:
    """What would be read from another file, or computed without a known end; empty where nothing is.

    The simplifier evaluates what is constant: a loop there could run for ever, and a tensor whose data
    lies elsewhere would be taken from wherever this process happens to stand.
    """
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.op_type in _LOOPS:
            return f"holds a {node.op_type} ({node.name!r}), expected an encoder without one"
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                if found := _outside(inner) if inner.node or inner.initializer else "":
                    return found
    external = [t.name for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL or t.external_data]
    return f"keeps {external[0]!r} and {len(external) - 1} more in another file" if external else ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).encode(errors="backslashreplace").decode()


def layer_counts(data: bytes) -> dict[str, int]:
    """How many nodes of each operator an ONNX file has as it came, constants left out; for people."""
    kinds = Counter(node.op_type for node in onnx.load_from_string(data).graph.node)
    return {kind: count for kind, count in sorted(kinds.items()) if kind != "Constant"}


def number_count(data: bytes) -> int:
    """Numbers in an ONNX file's float tensors of at least one dimension, as it came."""
    graph = onnx.load_from_string(data).graph
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    floats = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims]
    return sum(math.prod(tensor.dims) for tensor in floats)


def input_layout(model: onnx.ModelProto, where: str) -> tuple[str, tuple[int, ...], bool]:
    """Name and shape of the input, and whether channels come before time.

    Raises:
        WeightsError: Not one static input of 9 channels and 100 steps.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    if len(inputs) != 1:
        raise WeightsError(
            f"{len(inputs)} inputs, expected one",
            where=where,
            hint="export the encoder with the window alone",
        )
    kinds = {value.type.tensor_type.elem_type for value in (*inputs, *model.graph.output)}
    if kinds != {onnx.TensorProto.FLOAT}:
        names = ", ".join(sorted(onnx.TensorProto.DataType.Name(kind) for kind in kinds))
        raise WeightsError(
            f"input and output are {names}, expected float32", where=where, hint="export model.float()"
        )
    shape = tuple(int(d.dim_value) for d in inputs[0].type.tensor_type.shape.dim)
    long = [d for d in shape if d != 1]
    if long not in ([WINDOW_LENGTH, len(CHANNELS)], [len(CHANNELS), WINDOW_LENGTH]):
        raise WeightsError(
            f"input {inputs[0].name!r} has shape {list(shape)}, expected one window of "
            f"{WINDOW_LENGTH} steps and {len(CHANNELS)} channels with static sizes",
            where=where,
            hint="export it for one window, without dynamic axes",
        )
    return inputs[0].name, shape, long[0] == len(CHANNELS)


class _Graph:
    """Who makes and who takes each tensor, and the constants."""

    def __init__(self, model: onnx.ModelProto, where: str) -> None:
        self.where = where
        self.producers = {output: node for node in model.graph.node for output in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.constants: dict[str, FloatArray] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.output = model.graph.output[0].name

    def error(self, what: str) -> WeightsError:
        return WeightsError(
            what,
            where=self.where,
            hint="expected a TCN encoder: blocks of two causal convolutions with a residual branch, "
            "mean over time, one linear layer",
        )

    def back(self, tensor: str, *kinds: str) -> onnx.NodeProto:
        """The node that made a tensor, layout operators skipped; it must be one of ``kinds``."""
        node: onnx.NodeProto | None = self.producers.get(self.origin(tensor))
        if node is None or node.op_type not in kinds:
            found = f"{node.op_type} {node.name}" if node else "the graph's input"
            raise self.error(f"found {found} where {' or '.join(kinds)} was expected")
        return node

    def origin(self, tensor: str) -> str:
        """The tensor behind layout operators."""
        node = self.producers.get(tensor)
        while node is not None and node.op_type in _LAYOUT:
            tensor = node.input[0]
            node = self.producers.get(tensor)
        return tensor

    def constant(self, name: str) -> FloatArray:
        if name not in self.constants:
            raise self.error(f"{name} is computed, expected a constant")
        if self.constants[name].dtype != np.float32:
            raise self.error(f"{name} is {self.constants[name].dtype}, expected float32")
        return np.ascontiguousarray(self.constants[name])


def read_encoder(model: onnx.ModelProto, where: str) -> EncoderWeights:
    """Read the weights back, from the output to the input.

    Raises:
        WeightsError: The graph is not a TCN encoder (names the node that does not fit), or a tensor is not
            finite or of another shape (names the tensor).
    """
    return validated(read_parts(model, where), where)


@dataclass(frozen=True, kw_only=True)
class EncoderParts:
    """What a graph holds, before anything is said about it: the fields of ``EncoderWeights``."""

    blocks: tuple[Block, ...]
    latent_weight: FloatArray
    latent_bias: FloatArray

    def tensors(self) -> dict[str, FloatArray]:
        """Every tensor by canonical name, in graph order."""
        found: dict[str, FloatArray] = {}
        for index, block in enumerate(self.blocks):
            for name, convolution in named_convolutions(block):
                found[f"blocks.{index}.{name}.weight"] = convolution.weight
                found[f"blocks.{index}.{name}.bias"] = convolution.bias
        return {**found, "latent.weight": self.latent_weight, "latent.bias": self.latent_bias}


def validated(parts: EncoderParts, where: str) -> EncoderWeights:
    """Hold what a graph holds against what an encoder needs.

    Raises:
        WeightsError: A tensor is not finite, or of another shape; names it.
    """
    try:
        return EncoderWeights(
            blocks=parts.blocks, latent_weight=parts.latent_weight, latent_bias=parts.latent_bias
        )
    except WeightsError as error:
        raise WeightsError(
            error.what, where=f"{where}: {error.where}", hint=error.hint or "export the encoder again"
        ) from error


def read_parts(model: onnx.ModelProto, where: str) -> EncoderParts:
    """Read the weights back without judging them.

    Raises:
        WeightsError: The graph is not a TCN encoder; names the node that does not fit.
    """
    graph = _Graph(model, where)
    linear = graph.back(graph.output, "Gemm", "Add", "MatMul")
    latent_weight, latent_bias, tensor = _linear(graph, linear)
    pool = graph.back(tensor, "GlobalAveragePool", "ReduceMean")
    blocks: list[Block] = []
    tensor = pool.input[0]
    while graph.origin(tensor) in graph.producers:
        block, tensor = _block(graph, graph.back(tensor, "Relu"))
        blocks.append(block)
    blocks.reverse()
    if not blocks:
        raise graph.error("found no blocks of convolutions")
    return EncoderParts(blocks=tuple(blocks), latent_weight=latent_weight, latent_bias=latent_bias)


def _linear(graph: _Graph, node: onnx.NodeProto) -> tuple[FloatArray, FloatArray, str]:
    if node.op_type == "Gemm":
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0 or settings.get("transA", 0):
            raise graph.error(f"{node.name} scales or transposes its input")
        weight = graph.constant(node.input[1])
        weight = weight if settings.get("transB", 0) else np.ascontiguousarray(weight.T)
        if len(node.input) < 3:
            raise graph.error(f"{node.name} has no bias")
        return weight, graph.constant(node.input[2]), node.input[0]
    if node.op_type == "MatMul":
        raise graph.error(f"{node.name} has no bias")
    bias, product = sorted(node.input, key=lambda name: name not in graph.constants)
    matmul = graph.back(product, "MatMul")
    weight = np.ascontiguousarray(graph.constant(matmul.input[1]).T)
    return weight, graph.constant(bias), matmul.input[0]


def _block(graph: _Graph, relu: onnx.NodeProto) -> tuple[Block, str]:
    """One residual block that ends in ``relu``; also the tensor that it takes."""
    add = graph.back(relu.input[0], "Add")
    main, other = sorted(add.input, key=lambda name: not _is_main_branch(graph, name))
    second = graph.back(graph.back(main, "Relu").input[0], "Conv")
    first = graph.back(graph.back(second.input[0], "Relu").input[0], "Conv")
    residual = graph.producers.get(graph.origin(other))
    source = graph.origin(first.input[0])
    shortcut = None
    if residual is not None and residual.op_type == "Conv":
        shortcut = _convolution(graph, residual)
        other = residual.input[0]
    if graph.origin(other) != source:
        raise graph.error(f"{add.name} adds two branches that do not start at one tensor")
    conv1, conv2 = _convolution(graph, first), _convolution(graph, second)
    return Block(conv1=conv1, conv2=conv2, residual=shortcut), first.input[0]


def _is_main_branch(graph: _Graph, name: str) -> bool:
    """Whether a branch ends in Relu(Conv(Relu(Conv))) and not in the shortcut.

    An identity shortcut ends in a Relu too, whose input is the Add of the block before.
    """
    node = graph.producers.get(graph.origin(name))
    if node is None or node.op_type != "Relu":
        return False
    before = graph.producers.get(graph.origin(node.input[0]))
    return before is not None and before.op_type == "Conv"


def _convolution(graph: _Graph, node: onnx.NodeProto) -> Convolution:
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if settings.get("group", 1) != 1 or any(s != 1 for s in settings.get("strides", [1])):
        raise graph.error(f"{node.name} has groups or strides")
    weight = graph.constant(node.input[1])
    if weight.ndim == 4 and 1 in weight.shape[2:]:
        weight = weight.reshape(*weight.shape[:2], -1)
    if weight.ndim != 3:
        raise graph.error(f"{node.name} has a kernel of shape {list(weight.shape[2:])}")
    if len(node.input) < 3:
        raise graph.error(f"{node.name} has no bias")
    # A kernel of one tap has no use for a dilation, and equal functions shall have equal bytes.
    dilation = max(settings.get("dilations", [1])) if weight.shape[2] > 1 else 1
    if not 1 <= dilation <= MAX_DILATION:
        raise graph.error(f"{node.name} has dilation {dilation}")
    return Convolution(weight=weight, bias=graph.constant(node.input[2]), dilation=int(dilation))
