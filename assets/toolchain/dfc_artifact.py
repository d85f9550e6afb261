"""What the Dataflow Compiler's artifact says of itself, held against what was asked for."""

from __future__ import annotations

from typing import Final

from assets.toolchain import Built
from assets.toolchain.dfc_errors import DfcOutputError
from runtime.contract.errors import ToolchainError
from runtime.contract.gate import check_hef
from runtime.contract.hef_errors import HefError
from runtime.contract.hef_file import HefStream, read_hef
from runtime.contract.release import OutputQuantization

NAME: Final = "encoder.hef"
_ASKED: Final = {"hailo8": ("HAILO8P", "HAILO8R"), "hailo8l": ("HAILO8L",)}
"""What the compiler makes for a target: a device takes more, and would run it more slowly."""


def check_compiled(data: bytes, target: str, version: str) -> dict[str, str]:
    """Refuse what is no HEF, or is for another chip, of another compiler, or not the encoder.

    Args:
        data: What ``compile`` gave.
        target: What it was asked for.
        version: Of the compiler that was asked.

    Returns:
        What the artifact says of itself, for a product's facts.

    Raises:
        DfcOutputError: Names what differs.
    """
    try:
        hef = check_hef(data, target, NAME)
    except HefError as error:
        raise DfcOutputError(
            f"compile gave something else than was asked for: {error}",
            hint="see the DFC's log; compile again",
        ) from error
    if hef.architecture not in _ASKED[target]:
        raise DfcOutputError(
            f"the HEF is for {hef.architecture}, {target} was asked for",
            hint="see the DFC's log; compile again",
        )
    if hef.dfc_version != version:
        raise DfcOutputError(
            f"the HEF says that {hef.sdk_version or 'nobody'} compiled it, {version} was asked",
            hint="is it the DFC that HAILO_DFC_PYTHON names? compile again",
        )
    (network,) = hef.network_groups
    (given,), (made,) = network.inputs, network.outputs
    if made.scales:
        raise DfcOutputError(
            f"the HEF quantizes its output {made.name} with {len(made.scales)} scales, expected one",
            hint="a release names one step, by which golden outputs are compared",
        )
    return {
        "hef architecture": hef.architecture,
        "hef contexts": str(network.contexts),
        "hef input": _shown(given),
        "hef output": _shown(made),
    }


def output_of(built: Built) -> OutputQuantization:
    """How a HEF's output integers become latents.

    Raises:
        ToolchainError: It is not compiled yet: a HAR does not say it in a way that is known.
        HefError: It is no HEF.
    """
    if built.stage != "compiled":
        raise ToolchainError(f"a {built.stage} model does not say how its output is quantized, a HEF does")
    ((made,),) = (network.outputs for network in read_hef(built.data, NAME).network_groups)
    return OutputQuantization(scale=made.scale, zero_point=round(made.zero_point))


def _shown(stream: HefStream) -> str:
    low, high = stream.limits
    bits = 8 * stream.element_bytes
    return f"{stream.name} {stream.shape} {stream.order}, {bits} bits, {low:.4g} to {high:.4g}"
