"""The judge of canaries: whatever is not known, or is of somebody else, never promotes."""

from __future__ import annotations

import dataclasses
import math
from datetime import timedelta
from pathlib import Path

import pytest

from assets.canary_rows import FAULTLESS
from runtime.contract.verdict import HOLD, PROMOTE, ROLL_BACK
from tests.canaries import BESIDE, POLICY, Change, Scene, Seen, far, gone, judged, put, slow
from tests.simulators import ReleaseSimulator


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
    for name in ("requests_total", "windows_total", "infer"):
        seen.gone(f"hailo_runtime_{name}")
    by = {"release": scene.canary.id, "channel": "canary", "result": "repeated"}
    assert scene.decision(seen)[0] == HOLD
    seen.put("hailo_golden_replays_total", 600, **by)
    assert scene.decision(seen)[0] == PROMOTE


def late(seen: Seen) -> None:
    seen.buckets(
        "hailo_shadow_engine_duration_seconds", {0.001: 10, 0.045: 4900, 0.1: 5000}, release=seen.canary
    )


def old_runtime(seen: Seen) -> None:
    seen.gone("hailo_runtime_infer")


def slower_than_one(seen: Seen) -> None:
    seen.timed(seen.canary, "canary", {0.001: 100, 0.005: 200, 0.045: 9990, 1.0: 9990})
    seen.timed(seen.stable, "stable", {0.001: 0, 0.005: 0, 0.045: 0, 0.06: 1, 1.0: 1})


