"""The names that people import from the real module."""

from enum import Enum


class States(Enum):
    """How far a runner has come."""

    UNINITIALIZED = "uninitialized"
    HAILO_MODEL = "hailo_model"
    FP_OPTIMIZED_MODEL = "fp_optimized_model"
    QUANTIZED_MODEL = "quantized_model"
    COMPILED_MODEL = "compiled_model"


class Dims(Enum):
    """Axes of an input."""

    BATCH = "batch"
    CHANNELS = "channels"
    HEIGHT = "height"
    WIDTH = "width"


class InferenceContext(Enum):
    """What runs an inference."""

    SDK_NATIVE = "sdk_native"
    SDK_FP_OPTIMIZED = "sdk_fp_optimized"
    SDK_QUANTIZED = "sdk_quantized"
    SDK_HAILO_HW = "sdk_hailo_hw"
    SDK_BIT_EXACT = "sdk_bit_exact"
