"""Numbers of the double: ONNX Runtime in float, and in int8 as it quantizes."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from hailo_sdk_common.hailo_nn.exceptions import UnsupportedModelError
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.hef_writer import make_hef, stream

_SUPPORTED = {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
_ARCHITECTURES = {"hailo8": "HAILO8P", "hailo8l": "HAILO8L", "hailo8r": "HAILO8R"}


def read_graph(data: bytes) -> Any:
    """The graph; UnsupportedModelError as the real parser raises it."""
    graph = onnx.load_from_string(data).graph
    for node in graph.node:
        if node.op_type not in _SUPPORTED:
            raise UnsupportedModelError(f"{node.op_type} operation is unsupported in node {node.name}")
    return graph


def spoilt(data: bytes) -> bytes:
    """The same graph with one weight turned round, as a parser that takes an axis for another would."""
    model = onnx.load_from_string(data)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4 and t.dims[3] > 1)
    turned = np.ascontiguousarray(numpy_helper.to_array(tensor)[..., ::-1])
    tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))
    result: bytes = model.SerializeToString()
    return result


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, data: Any) -> None:
        self.rows: Iterator[dict[str, Any]] = iter([{name: _nchw(row)} for row in data])

    def get_next(self) -> Any:
        return next(self.rows, None)


def _nchw(row: Any) -> Any:
    return np.ascontiguousarray(row.astype(np.float32).transpose(2, 0, 1)[None])


def quantize(data: bytes, calibration: Any) -> bytes:
    """uint8 activations, int8 weights, ranges from the calibration data."""
    model = onnx.load_from_string(data)
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "quantized.onnx")
        quantize_static(
            model,
            out,
            _Reader(model.graph.input[0].name, calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return out.read_bytes()


def run(data: bytes, windows: Any) -> Any:
    """float32 (N, 64) for (N, 1, 100, 9)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: _nchw(row)})[0] for row in windows])


def hef(data: bytes, hw_arch: str, net_name: str, fault: str) -> bytes:
    """A HEF whose streams have the quantized model's scales."""
    graph = onnx.load_from_string(data).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    entry = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    (leaving,) = [node for node in graph.node if graph.output[0].name in node.output]
    given = _stream(f"{net_name}/input_layer1", (1, 100, 9), entry, constants, "NHCW")
    made = _stream(f"{net_name}/fc1", (64,), leaving, constants, "NC")
    if fault == "compile:text":
        return b"HEF could not be written\n"
    sdk = "3.29.0" if fault == "compile:version" else "0.0.0-double"
    arch = "HAILO15H" if fault == "compile:arch" else _ARCHITECTURES[hw_arch]
    return make_hef(arch=arch, inputs=[given], outputs=[made], networks=[net_name], sdk_version=sdk)


def _stream(name: str, shape: Any, node: Any, constants: Any, order: str) -> Any:
    scale, zero = (float(constants[each]) for each in node.input[1:3])
    return stream(name, shape, limits=((0 - zero) * scale, (255 - zero) * scale), order=order)