MINUTES = {"release": "canary", "against": "stable"}
CASES: dict[str, tuple[Change, str, str]] = {
    "nothing at all": (gone("hailo_"), "missing", "runs"),
    "no canary anywhere": (gone("hailo_shadow"), "missing", "runs"),
    "few windows": (put("hailo_shadow_windows_total", 20, **BESIDE), "early", "windows beside stable"),
    "few minutes": (put("hailo_shadow_running_seconds", 60, **MINUTES), "early", "minutes beside stable"),
    "no golden windows": (gone("hailo_shadow_golden"), "missing", "golden windows, beside stable"),
    "no distances": (gone("hailo_shadow_latent"), "missing", "p95 of 1 - cosine, traffic"),
    "no durations": (gone("hailo_shadow_engine"), "missing", "p95 of the engine"),
    "another canary": (
        put("hailo_release_served_seconds", 10, release="f" * 64, channel="canary"),
        "missing",
        "canaries",
    ),
    "another beside stable": (
        put("hailo_shadow_running", 1, release="f" * 64, against="stable"),
        "missing",
        "canaries",
    ),
    "beside another stable": (
        put("hailo_shadow_running", 1, release="canary", against="f" * 64),
        "missing",
        "runs beside",
    ),
    "one of two only now": (
        put("hailo_shadow_running_seconds", 20, **MINUTES, instance="pi-b:9000"),
        "early",
        "minutes beside stable",
    ),
    "NaN": (put("hailo_shadow_windows_total", math.nan, **BESIDE), "missing", "evidence"),
    "a negative count": (put("hailo_shadow_windows_total", -1, **BESIDE), "missing", "evidence"),
    "infinitely many": (put("hailo_shadow_motif_windows_total", math.inf, **BESIDE), "missing", "evidence"),
    "failures": (
        put("hailo_shadow_failures_total", 1, release="canary", reason="died"),
        "breached",
        "failures beside stable",
    ),
    "golden windows missed": (
        put("hailo_shadow_golden_total", 1, release="canary", result="missed"),
        "breached",
        "golden windows, beside stable",
    ),
    "slow": (slow, "breached", "p95 of the engine"),
    "later than 45 ms": (late, "breached", "windows later than 45 ms, engine"),
    "far from stable": (far, "breached", "p95 of 1 - cosine, traffic"),
    "other motifs": (
        put("hailo_shadow_motif_disagreements_total", 200, **BESIDE),
        "breached",
        "clear motifs that differ, traffic",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_holds_and_what_is_broken_rolls_back(scene: Scene, name: str) -> None:
    change, outcome, row = CASES[name]
    seen = scene.seen()
    change(seen)
    decision, rows = scene.decision(seen)
    assert (decision, rows[row]) == (ROLL_BACK if outcome == "breached" else HOLD, outcome)


@pytest.mark.parametrize("name", CASES)
def test_a_strict_policy_rolls_back_what_is_missing_and_waits_for_what_is_early(
    scene: Scene, name: str
) -> None:
    """At its first look every canary is early, and none is bad for it."""
    strict = dataclasses.replace(POLICY, missing=ROLL_BACK)
    change, outcome, _ = CASES[name]
    seen = scene.seen()
    change(seen)
    decision, rows = scene.decision(seen, strict)
    assert decision == (HOLD if "early" in rows.values() and outcome != "breached" else ROLL_BACK)
    if outcome != "breached":
        assert scene.decision(seen, strict, age=timedelta(seconds=30))[0] == HOLD


SERVED: dict[str, tuple[Change, str, str]] = {
    "errors": (
        lambda seen: seen.timed(seen.canary, "canary", {0.001: 100.0, 1.0: 100.0}, "failed"),
        "breached",
        "requests that failed",
    ),
    "later than 45 ms": (
        lambda seen: seen.timed(seen.canary, "canary", {0.001: 9000, 0.005: 9700, 0.045: 9800, 1.0: 9990}),
        "breached",
        "requests later than 45 ms",
    ),
    "slower than stable": (
        lambda seen: seen.timed(seen.canary, "canary", {0.001: 100, 0.005: 200, 0.045: 9990, 1.0: 9990}),
        "breached",
        "p95 against stable",
    ),
    "slower than one request of stable": (
        slower_than_one,
        "missing",
        "p95 against stable",
    ),
    "a golden window failed": (
        put("hailo_golden_replays_total", 1, release="canary", channel="canary", result="failed"),
        "breached",
        "golden windows, served",
    ),
    "a histogram without its end": (
        lambda seen: seen.samples.__setitem__(
            "hailo_runtime_infer_duration_seconds_bucket",
            [
                each
                for each in seen.samples["hailo_runtime_infer_duration_seconds_bucket"]
                if each.labels["le"] != "+Inf"
            ],
        ),
        "missing",
        "evidence",
    ),
    "a runtime that times no inference": (old_runtime, "missing", "requests"),
    "one that has only just started": (
        put("hailo_release_served_seconds", 4, release="canary", channel="canary", instance="pi-b:9000"),
        "early",
        "minutes served",
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_canary_that_serves_clients_is_held_against_them(scene: Scene, name: str) -> None:
    change, outcome, row = SERVED[name]
    seen = scene.seen(served=True, shadow=False)
    change(seen)
    decision, rows = scene.decision(seen)
    assert (decision, rows[row]) == (ROLL_BACK if outcome == "breached" else HOLD, outcome)


@pytest.mark.parametrize("missed", [0, 50])
def test_a_canary_that_is_gone_has_failed_what_it_failed(scene: Scene, missed: int) -> None:
    """The gauge that says since when goes with the runtime; what was counted before does not."""
    seen = scene.seen(served=True)
    if missed:
        by = {"release": seen.canary, "channel": "canary", "result": "missed"}
        seen.put("hailo_golden_replays_total", missed, **by)
    served = "hailo_release_served_seconds"
    seen.samples[served] = [each for each in seen.samples[served] if each.labels["channel"] == "stable"]
    decision, rows = scene.decision(seen)
    assert (decision, rows["minutes served"]) == (ROLL_BACK if missed else HOLD, "early")


def test_what_golden_windows_repeat_does_not_thin_out_what_clients_see(scene: Scene) -> None:
    """Wrong on each window of a client; the golden ones are a few, run over and over."""
    seen = scene.seen()
    seen.compared("traffic", 600, clear=600, differ=600, near=0)
    seen.compared("golden", 14000, clear=14000, differ=0, near=14000)
    decision, rows = scene.decision(seen)
    assert decision == ROLL_BACK
    for name in ("p95 of 1 - cosine", "clear motifs that differ"):
        assert (rows[f"{name}, traffic"], rows[f"{name}, golden"]) == ("breached", "ok")


def test_golden_windows_that_differ_are_not_thinned_out_by_clients_either(scene: Scene) -> None:
    seen = scene.seen()
    seen.compared("golden", 600, clear=600, differ=600, near=0)
    decision, rows = scene.decision(seen)
    assert (decision, rows["p95 of 1 - cosine, golden"]) == (ROLL_BACK, "breached")


@pytest.mark.parametrize(
    ("windows", "wrong", "expected"),
    [(0, 0, PROMOTE), (20, 2, PROMOTE), (30, 30, ROLL_BACK), (499, 0, PROMOTE)],
)
def test_golden_windows_stand_in_for_few_of_clients_that_nothing_could_mend(
    scene: Scene, windows: int, wrong: int, expected: str
) -> None:
    seen = scene.seen()
    seen.compared("traffic", windows, clear=windows, differ=wrong, near=windows - wrong)
    seen.compared("golden", 600, clear=600, differ=0, near=600)
    decision, rows = scene.decision(seen)
    assert decision == expected
    assert rows["p95 of 1 - cosine, traffic"] == ("breached" if wrong == 30 else "shown")
    # Fewer golden ones stand in for nothing.
    seen.compared("golden", 400, clear=40, differ=0, near=400)
    assert scene.decision(seen)[0] == (HOLD if expected == PROMOTE else expected)


def test_the_engine_is_judged_by_source_where_that_is_said(scene: Scene) -> None:
    name = "hailo_shadow_engine_duration_seconds"
    seen = scene.seen()
    seen.gone(name)
    seen.buckets(name, {0.001: 0, 0.045: 0, 0.1: 600}, release=seen.canary, source="traffic")
    seen.buckets(name, {0.001: 90000, 0.045: 90000, 0.1: 90000}, release=seen.canary, source="golden")
    decision, rows = scene.decision(seen)
    assert decision == ROLL_BACK
    assert rows["windows later than 45 ms, engine, traffic"] == "breached"
    assert rows["p95 of the engine, traffic"] == "breached"
    assert rows["windows later than 45 ms, engine, golden"] == "ok"
    # Golden ones stand in for few, not for what cannot be told.
    seen.gone(name)
    seen.buckets(name, {0.001: 600, 0.1: 600}, release=seen.canary, source="traffic")
    seen.buckets(name, {0.001: 600, 0.045: 600}, release=seen.canary, source="golden")
    decision, rows = scene.decision(seen)
    assert (decision, rows["windows later than 45 ms, engine, traffic"]) == (HOLD, "missing")


def test_motifs_of_which_stable_is_seldom_sure_do_not_decide(scene: Scene) -> None:
    seen = scene.seen()
    seen.compared("traffic", 5000, clear=10, differ=0, near=4900)
    decision, rows = scene.decision(seen)
    assert (decision, rows["clear motifs that differ, traffic"]) == (PROMOTE, "shown")
    seen.compared("traffic", 5000, clear=10, differ=5, near=4900)
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


def test_exactly_the_share_that_is_allowed_is_kept(scene: Scene) -> None:
    """1 - (n - n / 100) / n is above 0.01 for many a n, by the last bit."""
    seen = scene.seen()
    for count in range(500, 3000, 100):
        late = count // 100
        buckets = {0.001: float(count - late), 0.045: float(count - late), 0.1: float(count)}
        seen.buckets("hailo_shadow_engine_duration_seconds", buckets, release=seen.canary)
        assert scene.decision(seen)[1]["windows later than 45 ms, engine"] == "ok", count


@pytest.mark.parametrize("reason", ["store", "not_there_yet", "internal", "slow_to_load"])
def test_what_is_not_its_fault_does_not_roll_it_back(scene: Scene, reason: str) -> None:
    seen = scene.seen()
    put("hailo_shadow_failures_total", 3, release="canary", reason=reason)(seen)
    assert scene.decision(seen)[0] == PROMOTE  # it runs meanwhile
    for name in ("running", "windows", "golden", "engine", "latent", "motif"):
        seen.gone(f"hailo_shadow_{name}")
    decision, rows = scene.decision(seen)
    assert (decision, rows["failures beside stable"], rows["minutes beside stable"]) == (HOLD, "ok", "early")


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
    seen.compared("traffic", 5000, clear=1000, differ=900, near=100)
    decision, rows = scene.decision(seen)
    names = ("p95 of 1 - cosine, traffic", "clear motifs that differ, traffic")
    assert (decision, {rows[name] for name in names}) == (PROMOTE, {"shown"})


def test_what_the_shadow_says_is_not_the_canarys_fault_is_not() -> None:
    assert {"stable_unreadable", "starved", "slow_to_load"} <= set(FAULTLESS)
