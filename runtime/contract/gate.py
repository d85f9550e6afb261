"""The gate: what lets a release out, held by the publisher and again by whoever loads it."""

from __future__ import annotations

import math

from runtime.contract.errors import PublicationRefusedError
from runtime.contract.hailo_compatibility import check_architecture, device_of
from runtime.contract.hef_errors import HefInterfaceError
from runtime.contract.hef_file import HefFile, HefStream, read_hef
from runtime.contract.release import FULL_PRECISION_KIND, Manifest
from runtime.contract.window import LATENT_SIZE, WINDOW_SHAPE


def check_publishable(manifest: Manifest) -> None:
    """Let a release out only with a passed parity about this very artifact.

    The verdict is worked out again from the recorded numbers: a report that merely says
    ``passed`` is not believed, and a policy without thresholds refuses.

    Raises:
        PublicationRefusedError: Parity is missing, failed, about other bytes, or was judged by
            nothing.
    """
    if manifest.primary.kind == FULL_PRECISION_KIND:
        raise PublicationRefusedError(
            "holds the onnx_model, marked full_precision: it is made to be measured, not to be released",
            where=manifest.artifact,
            hint="release the quantized artifact",
        )
    parity = manifest.parity
    if parity.artifact_sha256 != manifest.primary.sha256:
        raise PublicationRefusedError(
            f"parity was computed on {parity.artifact_sha256[:12]}, the artifact is "
            f"{manifest.primary.sha256[:12]}",
            where="parity.artifact_sha256",
            hint="materialize parity_report for this artifact",
        )
    missed = missed_bounds(parity.metrics, parity.thresholds, parity.ceilings)
    if not parity.passed or missed or parity.failures:
        reasons = "; ".join(dict.fromkeys((*parity.failures, *missed))) or "the report says failed"
        raise PublicationRefusedError(f"parity failed: {reasons}", where="parity")
    if parity.windows < 1:
        raise PublicationRefusedError("parity was judged on no window", where="parity.windows")


def check_artifact(manifest: Manifest, data: bytes, where: str = "") -> HefFile | None:
    """Look into the bytes of a release's artifact, where its target is a chip.

    Args:
        manifest: What it says of the target is what the bytes are held against.
        data: Of the primary artifact.
        where: How errors name it; its name where none is given.

    Returns:
        The HEF; None for the emulator, whose engine reads its artifact anyway.

    Raises:
        HefError: As ``check_hef``.
    """
    if manifest.target == "emulator":
        return None
    return check_hef(data, manifest.target, where or manifest.artifact)


def check_hef(data: bytes, target: str, where: str) -> HefFile:
    """Read a HEF that is the encoder, for the target's chip.

    Raises:
        HefArchitectureError: Compiled for another chip.
        HefInterfaceError: Not one network with one window in and one latent out.
        HefError: No HEF, or not a whole one; each kind its own.
    """
    hef = read_hef(data, where)
    check_encoder(hef, target, where)
    return hef


def check_encoder(hef: HefFile, target: str, where: str) -> None:
    """Refuse a HEF that is not the encoder, for the target's chip.

    Raises:
        HefArchitectureError: Compiled for another chip.
        HefInterfaceError: Not one network with one window in and one latent out.
    """
    check_architecture(hef, device_of(target), where)
    if len(hef.network_groups) != 1:
        raise HefInterfaceError(
            f"holds {len(hef.network_groups)} network groups, the encoder is one", where=where
        )
    (network,) = hef.network_groups
    if network.host_operations:
        raise HefInterfaceError(
            f"leaves {', '.join(network.host_operations)} to the host, the encoder ends on the chip",
            where=where,
        )
    takes, gives = (1, *WINDOW_SHAPE), (LATENT_SIZE,)
    if [stream.shape for stream in network.inputs] != [takes]:
        raise HefInterfaceError(f"takes {_shapes(network.inputs)}, the encoder takes {takes}", where=where)
    if [math.prod(stream.shape) for stream in network.outputs] != [LATENT_SIZE]:
        raise HefInterfaceError(f"gives {_shapes(network.outputs)}, the encoder gives {gives}", where=where)
    for stream in (*network.inputs, *network.outputs):
        if not min(stream.scales or (stream.scale,)) > 0:
            raise HefInterfaceError(f"does not say the quantization of {stream.name}", where=where)


def _shapes(streams: tuple[HefStream, ...]) -> str:
    return " and ".join(str(stream.shape) for stream in streams[:4]) or "nothing"


def missed_bounds(
    metrics: dict[str, float], thresholds: dict[str, float], ceilings: dict[str, float]
) -> tuple[str, ...]:
    """One sentence for each bound that is missed; a missing metric and no policy miss too."""
    if not thresholds and not ceilings:
        return ("the policy has no thresholds",)
    missed = []
    for name in sorted({*thresholds, *ceilings}):
        value = metrics.get(name)
        if value is None:
            missed.append(f"{name} was not computed")
            continue
        least, most = thresholds.get(name), ceilings.get(name)
        if least is not None and not value >= least:
            missed.append(f"{name} is {value:.4g}, at least {least:.4g} is required")
        if most is not None and not value <= most:
            missed.append(f"{name} is {value:.4g}, at most {most:.4g} is allowed")
    return tuple(missed)
