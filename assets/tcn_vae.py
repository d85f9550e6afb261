"""The TCN-VAE that the encoder comes from, as torch modules.

A temporal convolutional encoder turns one normalized window (100, 9) into a latent of 64 numbers;
the decoder, the variance head and the activity classifier exist for training. Parameter names are
those of the published checkpoints, so a state dict loads strictly and its folded weights can be
compared with an ONNX file tensor by tensor.

This is the only module that imports torch at its top: import it inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 9
STEPS = 100
LATENT = 64
HIDDEN = (64, 128, 256)
KERNEL = 3

_ENCODER = "tcn_encoder."
_TRAINING_ONLY = ("fc_logvar.", "decoder.")


class WeightNormConv1d(nn.Module):
    """Conv1d whose kernel is stored as a length ``weight_g`` and a direction ``weight_v``.

    State dict: ``bias`` (out,), ``weight_g`` (out, 1, 1), ``weight_v`` (out, in, kernel), float32.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, dilation: int) -> None:
        super().__init__()
        direction = torch.empty(outputs, inputs, kernel)
        nn.init.kaiming_normal_(direction, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.weight_g = nn.Parameter(direction.norm(dim=(1, 2), keepdim=True))
        self.weight_v = nn.Parameter(direction)
        self.dilation = dilation
        self.padding = dilation * (kernel - 1)

    def folded_weight(self) -> Tensor:
        """Return the plain kernel g * v / |v|, float32 (out, in, kernel)."""
        length: Tensor = torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True)
        return self.weight_v * (self.weight_g / length)

    def forward(self, signal: Tensor) -> Tensor:
        """Map (N, in, T) to (N, out, T + padding); the surplus at the end is for ``Chomp1d``."""
        return functional.conv1d(
            signal, self.folded_weight(), self.bias, padding=self.padding, dilation=self.dilation
        )


class Chomp1d(nn.Module):
    """Drop the last ``surplus`` steps, so that a step never sees later ones."""

    def __init__(self, surplus: int) -> None:
        super().__init__()
        self.surplus = surplus

    def forward(self, signal: Tensor) -> Tensor:
        """Map (N, C, T + surplus) to (N, C, T)."""
        # Counted from the start: a kernel of one tap has no surplus, and [:-0] is nothing.
        return signal[:, :, : signal.shape[2] - self.surplus].contiguous()


class TemporalBlock(nn.Module):
    """Two causal dilated convolutions and a 1x1 shortcut: relu(net(x) + downsample(x)).

    ``conv1`` is also ``net.0`` and ``conv2`` is also ``net.4``: the same tensors under two names,
    as published checkpoints have them. ``downsample`` is None where the width does not change.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = WeightNormConv1d(inputs, outputs, kernel, dilation=dilation)
        self.conv2 = WeightNormConv1d(outputs, outputs, kernel, dilation=dilation)
        self.net = nn.Sequential(
            self.conv1,
            Chomp1d(self.conv1.padding),
            nn.ReLU(),
            nn.Dropout(dropout),
            self.conv2,
            Chomp1d(self.conv2.padding),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, signal: Tensor) -> Tensor:
        """Map (N, inputs, T) to (N, outputs, T)."""
        shortcut = signal if self.downsample is None else self.downsample(signal)
        return functional.relu(self.net(signal) + shortcut)


class TemporalConvNet(nn.Module):
    """Blocks in a row; block i has dilation 2**i."""

    def __init__(self, channels: Sequence[int], kernel: int, dropout: float) -> None:
        super().__init__()
        pairs = pairwise(channels)
        self.network = nn.Sequential(
            *(TemporalBlock(i, o, kernel, 2**level, dropout) for level, (i, o) in enumerate(pairs))
        )

    def forward(self, signal: Tensor) -> Tensor:
        """Map (N, channels[0], T) to (N, channels[-1], T)."""
        return cast(Tensor, self.network(signal))


class TcnEncoder(nn.Module):
    """What is served: normalized window to latent, with the motif head where there is one.

    Attributes:
        tcn_encoder: The convolutional blocks.
        fc_mu: Linear from the mean over time to the latent.
        activity_classifier: Linear from the latent to M motif logits, or None.
    """

    def __init__(
        self,
        channels: Sequence[int] = (CHANNELS, *HIDDEN),
        *,
        kernel: int = KERNEL,
        latent: int = LATENT,
        motifs: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tcn_encoder = TemporalConvNet(channels, kernel, dropout)
        self.fc_mu = nn.Linear(channels[-1], latent)
        self.activity_classifier = None if motifs is None else nn.Linear(latent, motifs)

    def features(self, windows: Tensor) -> Tensor:
        """Map normalized windows, float32 (N, 100, 9), to the mean over time, (N, 256)."""
        signal = self.tcn_encoder(windows.transpose(1, 2))
        return functional.adaptive_avg_pool1d(signal, 1).squeeze(-1)

    def forward(self, windows: Tensor) -> Tensor:
        """Encode normalized windows.

        Args:
            windows: float32 (N, 100, 9) = (window, time, channel), dimensionless z-scores.

        Returns:
            float32 (N, 64), the mean of the latent distribution.
        """
        return cast(Tensor, self.fc_mu(self.features(windows)))


class Decoder(nn.Module):
    """Latent back to a normalized window: coarse in time, then two small convolutions."""

    WIDTH = 64
    COARSE_STEPS = 25

    def __init__(self, latent: int, channels: int) -> None:
        super().__init__()
        self.expand = nn.Linear(latent, self.WIDTH * self.COARSE_STEPS)
        self.hidden = nn.Conv1d(self.WIDTH, 32, 5, padding=2)
        self.output = nn.Conv1d(32, channels, 5, padding=2)

    def forward(self, latent: Tensor) -> Tensor:
        """Map (N, 64) to (N, 100, 9), z-scores."""
        coarse = functional.relu(self.expand(latent)).reshape(-1, self.WIDTH, self.COARSE_STEPS)
        signal = functional.interpolate(coarse, size=STEPS, mode="linear", align_corners=False)
        return cast(Tensor, self.output(functional.relu(self.hidden(signal)))).transpose(1, 2)


class TcnVae(TcnEncoder):
    """The whole model as it is trained; as an encoder it behaves like its base class."""

    def __init__(
        self,
        motifs: int,
        *,
        channels: Sequence[int] = (CHANNELS, *HIDDEN),
        kernel: int = KERNEL,
        latent: int = LATENT,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, kernel=kernel, latent=latent, motifs=motifs, dropout=dropout)
        self.fc_logvar = nn.Linear(channels[-1], latent)
        self.decoder = Decoder(latent, channels[0])

    def distribution(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalized windows (N, 100, 9) to mean and log variance, each (N, 64)."""
        features = self.features(windows)
        return self.fc_mu(features), self.fc_logvar(features)


