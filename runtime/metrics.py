"""Every metric of the runtime, in a registry of its own, with the unit in its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.active_model import ActiveModel
from runtime.config import VERSION
from runtime.device_readings import DeviceReading
from runtime.drift import Drift
from runtime.served_metrics import ReleaseCounter, ServedCollector
from runtime.shadow_metrics import ShadowCollector
from runtime.telemetry_metrics import DriftCollector, TelemetryCounts

SWITCH_BUCKETS_SECONDS: Final = (0.001, 0.005, 0.010, 0.020, 0.045, 0.100, 0.250, 0.5, 1.0, 2.5, 10.0)
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
    """Counts requests and times them, by release and channel.

    Names start with ``hailo_runtime_`` where EdgeInfer exports ``hailo_inference_*`` and
    ``hailo_samples_processed_total`` itself: a panel that sums over all jobs must not count a
    request twice.

    Args:
        channel: The channel that is followed; empty where none is.
        dropped_lines: How many lines of the log were not written.
    """

    def __init__(self, channel: str = "", dropped_lines: Callable[[], int] = lambda: 0) -> None:
        # A "created" series beside each counter doubles the page and helps nobody here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry: Final = CollectorRegistry()
        self._served = ServedCollector(channel)
        self.registry.register(self._served)
        self.registry.register(_LogCollector(dropped_lines))
        self._channel = channel
        self._watch_time()
        self._loaded = Gauge(
            "hailo_model_loaded", "1 where a verified model answers, else 0.", registry=self.registry
        )
        self._engine_failing = Gauge(
            "hailo_engine_failing",
            "1 where the last windows all failed in the engine, /healthz says why; else 0.",
            registry=self.registry,
        )
        self._build = Gauge(
            "hailo_build_info",
            "Always 1; labels say what is served. Empty labels where no model is.",
            _BUILD_LABELS,
            registry=self.registry,
        )
        self._alarm = Gauge(
            "hailo_store_alarm",
            "1 where what is served is not what the store seems to name, or nothing is because of it; "
            "kind is the reason's code, /healthz says why.",
            ("kind",),
            registry=self.registry,
        )
        self._count_switches()
        self._reading_errors = Counter(
            "hailo_device_reading_errors_total",
            "Readings of temperature and power that failed.",
            registry=self.registry,
        )
        self._device = _DeviceCollector()
        self.registry.register(self._device)
        ProcessCollector(registry=self.registry)
        self.show_model(None)

    def _watch_time(self) -> None:
        self._served_since: tuple[str, float] = ("", 0.0)
        self._served_for = Gauge(
            "hailo_release_served_seconds",
            "For how long the release has been served without a pause.",
            ("release", "channel"),
            registry=self.registry,
        )
        what = "Golden windows that were run, since there was no traffic."
        self._replays = ReleaseCounter("hailo_golden_replays", what, "result", self._channel)
        self.registry.register(self._replays)

    def _count_switches(self) -> None:
        self._switches = Counter(
            "hailo_release_switches_total", "Releases taken in place of another one.", registry=self.registry
        )
        what = "Attempts to take the release that the channel names which failed; no release: none was found."
        self._switch_failures = ReleaseCounter("hailo_release_switch_failures", what, "reason", self._channel)
        self.registry.register(self._switch_failures)
        self._switch_failing = Gauge(
            "hailo_release_switch_failing",
            "1 where what is served is not what the channel names; /healthz says why.",
            registry=self.registry,
        )
        self._switch_seconds = Histogram(
            "hailo_switch_duration_seconds",
            "Time to verify and load a release beside the one that serves on.",
            buckets=SWITCH_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self._switch_stall = Histogram(
            "hailo_switch_stall_seconds",
            "Longest time during a switch in which no request could be answered.",
            buckets=SWITCH_BUCKETS_SECONDS,
            registry=self.registry,
        )

    def show_model(self, model: ActiveModel | None, alarm_kind: str = "") -> None:
        """Say from now on that this model, or none, is being served.

        Args:
            model: What answers.
            alarm_kind: ``ModelHolder.alarm_kind``; empty where the store gives no alarm.
        """
        self._engine_failing.set_function(lambda: 1 if model is not None and model.failures.alarm else 0)
        self._build.clear()
        self._alarm.clear()
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
        if shown["release"] != self._served_since[0]:
            self._served_for.clear()
            self._served_since = shown["release"], perf_counter()
            if model is not None:
                since = self._served_since[1]
                self._served_for.labels(model.release_id, self._channel).set_function(
                    lambda: perf_counter() - since
                )
        self._alarm.labels(alarm_kind).set(1 if alarm_kind else 0)

    def request_done(
        self, route: str, status: int, seconds: float | None, release: str = "", *, infers: bool = False
    ) -> None:
        """Count one answered request.

        Args:
            route: One of a few known texts.
            status: The answer's.
            seconds: From the whole request's being there to its answer; None where it never was.
            release: The one that answered, or was served then; empty for none.
            infers: Whether it was sent to be inferred.
        """
        self._served.of(release).request(route, status, seconds, infers=infers)

    def windows_done(
        self, windows: int, seconds: float, release: str, kinds: Iterable[str] = (), probes: int = 0
    ) -> None:
        """Count windows that the engine ran, and which implausible values were in them.

        Args:
            windows: How many.
            seconds: For all of them.
            release: The one that ran them.
            kinds: One name for each kind and window.
            probes: How many of them were a health check's: counted and timed apart from what devices sent.
        """
        served, real = self._served.of(release), windows - probes
        served.windows += real
        served.probes += probes
        if real:
            served.engine.observe(seconds / windows, real)
        for kind in kinds:
            served.implausible[kind] = served.implausible.get(kind, 0) + 1

    def windows_of(self, release: str) -> int:
        """How many windows a release ran for clients; a health check's are not among them."""
        return self._served.of(release).windows

    def replayed(self, release: str, result: str) -> None:
        """Count one golden window that was run without a client: ``repeated``, ``missed`` or ``failed``."""
        self._replays.count(release, result)

    def engine_failed(self, code: str, release: str = "") -> None:
        """Count one window that the engine failed to run; ``code`` is the error's."""
        errors = self._served.of(release).engine_errors
        errors[code] = errors.get(code, 0) + 1

    def shadow(self) -> ShadowCollector:
        """What counts a canary beside stable, on the page from now on."""
        collector = ShadowCollector()
        self.registry.register(collector)
        return collector

    def drift(self, drift: Drift) -> None:
        """Show how far traffic has drifted from calibration, from now on."""
        self.registry.register(DriftCollector(drift, self._channel))

    def telemetry(self) -> TelemetryCounts:
        """What counts windows that are kept, on the page from now on."""
        counts = TelemetryCounts()
        self.registry.register(counts)
        return counts

    def switched(self) -> None:
        """Count one release that is served in place of another."""
        self._switches.inc()

    def loaded(self, seconds: float, stall: float) -> None:
        """Count one that was loaded or failed to: how long it took, and the longest wait for everybody."""
        self._switch_seconds.observe(seconds)
        self._switch_stall.observe(stall)

    def switch_failed(self, release: str, reason: str) -> None:
        """Count one that was not; ``reason`` is the error's code, ``release`` empty where none was found."""
        self._switch_failures.count(release, reason)

    def show_switch(self, failing: bool) -> None:
        """Say from now on whether what is served is not what the channel names."""
        self._switch_failing.set(1 if failing else 0)

    def show_device(self, reading: DeviceReading | None) -> None:
        """Say from now on that this was read of the chip; None says nothing of it."""
        self._device.reading = reading

    def reading_failed(self) -> None:
        """Count one reading of the chip that failed."""
        self._reading_errors.inc()


class _LogCollector(Collector):
    """Lines of the log that were not written."""

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def collect(self) -> Iterator[Metric]:
        what = "Lines of the log that were dropped, since who reads them did not keep up."
        yield CounterMetricFamily("hailo_runtime_log_lines_dropped", what, value=self._dropped())


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
