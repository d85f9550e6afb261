"""What is known of a running canary: asked of Prometheus, or of the runtimes' own ``/metrics``.

Both give the same samples by name and labels; here they become counts. What is not there is not made up.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from prometheus_client.parser import text_string_to_metric_families

from runtime.contract.errors import PipelineError

ASK_SECONDS: Final = 5.0
MOST_BYTES: Final = 8 * 1024 * 1024
DEADLINE_SECONDS: Final = 0.045
ROUTES: Final = ("/infer", "/", "/infer/infer")
Keep = Callable[[Mapping[str, str]], bool]
"""Whether a sample with these labels counts."""


class NoEvidenceError(PipelineError):
    """The source of the numbers could not be asked, or answered something that is none."""

    code = "no_evidence"


@dataclass(frozen=True)
class Sample:
    """One number with its labels."""

    labels: Mapping[str, str]
    value: float


class Source(Protocol):
    """Where samples come from."""

    @property
    def name(self) -> str:
        """Its address, for people."""

    def counted(self, name: str, release: str) -> list[Sample]:
        """What the counters of a release counted; NoEvidenceError where that cannot be told."""

    def now(self, name: str, release: str = "") -> list[Sample]:
        """What gauges say; of all releases where none is named."""


class Prometheus:
    """Prometheus's HTTP API.

    Args:
        url: As ``http://127.0.0.1:9090``.
        minutes: How far back counters are looked at.
        job: Prometheus's own name for the runtimes: EdgeInfer exports metrics, too.
        get: Fetches an address.
    """

    def __init__(
        self, url: str, minutes: float, job: str = "", get: Callable[[str], bytes] | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._seconds = max(1, round(minutes * 60))
        self._job = f'job="{_escaped(job)}"' if job else ""
        self._get = get or fetched

    @property
    def name(self) -> str:
        """Its address."""
        return self._url

    def counted(self, name: str, release: str) -> list[Sample]:
        """As ``Source``: the most that each counter of the release reached, which is never too much.

        Not ``increase``: it takes a counter's first value for nothing, and the only failure is that one.
        """
        return self._asked(f"max_over_time({name}{self._selector(release)}[{self._seconds}s])")

    def now(self, name: str, release: str = "") -> list[Sample]:
        """As ``Source``."""
        return self._asked(f"{name}{self._selector(release)}")

    def _selector(self, release: str) -> str:
        parts = [part for part in (self._job, f'release="{_escaped(release)}"' if release else "") if part]
        return "{" + ",".join(parts) + "}" if parts else ""

    def _asked(self, query: str) -> list[Sample]:
        data = self._get(f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        try:
            answer = json.loads(data)
            if answer["status"] != "success" or answer["data"]["resultType"] != "vector":
                raise NoEvidenceError(f"answered {str(answer)[:200]}", where=self._url)
            return [
                Sample(dict(each["metric"]), float(each["value"][1])) for each in answer["data"]["result"]
            ]
        except (ValueError, LookupError, TypeError) as error:
            raise NoEvidenceError(
                f"its answer cannot be read: {type(error).__name__}",
                where=self._url,
                hint="is it Prometheus?",
            ) from error


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Runtimes:
    """The runtimes' own pages, all of them together: every one must answer.

    Args:
        urls: Of the runtimes, ``/metrics`` left away.
        get: Fetches an address.
    """

    def __init__(self, urls: Sequence[str], get: Callable[[str], bytes] | None = None) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        get = get or fetched
        self._samples: dict[str, list[Sample]] = {}
        for url in self._urls:
            try:
                text = get(f"{url}/metrics").decode()
                for family in text_string_to_metric_families(text):
                    for each in family.samples:
                        self._samples.setdefault(each.name, []).append(Sample(each.labels, each.value))
            except (ValueError, LookupError, TypeError) as error:
                raise NoEvidenceError(
                    f"its metrics cannot be read: {type(error).__name__}", where=url, hint="is it a runtime?"
                ) from error

    @property
    def name(self) -> str:
        """Their addresses."""
        return ", ".join(self._urls)

    def counted(self, name: str, release: str) -> list[Sample]:
        """As ``Source``; since each runtime's start."""
        return self.now(name, release)

    def now(self, name: str, release: str = "") -> list[Sample]:
        """As ``Source``."""
        found = self._samples.get(name, [])
        return [each for each in found if not release or each.labels.get("release") == release]


