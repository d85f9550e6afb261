"""What was kept of windows, and how far they drift from calibration, for ``/metrics``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.contract.telemetry import REASONS
from runtime.contract.window import CHANNELS
from runtime.drift import Drift

DROPPED: Final = ("rate", "queue_full", "not_written", "rotated", "switched", "internal")
"""More of one reason than a minute may have; the disk did not keep up; it took nothing; a file gave way to a
newer one; another release was served when canary disagreed; a mistake of ours."""


class TelemetryCounts(Collector):
    """Counted by the event loop, the shadow's thread and the writer's, where there is a reason only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.kept = dict.fromkeys(REASONS, 0)
        self.dropped = dict.fromkeys(DROPPED, 0)
        self.size = self.files = 0

    def keep(self, reasons: tuple[str, ...]) -> None:
        """Count one window that is on the disk, once for each of its reasons."""
        with self._lock:
            for reason in reasons:
                self.kept[reason] = self.kept.get(reason, 0) + 1

    def drop(self, why: str, windows: int = 1) -> None:
        """Count windows that had a reason and are not kept, or not any more."""
        with self._lock:
            self.dropped[why] += windows

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for name, what, label, counts in (
            ("hailo_telemetry_windows", "Windows kept, once for each reason.", "reason", self.kept),
            ("hailo_telemetry_dropped", "Windows with a reason, not kept or removed.", "why", self.dropped),
        ):
            family = CounterMetricFamily(name, what, labels=[label])
            for value, count in list(counts.items()):
                family.add_metric([value], count)
            yield family
        yield GaugeMetricFamily("hailo_telemetry_bytes", "Size of all telemetry files.", value=self.size)
        yield GaugeMetricFamily("hailo_telemetry_files", "How many there are.", value=self.files)


class DriftCollector(Collector):
    """Gauges that are not there where nothing is known, rather than 0.

    Args:
        drift: What is measured.
        channel: The channel that is followed; empty where none is.
    """

    def __init__(self, drift: Drift, channel: str) -> None:
        self._drift, self._channel = drift, channel

    def collect(self) -> Iterator[Metric]:
        """All families, of the release that is served."""
        seen = self._drift.seen
        if seen is None:
            return
        labels = [seen.release, self._channel]
        windows = GaugeMetricFamily(
            "hailo_drift_windows",
            "Windows of the latest traffic that are held against calibration.",
            labels=["release", "channel"],
        )
        windows.add_metric(labels, seen.windows)
        yield windows
        if seen.values is None:
            return
        inputs = GaugeMetricFamily(
            "hailo_input_drift",
            "Of one sensor channel: mean, |mean - calibration's| in calibration's standard deviations; "
            "spread, |log2| of the standard deviation's ratio to calibration's.",
            labels=["sensor", "of", "release", "channel"],
        )
        for of, values in (("mean", seen.values.input_mean), ("spread", seen.values.input_spread)):
            for sensor, value in zip(CHANNELS, values, strict=True):
                inputs.add_metric([sensor, of, *labels], value)
        yield inputs
        latents = GaugeMetricFamily(
            "hailo_latent_drift",
            "|mean - calibration's| in calibration's standard deviations: of the worst dimension, and the "
            "root of the mean square of all.",
            labels=["of", "release", "channel"],
        )
        latents.add_metric(["worst", *labels], seen.values.latent_worst)
        latents.add_metric(["rms", *labels], seen.values.latent_rms)
        yield latents
