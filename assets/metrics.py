"""How far one context's latents are from full_precision's: numbers that see what a cosine cannot.

A mean cosine of 0.95 is the contract's headline and no gate: unrelated windows of the user's encoder
reach 0.97, and ranges that are too narrow raise it, since still windows gain what bursts lose (measured).
What sees bad ranges best is the tail (``p99_error_sd``) and the worst active dimension.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import PipelineError
from runtime.contract.motifs import MotifScorer
from runtime.contract.parity import DimensionResult
from runtime.contract.window import LATENT_SIZE, FloatArray

MOST_DB: Final = 200.0
"""What an error of zero is shown as: JSON has no infinity."""
CLUSTERS: Final = 12
_SEED: Final = 20261124

Wide = npt.NDArray[np.float64]
_Power = float | np.floating[npt.NBitBase]


class ParityError(PipelineError):
    """Latents that cannot be compared."""

    code = "parity"


class LatentScale:
    """What full_precision says about the size of things: which dimensions are active, and how they spread.

    Args:
        reference: float32 (N, 64), full_precision on all evaluation windows.
        scorer: The motif head that both sides are scored with.
        active_share: A dimension is active where its standard deviation is at least this share of the
            largest one. A collapsed dimension holds nothing but quantization noise.
        clear_margin: full_precision's top-1 motif is clear where it leads the second by at least this
            much probability.

    Raises:
        ParityError: A latent is not finite, or full_precision says the same to every window.
    """

    def __init__(
        self, reference: FloatArray, scorer: MotifScorer, *, active_share: float, clear_margin: float
    ) -> None:
        wide = _finite(reference)
        self.mean: Wide = wide.mean(axis=0)
        self.sd: Wide = wide.std(axis=0)
        if not self.sd.max() > 0:
            raise ParityError(
                "full_precision says the same to every window",
                hint="look at the encoder's training, and at the evaluation windows",
            )
        self.active: npt.NDArray[np.bool_] = self.sd >= active_share * self.sd.max()
        self._scorer, self._clear_margin = scorer, clear_margin
        self._centres = _centres(wide)

    def metrics(self, reference: FloatArray, found: FloatArray) -> dict[str, float]:
        """Compare two contexts on the same windows.

        Args:
            reference: float32 (N, 64), full_precision on all the windows or on those of one stratum.
            found: float32 (N, 64), the other context on the same windows.

        Returns:
            ``mean_cosine``: 1 is best.
            ``sqnr_db``: power of the signal over power of the error, all dimensions together, dB.
            ``worst_active_sqnr_db``: variance over mean squared error of the worst active dimension, dB.
            ``p99_error_sd``: 99th percentile over windows of the largest error of an active dimension, in
            that dimension's standard deviations.
            ``centred_cosine_p5``: 5th percentile of the cosine once full_precision's mean is taken off.
            ``mean_shift_sd``: largest mean error of an active dimension, in its standard deviations.
            ``gain``: slope of found over reference in the active dimensions, each divided by its spread.
            ``kmeans_agreement``: share of windows whose nearest of 12 k-means centres is the same.
            ``motif_top1_agreement``: share of windows whose best motif is the same.
            ``motif_top1_clear``: the same share where full_precision's margin is clear; missing where it
            is clear for no window.

        Raises:
            ParityError: A latent is not finite.
        """
        wide, other = _finite(reference), _finite(found)
        error = other - wide
        active = self.active
        scaled = error[:, active] / self.sd[active]
        signal = (wide - self.mean)[:, active] / self.sd[active]
        scores = self._scorer.scores(reference)
        same = scores.argmax(axis=1) == self._scorer.scores(found).argmax(axis=1)
        metrics = {
            "mean_cosine": float(np.mean(_cosines(wide, other))),
            "sqnr_db": sqnr_db(reference, found),
            "worst_active_sqnr_db": min(self._dimension_db(error, int(i)) for i in np.flatnonzero(active)),
            "p99_error_sd": float(np.percentile(np.abs(scaled).max(axis=1), 99)),
            "centred_cosine_p5": float(np.percentile(_cosines(wide - self.mean, other - self.mean), 5)),
            "mean_shift_sd": float(np.abs(scaled.mean(axis=0)).max()),
            "gain": float(1 + np.sum(signal * scaled) / max(float(np.sum(signal**2)), 1e-30)),
            "kmeans_agreement": float(np.mean(self._cluster(wide) == self._cluster(other))),
            "motif_top1_agreement": float(np.mean(same)),
        }
        clear = _margins(scores) >= self._clear_margin
        if clear.any():
            metrics["motif_top1_clear"] = float(np.mean(same[clear]))
        return metrics

    def dimensions(self, reference: FloatArray, found: FloatArray) -> tuple[DimensionResult, ...]:
        """Each of the 64 dimensions; an inactive one has no SQNR worth the name."""
        error = _finite(found) - _finite(reference)
        return tuple(
            DimensionResult(
                index=index,
                sd=float(self.sd[index]),
                active=bool(self.active[index]),
                sqnr_db=self._dimension_db(error, index) if self.active[index] else None,
            )
            for index in range(LATENT_SIZE)
        )

    def _dimension_db(self, error: Wide, index: int) -> float:
        # Over the whole set's variance: a stratum may hardly move a dimension.
        return decibels(self.sd[index] ** 2, np.mean(error[:, index] ** 2))

    def _cluster(self, latents: Wide) -> npt.NDArray[np.intp]:
        distances = -2 * latents @ self._centres.T + np.sum(self._centres**2, axis=1)
        nearest: npt.NDArray[np.intp] = distances.argmin(axis=1)
        return nearest


def context_metrics(reference: FloatArray, found: FloatArray) -> dict[str, float]:
    """The three numbers that every context is shown with: ``sqnr_db``, ``mean_cosine``, ``max_abs``."""
    wide, other = _finite(reference), _finite(found)
    return {
        "sqnr_db": sqnr_db(reference, found),
        "mean_cosine": float(np.mean(_cosines(wide, other))),
        "max_abs": float(np.abs(other - wide).max()),
    }


def sqnr_db(reference: FloatArray, found: FloatArray, *, most: float = MOST_DB) -> float:
    """Power of the signal over power of the error, all dimensions together, within ``most`` dB.

    Raises:
        ParityError: A latent is not finite.
    """
    wide = _finite(reference)
    return decibels(np.sum(wide**2), np.sum((_finite(found) - wide) ** 2), most=most)


def decibels(signal: _Power, noise: _Power, *, most: float = MOST_DB) -> float:
    """10 log10 of a ratio of powers, at most ``most`` and at least its negative."""
    if noise <= 0:
        return most
    if signal <= 0:
        return -most
    return float(np.clip(10 * np.log10(float(signal) / float(noise)), -most, most))


def _finite(latents: FloatArray) -> Wide:
    wide = latents.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ParityError("a latent is not finite", hint="look at the weights and at the windows")
    return wide


def _cosines(first: Wide, second: Wide) -> Wide:
    """Cosine of each pair of rows; 0 where one of them is zero, since nothing then agrees."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("nd,nd->n", first, second)
    result: Wide = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return result


def _margins(scores: Wide) -> Wide:
    """By how much the best motif leads the second; 1 where there is only one."""
    if scores.shape[1] < 2:
        return np.ones(len(scores))
    best = np.sort(scores, axis=1)
    margins: Wide = best[:, -1] - best[:, -2]
    return margins


def _centres(latents: Wide) -> Wide:
    """Twelve k-means centres of full_precision; fewer where there are fewer different latents."""
    from scipy.cluster.vq import kmeans2

    count = min(CLUSTERS, len(np.unique(latents, axis=0)))
    centres, _ = kmeans2(latents, count, minit="++", seed=np.random.default_rng(_SEED), missing="warn")
    result: Wide = centres
    return result
