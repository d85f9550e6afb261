"""The encoder's weights, free of the file they came from: folded, float32, causal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.contract.errors import WeightsError
from runtime.contract.window import CHANNELS, LATENT_SIZE, FloatArray


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """Weight float32 (out, in, kernel) and bias float32 (out,) of a causal convolution in time."""

    weight: FloatArray
    bias: FloatArray
    dilation: int = 1

    @property
    def padding(self) -> int:
        """Steps of zeros before the first one, so that no output sees a later input."""
        return self.dilation * (int(self.weight.shape[2]) - 1)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Two convolutions and the branch around them: relu(relu(conv2(relu(conv1 x))) + residual x).

    ``residual`` is a convolution of kernel 1, or None where the input itself is added.
    """

    conv1: Convolution
    conv2: Convolution
    residual: Convolution | None


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """A TCN encoder: blocks, mean over time, one linear layer to the latent.

    Args:
        blocks: In order; the first takes 9 channels.
        latent_weight: float32 (64, channels of the last block).
        latent_bias: float32 (64,).

    Raises:
        WeightsError: A tensor is not finite, or its shape does not fit its neighbours; names it.
    """

    blocks: tuple[Block, ...]
    latent_weight: FloatArray
    latent_bias: FloatArray

    def __post_init__(self) -> None:
        for name, tensor in self.tensors():
            if tensor.dtype != np.float32:
                raise WeightsError(f"dtype is {tensor.dtype}, expected float32", where=name)
            if not np.isfinite(tensor).all():
                count = int((~np.isfinite(tensor)).sum())
                raise WeightsError(
                    f"{count} of {tensor.size} values are not finite",
                    where=name,
                    hint="the training diverged or the file is damaged: export the weights again",
                )
        channels = len(CHANNELS)
        for index, block in enumerate(self.blocks):
            channels = _check_block(block, channels, f"blocks.{index}")
        _expect("latent.weight", self.latent_weight.shape, (LATENT_SIZE, channels))
        _expect("latent.bias", self.latent_bias.shape, (LATENT_SIZE,))

    def tensors(self) -> Iterator[tuple[str, FloatArray]]:
        """Every tensor with its canonical name, in graph order."""
        for index, block in enumerate(self.blocks):
            for name, convolution in named_convolutions(block):
                yield f"blocks.{index}.{name}.weight", convolution.weight
                yield f"blocks.{index}.{name}.bias", convolution.bias
        yield "latent.weight", self.latent_weight
        yield "latent.bias", self.latent_bias

    def latents(self, windows: FloatArray) -> NDArray[np.float64]:
        """What the weights mean, in float64 and without any library's help.

        Args:
            windows: float32 (N, T, 9), normalized.

        Returns:
            float64 (N, 64), not finite where the weights are too large.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            signal = windows.astype(np.float64).transpose(0, 2, 1)
            for block in self.blocks:
                inner = np.maximum(_convolved(block.conv1, signal), 0)
                inner = np.maximum(_convolved(block.conv2, inner), 0)
                side = _convolved(block.residual, signal) if block.residual else signal
                signal = np.maximum(inner + side, 0)
            result: NDArray[np.float64] = signal.mean(axis=2) @ self.latent_weight.T.astype(np.float64)
            return result + self.latent_bias

    @property
    def parameter_count(self) -> int:
        """Numbers in the folded encoder."""
        return sum(int(tensor.size) for _, tensor in self.tensors())


def _convolved(convolution: Convolution, signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """A causal convolution of (N, in, T): each tap sees the signal some steps later, after zeros."""
    count, _, steps = signal.shape
    outputs, _, kernel = convolution.weight.shape
    result = np.broadcast_to(convolution.bias.astype(np.float64)[:, None], (count, outputs, steps)).copy()
    for tap in range(kernel):
        late = convolution.dilation * (kernel - 1 - tap)
        if late < steps:
            weight = convolution.weight[:, :, tap].astype(np.float64)
            result[:, :, late:] += weight @ signal[:, :, : steps - late]
    return result


def named_convolutions(block: Block) -> list[tuple[str, Convolution]]:
    """The block's convolutions with their canonical names, in graph order."""
    named = [("conv1", block.conv1), ("conv2", block.conv2)]
    return [*named, ("residual", block.residual)] if block.residual else named


def _check_block(block: Block, channels: int, where: str) -> int:
    """Check one block that takes ``channels``; return how many it gives."""
    out = int(block.conv1.weight.shape[0])
    kernel = int(block.conv1.weight.shape[-1])
    _expect(f"{where}.conv1.weight", block.conv1.weight.shape, (out, channels, kernel))
    _expect(f"{where}.conv2.weight", block.conv2.weight.shape, (out, out, kernel))
    if block.residual:
        _expect(f"{where}.residual.weight", block.residual.weight.shape, (out, channels, 1))
    elif out != channels:
        raise WeightsError(
            f"{channels} channels in, {out} out, and no residual convolution (downsample)", where=where
        )
    for name, convolution in named_convolutions(block):
        _expect(f"{where}.{name}.bias", convolution.bias.shape, (out,))
    return out


def _expect(where: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(found) != expected:
        raise WeightsError(f"shape is {tuple(found)}, expected {expected}", where=where)
