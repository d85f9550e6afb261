"""What an artifact's input range cuts off from the windows it will be given.

HailoRT saturates in silence: a value beyond the limits becomes the limit. A HEF that was calibrated on
random numbers takes 0 to 1, and turns every negative value of an IMU into 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from runtime.contract.errors import PipelineError
from runtime.contract.hef_file import HefFile, HefStream
from runtime.contract.window import CHANNELS, WINDOW_SHAPE, FloatArray

MAX_CLIPPED_SHARE: Final = 0.01
"""Of all values of the calibration windows. A compiler that saw them chooses a range that holds nearly all;
one that saw other windows, random ones or raw units misses by tens of percent."""
MAX_CHANNEL_CLIPPED_SHARE: Final = 0.05
"""Of one channel's values: all channels share one range, so it may fit eight and fail the ninth."""


class InputLimitsError(PipelineError):
    """An artifact whose input range is not that of the windows."""

    code = "input_limits"


@dataclass(frozen=True, kw_only=True)
class InputClipping:
    """How much of some windows is clipped.

    Args:
        share: Of all values, 0 to 1.
        channels: Of each channel's values, in the order of ``window.CHANNELS``.
    """

    share: float
    channels: tuple[float, ...]


def clipped_share(stream: HefStream, windows: FloatArray) -> InputClipping:
    """Count the values that a HEF's input cannot hold.

    Args:
        stream: The input; its limits are taken as the file says them. What lies beyond them by less
            than half a step is rounded to the limit anyway, and is not counted.
        windows: float32 (N, 100, 9), normalized as the engine feeds them; N at least 1.

    Raises:
        InputLimitsError: Windows of another shape, or none.
    """
    if windows.ndim != 3 or windows.shape[1:] != WINDOW_SHAPE or not len(windows):
        raise InputLimitsError(f"windows are {windows.shape}, expected (N, 100, 9)", where=stream.name)
    low, high = stream.limits
    room = max(stream.scale, 0.0) / 2
    # A NaN is within nothing.
    clipped = ~((windows >= low - room) & (windows <= high + room))
    channels = clipped.mean(axis=(0, 1), dtype=np.float64)
    return InputClipping(
        share=float(clipped.mean(dtype=np.float64)), channels=tuple(float(share) for share in channels)
    )


def check_input_limits(hef: HefFile, windows: FloatArray, where: str) -> InputClipping:
    """Refuse a HEF that would clip more than a stated share of these windows.

    Args:
        hef: One network with one input.
        windows: float32 (N, 100, 9), normalized: those that it was calibrated on.
        where: How errors name the file.

    Returns:
        What it clips.

    Raises:
        InputLimitsError: More than ``MAX_CLIPPED_SHARE`` of all values, or than
            ``MAX_CHANNEL_CLIPPED_SHARE`` of a channel's.
    """
    inputs = [stream for network in hef.network_groups for stream in network.inputs]
    if len(inputs) != 1:
        raise InputLimitsError(f"has {len(inputs)} inputs, the encoder has one", where=where)
    clipping = clipped_share(inputs[0], windows)
    missed = [f"{clipping.share:.1%} of all values"] if clipping.share > MAX_CLIPPED_SHARE else []
    missed += [
        f"{share:.1%} of {channel}"
        for channel, share in zip(CHANNELS, clipping.channels, strict=True)
        if share > MAX_CHANNEL_CLIPPED_SHARE
    ]
    if missed:
        low, high = inputs[0].limits
        raise InputLimitsError(
            f"its input takes {low:.4g} to {high:.4g} and clips {', '.join(missed)}; allowed are "
            f"{MAX_CLIPPED_SHARE:.0%} of all and {MAX_CHANNEL_CLIPPED_SHARE:.0%} of a channel",
            where=where,
            hint="calibrate on normalized windows of the device, not on random ones or raw units",
        )
    return clipping
