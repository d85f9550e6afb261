"""A motif head for encoders that came without one: k-means centres, linear under softmax too."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.cluster.vq import ClusterError, kmeans2

from runtime.contract.errors import CalibrationError
from runtime.contract.motifs import MotifHead
from runtime.contract.window import FloatArray

MOTIFS: Final = 12
SEED: Final = 20250831


def fit_head(latents: FloatArray, motifs: int = MOTIFS) -> MotifHead:
    """Cluster calibration latents and write the clusters as a linear layer.

    The score of centre c for latent z is softmax of -|z - c|² / t, with t the mean squared
    distance of a latent to its centre; |z|² is the same for all centres and drops out, which
    leaves weight 2c/t and bias -|c|²/t.

    Args:
        latents: float32 (N, 64), full_precision latents of the calibration set.
        motifs: Number of clusters.

    Returns:
        A head labelled ``fitted``, its motifs named ``cluster_0`` and so on, largest first.

    Raises:
        CalibrationError: The latents do not fill that many clusters.
    """
    values = latents.astype(np.float64)
    try:
        if len(np.unique(values, axis=0)) <= motifs:
            raise ClusterError("too few distinct latents")
        rng = np.random.default_rng(SEED)
        centres, members = kmeans2(values, motifs, iter=100, minit="++", missing="raise", seed=rng)
    except ClusterError as error:
        raise CalibrationError(
            f"{len(values)} calibration latents do not fill {motifs} clusters: {error}",
            hint="add varied windows",
        ) from error
    counts = np.bincount(members, minlength=motifs)
    spread = float(np.mean(np.sum((values - centres[members]) ** 2, axis=1)))
    centres = centres[np.argsort(-counts, kind="stable")]
    weight = (2.0 * centres / spread).astype(np.float32)
    bias = (-np.sum(centres**2, axis=1) / spread).astype(np.float32)
    return MotifHead(
        provenance="fitted",
        names=tuple(f"cluster_{index}" for index in range(motifs)),
        weight=tuple(tuple(float(v) for v in row) for row in weight),
        bias=tuple(float(v) for v in bias),
    )
