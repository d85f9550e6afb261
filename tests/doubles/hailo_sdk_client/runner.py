"""``ClientRunner``: the real one's calls, in the real one's order."""

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from . import numbers, script
from .exceptions import (
    BackendAllocatorException,
    BadInputsShape,
    InvalidArgumentsException,
    InvalidStateException,
    ParsingWithRecommendationException,
)
from .exposed_definitions import Dims, InferenceContext, States
from .faults import FAULT, fail

ARCHITECTURES = ("hailo8", "hailo8r", "hailo8l", "hailo15h", "hailo15m", "hailo15l", "hailo10h")
SHAPE = (1, 100, 9)
_NCHW = [Dims.BATCH, Dims.CHANNELS, Dims.HEIGHT, Dims.WIDTH]
_ORDER = list(States)
_NEEDS = {
    InferenceContext.SDK_NATIVE: States.HAILO_MODEL,
    InferenceContext.SDK_FP_OPTIMIZED: States.FP_OPTIMIZED_MODEL,
    InferenceContext.SDK_QUANTIZED: States.QUANTIZED_MODEL,
}


class ClientRunner:
    """The entry to everything.

    Keyword arguments only, as people call it: ``hw_arch``, or ``har`` with or without it.
    """

    def __init__(self, hw: Any = None, hw_arch: "str | None" = None, har: "str | None" = None) -> None:
        self.state = States.UNINITIALIZED
        self.net_name = ""
        self.members: dict[str, bytes] = {}
        self.script = ""
        if har is not None:
            self._load(har)
            hw_arch = hw_arch or self.hw_arch
        if hw_arch not in ARCHITECTURES:
            raise InvalidArgumentsException(f"Unsupported hw_arch {hw_arch!r}")
        self.hw_arch: str = hw_arch

    def _load(self, har: str) -> None:
        if not isinstance(har, str):
            raise InvalidArgumentsException("har must be a path")
        with tarfile.open(har) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                assert file is not None
                self.members[member.name.partition(".")[2]] = file.read()
                self.net_name = member.name.partition(".")[0]
        metadata = json.loads(self.members["metadata.json"])
        self.state, self.hw_arch = States(metadata["state"]), metadata["hw_arch"]
        self.script = metadata["script"]

    def translate_onnx_model(
        self,
        model: Any = None,
        net_name: str = "model",
        start_node_names: "list[str] | None" = None,
        end_node_names: "list[str] | None" = None,
        net_input_shapes: "dict[str, list[int]] | None" = None,
        augmented_path: "str | None" = None,
        disable_shape_inference: bool = False,
        disable_rt_metadata_extraction: bool = False,
        net_input_format: "dict[str, list[Dims]] | None" = None,
        **kwargs: Any,
    ) -> "tuple[dict[str, Any], dict[str, Any]]":
        """ONNX to Hailo's own form."""
        if self.state is not States.UNINITIALIZED:
            raise InvalidStateException(f"translate_onnx_model in state {self.state}")
        if kwargs.keys() - {"disable_onnx_simplifier"}:
            raise TypeError(f"translate_onnx_model() got unexpected keyword arguments {sorted(kwargs)}")
        print(f"[info] Translation started on ONNX model {net_name}", flush=True)
        fail("translate")
        if FAULT == "translate:recommend":
            raise ParsingWithRecommendationException(
                "Parsing failed with recommendations for end node names: ['/pool/GlobalAveragePool']"
            )
        data = Path(model).read_bytes()
        graph = numbers.read_graph(data)
        name = graph.input[0].name
        if (net_input_format or {}).get(name) != _NCHW or (net_input_shapes or {}).get(name) != [
            1,
            9,
            1,
            100,
        ]:
            raise InvalidArgumentsException(
                f"format or shape of {name} is not that of [1, 9, 1, 100] in NCHW"
            )
        self.net_name = net_name
        hn = {
            "name": net_name,
            "layers": {
                f"{net_name}/input_layer1": {
                    "type": "input_layer",
                    "input_shapes": [[-1, *SHAPE]],
                    "original_names": [name],
                }
            },
            "net_params": {"output_layers_order": [f"{net_name}/fc1"], "version": 1.0},
        }
        self.members = {"hn": json.dumps(hn).encode(), "native.onnx": data}
        if FAULT == "translate:transposed":
            self.members["native.onnx"] = numbers.spoilt(data)
        self.state = States.HAILO_MODEL
        print(f"[info] Translation completed on ONNX model {net_name}", flush=True)
        return hn, {}

    def get_hn_dict(self) -> "dict[str, Any]":
        """The graph."""
        self._at_least(States.HAILO_MODEL, "get_hn_dict")
        result: dict[str, Any] = json.loads(self.members["hn"])
        return result

    def save_har(self, har_path: str, compilation_only: bool = False) -> None:
        """Everything so far as a tar, uncompressed."""
        self._at_least(States.HAILO_MODEL, "save_har")
        if f"save:{self.state.value}" == FAULT:
            return
        metadata = {"state": self.state.value, "hw_arch": self.hw_arch, "script": self.script}
        buffer = io.BytesIO()
        np.savez(buffer, empty=np.zeros(1, np.float32))
        members = {"npz": buffer.getvalue(), **self.members, "metadata.json": json.dumps(metadata).encode()}
        with tarfile.open(har_path, "w:") as archive:
            for name, data in members.items():
                entry = tarfile.TarInfo(f"{self.net_name}.{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        print(f"[info] Saved HAR to: {har_path}", flush=True)

    def load_model_script(self, model_script: str, append: bool = False) -> None:
        """Commands for what follows: a path, or the text itself."""
        self._at_least(States.HAILO_MODEL, "load_model_script")
        if not isinstance(model_script, str):
            raise InvalidArgumentsException("model_script must be a path or a text")
        text = Path(model_script).read_text() if model_script.endswith(".alls") else model_script
        script.parse(text)
        self.script = self.script + text if append else text

    def optimize_full_precision(self, calib_data: Any = None) -> None:
        """Float rewriting only."""
        self._exactly(States.HAILO_MODEL, "optimize_full_precision")
        self.state = States.FP_OPTIMIZED_MODEL

    def optimize(self, calib_data: Any, data_type: Any = None, work_dir: "str | None" = None) -> None:
        """Quantize by calibration data."""
        if self.state not in (States.HAILO_MODEL, States.FP_OPTIMIZED_MODEL):
            raise InvalidStateException(f"optimize in state {self.state}")
        data = self._data(calib_data)
        print("[info] Starting Model Optimization", flush=True)
        script.narrate(self.script, len(data))
        fail("optimize")
        self.members["quantized.onnx"] = numbers.quantize(self.members["native.onnx"], data)
        self.state = States.QUANTIZED_MODEL
        print("[info] Model Optimization is done", flush=True)

    @contextmanager
    def infer_context(self, inference_context: InferenceContext, *args: Any) -> "Iterator[_Context]":
        """Where ``infer`` may be called."""
        if not isinstance(inference_context, InferenceContext):
            raise InvalidArgumentsException("infer_context takes an InferenceContext")
        if inference_context not in _NEEDS:
            raise InvalidArgumentsException(f"{inference_context} needs a device, or is not in this double")
        self._at_least(_NEEDS[inference_context], f"infer_context {inference_context.name}")
        quantized = self.state is States.QUANTIZED_MODEL
        if FAULT == "infer:float" and quantized and inference_context is not InferenceContext.SDK_QUANTIZED:
            raise InvalidStateException(f"{inference_context.name} needs a model that is not quantized")
        context = _Context(inference_context)
        yield context
        context.open = False

    def infer(self, context: "_Context", dataset: Any, data_count: Any = None, batch_size: int = 1) -> Any:
        """Latents, with axes of height and width."""
        if not isinstance(context, _Context) or not context.open:
            raise InvalidStateException("infer outside of its infer_context")
        fail("infer")
        name = "quantized.onnx" if context.kind is InferenceContext.SDK_QUANTIZED else "native.onnx"
        latents = numbers.run(self.members[name], self._data(dataset))[:, None, None, :]
        if FAULT == "infer:nan":
            latents = np.full_like(latents, np.nan)
        return [latents, latents] if FAULT == "infer:two" else latents

    def compile(self) -> bytes:
        """The HEF's bytes."""
        self._exactly(States.QUANTIZED_MODEL, "compile")
        print("[info] To achieve optimal performance, set the compiler_optimization_level to max", flush=True)
        fail("compile")
        if FAULT == "compile:mapping":
            raise BackendAllocatorException("No successful assignments: conv5 errors: Agent infeasible")
        self.state = States.COMPILED_MODEL
        return numbers.hef(self.members["quantized.onnx"], self.hw_arch, self.net_name, FAULT)

    def _data(self, given: Any) -> Any:
        if not isinstance(given, np.ndarray):
            raise InvalidArgumentsException("this double takes an ndarray")
        if given.shape[1:] != SHAPE or given.ndim != 4:
            raise BadInputsShape(
                f"Data shape {given.shape[1:]} for layer {self.net_name}/input_layer1 "
                f"doesn't match network's input shape {SHAPE}"
            )
        if given.dtype not in (np.dtype(np.float32), np.dtype(np.uint8)):
            raise InvalidArgumentsException(f"calibration data is {given.dtype}")
        return given

    def _at_least(self, state: States, call: str) -> None:
        if _ORDER.index(self.state) < _ORDER.index(state):
            raise InvalidStateException(f"{call} in state {self.state}, needs {state}")

    def _exactly(self, state: States, call: str) -> None:
        if self.state is not state:
            raise InvalidStateException(f"{call} in state {self.state}, needs {state}")


class _Context:
    def __init__(self, kind: InferenceContext) -> None:
        self.kind, self.open = kind, True
