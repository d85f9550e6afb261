"""Values that cannot be right, though they are numbers: answered, counted by kind, and named; known noise.

EdgeInfer's own realistic samples are in deg/s and reach 20 standard deviations: refusing them would put
random numbers in their place. Who sends such values should hear of it all the same.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from runtime.contract.telemetry import (
    GYROSCOPE,
    GYROSCOPE_LIMIT,
    IMPLAUSIBLE,
    implausible_kinds,
    z_bounds,
)
from runtime.contract.window import CHANNELS, WINDOW_LENGTH, ChannelStatistics, FloatArray

KINDS: Final = IMPLAUSIBLE

PROBE_LIMIT: Final = 1.0
"""No window of a device that measures stays below it: there is gravity, 9.8 m/s², on its accelerometer, or
the earth's field, 25 to 65 µT, on its magnetometer."""

_LENGTH: Final = (WINDOW_LENGTH, 1)
_TRUE: Final = b"\x01"


def is_probe(window: FloatArray) -> bool:
    """Whether float32 (100, 9) is what EdgeInfer's health check sends: noise within ±1 on all nine channels.

    Nothing but zeros is none: a sensor that is dead sends that.
    """
    # Nearly every window has a larger value in its first row, and costs no more than a look at that.
    for index in range(len(CHANNELS)):
        if not -PROBE_LIMIT <= window.item(index) <= PROBE_LIMIT:
            return False
    return bool(np.abs(window).max() <= PROBE_LIMIT) and bool((window.max(0) > window.min(0)).all())


class Plausibility:
    """Looks at windows, raw ones: what they mean is in the release's own statistics.

    Args:
        statistics: Of the release that runs them.
    """

    def __init__(self, statistics: ChannelStatistics) -> None:
        self._low, self._high = z_bounds(statistics)
        self._floor, self._ceiling = self._low.copy(), self._high.copy()
        np.maximum(self._low[GYROSCOPE], -GYROSCOPE_LIMIT, out=self._floor[GYROSCOPE])
        np.minimum(self._high[GYROSCOPE], GYROSCOPE_LIMIT, out=self._ceiling[GYROSCOPE])
        # As large as a window: numpy compares 900 numbers in a row four times as fast as 100 rows of 9.
        self._floors, self._ceilings = np.tile(self._floor, _LENGTH), np.tile(self._ceiling, _LENGTH)

    def kinds_of_each(self, windows: FloatArray) -> list[str]:
        """Which of ``KINDS`` are in float32 (N, 100, 9): one name for each window that has it."""
        if not self._may_be_implausible(windows):
            return []
        return [kind for window in windows for kind in self.kinds(window)]

    def kinds(self, window: FloatArray) -> tuple[str, ...]:
        """Which of ``KINDS`` are in float32 (100, 9); nearly always none."""
        if not self._may_be_implausible(window):
            return ()
        return implausible_kinds(window, (self._low, self._high))

    def _may_be_implausible(self, windows: FloatArray) -> bool:
        """Whether anything in float32 (..., 100, 9) is worth a closer look."""
        return (
            _TRUE in (windows[..., 0, :] == windows[..., 50, :]).tobytes()  # else no channel is constant
            or _TRUE in (windows > self._ceilings).tobytes()
            or _TRUE in (windows < self._floors).tobytes()
        )

    def named(self, window: FloatArray) -> str:
        """The same for a person: each kind with its channels."""
        largest, smallest = np.maximum.reduce(window, 0), np.minimum.reduce(window, 0)
        gyroscope = np.zeros(len(CHANNELS), np.bool_)
        gyroscope[GYROSCOPE] = np.maximum(largest, -smallest)[GYROSCOPE] > GYROSCOPE_LIMIT
        beyond = (largest > self._high) | (smallest < self._low)
        found = zip(KINDS, (gyroscope, beyond, largest == smallest), strict=True)
        parts = [f"{kind}={'+'.join(np.array(CHANNELS)[where])}" for kind, where in found if where.any()]
        return "; ".join(parts)
