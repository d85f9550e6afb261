"""From an artifact's output integers to latents, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import ManifestError
from runtime.contract.window import FloatArray


@dataclass(frozen=True, kw_only=True)
class OutputQuantization:
    """latent = (integer - ``zero_point``) * ``scale``.

    Args:
        scale: Size of one step (LSB) in latent units, above zero.
        zero_point: The integer that stands for 0.0.
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ManifestError(f"{self.scale} is not above zero", where="output.scale")
        if not -(2**15) <= self.zero_point < 2**16:
            raise ManifestError(f"{self.zero_point} does not fit 16 bits", where="output.zero_point")

    def integers(self, latents: FloatArray) -> npt.NDArray[np.int64]:
        """The integers that an artifact gave before they became latents.

        Args:
            latents: float32, any shape, finite; as the artifact gave them.

        Returns: Same shape, within +-2**53, so that a difference of two always fits.
        """
        with np.errstate(over="ignore"):
            steps = np.rint(latents.astype(np.float64) / self.scale) + self.zero_point
        result: npt.NDArray[np.int64] = np.clip(steps, -(2.0**53), 2.0**53).astype(np.int64)
        return result