def fetched(url: str) -> bytes:
    """The body of a page, bounded in time and size; NoEvidenceError where there is none."""
    if not url.startswith(("http://", "https://")):
        raise NoEvidenceError("is no http address", where=url[:200])
    try:
        # Runtimes and Prometheus are neighbours: no proxy is asked for them.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=ASK_SECONDS) as answer:
            data: bytes = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise NoEvidenceError(
            f"does not answer: {error}", where=url.split("?", 1)[0], hint="is it up, and is this its address?"
        ) from error
    if len(data) > MOST_BYTES:
        raise NoEvidenceError(f"answers more than {MOST_BYTES} bytes", where=url.split("?", 1)[0])
    return data


@dataclass(frozen=True)
class Histogram:
    """Counts below upper edges, cumulated; the last edge is infinite."""

    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """All."""
        return self.counts[-1] if self.counts else 0.0

    def share_above(self, edge: float) -> float | None:
        """Share above an edge that is one; None where nothing was counted or the edge is none."""
        if self.total <= 0 or edge not in self.edges:
            return None
        return max(0.0, 1.0 - self.counts[self.edges.index(edge)] / self.total)

    def quantile(self, share: float) -> float | None:
        """As Prometheus interpolates it; infinite where it lies beyond the last edge, None for nothing."""
        if self.total <= 0:
            return None
        wanted, below, floor = share * self.total, 0.0, 0.0
        for edge, count in zip(self.edges, self.counts, strict=True):
            if count >= wanted:
                inside = (wanted - below) / (count - below) if count > below else 1.0
                return edge if math.isinf(edge) else floor + (edge - floor) * inside
            below, floor = count, edge
        return math.inf


def histogram(samples: Sequence[Sample], keep: Keep = lambda _: True) -> Histogram:
    """Put buckets together; NoEvidenceError where a number is none."""
    by_edge: dict[float, float] = {}
    for each in samples:
        if keep(each.labels):
            edge = float(each.labels["le"])
            by_edge[edge] = by_edge.get(edge, 0.0) + _number(each)
    if by_edge and math.inf not in by_edge:
        raise NoEvidenceError("a histogram without its last bucket", where="le")
    edges = tuple(sorted(by_edge))
    return Histogram(edges, tuple(by_edge[edge] for edge in edges))


def total(samples: Sequence[Sample], keep: Keep = lambda _: True) -> float:
    """Their sum; NoEvidenceError where a number is none."""
    return math.fsum(_number(each) for each in samples if keep(each.labels))


def _number(sample: Sample) -> float:
    if not math.isfinite(sample.value) or sample.value < 0:
        raise NoEvidenceError(f"{sample.value} is no count", where=str(dict(sample.labels))[:200])
    return sample.value


@dataclass(frozen=True, kw_only=True)
class Served:
    """A release that answers clients.

    Args:
        requests, failed: Inference requests, and those that were answered by 5xx.
        durations: Of the requests, in seconds.
        engine: Of single windows in the engine, in seconds.
        windows: How many the engine ran for clients.
        golden: Golden windows by result: ``repeated``, ``missed``, ``failed``.
        minutes: For how long it has been served.
    """

    requests: float
    failed: float
    durations: Histogram
    engine: Histogram
    windows: float
    golden: Mapping[str, float]
    minutes: float


