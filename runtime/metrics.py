"""Every metric of the runtime, in a registry of its own, with the unit in its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.active_model import ActiveModel
from runtime.config import VERSION
from runtime.device_readings import DeviceReading

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
BUCKETS_SECONDS: Final = (0.001, 0.002, 0.005, 0.010, 0.020, 0.030, 0.045, 0.060, 0.100, 0.250, 1.0)
"""EdgeInfer stops reading after 45 ms and answers with random numbers: that edge must show."""

ENGINE_BUCKETS_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.010, 0.025, 0.045, 0.1)

_BUILD_LABELS: Final = (
    "version",
    "target",
    "release",
    "artifact_sha256",
    "numbers",
    "calibration_origin",
    "motif_head",
    "keys",
)


class RuntimeMetrics:
    """Counts requests and times them.

    Names start with ``hailo_runtime_`` where EdgeInfer exports ``hailo_inference_*`` and
    ``hailo_samples_processed_total`` itself: a panel that sums over all jobs must not count a
    request twice.
    """

    def __init__(self) -> None:
        # A "created" series beside each counter doubles the page and helps nobody here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry: Final = CollectorRegistry()
        self._requests = Counter(
            "hailo_runtime_requests_total",
            "Requests answered.",
            ("route", "status"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "hailo_runtime_request_duration_seconds",
            "Time from the first part of a body, or the end of a head without one, to the answer.",
            ("route",),
            buckets=BUCKETS_SECONDS,
            registry=self.registry,
        )
        self._engine = Histogram(
            "hailo_runtime_engine_duration_seconds",
            "Time of one window in the engine and the motif head.",
            buckets=ENGINE_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self._engine_errors = Counter(
            "hailo_runtime_engine_errors_total",
            "Windows that the engine failed to run.",
            ("code",),
            registry=self.registry,
        )
        self._loaded = Gauge(
            "hailo_model_loaded", "1 where a verified model answers, else 0.", registry=self.registry
        )
        self._build = Gauge(
            "hailo_build_info",
            "Always 1; labels say what is served. Empty labels where no model is.",
            _BUILD_LABELS,
            registry=self.registry,
        )
        self._alarm = Gauge(
            "hailo_store_alarm",
            "1 where what is served is not what the store seems to name; /healthz says why.",
            registry=self.registry,
        )
        self._reading_errors = Counter(
            "hailo_device_reading_errors_total",
            "Readings of temperature and power that failed.",
            registry=self.registry,
        )
        self._device = _DeviceCollector()
        self.registry.register(self._device)
        ProcessCollector(registry=self.registry)
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.show_model(None)

    def show_model(self, model: ActiveModel | None) -> None:
        """Say from now on that this model, or none, is being served."""
        self._build.clear()
        self._loaded.set(0 if model is None else 1)
        shown = dict.fromkeys(_BUILD_LABELS, "") | {"version": VERSION}
        if model is not None:
            shown |= {
                "target": model.target,
                "release": model.release_id,
                "artifact_sha256": model.manifest.primary.sha256,
                "numbers": model.numbers,
                "calibration_origin": model.calibration_origin,
                "motif_head": model.motif_head,
                "keys": model.keys,
            }
        self._build.labels(**shown).set(1)
        self._alarm.set(1 if model is not None and model.alarm else 0)

    def request_done(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request; ``route`` must be one of a few known texts."""
        children = self._children.get((route, status))
        if children is None:
            children = (self._requests.labels(route, str(status)), self._duration.labels(route))
            self._children[route, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def engine_done(self, seconds: float) -> None:
        """Time one window that the engine ran."""
        self._engine.observe(seconds)

    def engine_failed(self, code: str) -> None:
        """Count one window that the engine failed to run; ``code`` is the error's."""
        self._engine_errors.labels(code).inc()

    def show_device(self, reading: DeviceReading | None) -> None:
        """Say from now on that this was read of the chip; None says nothing of it."""
        self._device.reading = reading

    def reading_failed(self) -> None:
        """Count one reading of the chip that failed."""
        self._reading_errors.inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format, as ``CONTENT_TYPE`` says."""
        return generate_latest(self.registry)


class _DeviceCollector(Collector):
    """Gauges that are not there where nothing was read, rather than 0."""

    def __init__(self) -> None:
        self.reading: DeviceReading | None = None

    def collect(self) -> Iterator[Metric]:
        reading = self.reading
        if reading is None:
            return
        temperature = GaugeMetricFamily(
            "hailo_device_temperature_celsius", "Temperature inside the chip.", labels=["sensor"]
        )
        for index, celsius in enumerate(reading.celsius):
            temperature.add_metric([f"ts{index}"], celsius)
        yield temperature
        if reading.watts is not None:
            yield GaugeMetricFamily("hailo_device_power_watts", "Power of the chip.", value=reading.watts)
        info = GaugeMetricFamily(
            "hailo_device_info",
            "Always 1; labels say which chip it is.",
            labels=["architecture", "firmware", "serial"],
        )
        info.add_metric([reading.architecture, reading.firmware, reading.serial], 1)
        yield info
