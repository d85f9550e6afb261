"""What a release's calibration windows and their latents looked like: one small file that travels with it.

Runtimes hold what devices send against it. A release made before there was such a file has none, and what
would need it then says so; a runtime that does not know the file serves the release all the same.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.contract.document import from_json
from runtime.contract.errors import ManifestError
from runtime.contract.release_directory import Release
from runtime.contract.window import CHANNELS, LATENT_SIZE, FloatArray

SCHEMA: Final = 1
FILE_NAME: Final = "calibration.json"
KIND: Final = "calibration-statistics"
SMALLEST: Final = 1e-6
"""Standard deviations, of z-scores and latents, below which nothing is divided by them."""
QUANTILE: Final = 0.99


@dataclass(frozen=True, kw_only=True)
class CalibrationStatistics:
    """Of the windows that an artifact's ranges come from.

    Args:
        schema: ``SCHEMA``.
        windows: How many.
        windows_sha256: Digest of their values; the manifest's ``calibration.windows_sha256``.
        latents: Whose latents: ``full_precision``, which is the same for every target and machine.
        input_mean: 9 means over all windows and times of the z-scores, in the order of ``CHANNELS``.
        input_sd: Their 9 standard deviations.
        latent_mean: 64 means over all windows.
        latent_sd: 64 standard deviations.
        latent_step: One step of the artifact's quantized output, in latent units: a dimension that varies
            by less is held against this instead.
        distance: That 1 % of these windows are farther from their mean than, as ``LatentDistance`` measures.

    Raises:
        ManifestError: A count or a value is not that.
    """

    schema: int
    windows: int
    windows_sha256: str
    latents: str
    input_mean: tuple[float, ...]
    input_sd: tuple[float, ...]
    latent_mean: tuple[float, ...]
    latent_sd: tuple[float, ...]
    latent_step: float
    distance: float

    def __post_init__(self) -> None:
        for name, values, count in (
            ("input_mean", self.input_mean, len(CHANNELS)),
            ("input_sd", self.input_sd, len(CHANNELS)),
            ("latent_mean", self.latent_mean, LATENT_SIZE),
            ("latent_sd", self.latent_sd, LATENT_SIZE),
        ):
            if len(values) != count:
                raise ManifestError(f"{len(values)} values, expected {count}", where=name)
            if any(abs(value) > float(np.finfo(np.float32).max) for value in values):
                raise ManifestError("a value is not a finite float32", where=name)
            if name.endswith("_sd") and min(values) < 0:
                raise ManifestError("a standard deviation is below zero", where=name)
        for name, value in (("latent_step", self.latent_step), ("distance", self.distance)):
            if not 0 < value <= float(np.finfo(np.float32).max):
                raise ManifestError(f"{value} is not above zero, and finite as float32", where=name)

    def latent_scale(self) -> npt.NDArray[np.float64]:
        """float64 (64,): what a difference of each dimension is held against."""
        scale: npt.NDArray[np.float64] = np.asarray(self.latent_sd, np.float64)
        return np.maximum(scale, max(self.latent_step, SMALLEST))


class LatentDistance:
    """How far a latent is from those of calibration.

    The root of the mean square of its standardized dimensions, divided by what 1 % of the calibration windows
    exceed: 1 is the rim of calibration, 2 is twice as far out.
    """

    def __init__(self, statistics: CalibrationStatistics) -> None:
        scale = statistics.latent_scale() * statistics.distance * math.sqrt(LATENT_SIZE)
        self._mean = np.asarray(statistics.latent_mean, np.float32)
        self._inverse = (1 / scale).astype(np.float32)

    def squared(self, latent: FloatArray) -> float:
        """The square of it, of float32 (64,)."""
        found = (latent - self._mean) * self._inverse
        return float(found.dot(found))


def measure_calibration(
    normalized: FloatArray, latents: FloatArray, *, latent_step: float, windows_sha256: str
) -> CalibrationStatistics:
    """Measure the calibration windows; equal windows and latents give equal statistics.

    Args:
        normalized: float32 (N, 100, 9), z-scores.
        latents: float32 (N, 64), full_precision's.
        latent_step: One step of the artifact's output.
        windows_sha256: Digest of the windows' values.
    """
    values, found = normalized.astype(np.float64), latents.astype(np.float64)
    mean, sd = found.mean(axis=0), found.std(axis=0)
    standard = (found - mean) / np.maximum(sd, max(latent_step, SMALLEST))
    distances = np.sqrt(np.mean(standard**2, axis=1))
    return CalibrationStatistics(
        schema=SCHEMA,
        windows=len(values),
        windows_sha256=windows_sha256,
        latents="full_precision",
        input_mean=tuple(values.mean(axis=(0, 1)).tolist()),
        input_sd=tuple(values.std(axis=(0, 1)).tolist()),
        latent_mean=tuple(mean.tolist()),
        latent_sd=tuple(sd.tolist()),
        latent_step=latent_step,
        distance=max(float(np.quantile(distances, QUANTILE)), SMALLEST),
    )


def read_calibration_statistics(release: Release) -> CalibrationStatistics | str:
    """The statistics that a release holds, or in words why it holds none that can be used.

    Raises:
        StoreError: The file cannot be read.
        DigestMismatchError: It is not what the manifest says.
        ManifestError: It is not what its schema says, or about other windows than the manifest.
    """
    names = [artifact.name for artifact in release.manifest.artifacts if artifact.kind == KIND]
    if not names:
        return "the release holds no calibration statistics: it was made before there were any"
    if len(names) > 1:
        raise ManifestError(f"{len(names)} artifacts are {KIND}", where="artifacts")
    data = release.read(names[0])
    if (schema := _schema_of(data)) != SCHEMA:
        return f"its calibration statistics are of schema {schema}, this version reads {SCHEMA}"
    statistics = from_json(CalibrationStatistics, data, names[0])
    if statistics.windows_sha256 != release.manifest.calibration.windows_sha256:
        raise ManifestError("is about other windows than the manifest", where=f"{names[0]}.windows_sha256")
    return statistics


def _schema_of(data: bytes) -> object:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return SCHEMA  # the reader says what is amiss
    return document.get("schema") if isinstance(document, dict) else SCHEMA
