"""Make ``tiny_encoder.onnx``: a small int8 encoder for tests, the same bytes each time.

It has the canonical input and output of the real one, and nothing of its training: fixed random
weights. uint8 activations and int8 weights as QDQ; the weights stay within 6 bits, so that
u8 x s8 kernels that saturate on x86 without VNNI give the same numbers.

Needs the build extra: ``python tests/data/make_tiny_encoder.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

PATH = Path(__file__).with_name("tiny_encoder.onnx")
CHANNELS, HIDDEN, LENGTH, LATENT = 9, 16, 100, 64


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"make_{name}", **attributes))
        return name

    def quantized(self, value: str, scale: float, zero: int) -> str:
        """``value`` after a round trip through uint8."""
        parameters = [
            self.constant(f"{value}_scale", np.float32(scale)),
            self.constant(f"{value}_zero", np.uint8(zero)),
        ]
        stored = self.node("QuantizeLinear", [value, *parameters], f"{value}_u8")
        return self.node("DequantizeLinear", [stored, *parameters], f"{value}_f32")

    def weight(self, name: str, value: npt.NDArray[np.int8], scale: float) -> str:
        inputs = [
            self.constant(f"{name}_i8", value),
            self.constant(f"{name}_scale", np.float32(scale)),
            self.constant(f"{name}_zero", np.int8(0)),
        ]
        return self.node("DequantizeLinear", inputs, name)


def make_model() -> onnx.ModelProto:
    """imu_window float32 [1, 9, 1, 100] -> latent float32 [1, 64]."""
    random = np.random.default_rng(7)
    graph = _Graph()
    value = graph.quantized("imu_window", 1 / 16, 128)
    kernel = random.integers(-31, 32, (HIDDEN, CHANNELS, 1, 5)).astype(np.int8)
    convolution = [value, graph.weight("kernel", kernel, 1 / 128)]
    value = graph.node("Conv", convolution, "filtered", kernel_shape=[1, 5], strides=[1, 4])
    value = graph.quantized(graph.node("Relu", [value], "positive"), 1 / 16, 0)
    value = graph.node("Flatten", [value], "flat", axis=1)
    steps = (LENGTH - 5) // 4 + 1
    matrix = random.integers(-31, 32, (HIDDEN * steps, LATENT)).astype(np.int8)
    value = graph.node("MatMul", [value, graph.weight("matrix", matrix, 1 / 512)], "projected")
    value = graph.quantized(value, 1 / 32, 128)
    graph.node("Identity", [value], "latent")
    body = helper.make_graph(
        graph.nodes,
        "tiny_encoder",
        [helper.make_tensor_value_info("imu_window", TensorProto.FLOAT, [1, CHANNELS, 1, LENGTH])],
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, [1, LATENT])],
        graph.constants,
    )
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", 17)], producer_name="hailo-pipeline"
    )
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    PATH.write_bytes(make_model().SerializeToString(deterministic=True))
    print(f"{PATH}: {PATH.stat().st_size} bytes")
