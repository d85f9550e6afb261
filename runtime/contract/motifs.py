"""Latent to motif scores, on the host: linear, then softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import ManifestError
from runtime.contract.window import LATENT_SIZE, FloatArray

PROVENANCES: Final = ("checkpoint", "file", "fitted")
"""``checkpoint``: trained with the encoder. ``file``: given beside the weights, in ``motif_head.json``.
``fitted``: k-means centres of calibration latents."""


@dataclass(frozen=True, kw_only=True)
class MotifHead:
    """A linear layer over the latent whose softmax is the motif scores.

    Args:
        provenance: One of ``PROVENANCES``; shown wherever the scores are shown.
        names: M motif names, unique.
        weight: M rows of 64 finite numbers, in float32's range.
        bias: M finite numbers, in float32's range.

    Raises:
        ManifestError: Counts differ, a number is not a finite float32, or the provenance is unknown.
    """

    provenance: str
    names: tuple[str, ...]
    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.provenance not in PROVENANCES:
            raise ManifestError(
                f"{self.provenance!r} is none of {', '.join(PROVENANCES)}", where="motif_head.provenance"
            )
        if not self.names or len(set(self.names)) != len(self.names):
            raise ManifestError("names must be unique and at least one", where="motif_head.names")
        if len(self.weight) != len(self.names) or len(self.bias) != len(self.names):
            raise ManifestError(
                f"{len(self.names)} names, {len(self.weight)} weight rows, {len(self.bias)} biases",
                where="motif_head",
            )
        if any(len(row) != LATENT_SIZE for row in self.weight):
            raise ManifestError(f"a row does not have {LATENT_SIZE} values", where="motif_head.weight")
        # In this range no product or sum of the scorer, in float64, can overflow.
        if not all(_are_float32(values) for values in (self.weight, self.bias)):
            raise ManifestError("a value is not a finite float32", where="motif_head")

    @property
    def size(self) -> int:
        """M, the number of motifs."""
        return len(self.names)


def _are_float32(values: object) -> bool:
    # A NaN compares false.
    return bool((np.abs(np.asarray(values, np.float64)) <= np.finfo(np.float32).max).all())


class MotifScorer:
    """A head made ready to score many latents.

    The scores of one latent do not depend, in any bit, on how many were scored with it: BLAS gives
    other last bits for a matrix than for its rows, so each latent is a product of its own.
    """

    def __init__(self, head: MotifHead) -> None:
        self.head = head
        self._weight = np.ascontiguousarray(np.asarray(head.weight, np.float64).T)
        self._bias = np.asarray(head.bias, np.float64)

    def scores(self, latents: FloatArray) -> npt.NDArray[np.float64]:
        """Score latents.

        Args:
            latents: float32 (N, 64), or (64,).

        Returns:
            float64 (N, M), or (M,); each row sums to 1.
        """
        products = np.matmul(latents.astype(np.float64)[..., None, :], self._weight)
        logits: npt.NDArray[np.float64] = products[..., 0, :]
        logits += self._bias
        logits -= np.maximum.reduce(logits, axis=-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= np.add.reduce(logits, axis=-1, keepdims=True)
        return logits
