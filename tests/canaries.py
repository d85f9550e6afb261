"""A canary as a source of samples shows it, beside a stable or alone, for tests of those who judge it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import urllib.parse
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from assets.canary_evidence import observe
from assets.canary_policy import CanaryPolicy, load_canary_policy
from assets.canary_source import Prometheus, Sample, Source
from assets.canary_verdict import Canary, find_canary, judge, verdict_on
from runtime.contract.promotion import Decision
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore
from runtime.contract.verdict import Verdict
from tests.keys import a_store
from tests.simulators import ReleaseSimulator

POLICY, DIGEST = load_canary_policy()
ANNA = Decision(actor="anna", reason="she looked at it")
OLD = timedelta(days=1)
"""Behind an entry: from then on a policy may roll back what is missing."""


class Seen:
    """A source that a test fills: a healthy canary beside a healthy stable, and changes to it."""

    def __init__(self, canary: str, stable: str, *, served: bool = False, shadow: bool = True) -> None:
        self.samples: dict[str, list[Sample]] = {}
        self.before: dict[str, list[Sample]] = {}
        """What was there within the time that is looked at, and is not now."""
        self.functions: dict[str, list[Sample]] = {}
        """What ``resets`` and ``changes`` of a name give."""
        self.asked: list[str] = []
        self.canary, self.stable = canary, stable
        if shadow and stable:
            self.runs_beside()
        if stable:
            self.serves(stable, "stable")
        if served:
            self.serves(canary, "canary")

    def runs_beside(self) -> None:
        beside = {"release": self.canary, "against": self.stable}
        self.put("hailo_shadow_running", 1, **beside)
        self.put("hailo_shadow_running_seconds", 3600, **beside)
        self.compared("traffic", 5000, clear=1000, differ=5, near=4900)
        timed = {0.001: 4990.0, 0.045: 5000.0}
        self.buckets("hailo_shadow_engine_duration_seconds", timed, release=self.canary)
        self.put("hailo_shadow_golden_total", 700, release=self.canary, result="repeated")

    def compared(self, source: str, windows: float, *, clear: float, differ: float, near: float) -> None:
        """Windows of a source: how many have a clear motif, differ in it, and have a latent near stable's."""
        by = {"release": self.canary, "against": self.stable, "source": source}
        self.put("hailo_shadow_windows_total", windows, **by)
        self.put("hailo_shadow_motif_windows_total", clear, **by)
        self.put("hailo_shadow_motif_disagreements_total", differ, **by)
        distances = {0.01: near, 0.1: near, 1.0: windows}
        self.buckets("hailo_shadow_latent_cosine_distance", distances, **by)

    def serves(self, release: str, channel: str) -> None:
        by = {"release": release, "channel": channel}
        self.put("hailo_release_served_seconds", 7200, **by)
        self.put("hailo_runtime_requests_total", 9990, route="/infer", status="200", **by)
        self.put("hailo_runtime_requests_total", 3, route="/healthz", status="503", **by)
        self.put("hailo_runtime_windows_total", 9990, **by)
        self.timed(release, channel, {0.001: 9000.0, 0.005: 9980.0, 0.045: 9990.0, 1.0: 9990.0})
        self.buckets("hailo_runtime_engine_duration_seconds", {0.001: 9980, 0.045: 9990}, **by)
        self.put("hailo_golden_replays_total", 5, result="repeated", **by)

    def timed(
        self, release: str, channel: str, counts: Mapping[float, float], result: str = "answered"
    ) -> None:
        """Inferences of a release, by how long they took."""
        by = {"release": release, "channel": channel, "result": result}
        self.buckets("hailo_runtime_infer_duration_seconds", counts, **by)

    def put(self, metric: str, value: float, **labels: str) -> None:
        """Add a sample, or replace the one with these labels."""
        self.samples[metric] = [*_without(self.samples.get(metric, []), labels), Sample(labels, value)]

    def had(self, metric: str, value: float, **labels: str) -> None:
        """Add one that was there and is not now."""
        self.before.setdefault(metric, []).append(Sample(labels, value))

    def buckets(self, metric: str, counts: Mapping[float, float], **labels: str) -> None:
        for edge, count in {**counts, math.inf: max(counts.values())}.items():
            self.put(f"{metric}_bucket", count, **labels, le="+Inf" if math.isinf(edge) else str(edge))

    def gone(self, prefix: str) -> None:
        self.samples = {name: found for name, found in self.samples.items() if not name.startswith(prefix)}

    def get(self, url: str) -> bytes:
        """What Prometheus's HTTP API answers to the queries that are asked of it, in its own words."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["query"][0]
        self.asked.append(query)
        asked = QUERY.fullmatch(query)
        assert asked is not None, query
        name, release, function = str(asked["name"]), asked["release"], asked["function"]
        if function in ("resets", "changes"):
            found = self.functions.get(name, [])
        else:
            found = [*self.samples.get(name, []), *(self.before.get(name, []) if function else [])]
        result = [
            {
                "metric": dict(PLACE) | {"__name__": name} | dict(each.labels),
                "value": [1764275000.1, in_text(each.value)],
            }
            for each in found
            if release is None or each.labels.get("release") == release
        ]
        return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()

    @property
    def source(self) -> Source:
        """It, as the judge asks it."""
        return Prometheus("http://prometheus", 60, get=self.get)


PLACE = {"job": "hailo", "instance": "pi-a:9000"}
QUERY = re.compile(
    r'((?P<function>max_over_time|resets|changes)\()?(?P<name>[a-z_]+)(\{release="(?P<release>[0-9a-f]{64})"\})?'
    r"(\[[0-9]+s\]\))?"
)


def _without(samples: list[Sample], labels: Mapping[str, str]) -> list[Sample]:
    return [each for each in samples if dict(each.labels) != labels]


def in_text(value: float) -> str:
    """As Prometheus writes a number."""
    if math.isnan(value):
        return "NaN"
    return ("+Inf" if value > 0 else "-Inf") if math.isinf(value) else f"{value:g}"


class Scene:
    """A store with a canary and, if wanted, a stable."""

    def __init__(self, root: Path, *, stable: bool = True, changes: dict[str, Any] | None = None) -> None:
        self.root = root
        self.stable = ReleaseSimulator(version="v1").publish(root, "canary", "stable") if stable else None
        simulator = ReleaseSimulator(version="v2", changes=changes or {})
        self.canary: Release = simulator.publish(root, "canary", judged=False)
        self.store: ReleaseStore = a_store(root, accepts_doubles=True)

    def seen(self, **options: bool) -> Seen:
        return Seen(self.canary.id, self.stable.id if self.stable else "", **options)

    def found(self) -> Canary:
        canary = find_canary(self.store, "emulator")
        assert canary is not None
        return canary

    def decision(
        self, seen: Seen, policy: CanaryPolicy = POLICY, age: timedelta = OLD
    ) -> tuple[str, dict[str, str]]:
        """What is decided so long after canary was moved, and the outcome of each row."""
        canary = self.found()
        stable = self.stable.id if self.stable else ""
        observed = observe(lambda: seen.source, self.canary.id, stable, age.total_seconds() / 60)
        decision, rows = judge(canary, observed, policy, canary.since + age)
        return decision, {row.name: row.outcome for row in rows}


def judged(scene: Scene, seen: Seen, **changes: Any) -> tuple[Canary, Verdict, CanaryPolicy]:
    """What is judged now, the verdict, and the policy with these changes."""
    policy = dataclasses.replace(POLICY, **changes)
    found = verdict_on(scene.store, "emulator", lambda: seen.source, policy, DIGEST)
    assert found is not None
    return (*found, policy)


def later(**ahead: float) -> str:
    """A time from now, as documents say it."""
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat(timespec="seconds")


Change = Callable[[Seen], None]


def put(name: str, value: float, **labels: str) -> Change:
    """Puts a sample; ``canary`` and ``stable`` stand for their releases."""

    def change(seen: Seen) -> None:
        ids = {"canary": seen.canary, "stable": seen.stable}
        named = dict(labels)
        for key in ("release", "against"):
            if key in named:
                named[key] = ids.get(named[key], named[key])
        seen.put(name, value, **named)

    return change


def gone(prefix: str) -> Change:
    """Takes all samples away whose name begins so."""
    return lambda seen: seen.gone(prefix)


def slow(seen: Seen) -> None:
    """Its engine takes longer than stable's."""
    seen.buckets("hailo_shadow_engine_duration_seconds", {0.001: 10, 0.045: 5000}, release=seen.canary)


def far(seen: Seen) -> None:
    """Its latents point elsewhere than stable's."""
    seen.compared("traffic", 5000, clear=1000, differ=5, near=100)


BESIDE = {"release": "canary", "against": "stable", "source": "traffic"}