def encoder_from_state_dict(state: Mapping[str, Tensor]) -> TcnEncoder:
    """Build the encoder that a checkpoint describes and load it strictly.

    Widths, kernel length, latent size and number of motifs are read off the tensors. The prefix
    ``tcn_encoder.`` may be absent; decoder, ``fc_logvar``, ``activity_classifier`` and the second names
    of the convolutions too.

    Args:
        state: Plain state dict of tensors, on any device.

    Returns:
        The encoder in evaluation mode, on the CPU, in float32.

    Raises:
        ValueError: A tensor is missing, unexpected or of the wrong shape, or two names that should
            mean one tensor hold different values.
    """
    tensors = _encoder_tensors(state)
    _check_aliases(tensors)
    tensors = _with_aliases(tensors)
    first, last = _block_shapes(tensors)
    latent = _dimension(tensors, "fc_mu.weight", 0)
    has_head = "activity_classifier.weight" in tensors
    encoder = TcnEncoder(
        (first[1], *last),
        kernel=first[2],
        latent=latent,
        motifs=_dimension(tensors, "activity_classifier.weight", 0) if has_head else None,
    )
    try:
        encoder.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"not a TCN-VAE checkpoint: {error}") from error
    return encoder.eval()


def _encoder_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what only training needs and give block tensors their full names."""
    return {
        f"{_ENCODER}{name}" if name.startswith("network.") else name: tensor
        for name, tensor in state.items()
        if not name.startswith(_TRAINING_ONLY)
    }


def _dimension(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    if name not in tensors or tensors[name].ndim <= axis:
        raise ValueError(f"the checkpoint has no usable {name}")
    return tensors[name].shape[axis]


def _block_shapes(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return block 0's kernel shape (out, in, kernel) and every block's width."""
    name = f"{_ENCODER}network.{{}}.conv1.weight_v"
    shape = tuple(_dimension(tensors, name.format(0), axis) for axis in range(3))
    blocks = 1
    while name.format(blocks) in tensors:
        blocks += 1
    widths = tuple(_dimension(tensors, name.format(block), 0) for block in range(blocks))
    return (shape[0], shape[1], shape[2]), widths


def _check_aliases(tensors: Mapping[str, Tensor]) -> None:
    """Refuse copies that differ: loading would keep whichever came last."""
    for name, tensor in tensors.items():
        twin = name.replace(".net.0.", ".conv1.").replace(".net.4.", ".conv2.")
        if twin != name and twin in tensors and not torch.equal(tensor, tensors[twin]):
            raise ValueError(f"{name} and {twin} should be one tensor but differ")


def _with_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the second names where a checkpoint has only ``conv1`` and ``conv2``."""
    twins = {
        name.replace(".conv1.", ".net.0.").replace(".conv2.", ".net.4."): tensor
        for name, tensor in tensors.items()
    }
    return {**twins, **tensors}
