"""What the Dataflow Compiler's artifact says of itself, held against what was asked for."""

from __future__ import annotations

import math
from typing import Final

from assets.toolchain import Built
from assets.toolchain.dfc_errors import DfcOutputError
from runtime.contract.errors import ToolchainError
from runtime.contract.hef_errors import HefError
from runtime.contract.hef_file import HefFile, HefStream, read_hef
from runtime.contract.release import OutputQuantization
from runtime.contract.window import LATENT_SIZE, WINDOW_SHAPE

MADE_FOR: Final = {"hailo8": ("HAILO8P", "HAILO8R"), "hailo8l": ("HAILO8L",)}
"""Architectures in a HEF that was compiled for a target."""
_INPUT_ELEMENTS: Final = math.prod(WINDOW_SHAPE)


def read_artifact(data: bytes) -> HefFile:
    """Read what ``compile`` gave; DfcOutputError where that is no HEF."""
    try:
        return read_hef(data, "encoder.hef")
    except HefError as error:
        raise DfcOutputError(
            f"compile gave no HEF: {error}", hint="see the DFC's log; compile again"
        ) from error


def streams_of(hef: HefFile) -> tuple[HefStream, HefStream]:
    """The one input and the one output of the encoder.

    Raises:
        DfcOutputError: There are others, or they have another size.
    """
    (group, *more) = hef.network_groups
    if more or len(group.inputs) != 1 or len(group.outputs) != 1:
        raise DfcOutputError(
            f"the HEF holds {1 + len(more)} networks, the first with {len(group.inputs)} inputs and "
            f"{len(group.outputs)} outputs, expected one of each"
        )
    given, made = group.inputs[0], group.outputs[0]
    for stream, expected in ((given, _INPUT_ELEMENTS), (made, LATENT_SIZE)):
        if math.prod(stream.shape) != expected:
            raise DfcOutputError(f"the HEF's {stream.name} is {stream.shape}, expected {expected} numbers")
    if not made.scale > 0 or made.scales:
        raise DfcOutputError(
            f"the HEF does not quantize its output {made.name} with one scale",
            hint="nothing could say which integers a device has to give",
        )
    return given, made


def check_hef(data: bytes, target: str, version: str) -> dict[str, str]:
    """Refuse a HEF that is for another chip, of another compiler, or has other streams than the encoder.

    Args:
        data: What ``compile`` gave.
        target: What it was asked for.
        version: Of the compiler that was asked.

    Returns:
        What the artifact says of itself, for a product's facts.

    Raises:
        DfcOutputError: Names what differs.
    """
    hef = read_artifact(data)
    if hef.architecture not in MADE_FOR[target]:
        raise DfcOutputError(
            f"the HEF is for {hef.architecture}, {target} was asked for", hint="report it with the DFC's log"
        )
    if hef.dfc_version != version:
        raise DfcOutputError(
            f"the HEF says that {hef.sdk_version or 'nobody'} compiled it, {version} was asked",
            hint="is it the DFC that HAILO_DFC_PYTHON names? compile again",
        )
    given, made = streams_of(hef)
    return {
        "hef architecture": hef.architecture,
        "hef contexts": str(hef.network_groups[0].contexts),
        "hef input": _shown(given),
        "hef output": _shown(made),
    }


def output_of(built: Built) -> OutputQuantization:
    """How a HEF's output integers become latents.

    Raises:
        ToolchainError: It is not compiled yet: a HAR does not say it in a way that is known.
    """
    if built.stage != "compiled":
        raise ToolchainError(f"a {built.stage} model does not say how its output is quantized, a HEF does")
    _, made = streams_of(read_artifact(built.data))
    return OutputQuantization(scale=made.scale, zero_point=round(made.zero_point))


def _shown(stream: HefStream) -> str:
    low, high = stream.limits
    bits = 8 * stream.element_bytes
    return f"{stream.name} {stream.shape} {stream.order}, {bits} bits, {low:.4g} to {high:.4g}"
