"""Where the emulator's noise comes from: each tensor quantized alone, up to it, and all but it.

onnxruntime's ``qdq_loss_debug`` tells the noise that has gathered up to a tensor, and each weight's
own error. What one quantizer does to the output, it does not tell: for that, the graph runs in
full precision with one pair of QuantizeLinear and DequantizeLinear, and quantized without one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxruntime.quantization import qdq_loss_debug

from assets.metrics import sqnr_db
from assets.onnx_run import exact_session, open_session
from assets.toolchain.emulator_quantize import WindowReader
from assets.toolchain.emulator_ranges import killed_addends, spread
from runtime.contract.parity import LayerNoise, LayerRecord, Promotion, WeightRecord
from runtime.contract.window import GRAPH_INPUT_NAME, FloatArray, to_graph_layout

MOST_WINDOWS: Final = 96
"""Enough for tenths of a dB; all 480 of an evaluation set would take five times as long."""
CEILING_DB: Final = 120.0
"""What is written where quantization changes nothing: infinity is no number in JSON. No tensor in 8
bits comes near it, float32 itself ends at about 140 dB."""
DECIMALS: Final = 3
"""Of dB: float kernels sum in an order that depends on the CPU, and further digits are that order's."""
_SAVED: Final = "_ReshapedSavedOutput"


@dataclass(frozen=True, kw_only=True)
class _Activation:
    """A tensor with one quantization, and all pairs of nodes that stand for it in the QDQ graph."""

    name: str
    operator: str
    scale: str
    step: float
    zero_point: int

    @property
    def ends(self) -> tuple[float, float]:
        return -self.zero_point * self.step, (255 - self.zero_point) * self.step


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What ``qdq_loss_debug`` tells, by tensor of the canonical graph."""

    seen: dict[str, FloatArray]
    up_to: dict[str, float]
    weights: dict[str, FloatArray]
    weight_errors: dict[str, float]


def layer_noise(parsed: bytes, quantized: bytes, windows: FloatArray) -> LayerNoise:
    """Measure where a quantized model's noise comes from.

    Args:
        parsed: The canonical graph, float32.
        quantized: The same graph as QDQ, canonicalized, with the names of its tensors.
        windows: float32 (N, 100, 9), normalized; at most ``MOST_WINDOWS`` of them are used.

    Returns:
        dB between -``CEILING_DB`` and ``CEILING_DB``. A tensor that an Add feeds to a Relu is
        clipped on purpose where the Relu makes zero of it: ``clipped_share`` does not count that,
        ``up_to_db``, which looks no further than the tensor, does. ``promote`` leaves out what
        gains nothing; a promoted activation has no clipping either, as 16 bits can afford the range.
    """
    windows = windows[spread(len(windows), MOST_WINDOWS)]
    full, qdq = onnx.load_from_string(parsed), onnx.load_from_string(quantized)
    activations = _activations(full.graph, qdq.graph)
    told = _ask_onnxruntime(parsed, quantized, windows)
    reference = _run(exact_session(parsed), windows)

    def alone(model: onnx.ModelProto) -> float:
        return sqnr_db(reference, _run(exact_session(model.SerializeToString()), windows), most=CEILING_DB)

    def as_artifact(model: onnx.ModelProto) -> float:
        fused = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        found = _run(open_session(model.SerializeToString(), fused), windows)
        return sqnr_db(reference, found, most=CEILING_DB)

    everything = as_artifact(qdq)
    addends = killed_addends(full.graph)
    return LayerNoise(
        windows=len(windows),
        provenance="emulated",
        tool=f"onnxruntime {ort.__version__}, quantization.qdq_loss_debug",
        layers=tuple(
            _layer(activation, alone(_with_one_pair(full, activation)), told, addends.get(activation.name))
            for activation in activations
        ),
        weights=tuple(
            WeightRecord(
                name=name,
                error_db=_db(told.weight_errors[name]),
                only_on_db=_db(alone(_with_weight(full, name, told.weights[name]))),
            )
            for name in _weights_in_order(full.graph, told.weights)
        ),
        promote=_promotions((a.name, as_artifact(_without(qdq, a)) - everything) for a in activations),
    )


def _promotions(gains: Iterable[tuple[str, float]]) -> tuple[Promotion, ...]:
    found = [Promotion(name=name, gain_db=_db(gain)) for name, gain in gains]
    return tuple(sorted((p for p in found if p.gain_db > 0), key=lambda p: -p.gain_db))


def _activations(full: onnx.GraphProto, qdq: onnx.GraphProto) -> Sequence[_Activation]:
    """Quantized activations in the graph's order; tensors that share a scale are one, the first."""
    operators = {GRAPH_INPUT_NAME: "input", **{n.output[0]: n.op_type for n in full.node}}
    values = {tensor.name: tensor for tensor in qdq.initializer}
    restored = {node.input[0]: node.output[0] for node in qdq.node if node.op_type == "DequantizeLinear"}
    found: dict[str, _Activation] = {}
    for node in qdq.node:
        if node.op_type != "QuantizeLinear":
            continue
        source, scale, zero_point = node.input
        name = source if source in operators else restored[node.output[0]]
        if name not in operators:
            raise ValueError(f"{node.name} quantizes {source}, which the canonical graph does not have")
        found.setdefault(
            scale,
            _Activation(
                name=name,
                operator=operators[name],
                scale=scale,
                step=float(numpy_helper.to_array(values[scale])),
                zero_point=int(numpy_helper.to_array(values[zero_point])),
            ),
        )
    order = list(operators)
    return sorted(found.values(), key=lambda activation: order.index(activation.name))


