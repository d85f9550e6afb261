"""Whether a checkpoint and an ONNX file are one training, and whether the latter is what its weights mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from assets.encoder import Block, EncoderWeights, named_convolutions
from runtime.contract.document import sha256_bytes
from runtime.contract.errors import WeightsError
from runtime.contract.window import FloatArray

TOLERANCE: Final = 1e-6
"""Of a tensor's largest absolute weight: what folding in another order may change in float32."""
FUNCTION_TOLERANCE: Final = 1e-4
"""Of the largest number of the latents: what another order of sums may change in float32, and far more."""
_HINT: Final = (
    "another training: keep the file that the release shall be made from, or export the ONNX from this "
    "checkpoint again"
)


def check_agreement(
    checkpoint: Mapping[str, FloatArray], graph: Mapping[str, FloatArray], names: tuple[str, str]
) -> None:
    """Compare the tensors that both files have.

    Args:
        checkpoint: Canonical name to folded float32 tensor, in graph order; what it lacks is not judged
            here.
        graph: The same, of the ONNX file.
        names: File names of the two.

    Raises:
        WeightsError: One differs by more than 1e-6 of its largest absolute weight; names the first, how
            far they are apart, and both digests.
    """
    common = [name for name in checkpoint if name in graph]
    differing = [name for name in common if difference(checkpoint[name], graph[name])]
    if not differing:
        return
    name = differing[0]
    first, second = checkpoint[name], graph[name]
    raise WeightsError(
        f"{name} is not that of {names[1]}: {difference(first, second)}; sha256 {digest(first)} and "
        f"{digest(second)}; {len(differing)} of {len(common)} common tensors differ",
        where=names[0],
        hint=_HINT,
    )


def difference(first: FloatArray, second: FloatArray) -> str:
    """How two tensors differ, in words; empty where they agree."""
    if first.shape != second.shape:
        return f"shapes are {first.shape} and {second.shape}"
    # Not finite in both: that is for the check of the tensors themselves to say.
    finite = np.isfinite(first), np.isfinite(second)
    if not np.array_equal(*finite):
        return f"{int((finite[0] != finite[1]).sum())} of {first.size} values are finite in one alone"
    wide, other = (np.where(finite[0], tensor, 0).astype(np.float64) for tensor in (first, second))
    largest = float(np.abs(wide).max(initial=0.0))
    apart = float(np.abs(wide - other).max(initial=0.0))
    if apart <= TOLERANCE * largest:
        return ""
    return f"largest difference {apart:.3g}, at most {TOLERANCE:g} of the largest weight ({largest:.3g})"


def digest(tensor: FloatArray) -> str:
    """First 12 digits of the SHA-256 of a tensor's values, little-endian float32 in C order."""
    return sha256_bytes(np.ascontiguousarray(tensor, "<f4").tobytes())[:12]


def check_structure(checkpoint: Sequence[Block], graph: Sequence[Block], names: tuple[str, str]) -> None:
    """Compare what the tensors do not say: blocks, shortcuts, dilations.

    Raises:
        WeightsError: One file has a convolution that the other lacks, or the ONNX another dilation than
            2**block, which is what a checkpoint is read with.
    """
    mine, theirs = (_dilations(blocks) for blocks in (checkpoint, graph))
    for name in sorted(mine.keys() ^ theirs.keys()):
        lacking, holding = names if name in theirs else names[::-1]
        raise WeightsError(f"has no {name}, which {holding} has", where=lacking, hint=_HINT)
    for name, dilation in mine.items():
        if theirs[name] != dilation:
            raise WeightsError(
                f"{name} has dilation {theirs[name]}; {names[0]} holds none and is read with {dilation}",
                where=names[1],
                hint=f"keep {names[1]} alone: it says its dilations",
            )


def _dilations(blocks: Sequence[Block]) -> dict[str, int]:
    return {
        f"blocks.{index}.{name}": convolution.dilation if convolution.weight.shape[-1] > 1 else 1
        for index, block in enumerate(blocks)
        for name, convolution in named_convolutions(block)
    }


def check_function(encoder: EncoderWeights, windows: FloatArray, found: FloatArray, name: str) -> None:
    """Hold what an ONNX file computes against its weights in a causal encoder.

    Its pads and slices are not read: equal weights behind other pads are another function.

    Args:
        encoder: As it was read, from the file or from the checkpoint beside it.
        windows: float32 (N, 100, 9), normalized.
        found: What the file gave for them, one row for each.
        name: The file's name.

    Raises:
        WeightsError: It is another function; says how far they are apart.
    """
    expected = encoder.latents(windows)
    if found.shape != expected.shape:
        raise WeightsError(
            f"gives {found.shape[1]} numbers for a window, expected {expected.shape[1]}",
            where=name,
            hint="export the encoder with the latent of one window as its output",
        )
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        raise WeightsError(
            "computes a latent that is not finite",
            where=name,
            hint="the weights are too large for float32: look at the training",
        )
    scale, apart = float(np.abs(expected).max()), float(np.abs(expected - found).max())
    if apart > FUNCTION_TOLERANCE * scale:
        raise WeightsError(
            f"computes something else than its weights in a causal encoder: latents differ by {apart:.3g} "
            f"(largest {scale:.3g}, at most {FUNCTION_TOLERANCE:g} of it)",
            where=name,
            hint="pad each convolution with zeros before the first step only: causal pads [dilation * "
            "(kernel - 1), 0], or that many on both sides and a slice that cuts the end off",
        )
