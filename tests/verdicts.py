"""Verdicts and acceptance reports as judges and devices make them, for tests of those who ask for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from runtime.contract.acceptance import ACCEPTANCE_SCHEMA, Acceptance, DeviceIdentity, keep_acceptance
from runtime.contract.document import to_json
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import StoreReader
from runtime.contract.verdict import PROMOTE, VERDICT_SCHEMA, Row, Verdict, keep_verdict
from tests.keys import BUILD


def a_verdict(
    release: Release,
    decision: str = PROMOTE,
    age: timedelta = timedelta(0),
    *,
    store: StoreReader | None = None,
) -> Verdict:
    """What a judge could have said of a release: of what a store's channels name now, where one is given."""
    target = release.manifest.target
    outcome = "ok" if decision == PROMOTE else "breached"
    canary, stable = (store.head(target, each) if store else None for each in ("canary", "stable"))
    return Verdict(
        schema=VERDICT_SCHEMA,
        target=target,
        release=release.id,
        stable=stable.entry.release if stable else "",
        entry=canary.signed.digest if canary else "e" * 64,
        decision=decision,
        rows=(Row(name="requests that failed", value="0 %", bound="at most 0.5 %", outcome=outcome),),
        policy="a" * 64,
        good_for_minutes=60.0,
        source="a test",
        provenance="emulated" if target == "emulator" else "measured",
        at=(datetime.now(UTC) - age).isoformat(timespec="microseconds"),
    )


def an_acceptance(release: Release, /, **changes: object) -> Acceptance:
    """What `releasectl accept` could have written of a release, on hardware where it is for that."""
    target = release.manifest.target
    chip = target != "emulator"
    told: dict[str, object] = {
        "schema": ACCEPTANCE_SCHEMA,
        "release": release.id,
        "artifact_sha256": release.manifest.primary.sha256,
        "target": target,
        "provenance": "measured" if chip else "emulated",
        "identity": DeviceIdentity(
            machine="a test",
            device="HAILO8 HLDDLBB1" if chip else "",
            hailort="4.20.0" if chip else "",
            firmware="4.20.0" if chip else "",
            runtime="0.1.0",
        ),
        "golden_windows": 4,
        "golden_worst": 0.0,
        "golden_allowed": 0.0,
        "windows": 2000,
        "rate": 20.0,
        "lost": 0,
        "p50_ms": 2.0,
        "p95_ms": 3.0,
        "p99_ms": 4.0,
        "largest_ms": 9.0,
        "later_than_45_ms": 0.0,
        "cpu_share": 0.03,
        "celsius": 41.5 if chip else None,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Acceptance(**{**told, **changes})  # type: ignore[arg-type]


def judged_well(store: ReleaseStore, release: Release) -> None:
    """Everything that a promotion asks for beside a canary."""
    keep_verdict(store, release, a_verdict(release, store=store), BUILD)
    if release.manifest.target != "emulator":
        keep_acceptance(store, release, to_json(an_acceptance(release)), "a test")
