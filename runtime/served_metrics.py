"""What was answered, by release and channel: counted by the event loop, put into families when asked for.

``prometheus_client``'s own counters and histograms take a lock each time, 6 of the 90 µs of a request; here
only the event loop's thread counts, and a scrape is in it, too.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS_SECONDS: Final = (0.001, 0.002, 0.005, 0.010, 0.020, 0.030, 0.045, 0.060, 0.100, 0.250, 1.0)
"""EdgeInfer stops reading after 45 ms and answers with random numbers: that edge must show."""

ENGINE_BUCKETS_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.010, 0.025, 0.045, 0.1)

MOST_RELEASES: Final = 4
"""Those that were counted last. Families without a release keep what further ones push out, the least recent.

A scrape is in the event loop: 32 of them took 45 ms there, in which nobody was answered.
"""


class DurationHistogram:
    """Counts durations by bucket; an edge belongs to the bucket below it."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count a duration, so many times."""
        self.counts[bisect_left(self.edges, seconds)] += times
        self.sum += seconds * times

    def add(self, other: DurationHistogram) -> None:
        """Count what another one with the same edges counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def buckets(self) -> list[tuple[str, float]]:
        """Upper edges as Prometheus writes them, and cumulated counts."""
        total, cumulated = 0, []
        for edge, count in zip((*self.edges, float("inf")), self.counts, strict=True):
            total += count
            cumulated.append(("+Inf" if edge == float("inf") else str(edge), float(total)))
        return cumulated


class Served:
    """The counts of one release."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        self.durations: dict[str, DurationHistogram] = {}
        self.inferences: dict[str, DurationHistogram] = {}
        self.engine = DurationHistogram(ENGINE_BUCKETS_SECONDS)
        self.windows = self.probes = 0
        self.implausible: dict[str, int] = {}
        self.engine_errors: dict[str, int] = {}

    def request(self, route: str, status: int, seconds: float | None, *, infers: bool) -> None:
        """Count one answered request, timed where it can be; ``infers`` where it was sent to be inferred."""
        place = route, status
        self.requests[place] = self.requests.get(place, 0) + 1
        if seconds is None:
            return
        durations = self.durations.get(route)
        if durations is None:
            durations = self.durations[route] = DurationHistogram(BUCKETS_SECONDS)
        durations.observe(seconds)
        # What the client did wrong is neither: quick refusals would make any release look quick and sound.
        if infers and (status == 200 or status >= 500):
            result = "answered" if status == 200 else "failed"
            inferences = self.inferences.get(result)
            if inferences is None:
                inferences = self.inferences[result] = DurationHistogram(BUCKETS_SECONDS)
            inferences.observe(seconds)

    def add_requests(self, other: Served) -> None:
        """Count the requests that another one counted, and their durations."""
        for place, count in other.requests.items():
            self.requests[place] = self.requests.get(place, 0) + count
        for route, histogram in other.durations.items():
            self.durations.setdefault(route, DurationHistogram(BUCKETS_SECONDS)).add(histogram)


