"""Golden windows: what the engine gives here, held against what was recorded at build time."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.contract.errors import GoldenMismatchError, PipelineError, WindowError
from runtime.contract.motifs import MotifScorer
from runtime.contract.release import LSB_ELSEWHERE, Manifest
from runtime.contract.store import Release
from runtime.contract.window import LATENT_SIZE, WINDOW_SHAPE, FloatArray, Window
from runtime.engines import Engine

LSB: Final = "LSB"
LATENT_UNITS: Final = "latent units"
_ROUNDING: Final = 1e-5
"""Relative to an output: the step and the product are float32 where the artifact runs."""


@dataclass(frozen=True, kw_only=True)
class GoldenComparison:
    """The largest difference between here and the record, over all golden windows.

    Args:
        windows: How many were run.
        kernel_family: The kernels here.
        recorded_kernel_family: Those that recorded the outputs; empty in schema 1.
        unit: ``LSB``, steps of the quantized output; ``latent units`` in schema 1, which does not
            say how large a step is.
        worst: Largest difference, in ``unit``.
        window: The window where it is.
        dimension: The latent dimension where it is.
        allowed: Largest one that is accepted: 0 on the same kernels.
    """

    windows: int
    kernel_family: str
    recorded_kernel_family: str
    unit: str
    worst: float
    window: int
    dimension: int
    allowed: float

    @property
    def exact(self) -> bool:
        """Whether everything is as recorded, to the last step."""
        return self.worst == 0

    @property
    def ok(self) -> bool:
        """Whether the artifact may be used on this machine."""
        return self.worst <= self.allowed

    def check(self, artifact: str) -> None:
        """Raise GoldenMismatchError where the difference is too large; names the place."""
        if self.ok:
            return
        recorded = self.recorded_kernel_family or "kernels that schema 1 does not name"
        raise GoldenMismatchError(
            f"golden window {self.window}, dimension {self.dimension} differs by {self.worst:.4g} "
            f"{self.unit}, at most {self.allowed:.4g} is allowed; computed here on {self.kernel_family}, "
            f"recorded on {recorded}",
            where=artifact,
            hint="this machine computes the artifact otherwise than the one that built it: "
            "rebuild the release for it",
        )


def compare_golden(engine: Engine, release: Release) -> GoldenComparison:
    """Run the release's golden windows and hold the outputs against the recorded ones.

    On the kernels that recorded them the output integers must be equal, elsewhere they may differ
    by ``LSB_ELSEWHERE`` steps; the outputs of schema 1 by ``golden.artifact_tolerance``.

    Raises:
        GoldenMismatchError: The record is unusable, a window of it is none, or a motif score is not
            finite. A difference is no error here: ``GoldenComparison.check`` judges it.
        EngineError: The engine failed.
        DigestMismatchError: The file is not what the manifest names.
    """
    manifest, record = release.manifest, release.manifest.golden
    windows, expected = _recorded(release)
    latents = _run(engine, windows, manifest)
    allowed: float
    if record.output is None:
        unit, allowed = LATENT_UNITS, record.artifact_tolerance
        difference = np.abs(latents.astype(np.float64) - expected)
    else:
        unit, allowed = LSB, 0 if record.kernel_family == engine.kernel_family else LSB_ELSEWHERE
        steps = record.output.integers(latents) - record.output.integers(expected)
        difference = np.abs(steps).astype(np.float64)
    window, dimension = (int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
    return GoldenComparison(
        windows=len(windows),
        kernel_family=engine.kernel_family,
        recorded_kernel_family=record.kernel_family,
        unit=unit,
        worst=float(difference[window, dimension]),
        window=window,
        dimension=dimension,
        allowed=allowed,
    )


class GoldenWindow:
    """A golden window of a release, kept to be repeated at any time.

    Args:
        manifest: The release's.
        window: float32 (100, 9).
        expected: float32 (64,), the recorded latent.
        number: Which one it is.
    """

    def __init__(self, manifest: Manifest, window: Window, expected: FloatArray, number: int) -> None:
        self._manifest, self.window, self.expected, self.number = manifest, window, expected, number

    @classmethod
    def all_of(cls, release: Release) -> list[GoldenWindow]:
        """All of a release; raises as ``compare_golden``."""
        windows, expected = _recorded(release)
        pairs = enumerate(zip(windows, expected, strict=True))
        return [cls(release.manifest, window.copy(), latent.copy(), n) for n, (window, latent) in pairs]

    def check(self, latent: FloatArray, kernel_family: str) -> None:
        """Hold float32 (64,), computed by these kernels, against the record; raise GoldenMismatchError."""
        record = self._manifest.golden
        if not np.isfinite(latent).all():
            # Said here, too, whoever computed it: a NaN is not larger than what is allowed, and is no step.
            raise GoldenMismatchError(
                f"golden window {self.number} gives a number that is not finite",
                where=self._manifest.artifact,
                hint="the artifact is broken on this machine: choose another release",
            )
        if record.output is None:
            worst, allowed = float(np.abs(latent - self.expected).max()), record.artifact_tolerance
        else:
            steps = record.output.integers(latent) - record.output.integers(self.expected)
            worst = float(np.abs(steps).max())
            allowed = 0 if record.kernel_family == kernel_family else LSB_ELSEWHERE
        if not worst <= allowed:
            raise GoldenMismatchError(
                f"golden window {self.number} differs by {worst:.4g}, at most {allowed:.4g} is allowed",
                where=self._manifest.artifact,
                hint="it did not when the release was loaded: restart, and look at what the machine does",
            )


def _run(engine: Engine, windows: FloatArray, manifest: Manifest) -> FloatArray:
    scorer = MotifScorer(manifest.motif_head)
    latents = []
    for index, window in enumerate(windows):
        try:
            latents.append(engine.infer(window))
        except WindowError as error:
            raise _unusable(manifest, f"golden window {index}: {error}") from error
        if not np.isfinite(scorer.scores(latents[-1])).all():
            raise _unusable(manifest, f"golden window {index} gives a motif score that is none")
    return np.stack(latents)


def _recorded(release: Release) -> tuple[FloatArray, FloatArray]:
    """Windows float32 (N, 100, 9) and recorded outputs float32 (N, 64), from verified bytes."""
    record, manifest = release.manifest.golden, release.manifest
    try:
        with np.load(io.BytesIO(release.read(record.file)), allow_pickle=False) as archive:
            windows, expected = archive["windows"], archive["artifact"]
    except PipelineError:
        raise
    except Exception as error:
        # numpy and zipfile raise nearly anything for an archive that was made to hurt, MemoryError
        # for a shape beyond all memory among it.
        raise _unusable(manifest, f"cannot be read: {type(error).__name__}: {error}") from error
    shapes = (windows.shape, expected.shape)
    if record.windows < 1 or shapes != ((record.windows, *WINDOW_SHAPE), (record.windows, LATENT_SIZE)):
        raise _unusable(manifest, f"shapes are {shapes}, the manifest says {record.windows} windows")
    if windows.dtype != np.float32 or expected.dtype != np.float32:
        raise _unusable(manifest, f"types are {windows.dtype} and {expected.dtype}, not float32")
    _check_recorded(manifest, expected)
    return windows, expected


def _check_recorded(manifest: Manifest, expected: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(expected).all():
        raise _unusable(manifest, "a recorded output is not finite")
    output = manifest.golden.output
    if output is None:
        return
    # A step larger than the artifact's own would round differences away.
    exact = expected.astype(np.float64)
    off = np.abs((output.integers(expected) - output.zero_point) * output.scale - exact)
    wrong = off > _ROUNDING * np.abs(exact)
    if wrong.any():
        window, dimension = (int(i) for i in np.argwhere(wrong)[0])
        raise _unusable(
            manifest,
            f"the recorded output of window {window}, dimension {dimension} is no whole number of steps "
            f"of {output.scale:.6g}",
        )


def _unusable(manifest: Manifest, what: str) -> GoldenMismatchError:
    return GoldenMismatchError(what, where=manifest.golden.file, hint="publish the release again")
