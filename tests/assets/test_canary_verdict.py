"""The judge of canaries: whatever is not known, or is of somebody else, never promotes."""

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

import pytest

from assets.canary_evidence import Histogram, NoEvidenceError, Prometheus, Runtimes, Sample, Source, observe
from assets.canary_policy import CanaryPolicy, CanaryPolicyError, load_canary_policy
from assets.canary_verdict import carry_out, find_canary, is_worth_keeping, judge, verdict_on
from runtime.contract import verdict as kept
from runtime.contract.errors import ChannelMovedError, ManifestError
from runtime.contract.promotion import Decision, PromotionRefusedError, mark_bad, promote
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore
from runtime.contract.trust import SignatureError
from runtime.contract.verdict import HOLD, PROMOTE, ROLL_BACK, verdicts_on
from tests.keys import BUILD, MANAGER, a_store
from tests.simulators import ReleaseSimulator
from tests.verdicts import a_verdict

POLICY, DIGEST = load_canary_policy()
ANNA = Decision(actor="anna", reason="she looked at it")
Labels = Mapping[str, str]


class Seen:
    """A source that a test fills: a healthy canary beside a healthy stable, and changes to it."""

    def __init__(self, canary: str, stable: str, *, served: bool = False, shadow: bool = True) -> None:
        self.samples: dict[str, list[Sample]] = {}
        self.canary, self.stable = canary, stable
        if shadow and stable:
            beside = {"release": canary, "against": stable}
            self.put("hailo_shadow_running", 1, **beside)
            self.put("hailo_shadow_running_seconds", 3600, **beside)
            self.put("hailo_shadow_windows_total", 5000, **beside, source="traffic")
            self.put("hailo_shadow_motif_windows_total", 1000, **beside, source="traffic")
            self.put("hailo_shadow_motif_disagreements_total", 5, **beside, source="traffic")
            self.buckets(
                "hailo_shadow_latent_cosine_distance", {0.01: 4900, 1.0: 5000}, **beside, source="traffic"
            )
            self.buckets("hailo_shadow_engine_duration_seconds", {0.001: 4990, 0.045: 5000}, release=canary)
            self.put("hailo_shadow_golden_total", 700, release=canary, result="repeated")
        if stable:
            self.serves(stable, "stable")
        if served:
            self.serves(canary, "canary")

    def serves(self, release: str, channel: str) -> None:
        by = {"release": release, "channel": channel}
        self.put("hailo_release_served_seconds", 7200, **by)
        self.put("hailo_runtime_requests_total", 9990, route="/infer", status="200", **by)
        self.put("hailo_runtime_requests_total", 3, route="/healthz", status="503", **by)
        self.put("hailo_runtime_windows_total", 9990, **by)
        buckets = {0.001: 9000.0, 0.005: 9980.0, 0.045: 9990.0, 1.0: 9990.0}
        self.buckets("hailo_runtime_request_duration_seconds", buckets, route="/infer", **by)
        self.buckets("hailo_runtime_engine_duration_seconds", {0.001: 9980, 0.045: 9990}, **by)
        self.put("hailo_golden_replays_total", 5, result="repeated", **by)

    def put(self, metric: str, value: float, **labels: str) -> None:
        """Add a sample, or replace the one with these labels."""
        known = [each for each in self.samples.get(metric, []) if dict(each.labels) != labels]
        self.samples[metric] = [*known, Sample(labels, value)]

    def buckets(self, metric: str, counts: Mapping[float, float], **labels: str) -> None:
        for edge, count in {**counts, math.inf: max(counts.values())}.items():
            self.put(f"{metric}_bucket", count, **labels, le="+Inf" if math.isinf(edge) else str(edge))

    def gone(self, prefix: str) -> None:
        self.samples = {name: found for name, found in self.samples.items() if not name.startswith(prefix)}

    def get(self, url: str) -> bytes:
        """What Prometheus's HTTP API answers to the queries that are asked of it, in its own words."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["query"][0]
        asked = QUERY.fullmatch(query)
        assert asked is not None, query
        name, release = str(asked["name"]), asked["release"]
        result = [
            {"metric": dict(each.labels) | {"__name__": name}, "value": [1764275000.1, in_text(each.value)]}
            for each in self.samples.get(name, [])
            if release is None or each.labels.get("release") == release
        ]
        return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()

    @property
    def source(self) -> Source:
        """It, as the judge asks it."""
        return Prometheus("http://prometheus", 60, get=self.get)


QUERY = re.compile(
    r'(max_over_time\()?(?P<name>[a-z_]+)(\{release="(?P<release>[0-9a-f]{64})"\})?(\[3600s\]\))?'
)


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

    def decision(self, seen: Seen, policy: CanaryPolicy = POLICY) -> tuple[str, dict[str, str]]:
        canary = find_canary(self.store, "emulator")
        assert canary is not None
        stable = self.stable.id if self.stable else ""
        decision, rows = judge(canary, observe(lambda: seen.source, self.canary.id, stable), policy)
        return decision, {row.name: row.outcome for row in rows}


@pytest.fixture(name="scene")
def a_scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("served", [False, True], ids=["beside stable", "and served"])
def test_a_good_canary_is_promoted(scene: Scene, served: bool) -> None:
    decision, rows = scene.decision(scene.seen(served=served))
    assert decision == PROMOTE, rows
    assert set(rows.values()) == {"ok", "shown"}


def test_a_first_canary_is_judged_without_stable(tmp_path: Path) -> None:
    scene = Scene(tmp_path, stable=False)
    decision, rows = scene.decision(scene.seen(served=True))
    assert decision == PROMOTE, rows
    assert rows["p95 against stable"] == "shown"


def test_a_canary_without_traffic_is_judged_by_golden_windows(tmp_path: Path) -> None:
    scene = Scene(tmp_path, stable=False)
    seen = scene.seen(served=True)
    for name in ("hailo_runtime_requests_total", "hailo_runtime_windows_total", "hailo_runtime_request"):
        seen.gone(name)
    by = {"release": scene.canary.id, "channel": "canary", "result": "repeated"}
    assert scene.decision(seen)[0] == HOLD
    seen.put("hailo_golden_replays_total", 600, **by)
    assert scene.decision(seen)[0] == PROMOTE


Change = Callable[[Seen], None]


def put(name: str, value: float, **labels: str) -> Change:
    def change(seen: Seen) -> None:
        ids = {"canary": seen.canary, "stable": seen.stable}
        named = dict(labels)
        for key in ("release", "against"):
            if key in named:
                named[key] = ids.get(named[key], named[key])
        seen.put(name, value, **named)

    return change


def gone(prefix: str) -> Change:
    return lambda seen: seen.gone(prefix)


def slow(seen: Seen) -> None:
    seen.buckets("hailo_shadow_engine_duration_seconds", {0.001: 10, 0.045: 5000}, release=seen.canary)


def late(seen: Seen) -> None:
    seen.buckets(
        "hailo_shadow_engine_duration_seconds", {0.001: 10, 0.045: 4900, 0.1: 5000}, release=seen.canary
    )


def far(seen: Seen) -> None:
    by = {"release": seen.canary, "against": seen.stable, "source": "traffic"}
    seen.buckets("hailo_shadow_latent_cosine_distance", {0.01: 100, 0.5: 5000}, **by)


BESIDE = {"release": "canary", "against": "stable", "source": "traffic"}
CASES: dict[str, tuple[Change, str, str]] = {
    "nothing at all": (gone("hailo_"), HOLD, "runs"),
    "no canary anywhere": (gone("hailo_shadow"), HOLD, "runs"),
    "few windows": (put("hailo_shadow_windows_total", 20, **BESIDE), HOLD, "windows beside stable"),
    "few minutes": (
        put("hailo_shadow_running_seconds", 60, release="canary", against="stable"),
        HOLD,
        "minutes beside stable",
    ),
    "no golden windows": (gone("hailo_shadow_golden"), HOLD, "golden windows, beside stable"),
    "no distances": (gone("hailo_shadow_latent"), HOLD, "p95 of 1 - cosine"),
    "no durations": (gone("hailo_shadow_engine"), HOLD, "p95 of the engine"),
    "another canary": (
        put("hailo_release_served_seconds", 10, release="f" * 64, channel="canary"),
        HOLD,
        "canaries",
    ),
    "another beside stable": (
        put("hailo_shadow_running", 1, release="f" * 64, against="stable"),
        HOLD,
        "canaries",
    ),
    "NaN": (put("hailo_shadow_windows_total", math.nan, **BESIDE), HOLD, "evidence"),
    "a negative count": (put("hailo_shadow_windows_total", -1, **BESIDE), HOLD, "evidence"),
    "infinitely many": (put("hailo_shadow_motif_windows_total", math.inf, **BESIDE), HOLD, "evidence"),
    "failures": (
        put("hailo_shadow_failures_total", 1, release="canary", reason="died"),
        ROLL_BACK,
        "failures beside stable",
    ),
    "golden windows missed": (
        put("hailo_shadow_golden_total", 1, release="canary", result="missed"),
        ROLL_BACK,
        "golden windows, beside stable",
    ),
    "slow": (slow, ROLL_BACK, "p95 of the engine"),
    "later than 45 ms": (late, ROLL_BACK, "windows later than 45 ms, engine"),
    "far from stable": (far, ROLL_BACK, "p95 of 1 - cosine"),
    "other motifs": (
        put("hailo_shadow_motif_disagreements_total", 200, **BESIDE),
        ROLL_BACK,
        "clear motifs that differ",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_holds_and_what_is_broken_rolls_back(scene: Scene, name: str) -> None:
    change, expected, row = CASES[name]
    seen = scene.seen()
    change(seen)
    decision, rows = scene.decision(seen)
    assert (decision, rows[row]) == (expected, "missing" if expected == HOLD else "breached")
    if expected == HOLD:
        strict = dataclasses.replace(POLICY, missing=ROLL_BACK)
        assert scene.decision(seen, strict)[0] == ROLL_BACK


SERVED: dict[str, tuple[Change, str, str]] = {
    "errors": (
        put(
            "hailo_runtime_requests_total",
            100,
            release="canary",
            channel="canary",
            route="/infer",
            status="503",
        ),
        ROLL_BACK,
        "requests that failed",
    ),
    "later than 45 ms": (
        lambda seen: seen.buckets(
            "hailo_runtime_request_duration_seconds",
            {0.001: 9000, 0.005: 9700, 0.045: 9800, 1.0: 9990},
            release=seen.canary,
            channel="canary",
            route="/infer",
        ),
        ROLL_BACK,
        "requests later than 45 ms",
    ),
    "slower than stable": (
        lambda seen: seen.buckets(
            "hailo_runtime_request_duration_seconds",
            {0.001: 100, 0.005: 200, 0.045: 9990, 1.0: 9990},
            release=seen.canary,
            channel="canary",
            route="/infer",
        ),
        ROLL_BACK,
        "p95 against stable",
    ),
    "a golden window failed": (
        put("hailo_golden_replays_total", 1, release="canary", channel="canary", result="failed"),
        ROLL_BACK,
        "golden windows, served",
    ),
    "a histogram without its end": (
        lambda seen: seen.samples.__setitem__(
            "hailo_runtime_request_duration_seconds_bucket",
            [
                e
                for e in seen.samples["hailo_runtime_request_duration_seconds_bucket"]
                if e.labels["le"] != "+Inf"
            ],
        ),
        HOLD,
        "evidence",
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_canary_that_serves_clients_is_held_against_them(scene: Scene, name: str) -> None:
    change, expected, row = SERVED[name]
    seen = scene.seen(served=True, shadow=False)
    change(seen)
    decision, rows = scene.decision(seen)
    assert (decision, rows[row]) == (expected, "missing" if expected == HOLD else "breached")


def test_motifs_of_which_stable_is_seldom_sure_do_not_decide(scene: Scene) -> None:
    seen = scene.seen()
    put("hailo_shadow_motif_windows_total", 10, **BESIDE)(seen)
    put("hailo_shadow_motif_disagreements_total", 0, **BESIDE)(seen)
    decision, rows = scene.decision(seen)
    assert (decision, rows["clear motifs that differ"]) == (PROMOTE, "shown")
    put("hailo_shadow_motif_disagreements_total", 5, **BESIDE)(seen)
    assert scene.decision(seen)[0] == ROLL_BACK  # more than 5 % of 50, whatever the others will be


def test_a_share_of_few_is_no_share(scene: Scene) -> None:
    seen = scene.seen()
    for count, late, expected in (
        (60, 1, HOLD),
        (60, 6, ROLL_BACK),
        (5000, 40, PROMOTE),
        (5000, 60, ROLL_BACK),
    ):
        buckets = {0.001: float(count - late), 0.045: float(count - late), 0.1: float(count)}
        seen.buckets("hailo_shadow_engine_duration_seconds", buckets, release=seen.canary)
        assert scene.decision(seen)[0] == expected, (count, late)


@pytest.mark.parametrize("reason", ["store", "not_there_yet", "internal", "slow_to_load"])
def test_what_is_not_its_fault_does_not_roll_it_back(scene: Scene, reason: str) -> None:
    seen = scene.seen()
    put("hailo_shadow_failures_total", 3, release="canary", reason=reason)(seen)
    assert scene.decision(seen)[0] == PROMOTE  # it runs meanwhile
    for name in ("running", "windows", "golden", "engine", "latent", "motif"):
        seen.gone(f"hailo_shadow_{name}")
    decision, rows = scene.decision(seen)
    assert (decision, rows["failures beside stable"], rows["minutes beside stable"]) == (
        HOLD,
        "ok",
        "missing",
    )


REFUSED = "hailo_release_switch_failures_total"
ON_CHANNEL = {"release": "canary", "channel": "canary"}


@pytest.mark.parametrize("reason", ["golden_mismatch", "crashed_on_load", "digest_mismatch", "hef_checksum"])
@pytest.mark.parametrize("served", [True, False])
def test_a_canary_that_its_own_runtime_cannot_load_is_rolled_back(
    scene: Scene, reason: str, served: bool
) -> None:
    seen = scene.seen(served=served, shadow=False)
    put(REFUSED, 1, **ON_CHANNEL, reason=reason)(seen)
    decision, rows = scene.decision(seen)
    assert (decision, rows["not loaded on its channel"]) == (ROLL_BACK, "breached")


@pytest.mark.parametrize("reason", ["device_busy", "store_missing", "num_motifs", "no_engine"])
def test_what_is_the_devices_or_the_stores_holds_it(scene: Scene, reason: str) -> None:
    seen = scene.seen(served=False, shadow=False)
    put(REFUSED, 7, **ON_CHANNEL, reason=reason)(seen)
    decision, rows = scene.decision(seen)
    assert (decision, rows["not loaded on its channel"]) == (HOLD, "shown")
    seen.serves(seen.canary, "canary")  # ... until it is loaded
    assert scene.decision(seen)[0] == PROMOTE


def test_what_a_runtime_of_stable_did_not_load_is_not_the_canarys(scene: Scene) -> None:
    seen = scene.seen()
    put(REFUSED, 1, release="canary", channel="stable", reason="golden_mismatch")(seen)
    put(REFUSED, 1, release="stable", channel="canary", reason="golden_mismatch")(seen)
    assert scene.decision(seen)[0] == PROMOTE


def test_another_targets_canary_is_no_second_one(scene: Scene) -> None:
    chip = ReleaseSimulator(target="hailo8").publish(scene.root, "canary")
    seen = scene.seen()
    put("hailo_release_served_seconds", 10, release=chip.id, channel="canary")(seen)
    assert judged(scene, seen)[1].decision == PROMOTE
    old = ReleaseSimulator(version="v0").publish(scene.root)
    put("hailo_release_served_seconds", 10, release=old.id, channel="canary")(seen)
    assert judged(scene, seen)[1].decision == HOLD


def test_other_weights_are_not_compared(tmp_path: Path) -> None:
    scene = Scene(tmp_path, changes={"upstream": {"onnx_model": "9" * 64}})
    seen = scene.seen()
    far(seen)
    put("hailo_shadow_motif_disagreements_total", 900, **BESIDE)(seen)
    decision, rows = scene.decision(seen)
    assert (decision, rows["p95 of 1 - cosine"], rows["clear motifs that differ"]) == (
        PROMOTE,
        "shown",
        "shown",
    )


def test_a_source_that_is_down_holds(scene: Scene) -> None:
    def down() -> Source:
        raise NoEvidenceError("does not answer", where="http://127.0.0.1:1")

    found = verdict_on(scene.store, "emulator", down, POLICY, DIGEST)
    assert found is not None
    assert found[1].decision == HOLD
    assert "does not answer" in found[1].reasons()[0]


RECORDED: dict[str, Any] = {
    "error": {"status": "error", "errorType": "bad_data", "error": "parse error"},
    "a matrix": {"status": "success", "data": {"resultType": "matrix", "result": []}},
    "no data": {"status": "success"},
    "no value": {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}}]}},
    "text": {
        "status": "success",
        "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "x"]}]},
    },
    "a list": [],
}


@pytest.mark.parametrize("name", RECORDED)
def test_an_answer_of_prometheus_that_is_none_is_no_evidence(scene: Scene, name: str) -> None:
    def get(url: str) -> bytes:
        return json.dumps(RECORDED[name]).encode()

    found = verdict_on(scene.store, "emulator", lambda: Prometheus("http://p", 60, get=get), POLICY, DIGEST)
    assert found is not None
    assert found[1].decision == HOLD


def test_prometheus_is_asked_for_this_release_and_job_only() -> None:
    asked: list[str] = []

    def get(url: str) -> bytes:
        asked.append(url)
        return json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}}).encode()

    Prometheus("http://p/", 2, 'a"b', get).counted("x_total", "c" * 64)
    query = (
        "max_over_time%28x_total%7Bjob%3D%22a%5C%22b%22%2Crelease%3D%22" + "c" * 64 + "%22%7D%5B120s%5D%29"
    )
    assert asked == [f"http://p/api/v1/query?query={query}"]


def test_every_runtime_must_answer() -> None:
    def get(url: str) -> bytes:
        if "second" in url:
            raise NoEvidenceError("does not answer", where=url)
        return b'x_total{release="a"} 3\n'

    assert Runtimes(["http://first"], get).counted("x_total", "a")[0].value == 3
    with pytest.raises(NoEvidenceError):
        Runtimes(["http://first", "http://second"], get)
    with pytest.raises(NoEvidenceError):
        Runtimes(["http://first"], lambda url: b"x{ 3")


def test_a_quantile_lies_within_its_bucket() -> None:
    found = Histogram((0.1, 0.2, math.inf), (50, 100, 100))
    assert found.quantile(0.5) == pytest.approx(0.1)
    assert found.quantile(0.75) == pytest.approx(0.15)
    assert Histogram((0.1, math.inf), (0, 3)).quantile(0.5) == math.inf
    assert Histogram().quantile(0.5) is None
    assert found.share_above(0.2) == 0
    assert found.share_above(0.15) is None


def judged(scene: Scene, seen: Seen, **changes: Any) -> Any:
    policy = dataclasses.replace(POLICY, **changes)
    found = verdict_on(scene.store, "emulator", lambda: seen.source, policy, DIGEST)
    assert found is not None
    return (*found, policy)


def test_a_broken_canary_returns_by_itself_and_stays_away(scene: Scene) -> None:
    seen = scene.seen()
    slow(seen)
    canary, verdict, policy = judged(scene, seen)
    assert is_worth_keeping(scene.store, verdict, policy)
    entry = carry_out(scene.store, canary, verdict, policy, BUILD)
    assert entry is not None
    assert scene.stable is not None
    assert (entry.release, entry.actor) == (scene.stable.id, "canary_verdict")
    assert "p95 of the engine" in entry.reason
    # The same again is no canary, and no stable either.
    with pytest.raises(Exception, match="marked bad by canary_verdict"):
        ReleaseSimulator(version="v2").publish(scene.root, "canary")
    with pytest.raises(PromotionRefusedError, match="the verdict on it is roll_back"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    assert find_canary(scene.store, "emulator") is None


def test_a_first_canary_that_is_rolled_back_leaves_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, stable=False)
    seen = scene.seen(served=True)
    put("hailo_golden_replays_total", 1, release="canary", channel="canary", result="missed")(seen)
    canary, verdict, policy = judged(scene, seen)
    entry = carry_out(scene.store, canary, verdict, policy, BUILD)
    assert entry is not None
    assert entry.release == ""


def test_where_the_policy_says_so_a_person_rolls_back(scene: Scene) -> None:
    seen = scene.seen()
    slow(seen)
    canary, verdict, policy = judged(scene, seen, roll_back_by_itself=False)
    assert carry_out(scene.store, canary, verdict, policy, BUILD) is None
    assert not is_worth_keeping(scene.store, verdict, policy)
    found = find_canary(scene.store, "emulator")
    assert found is not None
    assert found.release.id == scene.canary.id


def test_a_judge_that_was_killed_in_between_ends_the_same(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scene.seen()
    slow(seen)
    canary, verdict, policy = judged(scene, seen)
    for place in ("roll_back", "mark_bad"):
        with monkeypatch.context() as patched:
            patched.setattr(f"assets.canary_verdict.{place}", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                carry_out(scene.store, canary, verdict, policy, BUILD)
        with pytest.raises(PromotionRefusedError, match="the verdict on it is roll_back"):
            promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
        if place == "roll_back":  # Canary is still named: it is judged again.
            canary, verdict, policy = judged(scene, seen)
            assert is_worth_keeping(scene.store, verdict, policy)


def test_a_canary_that_moved_meanwhile_is_not_rolled_back(scene: Scene) -> None:
    seen = scene.seen()
    slow(seen)
    canary, verdict, policy = judged(scene, seen)
    other = ReleaseSimulator(version="v3").publish(scene.root, "canary")
    with pytest.raises(ChannelMovedError):
        carry_out(scene.store, canary, verdict, policy, BUILD)
    assert scene.store.resolve("emulator", "canary").id == other.id


def test_a_breach_while_approval_waits_stops_the_promotion(scene: Scene) -> None:
    canary, verdict, policy = judged(scene, scene.seen())
    assert carry_out(scene.store, canary, verdict, policy, BUILD) is None
    assert not is_worth_keeping(scene.store, verdict, policy)
    broken = scene.seen()
    slow(broken)
    canary, worse, policy = judged(scene, broken, roll_back_by_itself=False)
    assert is_worth_keeping(scene.store, worse, policy)
    carry_out(scene.store, canary, worse, policy, BUILD)
    with pytest.raises(PromotionRefusedError, match="the verdict on it is roll_back"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    canary, silent, policy = judged(scene, Seen("", ""))
    carry_out(scene.store, canary, dataclasses.replace(silent, at=later(seconds=5)), policy, BUILD)
    with pytest.raises(PromotionRefusedError, match="the verdict on it is hold"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)


def later(**ahead: float) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat(timespec="seconds")


def test_a_verdict_lets_a_person_promote_for_as_long_as_it_counts(scene: Scene) -> None:
    with pytest.raises(PromotionRefusedError, match="no verdict on it as a canary"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    old = a_verdict(scene.canary, age=timedelta(minutes=61))
    kept.keep_verdict(scene.store, scene.canary, old, BUILD)
    with pytest.raises(PromotionRefusedError, match="counts for 60 minutes"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    canary, verdict, policy = judged(scene, scene.seen())
    carry_out(scene.store, canary, verdict, policy, BUILD)
    entry = promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)
    assert (entry.overridden, {each.kind for each in entry.evidence}) == ((), {"verdict"})


def test_force_promotes_without_one_and_says_so(scene: Scene) -> None:
    forced = dataclasses.replace(ANNA, force=True)
    entry = promote(scene.store, "emulator", scene.canary.id, forced, MANAGER)
    assert entry.overridden == ("no verdict on it as a canary",)


def test_a_verdict_of_the_future_is_none(scene: Scene) -> None:
    ahead = a_verdict(scene.canary, age=-timedelta(hours=2))
    kept.keep_verdict(scene.store, scene.canary, ahead, BUILD)
    with pytest.raises(PromotionRefusedError, match="the verdict on it is of"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)


def test_only_the_canary_key_judges(scene: Scene) -> None:
    with pytest.raises(SignatureError):
        kept.keep_verdict(scene.store, scene.canary, a_verdict(scene.canary), MANAGER)
    # Nor does a document that somebody lays there, or one that was signed about another release.
    assert scene.stable is not None
    good = kept.keep_verdict(scene.store, scene.stable, a_verdict(scene.stable), BUILD).read_bytes()
    for data in (b"{}", good, good.replace(b"promote", b"promot3")):
        scene.store.add_evidence(scene.canary, "verdict", "json", data)
    assert verdicts_on(scene.store, scene.canary.id) == []


def test_promote_never_stands_above_a_broken_row(scene: Scene) -> None:
    good = a_verdict(scene.canary)
    for outcome in ("breached", "missing", "shown"):
        row = dataclasses.replace(good.rows[0], outcome=outcome)
        with pytest.raises(ManifestError):
            dataclasses.replace(good, rows=(row,))
    with pytest.raises(ManifestError):
        dataclasses.replace(good, rows=())


def test_a_marked_canary_is_not_promoted_by_a_verdict(scene: Scene) -> None:
    canary, verdict, policy = judged(scene, scene.seen())
    carry_out(scene.store, canary, verdict, policy, BUILD)
    mark_bad(scene.store, scene.canary.id, "stable", ANNA, MANAGER)
    with pytest.raises(PromotionRefusedError, match="marked bad by anna"):
        promote(scene.store, "emulator", scene.canary.id, ANNA, MANAGER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error_share": 0.9}, "error_share"),
        ({"least_windows": 0}, "least_windows"),
        ({"missing": "promote"}, "missing"),
        ({"schema": 2}, "schema"),
        ({"more": 1}, "unknown key"),
    ],
)
def test_a_policy_that_lets_everything_pass_is_none(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(dataclasses.asdict(POLICY) | change))
    with pytest.raises(CanaryPolicyError, match=message):
        load_canary_policy(path)
    path.write_text("{}")
    with pytest.raises(CanaryPolicyError):
        load_canary_policy(path)
