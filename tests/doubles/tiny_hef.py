"""A HEF for the HailoRT double: the tiny encoder stands where the weights would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tests.hef_writer import make_hef, stream

_TINY_ENCODER: Final = Path(__file__).parent.parent / "data" / "tiny_encoder.onnx"
# The tiny encoder's own ranges: its integers are then exactly those of the double.
TINY_INPUT: Final = stream("tiny/input_layer1", (1, 100, 9), limits=(-8.0, 127 / 16))
TINY_OUTPUT: Final = stream("tiny/fc1", (64,), limits=(-4.0, 127 / 32), order="NC")


def tiny_hef(**changes: Any) -> bytes:
    """As ``make_hef``, with the tiny encoder as what the chip runs."""
    made = {"inputs": [TINY_INPUT], "outputs": [TINY_OUTPUT], "weights": _TINY_ENCODER.read_bytes()}
    return make_hef(**{**made, **changes})
