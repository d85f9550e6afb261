"""What is known of a running canary: samples put together to counts.

What is not there is not made up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from assets.canary_source import BESIDE, SERVED, NoEvidenceError, Sample, Source
from runtime.contract.errors import PipelineError

DEADLINE_SECONDS: Final = 0.045
ROUTES: Final = ("/infer", "/infer/infer")
"""``POST /`` infers, too, but so many a browser asks ``GET /`` that its count says nothing."""

Keep = Callable[[Mapping[str, str]], bool]
"""Whether a sample with these labels counts."""


@dataclass(frozen=True)
class Histogram:
    """Counts below upper edges, cumulated; the last edge is infinite."""

    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """All."""
        return self.counts[-1] if self.counts else 0.0

    def above(self, edge: float) -> float | None:
        """How many above an edge that is one; None where nothing was counted or the edge is none."""
        if self.total <= 0 or edge not in self.edges:
            return None
        return max(0.0, self.total - self.counts[self.edges.index(edge)])

    def surely_above(self, value: float) -> float:
        """How many at least: those above the first edge that is not below the value."""
        edge = min((edge for edge in self.edges if edge >= value), default=math.inf)
        return self.above(edge) or 0.0

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
        requests, failed: Inferences that were answered by 200 or 5xx, and those by 5xx.
        durations: Of them, in seconds.
        engine: Of single windows in the engine, in seconds.
        windows: How many the engine ran for clients.
        untimed: Requests that count as inferences, where none was timed as one: an older runtime's.
        golden: Golden windows by result: ``repeated``, ``missed``, ``failed``.
        minutes: For how long each runtime has been serving it, at least; 0 where none does any more.
    """

    requests: float
    failed: float
    durations: Histogram
    engine: Histogram
    windows: float
    untimed: float
    golden: Mapping[str, float]
    minutes: float


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A canary beside stable, on windows of one source.

    Args:
        windows: Compared.
        distances: 1 - cosine of the latents.
        motifs, disagreements: Windows with a clear motif, and those where canary's is another.
    """

    windows: float
    distances: Histogram
    motifs: float
    disagreements: float


@dataclass(frozen=True, kw_only=True)
class Shadowed:
    """A canary beside stable.

    Args:
        compared: By source: a few golden windows, over and over, must not thin out the clients'.
        failures: By reason.
        engine: CPU seconds of single windows in its engine, by source; under ``""`` where none is said.
        golden: Golden windows of its own, by result.
        minutes: For how long each runtime has been running it beside this stable, at least; 0 for none.
        against: What it runs beside.
    """

    compared: Mapping[str, Compared]
    failures: Mapping[str, float]
    engine: Mapping[str, Histogram]
    golden: Mapping[str, float]
    minutes: float
    against: tuple[str, ...]

    @property
    def windows(self) -> float:
        """Of all sources."""
        return math.fsum(each.windows for each in self.compared.values())


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Everything that was found out of one canary.

    Args:
        source: Where.
        served, shadowed: The canary, as it answers clients, and as it runs beside stable; None where not.
        stable: What stable's runtimes did; None where there is no stable, or nothing of it is known.
        refused: Attempts of runtimes on its channel to load it that failed, by reason.
        others: Releases other than this one that run as a canary.
        gaps: Runtimes whose counts are missing, whole or in part, a sentence each.
        problems: What could not be found out.
    """

    source: str
    served: Served | None = None
    shadowed: Shadowed | None = None
    stable: Served | None = None
    refused: Mapping[str, float] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def observe(
    open_source: Callable[[], Source], canary: str, stable: str, minutes: float = math.inf
) -> Observation:
    """Ask for all that is known of a canary; what cannot be found out becomes a problem, never a number.

    Args:
        open_source: Opens what is asked; may raise NoEvidenceError.
        canary: Its release.
        stable: What stable names; empty for nothing.
        minutes: How far back, where the source looks back: what was before is another canary's.
    """
    name = ""
    try:
        source = open_source().within(minutes)
        name = source.name
        return Observation(
            source=name,
            served=_served(source, canary, channel="canary"),
            shadowed=_shadowed(source, canary, stable) if stable else None,
            stable=_served(source, stable, channel="stable") if stable else None,
            refused=_by(
                source.counted("hailo_release_switch_failures_total", canary),
                "reason",
                lambda labels: labels.get("channel") == "canary",
            ),
            others=tuple(sorted(_running_canaries(source) - {canary})),
            gaps=source.gaps(canary),
        )
    except PipelineError as error:
        return Observation(source=name or error.where, problems=(str(error),))
    except Exception as error:  # whatever it is, nothing is known, and the others are still to be judged
        return Observation(source=name, problems=(f"{type(error).__name__}: {error}",))


