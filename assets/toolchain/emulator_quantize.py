"""onnxruntime's static quantization, with the settings of everything that is quantized here."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

from runtime.contract.window import GRAPH_INPUT_NAME, FloatArray, to_graph_layout


class WindowReader(CalibrationDataReader):  # type: ignore[misc]
    """Windows, one at a time, as the canonical graph takes them.

    Args:
        windows: float32 (N, 100, 9), normalized.
    """

    def __init__(self, windows: FloatArray) -> None:
        self._windows = iter(windows)

    def get_next(self) -> dict[str, FloatArray] | None:
        """The next feed; None after the last."""
        window = next(self._windows, None)
        return None if window is None else {GRAPH_INPUT_NAME: to_graph_layout(window)}


def quantize_graph(
    model: onnx.ModelProto, ranges: TensorsData | WindowReader, *, reduce_range: bool
) -> onnx.ModelProto:
    """A canonical graph as QDQ: uint8 activations per tensor, int8 weights per channel.

    Args:
        model: The graph, in float32; it is marked as needing no preparation.
        ranges: The activations' ranges, or windows in which onnxruntime looks for them by itself.
        reduce_range: Weights in 7 bits.
    """
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory(prefix="emulator-") as folder:
        cache, out = Path(folder, "ranges.json"), Path(folder, "quantized.onnx")
        given = isinstance(ranges, TensorsData)
        if given:
            save_tensors_data(ranges, cache)
        quantize_static(
            model,
            out,
            None if given else ranges,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=cache if given else None,
        )
        return onnx.load(out)
