"""Run an ONNX graph in full precision, as it is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort

from assets.onnx_source import input_layout
from runtime.contract.errors import OnnxModelError, PipelineError
from runtime.contract.window import FloatArray


def exact_session(data: bytes, threads: int = 1) -> ort.InferenceSession:
    """A session that runs the graph node by node, with nothing fused or reordered.

    One thread by default: the float sums, and so their last bits, then do not depend on cores.
    """
    return open_session(data, ort.GraphOptimizationLevel.ORT_DISABLE_ALL, threads)


def open_session(data: bytes, level: ort.GraphOptimizationLevel, threads: int = 1) -> ort.InferenceSession:
    """A CPU session at one optimization level."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = level
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run_graph(data: bytes, windows: FloatArray) -> FloatArray:
    """Run an encoder graph of any accepted input layout.

    Args:
        data: The serialized model; its one output has 64 numbers.
        windows: float32 (N, 100, 9), normalized.

    Returns:
        float32 (N, 64).

    Raises:
        OnnxModelError: onnxruntime cannot run it.
    """
    try:
        return _run(data, windows)
    except PipelineError:
        raise
    except Exception as error:
        # onnxruntime's exceptions share no base class but Exception.
        raise OnnxModelError(f"onnxruntime cannot run it: {error}", where="graph") from error


def _run(data: bytes, windows: FloatArray) -> FloatArray:
    name, shape, channels_first = input_layout(onnx.load_from_string(data), "graph")
    session = exact_session(data)
    rows = []
    for window in windows:
        laid_out = np.ascontiguousarray(window.T if channels_first else window).reshape(shape)
        rows.append(np.reshape(session.run(None, {name: laid_out})[0], (1, -1)))
    latents: FloatArray = np.concatenate(rows).astype(np.float32, copy=False)
    return latents