def _running_canaries(source: Source) -> set[str]:
    found = {
        each.labels.get("release", "")
        for each in source.now(SERVED)
        if each.labels.get("channel") == "canary"
    }
    found |= {each.labels.get("release", "") for each in source.now(BESIDE) if each.value == 1}
    return found - {""}


def _served(source: Source, release: str, channel: str) -> Served | None:
    """Counts first: what failed and is gone has failed all the same."""

    def on_channel(labels: Mapping[str, str]) -> bool:
        return labels.get("channel") == channel

    def failed(labels: Mapping[str, str]) -> bool:
        return on_channel(labels) and labels.get("result") == "failed"

    def infers(labels: Mapping[str, str]) -> bool:
        status = labels.get("status", "")
        answered = status == "200" or status.startswith("5")
        return on_channel(labels) and labels.get("route") in ROUTES and answered

    durations = source.counted("hailo_runtime_infer_duration_seconds_bucket", release)
    requests = histogram(durations, on_channel)
    counted = total(source.counted("hailo_runtime_requests_total", release), infers)
    windows = total(source.counted("hailo_runtime_windows_total", release), on_channel)
    golden = _by(source.counted("hailo_golden_replays_total", release), "result")
    since = [each for each in source.now(SERVED, release) if on_channel(each.labels)]
    if not (since or requests.total or counted or windows or golden):
        return None
    return Served(
        requests=requests.total,
        failed=histogram(durations, failed).total,
        durations=requests,
        engine=histogram(source.counted("hailo_runtime_engine_duration_seconds_bucket", release), on_channel),
        windows=windows,
        untimed=0.0 if requests.total else max(counted, windows),
        golden=golden,
        minutes=min(map(_number, since), default=0.0) / 60,
    )


def _shadowed(source: Source, canary: str, stable: str) -> Shadowed | None:
    def beside(labels: Mapping[str, str]) -> bool:
        return labels.get("against") == stable

    running = [each for each in source.now(BESIDE, canary) if each.value == 1]
    failures = _by(source.counted("hailo_shadow_failures_total", canary), "reason")
    golden = _by(source.counted("hailo_shadow_golden_total", canary), "result")
    compared = _compared(source, canary, beside)
    if not (running or failures or golden or compared):
        return None
    since = [each for each in source.now("hailo_shadow_running_seconds", canary) if beside(each.labels)]
    engine = source.counted("hailo_shadow_engine_duration_seconds_bucket", canary)
    return Shadowed(
        compared=compared,
        failures=failures,
        engine={name: histogram(engine, _of(name)) for name in _sources(engine)},
        golden=golden,
        minutes=min(map(_number, since), default=0.0) / 60,
        against=tuple(sorted({each.labels.get("against", "") for each in running})),
    )


def _compared(source: Source, canary: str, beside: Keep) -> dict[str, Compared]:
    names = (
        "windows_total",
        "latent_cosine_distance_bucket",
        "motif_windows_total",
        "motif_disagreements_total",
    )
    windows, distances, motifs, differ = (
        [each for each in source.counted(f"hailo_shadow_{name}", canary) if beside(each.labels)]
        for name in names
    )
    return {
        name: Compared(
            windows=total(windows, _of(name)),
            distances=histogram(distances, _of(name)),
            motifs=total(motifs, _of(name)),
            disagreements=total(differ, _of(name)),
        )
        for name in _sources([*windows, *distances, *motifs, *differ])
    }


def _sources(samples: Sequence[Sample]) -> list[str]:
    return sorted({each.labels.get("source", "") for each in samples})


def _of(source: str) -> Keep:
    return lambda labels: labels.get("source", "") == source


def _by(samples: Sequence[Sample], label: str, keep: Keep = lambda _: True) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in samples:
        if keep(each.labels) and (value := _number(each)) > 0:
            found[each.labels.get(label, "")] = found.get(each.labels.get(label, ""), 0.0) + value
    return found
