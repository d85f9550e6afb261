"""Double of Hailo's Dataflow Compiler: its calls, states, shapes and exceptions, computed by ONNX Runtime.

No part of it is Hailo's. It is reached only as an interpreter that a test points HAILO_DFC_PYTHON to. What it
compiles says that a double did.
"""

from .exposed_definitions import Dims, InferenceContext, States
from .faults import begin
from .runner import ClientRunner
from .script import load_tensorflow

begin()
load_tensorflow()

__all__ = ["ClientRunner", "Dims", "InferenceContext", "States"]
__version__ = "0.0.0-double"
