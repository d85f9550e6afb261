"""Engines: what runs an artifact. One base class, one adapter for each kind of target."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from runtime.contract.errors import EngineError, WindowValueError
from runtime.contract.release import Manifest
from runtime.contract.store import Release
from runtime.contract.window import (
    GRAPH_INPUT_SHAPE,
    LATENT_SIZE,
    WINDOW_SHAPE,
    FloatArray,
    Window,
)

_TAKEN: Final = f"float32 {WINDOW_SHAPE}"


class Engine(abc.ABC):
    """Runs the artifact of one release, one window at a time.

    The base class normalizes with the release's own statistics, lays the window out as the graph
    takes it, and checks what goes in and comes out; an adapter writes ``_infer`` and ``_close``
    and sees only the graph's own arrays. Not safe for calls from several threads at once.
    """

    def __init__(self, manifest: Manifest) -> None:
        mean, std = manifest.input.normalization.arrays()
        self._mean, self._std = mean[:, None], std[:, None]
        self._closed = False

    @property
    @abc.abstractmethod
    def kernel_family(self) -> str:
        """The kernels that run the artifact: ``cpu.kernel_family``, or a chip."""

    @property
    @abc.abstractmethod
    def program(self) -> str:
        """The program that runs the artifact, with its version."""

    def infer(self, window: Window) -> FloatArray:
        """Run one window.

        Args:
            window: float32 (100, 9), finite, physical units, 100 Hz.

        Returns:
            float32 (64,), finite: the latent, an array of its own.

        Raises:
            WindowValueError: A value is so large that its z-score is not a float32.
            EngineError: Wrong shape or type, engine closed, or the artifact failed or gave
                something other than 64 finite numbers.
        """
        if window.shape != WINDOW_SHAPE:
            raise EngineError(f"got {window.dtype} {window.shape}, takes {_TAKEN}", where="window")
        latent = _latent(self._infer(self._graph_inputs(window[None], None)[0])).copy()
        if not np.isfinite(latent).all():
            raise _not_finite(latent, "latent")
        return latent

    def infer_batch(self, windows: FloatArray, first: int = 0) -> FloatArray:
        """Run several windows, one after the other; each gives what it gives alone, bit for bit.

        Args:
            windows: float32 (N, 100, 9), finite, physical units, 100 Hz.
            first: Number of the first one in messages.

        Returns:
            float32 (N, 64), finite: the latents.

        Raises:
            WindowValueError, EngineError: As ``infer``; the first names the window.
        """
        if windows.ndim != 3 or windows.shape[1:] != WINDOW_SHAPE:
            raise EngineError(f"got {windows.dtype} {windows.shape}, takes N of {_TAKEN}", where="windows")
        tensors = self._graph_inputs(windows, first)
        latents = np.empty((len(windows), LATENT_SIZE), np.float32)
        for index, output in enumerate(self._infer_many(tensors)):
            latents[index] = _latent(output)
        finite = np.isfinite(latents)
        if not finite.all():
            index = int(np.argwhere(~finite)[0, 0])
            raise _not_finite(latents[index], f"latent[{first + index}]")
        return latents

    def _graph_inputs(self, windows: FloatArray, first: int | None) -> FloatArray:
        """z-scores of float32 (N, 100, 9) as float32 (N, 1, 9, 1, 100), C-contiguous."""
        if self._closed:
            raise EngineError("is closed", where="engine")
        if windows.dtype != np.float32:
            raise EngineError(f"got {windows.dtype}, takes {_TAKEN}", where="window")
        # Laid out first: the arithmetic then runs along 100 numbers of a channel instead of 9 of a moment.
        # A copy always: the arithmetic is done in place, and the window is the caller's.
        normalized: FloatArray = np.array(windows.transpose(0, 2, 1), order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(normalized, self._mean, out=normalized)
            np.divide(normalized, self._std, out=normalized)
            flat = normalized.reshape(-1)
            squares = np.dot(flat, flat)
        # A finite sum of squares has finite terms only; one that is not finite is looked into.
        if not math.isfinite(squares):
            _check_finite(normalized, windows, first)
        return normalized.reshape(-1, *GRAPH_INPUT_SHAPE)

    def close(self) -> None:
        """Let go of the device and the memory; closing again changes nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @abc.abstractmethod
    def _infer(self, tensor: FloatArray) -> FloatArray:
        """Run float32 (1, 9, 1, 100), normalized; return float32 with 64 values. EngineError only."""

    def _infer_many(self, tensors: FloatArray) -> Iterator[FloatArray]:
        """Run float32 (N, 1, 9, 1, 100) in order; each output may be overwritten by the next."""
        return map(self._infer, tensors)

    @abc.abstractmethod
    def _close(self) -> None:
        """Let go of what ``__init__`` took. Called once."""


def _check_finite(normalized: FloatArray, windows: FloatArray, first: int | None) -> None:
    """Refuse the earliest z-score, of float32 (N, 9, 100), that is not finite."""
    bad = np.argwhere(~np.isfinite(normalized.transpose(0, 2, 1)))
    if not len(bad):
        return
    index, time, channel = (int(i) for i in bad[0])
    within = "" if first is None else f"[{first + index}]"
    raise WindowValueError(
        f"{windows[index, time, channel]} is too large to be normalized as float32",
        where=f"x{within}[{time}][{channel}]",
        hint="accelerometer in m/s², gyroscope in rad/s, magnetometer in µT",
    )


def _latent(output: FloatArray) -> FloatArray:
    """An adapter's output as float32 (64,), still the adapter's own memory."""
    if output.size != LATENT_SIZE or output.dtype != np.float32:
        raise EngineError(f"gave {output.dtype} {output.shape}, not 64 float32 numbers", where="latent")
    return output.reshape(LATENT_SIZE)


def _not_finite(latent: FloatArray, where: str) -> EngineError:
    return EngineError(
        f"value {int(np.argwhere(~np.isfinite(latent))[0, 0])} is not finite",
        where=where,
        hint="the artifact is broken on this machine: choose another release",
    )


def open_engine(release: Release, lock_folder: Path | None = None) -> Engine:
    """Open the engine for a release's own target; never another one in its place.

    Args:
        release: Any release.
        lock_folder: Where the lock is that lets one process on a chip; None for the usual places.

    Raises:
        NoEngineError: Nothing here can run artifacts of the target.
        EngineError: The artifact does not load, or what runs it is not usable.
        DigestMismatchError: The artifact's bytes are not what the manifest names.
    """
    # Only who runs the emulator needs onnxruntime, and only who has a chip HailoRT.
    if release.manifest.target == "emulator":
        from runtime.engines.emulator import EmulatorEngine

        return EmulatorEngine(release)
    from runtime.engines.hailo import HailoEngine

    return HailoEngine(release, lock_folder)