class ReleaseCounter(Collector):
    """A counter by release, channel and one label more, of the releases that were counted last. Any thread's.

    Args:
        name: Without ``_total``.
        what: What is counted.
        label: The further label.
        channel: The channel that is followed; empty where none is.
    """

    def __init__(self, name: str, what: str, label: str, channel: str) -> None:
        self._name, self._what, self._label, self._channel = name, what, label, channel
        self._by_release: dict[str, dict[str, int]] = {}  # the least recent first
        self._lock = threading.Lock()

    def count(self, release: str, value: str) -> None:
        """Count one; ``value`` is the label's."""
        with self._lock:
            counts = self._by_release.pop(release, {})
            while len(self._by_release) >= MOST_RELEASES:
                del self._by_release[next(iter(self._by_release))]
            self._by_release[release] = counts
            counts[value] = counts.get(value, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        labels = ["release", "channel", self._label]
        family = CounterMetricFamily(self._name, self._what, labels=labels)
        with self._lock:
            for release, counts in self._by_release.items():
                for value, count in counts.items():
                    family.add_metric([release, self._channel, value], count)
        yield family


class ServedCollector(Collector):
    """Families of all releases that were served.

    Args:
        channel: The channel that is followed; empty where none is.
    """

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._by_release: dict[str, Served] = {}  # the least recent first
        self._latest: tuple[str, Served] | None = None
        self._gone = Served()

    def of(self, release: str) -> Served:
        """The counts of a release; of none for an empty one. It is the most recent from now on."""
        if self._latest is not None and self._latest[0] == release:
            return self._latest[1]
        served = self._by_release.pop(release, None) or Served()
        while len(self._by_release) >= MOST_RELEASES:
            self._gone.add_requests(self._by_release.pop(next(iter(self._by_release))))
        self._by_release[release] = served
        self._latest = release, served
        return served

    def collect(self) -> Iterator[Metric]:
        """All families; those without a release's labels are for rules that know no release."""
        by = ["release", "channel"]
        requests = CounterMetricFamily(
            "hailo_runtime_requests", "Requests answered.", labels=["route", "status", *by]
        )
        durations = HistogramMetricFamily(
            "hailo_runtime_request_duration_seconds",
            "Time from the whole request's being there to its answer.",
            labels=["route", *by],
        )
        inferences = HistogramMetricFamily(
            "hailo_runtime_infer_duration_seconds",
            "The same of inferences alone: answered, or failed by 5xx; no client's mistakes.",
            labels=["result", *by],
        )
        engine = HistogramMetricFamily(
            "hailo_runtime_engine_duration_seconds",
            "Time of one window in the engine and the motif head; no probes.",
            labels=by,
        )
        windows = CounterMetricFamily(
            "hailo_runtime_windows", "Windows that the engine ran, but for probes.", labels=by
        )
        probes = CounterMetricFamily(
            "hailo_runtime_probes", "Windows of noise that a health check sent, answered.", labels=by
        )
        implausible = CounterMetricFamily(
            "hailo_runtime_implausible_windows",
            "Windows answered whose values cannot be right.",
            labels=["kind", *by],
        )
        errors = CounterMetricFamily(
            "hailo_runtime_engine_errors", "Windows that the engine failed to run.", labels=["code", *by]
        )
        for release, served in self._by_release.items():
            labels = [release, self._channel]
            for (route, status), count in served.requests.items():
                requests.add_metric([route, str(status), *labels], count)
            for route, histogram in served.durations.items():
                durations.add_metric([route, *labels], histogram.buckets(), histogram.sum)
            for result, histogram in served.inferences.items():
                inferences.add_metric([result, *labels], histogram.buckets(), histogram.sum)
            for kind, count in served.implausible.items():
                implausible.add_metric([kind, *labels], count)
            for code, count in served.engine_errors.items():
                errors.add_metric([code, *labels], count)
            if served.windows:
                engine.add_metric(labels, served.engine.buckets(), served.engine.sum)
                windows.add_metric(labels, served.windows)
            if served.probes:
                probes.add_metric(labels, served.probes)
        yield from (requests, durations, inferences, engine, windows, probes, implausible, errors)
        yield from self._without_release()

    def _without_release(self) -> Iterator[Metric]:
        """The names that rules for the neighbouring services ask for."""
        everything = Served()
        for served in (self._gone, *self._by_release.values()):
            everything.add_requests(served)
        requests = CounterMetricFamily("http_requests", "Requests answered.", labels=["route", "status"])
        for (route, status), count in everything.requests.items():
            requests.add_metric([route, str(status)], count)
        durations = HistogramMetricFamily(
            "http_request_duration_seconds", "Time of an answer.", labels=["route"]
        )
        for route, histogram in everything.durations.items():
            durations.add_metric([route], histogram.buckets(), histogram.sum)
        yield from (requests, durations)
