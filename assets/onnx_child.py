"""Check, simplify and try an ONNX file that somebody gave us, in a process of its own.

A damaged graph can make the C++ libraries that read it abort or never end (seen: a Conv whose kernel outgrows
its input, before a Slice, aborts ``onnx.checker``), and an abort is no exception. So this runs as a child, as
a file by itself: it imports nothing of the project, reads the model from stdin and writes the simplified one
to stdout.

Exit status: 0 with the model on stdout; ``REFUSED`` with a sentence there; anything else is a crash.
"""

from __future__ import annotations

import os
import sys

REFUSED = 3
PATIENCE_SECONDS = 120


def main() -> int:
    """Read, check, simplify and run once; write what came of it."""
    import resource

    # Whoever started this gives up then; should they be gone, it still ends.
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE_SECONDS, PATIENCE_SECONDS))
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
        run_once(data)
        doing = "cannot be simplified"
        result, status = simplified(model), 0
    except Exception as error:  # protobuf's, onnx's, onnxruntime's: they share no base class
        lines = str(error).strip().splitlines()
        said = lines[0] if lines else type(error).__name__
        result = f"{doing}: {said}".encode(errors="backslashreplace")
    answer.write(result)
    answer.close()
    return status


def run_once(data: bytes) -> None:
    """Run the graph on zeros: what the build will do, where it can do no harm."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    session.run(None, {given.name: np.zeros(given.shape, np.float32) for given in session.get_inputs()})


def simplified(model: object) -> bytes:
    """The graph with constants folded, serialized."""
    import onnxsim

    result, _ = onnxsim.simplify(model)
    data: bytes = result.SerializeToString()
    return data


if __name__ == "__main__":
    sys.exit(main())
