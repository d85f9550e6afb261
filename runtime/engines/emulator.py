"""The emulator: an int8 ONNX graph on ONNX Runtime's CPU kernels, for laptops and CI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnxruntime as ort

from runtime.contract.cpu import kernel_family, this_cpu
from runtime.contract.errors import EngineError
from runtime.contract.release import Manifest
from runtime.contract.store import Release
from runtime.contract.window import (
    GRAPH_INPUT_NAME,
    GRAPH_INPUT_SHAPE,
    GRAPH_OUTPUT_NAME,
    LATENT_SIZE,
    FloatArray,
)
from runtime.engines import Engine

_ERROR: Final = 3
_HINT: Final = "the artifact does not run with this onnxruntime: rebuild the release"


class EmulatorEngine(Engine):
    """Runs the verified bytes of an ``emulated-int8`` artifact; of the ``onnx_model`` itself for a benchmark.

    Raises:
        EngineError: Bytes that onnxruntime refuses, or a graph whose input or output is not the
            manifest's.
        DigestMismatchError: The artifact's bytes are not what the manifest names.
    """

    def __init__(self, release: Release) -> None:
        super().__init__(release.manifest)
        primary = release.manifest.primary
        self._session: ort.InferenceSession | None = _open_session(release.read(primary.name), primary.name)
        _check_graph(self._session, release.manifest)
        self._input: FloatArray = np.zeros(GRAPH_INPUT_SHAPE, np.float32)
        self._output: FloatArray = np.zeros((1, LATENT_SIZE), np.float32)
        self._binding: ort.IOBinding | None = self._bound(self._session)

    @property
    def kernel_family(self) -> str:
        """That of this machine's CPU."""
        return kernel_family(*this_cpu())

    @property
    def program(self) -> str:
        """ONNX Runtime's name and version."""
        return f"onnxruntime {ort.__version__}"

    def _infer(self, tensor: FloatArray) -> FloatArray:
        assert self._session is not None
        self._input[...] = tensor
        # An output that no run wrote is seen: it is not finite.
        self._output.fill(np.nan)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            # onnxruntime's exceptions share no base class but Exception.
            raise EngineError(_first_line(error), where="onnxruntime", hint=_HINT) from error
        return self._output

    def _bound(self, session: ort.InferenceSession) -> ort.IOBinding:
        """Tie the graph to this engine's own buffers: a run then allocates and converts nothing."""
        binding = session.io_binding()
        sides = (
            (binding.bind_input, GRAPH_INPUT_NAME, self._input),
            (binding.bind_output, GRAPH_OUTPUT_NAME, self._output),
        )
        for bind, name, buffer in sides:
            bind(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        return binding

    def _close(self) -> None:
        self._binding = None
        self._session = None


def _open_session(data: bytes, name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # A window takes a fraction of a millisecond: more threads only add hand-overs, and a thread
    # that spins for work would take the core that HTTP needs.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERROR
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(_first_line(error), where=name, hint=_HINT) from error


def _check_graph(session: ort.InferenceSession, manifest: Manifest) -> None:
    found = [_describe(session.get_inputs()), _describe(session.get_outputs())]
    expected = [
        [(GRAPH_INPUT_NAME, list(GRAPH_INPUT_SHAPE), "tensor(float)")],
        [(GRAPH_OUTPUT_NAME, [1, LATENT_SIZE], "tensor(float)")],
    ]
    for side, have, want in zip(("input", "output"), found, expected, strict=True):
        if have != want:
            raise EngineError(
                f"the graph's {side} is {have}, the manifest says {want}",
                where=manifest.artifact,
                hint="the artifact was not made by this pipeline's onnx_model",
            )


def _describe(nodes: Sequence[ort.NodeArg]) -> list[tuple[str, list[int | str], str]]:
    return [(node.name, list(node.shape), node.type) for node in nodes]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
