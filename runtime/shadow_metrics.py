"""What the canary did beside stable, counted by the thread that runs it and read by a scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Final, TypeVar

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from runtime.served_metrics import ENGINE_BUCKETS_SECONDS, DurationHistogram
from runtime.shadow_child import COMPARED, FAILED, GOLDEN_MISSED, PROBE, UNFIT, Reply

DISTANCE_BUCKETS: Final = (1e-4, 1e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""1 - cosine. Two int8 builds of one model differ by about 0.01; what points elsewhere by more than 0.2."""

SOURCES: Final = ("traffic", "golden")
MOST_KEYS: Final = 64
"""Of each family: a page must not grow for ever."""

K = TypeVar("K")
V = TypeVar("V")


class _Compared:
    """Of one canary against one stable, on one source of windows."""

    def __init__(self) -> None:
        self.distances = DurationHistogram(DISTANCE_BUCKETS)
        self.windows = self.motifs = self.disagreements = 0


class ShadowCollector(Collector):
    """Implements ``ShadowWatcher``."""

    def __init__(self) -> None:
        self._compared: dict[tuple[str, str, str], _Compared] = {}
        self._durations: dict[tuple[str, str], DurationHistogram] = {}
        self._dropped: dict[tuple[str, str], int] = {}
        self._failures: dict[tuple[str, str], int] = {}
        self._probes: dict[str, int] = {}
        self._golden: dict[tuple[str, str], int] = {}
        self._running: tuple[str, str, float] = ("", "", 0.0)

    def compared(self, canary: str, stable: str, reply: Reply, *, golden: bool) -> None:
        """Count one window that the canary ran."""
        if reply.outcome == PROBE:
            _count(self._probes, canary)
            return
        if reply.outcome == UNFIT:
            self.dropped(canary, "not_normalized")
            return
        if golden:
            _count(self._golden, (canary, "missed" if reply.outcome == GOLDEN_MISSED else _result(reply)))
        if reply.outcome == FAILED:
            _count(self._failures, (canary, "window"))
        if reply.outcome != COMPARED:
            return
        found = _kept(self._compared, (canary, stable, SOURCES[golden]), _Compared)
        found.windows += 1
        found.distances.observe(reply.distance)
        if reply.agrees >= 0:
            found.motifs += 1
            found.disagreements += 1 - reply.agrees
        _kept(self._durations, (canary, SOURCES[golden]), _durations).observe(reply.seconds)

    def dropped(self, canary: str, reason: str) -> None:
        """Count one window that it did not run."""
        _count(self._dropped, (canary, reason))

    def failed(self, canary: str, reason: str) -> None:
        """Count one failure to load or to go on."""
        _count(self._failures, (canary, reason))

    def running(self, canary: str, stable: str) -> None:
        """Say from now on what runs beside what."""
        self._running = canary, stable, perf_counter()

    def collect(self) -> Iterator[Metric]:
        """All families; ``release`` is the canary, ``against`` is stable."""
        by = ["release", "against", "source"]
        windows = CounterMetricFamily(
            "hailo_shadow_windows", "Windows on which canary and stable were compared.", labels=by
        )
        distances = HistogramMetricFamily(
            "hailo_shadow_latent_cosine_distance",
            "1 - cosine of the latents of canary and stable on the same window.",
            labels=by,
        )
        motifs = CounterMetricFamily(
            "hailo_shadow_motif_windows",
            "Windows on which stable's first motif leads clearly, and both have the same motifs.",
            labels=by,
        )
        disagreements = CounterMetricFamily(
            "hailo_shadow_motif_disagreements", "Those on which canary's first motif is another.", labels=by
        )
        for labels, found in list(self._compared.items()):
            windows.add_metric(labels, found.windows)
            distances.add_metric(labels, found.distances.buckets(), found.distances.sum)
            motifs.add_metric(labels, found.motifs)
            disagreements.add_metric(labels, found.disagreements)
        yield from (windows, distances, motifs, disagreements)
        durations = HistogramMetricFamily(
            "hailo_shadow_engine_duration_seconds",
            "CPU time of one window in the canary's engine.",
            labels=["release", "source"],
        )
        for by_source, histogram in list(self._durations.items()):
            durations.add_metric(by_source, histogram.buckets(), histogram.sum)
        yield durations
        yield _counter("hailo_shadow_dropped", "Windows that canary did not run.", "reason", self._dropped)
        yield _counter("hailo_shadow_failures", "Failures of canary beside stable.", "reason", self._failures)
        yield _counter("hailo_shadow_golden", "Golden windows of canary's own.", "result", self._golden)
        probes = CounterMetricFamily(
            "hailo_shadow_probes",
            "Windows of noise that a health check sent: not compared.",
            labels=["release"],
        )
        for release, count in list(self._probes.items()):
            probes.add_metric([release], count)
        yield probes
        running = GaugeMetricFamily(
            "hailo_shadow_running",
            "1 where canary runs beside stable, else 0 with empty labels.",
            labels=["release", "against"],
        )
        canary, stable, since = self._running
        running.add_metric((canary, stable), 1 if canary else 0)
        yield running
        if canary:
            seconds = GaugeMetricFamily(
                "hailo_shadow_running_seconds",
                "For how long canary has been running beside stable.",
                labels=["release", "against"],
            )
            seconds.add_metric((canary, stable), perf_counter() - since)
            yield seconds


def _durations() -> DurationHistogram:
    return DurationHistogram(ENGINE_BUCKETS_SECONDS)


def _result(reply: Reply) -> str:
    return "repeated" if reply.outcome == COMPARED else "failed"


def _kept(known: dict[K, V], key: K, make: Callable[[], V]) -> V:
    """The value of a key; the one that was there first gives way where there are many."""
    if key not in known:
        while len(known) >= MOST_KEYS:
            del known[next(iter(known))]
        known[key] = make()
    return known[key]


def _count(counts: dict[K, int], key: K) -> None:
    counts[key] = _kept(counts, key, int) + 1


def _counter(name: str, what: str, label: str, counts: dict[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(name, what, labels=["release", label])
    for labels, count in list(counts.items()):
        family.add_metric(labels, count)
    return family
