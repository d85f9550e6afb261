"""Check, simplify and try an ONNX file that somebody gave us, in a process of its own.

A damaged graph can make the C++ libraries that read it abort or never end (seen: a Conv whose kernel outgrows
its input, before a Slice, aborts ``onnx.checker``), and an abort is no exception. So this runs as a child, as
a file by itself: it imports nothing of the project, reads the model from stdin and writes to stdout what it
computes of ``trial_windows`` and the simplified model.

Exit status: 0 with ``packed`` on stdout; ``REFUSED`` with a sentence there; anything else is a crash.
"""

from __future__ import annotations

import os
import sys
from typing import Any

REFUSED = 3
PATIENCE_SECONDS = 120
MOST_BYTES = 4 * 1024**3
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Read, check, run and simplify; write what came of it."""
    import ctypes
    import resource
    import signal

    # Whoever started this gives up then; should they be gone, it still ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE_SECONDS, PATIENCE_SECONDS))
    # A few bytes can ask for tensors beyond all memory (seen: ConstantOfShape).
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is foreseen
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the libraries print is no answer
    sys.modules["torch"] = None  # type: ignore[assignment]  # onnxsim imports it if it can, for a second
    doing = "is not a valid ONNX model"
    status = REFUSED
    try:
        import onnx

        data = sys.stdin.buffer.read()
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model, full_check=True)
        doing = "cannot be run by onnxruntime"
        latents = run(data)
        doing = "cannot be simplified"
        result, status = packed(latents, simplified(model)), 0
    except Exception as error:  # protobuf's, onnx's, onnxruntime's: they share no base class
        lines = str(error).strip().splitlines()
        said = lines[0] if lines else type(error).__name__
        result = f"{doing}: {said}".encode(errors="backslashreplace")
    answer.write(result)
    answer.close()
    return status


def trial_windows() -> Any:
    """float32 (3, 100, 9): what the graph is tried on. Noise, so that every step and channel counts."""
    import numpy as np

    scale = np.asarray([0.5, 1.0, 2.0])[:, None, None]
    return (np.random.default_rng(20).standard_normal((3, 100, 9)) * scale).astype(np.float32)


def run(data: bytes) -> Any:
    """What the graph gives for each of ``trial_windows``, as it came: the build runs it too."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    # Whoever started this knows that the shape is one of 100 steps, 9 channels and ones.
    channels_first = given.shape.index(9) < given.shape.index(100)
    rows = [
        session.run(None, {given.name: (window.T if channels_first else window).reshape(given.shape)})[0]
        for window in trial_windows()
    ]
    return np.stack([np.reshape(row, -1) for row in rows])


def packed(latents: Any, model: bytes) -> bytes:
    """Both as one answer: how many bytes the float32 latents have, they, and the model."""
    import numpy as np

    numbers = np.ascontiguousarray(latents, "<f4").tobytes()
    return len(numbers).to_bytes(8, "little") + numbers + model


def unpacked(answer: bytes) -> tuple[Any, bytes]:
    """The latents, float32 (3, numbers of one window), and the model."""
    import numpy as np

    end = 8 + int.from_bytes(answer[:8], "little")
    return np.frombuffer(answer[8:end], "<f4").reshape(len(trial_windows()), -1), answer[end:]


def simplified(model: object) -> bytes:
    """The graph with constants folded, serialized."""
    import onnxsim

    result, _ = onnxsim.simplify(model)
    data: bytes = result.SerializeToString()
    return data


if __name__ == "__main__":
    sys.exit(main())