def _layer(activation: _Activation, only_on: float, told: _Told, addend: str | None) -> LayerRecord:
    low, high = activation.ends
    values = told.seen[activation.name]
    # Up to half a step outside, the nearest integer is as near as anywhere inside.
    lost = (values < low - activation.step / 2) | (values > high + activation.step / 2)
    if addend is not None:
        other = told.seen[addend]
        lost &= np.maximum(np.clip(values, low, high) + other, 0) != np.maximum(values + other, 0)
    return LayerRecord(
        name=activation.name,
        operator=activation.operator,
        only_on_db=_db(only_on),
        up_to_db=_db(told.up_to[activation.name]),
        range_low=low,
        range_high=high,
        seen_low=float(values.min()),
        seen_high=float(values.max()),
        clipped_share=float(lost.mean()),
    )


def _ask_onnxruntime(parsed: bytes, quantized: bytes, windows: FloatArray) -> _Told:
    with tempfile.TemporaryDirectory(prefix="emulator-") as folder:
        full, qdq = Path(folder, "full.onnx"), Path(folder, "qdq.onnx")
        full.write_bytes(parsed)
        qdq.write_bytes(quantized)
        seen = _collect(full, windows)
        matching = qdq_loss_debug.create_activation_matching(_collect(qdq, windows), seen)
        weights = qdq_loss_debug.create_weight_matching(str(full), str(qdq))
    errors = qdq_loss_debug.compute_activation_error(matching, _error_db)
    del matching  # a hundred megabytes, before as many are joined
    return _Told(
        seen={name: np.concatenate(seen.pop(name)) for name in errors},
        up_to={name: error["xmodel_err"] for name, error in errors.items()},
        weights={name: match["dequantized"] for name, match in weights.items()},
        weight_errors=qdq_loss_debug.compute_weight_error(weights, _error_db),
    )


def _error_db(reference: Any, found: Any) -> float:
    """As ``qdq_loss_debug`` computes it, but for what is equal: it finds 0 dB in a tensor of zeros."""
    if np.array_equal(reference, found):
        return CEILING_DB
    return float(qdq_loss_debug.compute_signal_to_quantization_noice_ratio(reference, found))


def _collect(path: Path, windows: FloatArray) -> dict[str, Any]:
    """Every activation for every window, by name, flat; weights are not collected for each window."""
    augmented = path.with_suffix(".all.onnx")
    qdq_loss_debug.modify_model_output_intermediate_tensors(path, augmented)
    model = onnx.load(augmented)
    constants = {tensor.name for tensor in model.graph.initializer}
    weights = {f"{n.output[0]}{_SAVED}" for n in model.graph.node if constants.issuperset(n.input)}
    kept = [output for output in model.graph.output if output.name not in weights]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, augmented)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    collected: dict[str, Any] = qdq_loss_debug.collect_activations(
        str(augmented), WindowReader(windows), options
    )
    return collected


def _with_one_pair(full: onnx.ModelProto, activation: _Activation) -> onnx.ModelProto:
    """Full precision, but for one activation in 8 bits."""
    model, name = _copy(full), activation.name
    scale = numpy_helper.from_array(np.array(activation.step, np.float32), f"{name}.scale")
    zero_point = numpy_helper.from_array(np.array(activation.zero_point, np.uint8), f"{name}.zero_point")
    model.graph.initializer.extend([scale, zero_point])
    given = name == GRAPH_INPUT_NAME
    source, result = (name, f"{name}.rounded") if given else (f"{name}.full", name)
    rest = [scale.name, zero_point.name]
    pair = [
        helper.make_node("QuantizeLinear", [source, *rest], [f"{name}.integers"]),
        helper.make_node("DequantizeLinear", [f"{name}.integers", *rest], [result]),
    ]
    nodes = pair if given else []
    for node in model.graph.node:
        names, replaced = (node.input, result) if given else (node.output, source)
        names[:] = [replaced if each == name else each for each in names]
        nodes.append(node)
        if source in node.output:
            nodes.extend(pair)
    return _with_nodes(model, nodes)


def _without(qdq: onnx.ModelProto, activation: _Activation) -> onnx.ModelProto:
    """Quantized, but for one activation, which takes every value that it can have.

    onnxruntime left out a Relu whose range begins at zero, since its quantization does the same;
    where the quantization goes, the Relu comes back.
    """
    model, nodes = _copy(qdq), []
    stand_in = "Relu" if activation.operator == "Relu" else "Identity"
    sources: dict[str, str] = {}
    for node in model.graph.node:
        if len(node.input) < 2 or node.input[1] != activation.scale:
            nodes.append(node)
        elif node.op_type == "QuantizeLinear":
            sources[node.output[0]] = node.input[0]
        else:
            nodes.append(helper.make_node(stand_in, [sources[node.input[0]]], list(node.output)))
    return _with_nodes(model, nodes)


def _with_weight(full: onnx.ModelProto, name: str, values: FloatArray) -> onnx.ModelProto:
    model = _copy(full)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    return model


def _weights_in_order(full: onnx.GraphProto, weights: Iterable[str]) -> Sequence[str]:
    wanted = set(weights)
    return list(dict.fromkeys(name for node in full.node for name in node.input if name in wanted))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _with_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> onnx.ModelProto:
    changed = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(changed)
    return model


def _run(session: ort.InferenceSession, windows: FloatArray) -> FloatArray:
    rows = [session.run(None, {GRAPH_INPUT_NAME: to_graph_layout(window)})[0] for window in windows]
    latents: FloatArray = np.concatenate(rows)
    return latents


def _db(value: float) -> float:
    return round(float(np.clip(value, -CEILING_DB, CEILING_DB)), DECIMALS)
