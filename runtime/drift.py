"""How far what devices send has drifted from what a release was calibrated on.

A thread asks for one window twice a second and adds it to the latest ones; the answering path only hands it
over. Mean and spread of each sensor channel and the mean of each latent dimension are held against the
release's own calibration statistics.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.calibration_statistics import SMALLEST, CalibrationStatistics
from runtime.contract.window import CHANNELS, LATENT_SIZE, ChannelStatistics, FloatArray, Window

SAMPLE_SECONDS: Final = 0.5
MOST_WINDOWS: Final = 4096
"""The latest so many count: 34 minutes of constant traffic."""

FEWEST_WINDOWS: Final = 32
"""Below, chance alone would show: nothing is said."""

AFTER_MISTAKE_SECONDS: Final = 60.0
STOP_SECONDS: Final = 1.0
_COLUMNS: Final = 2 * len(CHANNELS) + LATENT_SIZE
_LOGGER: Final = logging.getLogger("runtime.telemetry")

Asked = Callable[[ActiveModel, Window, FloatArray], None]
"""Takes one answered window: float32 (100, 9), physical units, and its latent, float32 (64,)."""


@dataclass(frozen=True, kw_only=True)
class DriftValues:
    """Held against calibration.

    Args:
        input_mean: Of each of ``CHANNELS``, the mean's distance to calibration's, in calibration's standard
            deviations over all windows and times.
        input_spread: Of each, the absolute log2 of the standard deviation's ratio to calibration's.
        latent_worst: The largest distance of a latent dimension's mean to calibration's, in calibration's
            standard deviations, or in steps of the artifact's output where that varied by less.
        latent_rms: The root of the mean square of these distances.
    """

    input_mean: tuple[float, ...]
    input_spread: tuple[float, ...]
    latent_worst: float
    latent_rms: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen of one release's traffic; values where it is enough."""

    release: str
    windows: int
    values: DriftValues | None


class LatestWindows:
    """The latest windows of one release, reduced to what is held against calibration.

    Args:
        statistics: The release's calibration.
        normalization: Its channel statistics.
        most: How many count.
    """

    def __init__(
        self, statistics: CalibrationStatistics, normalization: ChannelStatistics, most: int = MOST_WINDOWS
    ) -> None:
        self._statistics = statistics
        self._mean, self._std = (np.asarray(part, np.float64) for part in normalization.arrays())
        self._rows = np.zeros((most, _COLUMNS), np.float64)
        self._next = self.windows = 0

    def add(self, window: Window, latent: FloatArray) -> None:
        """Take one window, float32 (100, 9) in physical units, and its latent, float32 (64,)."""
        scores = (window - self._mean) / self._std
        self._rows[self._next] = np.concatenate([scores.mean(0), (scores**2).mean(0), latent])
        self._next = (self._next + 1) % len(self._rows)
        self.windows = min(self.windows + 1, len(self._rows))

    def values(self) -> DriftValues | None:
        """What they are beside calibration; None while they are too few."""
        if self.windows < FEWEST_WINDOWS:
            return None
        means = self._rows[: self.windows].mean(axis=0)
        first, second, latent = np.split(means, [len(CHANNELS), 2 * len(CHANNELS)])
        known, sd = self._statistics, np.maximum(np.asarray(self._statistics.input_sd), SMALLEST)
        spread = np.maximum(np.sqrt(np.maximum(second - first**2, 0)), SMALLEST)
        off = np.abs(latent - np.asarray(known.latent_mean)) / known.latent_scale()
        return DriftValues(
            input_mean=_numbers(np.abs(first - np.asarray(known.input_mean)) / sd),
            input_spread=_numbers(np.abs(np.log2(spread / sd))),
            latent_worst=float(off.max()),
            latent_rms=float(np.sqrt(np.mean(off**2))),
        )


def _numbers(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


class Drift:
    """Samples what is answered, in a thread of its own.

    Args:
        holder: What is served.
        ask: Is given what takes the next answered window that is no probe; the event loop calls it once.
    """

    def __init__(self, holder: ModelHolder, ask: Callable[[Asked], None]) -> None:
        self._holder, self._ask = holder, ask
        self.seen: Seen | None = None
        """Of the release that is served; None where it holds no statistics, or nothing is served."""
        self._latest: LatestWindows | None = None
        self._release = ""
        self._taken: tuple[ActiveModel, Window, FloatArray] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)

    def told(self) -> Mapping[str, object] | None:
        """For ``/healthz``: of how many windows, or why nothing is known; None where nothing is served."""
        model, seen = self._holder.model, self.seen
        if model is None:
            return None
        if isinstance(model.calibration, str):
            return {"known": False, "windows": 0, "message": model.calibration}
        windows = seen.windows if seen is not None and seen.release == model.release_id else 0
        if seen is None or seen.release != model.release_id or seen.values is None:
            message = f"fewer than {FEWEST_WINDOWS} windows were seen of this release"
            return {"known": False, "windows": windows, "message": message}
        means = seen.values.input_mean
        worst = max(range(len(means)), key=means.__getitem__)
        return {
            "known": True,
            "windows": windows,
            "worst_input": {"sensor": CHANNELS[worst], "mean": means[worst]},
            "latent": {"worst": seen.values.latent_worst, "rms": seen.values.latent_rms},
        }

    def start(self) -> None:
        """Go on in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_SECONDS):
            try:
                self.step()
            except Exception:
                _LOGGER.exception("drift", extra={"fields": {"event": "drift"}})
                self._stopping.wait(AFTER_MISTAKE_SECONDS)

    def _take(self, model: ActiveModel, window: Window, latent: FloatArray) -> None:
        # Copies: one of a batch would keep all of its body.
        self._taken = model, window.copy(), latent.copy()

    def step(self) -> None:
        """Add what was handed over, work out what is said, and ask for the next one."""
        model, (taken, self._taken) = self._holder.model, (self._taken, None)
        if model is None or isinstance(model.calibration, str):
            self.seen = None
            return
        if self._latest is None or model.release_id != self._release:
            # Of the release, not of the model: a device that is opened anew changes nothing.
            self._latest = LatestWindows(model.calibration, model.manifest.input.normalization)
            self._release = model.release_id
        if taken is not None and taken[0].release_id == self._release:
            self._latest.add(taken[1], taken[2])
        if taken is not None or self.seen is None or self.seen.release != self._release:
            values = self._latest.values()
            self.seen = Seen(release=self._release, windows=self._latest.windows, values=values)
        self._ask(self._take)