@dataclass(frozen=True, kw_only=True)
class Shadowed:
    """A canary beside stable.

    Args:
        windows: Compared: of clients, and golden ones.
        failures: By reason.
        distances: 1 - cosine of the latents.
        motifs, disagreements: Windows with a clear motif, and those where canary's is another.
        engine: CPU seconds of single windows in its engine.
        golden: Golden windows of its own, by result.
        minutes: For how long it has been running.
        against: What it ran beside.
    """

    windows: float
    failures: Mapping[str, float]
    distances: Histogram
    motifs: float
    disagreements: float
    engine: Histogram
    golden: Mapping[str, float]
    minutes: float
    against: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Everything that was found out of one canary.

    Args:
        source: Where.
        served, shadowed: The canary, as it answers clients, and as it runs beside stable; None where not.
        stable: What stable's runtimes did; None where there is no stable, or nothing of it is known.
        refused: Attempts of runtimes on its channel to load it that failed, by reason.
        others: Releases other than this one that run as a canary.
        problems: What could not be found out.
    """

    source: str
    served: Served | None = None
    shadowed: Shadowed | None = None
    stable: Served | None = None
    refused: Mapping[str, float] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())


def observe(open_source: Callable[[], Source], canary: str, stable: str) -> Observation:
    """Ask for all that is known of a canary; what cannot be found out becomes a problem, never a number.

    Args:
        open_source: Opens what is asked; may raise NoEvidenceError.
        canary: Its release.
        stable: What stable names; empty for nothing.
    """
    name = ""
    try:
        source = open_source()
        name = source.name
        running = _running_canaries(source)
        others = tuple(sorted(running - {canary}))
        served = _served(source, canary, channel="canary")
        return Observation(
            source=name,
            served=served,
            shadowed=_shadowed(source, canary, stable) if stable else None,
            stable=_served(source, stable, channel="stable") if stable else None,
            refused=_by(
                source.counted("hailo_release_switch_failures_total", canary),
                "reason",
                lambda labels: labels.get("channel") == "canary",
            ),
            others=others,
        )
    except NoEvidenceError as error:
        return Observation(source=name or error.where, problems=(str(error),))
    except (ValueError, LookupError) as error:
        return Observation(source=name, problems=(f"{type(error).__name__}: {error}",))


def _running_canaries(source: Source) -> set[str]:
    found = {
        each.labels.get("release", "")
        for each in source.now("hailo_release_served_seconds")
        if each.labels.get("channel") == "canary"
    }
    found |= {
        each.labels.get("release", "") for each in source.now("hailo_shadow_running") if each.value == 1
    }
    return found - {""}


def _served(source: Source, release: str, channel: str) -> Served | None:
    def on_channel(labels: Mapping[str, str]) -> bool:
        return labels.get("channel") == channel

    def infers(labels: Mapping[str, str]) -> bool:
        return on_channel(labels) and labels.get("route") in ROUTES

    since = [each for each in source.now("hailo_release_served_seconds", release) if on_channel(each.labels)]
    if not since:
        return None
    requests = source.counted("hailo_runtime_requests_total", release)
    golden = source.counted("hailo_golden_replays_total", release)
    return Served(
        requests=total(requests, infers),
        failed=total(requests, lambda labels: infers(labels) and labels.get("status", "").startswith("5")),
        durations=histogram(source.counted("hailo_runtime_request_duration_seconds_bucket", release), infers),
        engine=histogram(source.counted("hailo_runtime_engine_duration_seconds_bucket", release), on_channel),
        windows=total(source.counted("hailo_runtime_windows_total", release), on_channel),
        golden=_by(golden, "result"),
        minutes=max(map(_number, since)) / 60,
    )


def _shadowed(source: Source, canary: str, stable: str) -> Shadowed | None:
    def beside(labels: Mapping[str, str]) -> bool:
        return labels.get("against") == stable

    running = [each for each in source.now("hailo_shadow_running", canary) if each.value == 1]
    failures = _by(source.counted("hailo_shadow_failures_total", canary), "reason")
    if not running and not failures:
        return None
    since = source.now("hailo_shadow_running_seconds", canary)
    return Shadowed(
        windows=total(source.counted("hailo_shadow_windows_total", canary), beside),
        failures=failures,
        distances=histogram(source.counted("hailo_shadow_latent_cosine_distance_bucket", canary), beside),
        motifs=total(source.counted("hailo_shadow_motif_windows_total", canary), beside),
        disagreements=total(source.counted("hailo_shadow_motif_disagreements_total", canary), beside),
        engine=histogram(source.counted("hailo_shadow_engine_duration_seconds_bucket", canary)),
        golden=_by(source.counted("hailo_shadow_golden_total", canary), "result"),
        minutes=max(map(_number, since), default=0.0) / 60,
        against=tuple(sorted({each.labels.get("against", "") for each in running})),
    )


def _by(samples: Sequence[Sample], label: str, keep: Keep = lambda _: True) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in samples:
        if keep(each.labels) and (value := _number(each)) > 0:
            found[each.labels.get(label, "")] = found.get(each.labels.get(label, ""), 0.0) + value
    return found
