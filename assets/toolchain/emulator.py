"""The emulator: int8 on ONNX Runtime, which everything that it makes says.

Facts that shape it (measured, see ARCHITECTURE.md): uint8 activations with int8 weights are the only pair
that ONNX Runtime's x86 kernels run in integers throughout; ranges summed by float kernels
differ in the last bits between thread counts, so calibration runs on one thread, and ranges are
snapped outward besides, against other sources of such bits; integer inference is bit-identical
whatever the threads.
"""

from __future__ import annotations

import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort

from assets.onnx_model import OPERATORS, canonicalize, serialize
from assets.onnx_run import exact_session, open_session
from assets.toolchain import EMULATOR_TOOLS, Built, Toolchain, source_digest
from assets.toolchain.emulator_noise import layer_noise
from assets.toolchain.emulator_quantize import quantize_graph
from assets.toolchain.emulator_ranges import POLICY, choose_ranges
from runtime.contract.cpu import has_vnni, is_x86, kernel_family, this_cpu
from runtime.contract.errors import ToolchainError
from runtime.contract.parity import LayerNoise
from runtime.contract.release import EMULATED_KIND, OutputQuantization, ToolchainRecord
from runtime.contract.window import GRAPH_INPUT_NAME, GRAPH_OUTPUT_NAME, FloatArray, to_graph_layout

INTEGER_PATHS: Final = ("u8s8", "u8s8-7bit")
"""``u8s8``: 8-bit weights. ``u8s8-7bit``: weights in 7 bits (ONNX Runtime's reduce_range), for x86
without VNNI, whose u8 x s8 instruction adds two products in 16 bits and saturates: two products of
255 x 64 stay below 32768, two of 255 x 128 do not."""
_INTEGER_KERNELS: Final = frozenset(
    {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm", "Flatten", "Reshape"}
)
_BOUNDARY: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})


def integer_path_for(architecture: str, cpu_flags: frozenset[str]) -> str:
    """The integer path that is exact on a CPU.

    Args:
        architecture: As ``platform.machine()`` says.
        cpu_flags: As /proc/cpuinfo lists them.
    """
    return "u8s8" if not is_x86(architecture) or has_vnni(cpu_flags) else "u8s8-7bit"


class EmulatorToolchain(Toolchain):
    """uint8 activations, int8 per-channel weights, as QDQ, on integer kernels only.

    Args:
        integer_path: One of ``INTEGER_PATHS``; None chooses what this CPU runs exactly.
        threads: Threads of the calibration's float kernels; the bytes do not depend on it.
    """

    target = "emulator"
    sources = source_digest(
        "toolchain/__init__.py", "toolchain/emulator*.py", "onnx_model.py", "onnx_run.py", "metrics.py"
    )

    def __init__(self, integer_path: str | None = None, threads: int = 1) -> None:
        self.integer_path = integer_path or integer_path_for(*this_cpu())
        if self.integer_path not in INTEGER_PATHS:
            raise ToolchainError(f"integer path {integer_path!r} is none of {', '.join(INTEGER_PATHS)}")
        self.threads = threads
        self._sessions: dict[bytes, ort.InferenceSession] = {}

    @property
    def reduce_range(self) -> bool:
        """Whether weights have 7 bits."""
        return self.integer_path == "u8s8-7bit"

    def record(self) -> ToolchainRecord:
        """Versions of onnx, onnxruntime, onnxsim and numpy, and the integer path."""
        tools = {name: metadata.version(name) for name in EMULATOR_TOOLS}
        options = {
            "activations": "uint8 per tensor, asymmetric",
            "integer_path": self.integer_path,
            "ranges": POLICY,
            "weights": "int8 per channel, symmetric",
        }
        return ToolchainRecord(id="emulator", hardware=False, tools=tools, options=options)

    def _parse(self, onnx_model: bytes) -> Built:
        model = onnx.load_from_string(onnx_model)
        data = serialize(canonicalize(model))
        return Built(stage="parsed", kind="onnx", suffix=".onnx", data=data)

    def _optimize(self, parsed: Built, windows: FloatArray) -> Built:
        model = onnx.load_from_string(parsed.data)
        ranges = choose_ranges(model, windows, self.threads)
        quantized = quantize_graph(model, ranges, reduce_range=self.reduce_range)
        operators = (*OPERATORS, *_BOUNDARY)
        data = serialize(canonicalize(quantized, operators=operators))
        return Built(stage="quantized", kind=EMULATED_KIND, suffix=".emulated-int8.qdq.onnx", data=data)

    def _compile(self, quantized: Built) -> Built:
        """Mark the artifact as what it is."""
        model = onnx.load_from_string(quantized.data)
        del model.metadata_props[:]
        marks = {"kind": EMULATED_KIND, "not-hardware": "true", **self.record().options}
        for key in sorted(marks):
            model.metadata_props.add(key=key, value=marks[key])
        data = serialize(model)
        return Built(stage="compiled", kind=EMULATED_KIND, suffix=".emulated-int8.onnx", data=data)

    def _check(self, built: Built) -> None:
        """Every kernel that will run is an integer one, with the onnxruntime and the CPU that are here."""
        if built.stage == "compiled":
            _check_integer_kernels(built.data)

    def output_quantization(self, built: Built) -> OutputQuantization:
        """Scale and zero point of the output's DequantizeLinear."""
        graph = onnx.load_from_string(built.data).graph
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if GRAPH_OUTPUT_NAME in node.output and node.op_type == "DequantizeLinear":
                return OutputQuantization(
                    scale=float(values[node.input[1]]), zero_point=int(values[node.input[2]])
                )
        raise ToolchainError("the output is not quantized", where=built.kind)

    def kernel_family(self) -> str:
        """That of this machine's CPU."""
        return kernel_family(*this_cpu())

    def _layer_noise(self, parsed: Built, quantized: Built, windows: FloatArray) -> LayerNoise | None:
        return layer_noise(parsed.data, quantized.data, windows)

    def _infer(self, built: Built, windows: FloatArray) -> FloatArray:
        session = self._sessions.get(built.data)
        if session is None:
            # Full_precision keeps the graph as written; the artifact runs as an engine runs it.
            fused = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
            session = (
                exact_session(built.data) if built.stage == "parsed" else open_session(built.data, fused)
            )
            self._sessions[built.data] = session
        rows = [session.run(None, {GRAPH_INPUT_NAME: to_graph_layout(window)})[0] for window in windows]
        latents: FloatArray = np.concatenate(rows)
        return latents


def _check_integer_kernels(data: bytes) -> None:
    """Ask ONNX Runtime what it will run; a float kernel would be emulation in name only."""
    with tempfile.TemporaryDirectory(prefix="emulator-") as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    operators = [node.op_type for node in graph.node]
    strangers = sorted({operator for operator in operators if operator not in _INTEGER_KERNELS | _BOUNDARY})
    boundaries = [operator for operator in operators if operator in _BOUNDARY]
    if strangers or len(boundaries) > 2:
        raise ToolchainError(
            f"not integer kernels only: {json.dumps(strangers)}, {len(boundaries)} conversions between "
            "float and integer (expected one at each end)",
            hint="the onnxruntime of locks/build.txt fuses this graph fully",
        )
