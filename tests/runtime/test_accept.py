"""``releasectl accept`` and ``attach``: a release tried on a real runtime, and what the report is worth."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.accept import AcceptanceError, Device, accept
from runtime.cli import main
from runtime.contract.acceptance import (
    Acceptance,
    check_about,
    keep_acceptance,
    parse_acceptance,
    said_by_acceptance,
)
from runtime.contract.document import to_json
from runtime.contract.errors import GoldenMismatchError, ManifestError
from runtime.contract.promotion import Decision, PromotionRefusedError, promote
from runtime.contract.release_directory import Release
from runtime.contract.verdict import keep_verdict
from runtime.contract.window import FloatArray, Window
from runtime.golden import GoldenWindow
from tests.keys import BUILD, MANAGER, a_store
from tests.simulators import ReleaseSimulator, RuntimeServer, running_server
from tests.verdicts import a_verdict, an_acceptance

Capture = pytest.CaptureFixture[str]
ANNA = Decision(actor="anna", reason="tried on the bench")


@pytest.fixture(name="release", scope="module")
def a_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return ReleaseSimulator().publish(tmp_path_factory.mktemp("accept"), "canary", "stable")


@pytest.fixture(name="served", scope="module")
def a_server(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeServer]:
    store = release.directory.parent.parent
    with running_server(tmp_path_factory.mktemp("logs"), RELEASE_STORE=str(store)) as server:
        yield server


def test_a_report_says_what_it_saw_and_how_the_numbers_came_about(
    served: RuntimeServer, release: Release
) -> None:
    said: list[str] = []
    with contextlib.closing(Device(served.url)) as device:
        report = accept(device, release, windows=200, rate=500, say=said.append)
    assert (report.release, report.target, report.provenance) == (release.id, "emulator", "emulated")
    assert (report.golden_windows, report.windows, report.lost) == (4, 200, 0)
    assert report.golden_worst <= report.golden_allowed
    assert report.identity.machine
    assert (report.identity.device, report.identity.hailort) == ("", "")
    assert 0 < report.p50_ms <= report.p95_ms <= report.p99_ms <= report.largest_ms
    assert report.cpu_share is not None
    assert report.celsius is None
    assert said[-1] == "200 of 200 windows, 0 lost"
    assert parse_acceptance(to_json(report), "here") == report
    assert report.failures()[0] == "200 windows, 2000 are asked"


def test_by_hand_it_is_written_and_attached(
    served: RuntimeServer, release: Release, tmp_path: Path, capsys: Capture
) -> None:
    store, out = str(release.directory.parent.parent), tmp_path / "report.json"
    few = ["--windows", "20", "--rate", "200"]
    assert main(["accept", served.url, "--store", store, "--out", str(out), *few]) == 1
    told = capsys.readouterr().out
    assert "(emulated)" in told
    assert "FAILED     20 windows, 2000 are asked" in told
    report = json.loads(out.read_text())
    assert report["release"] == release.id
    assert main(["attach", str(out), "--store", store]) == 1
    kept = [path.name for path in a_store(Path(store)).evidence(release.id)]
    assert sum(name.startswith("acceptance-") for name in kept) == 1
    text = out.read_text()
    out.unlink()  # it is read-only, which only root writes over
    out.write_text(text.replace('"lost": 0', '"lost": 0 '))
    assert main(["attach", str(out), "--store", store]) == 1
    assert "is not as `releasectl accept` writes it" in capsys.readouterr().err


def test_what_serves_something_else_is_not_tried(served: RuntimeServer, tmp_path: Path) -> None:
    other = ReleaseSimulator(version="v2").publish(tmp_path)
    with (
        contextlib.closing(Device(served.url)) as device,
        pytest.raises(AcceptanceError, match=r"serves [0-9a-f]{16}, not "),
    ):
        accept(device, other, windows=1)


NO_ADDRESSES = ("http://pi:99999", "http://pi:x", "http://[::1", f"http://{'x' * 70}.example", "http://a b:1")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ftp://x", "here", "https://x", *NO_ADDRESSES])
def test_a_device_that_is_none_is_an_error(url: str, release: Release) -> None:
    with pytest.raises(AcceptanceError):
        accept(Device(url), release)


class Told(Device):
    """A device that says what a test says."""

    def __init__(self, page: bytes) -> None:
        super().__init__("http://127.0.0.1:1")
        self.page = page

    def get(self, path: str) -> bytes:
        return self.page


def health(release: Release, runs_on: dict[str, object]) -> bytes:
    return json.dumps({"release": release.id, "runs_on": runs_on}).encode()


@pytest.mark.parametrize("page", [b"[]", b"7", b"null", b"{", b"\xff", b"[" * 100_000])
def test_health_that_is_none_is_an_error(page: bytes, release: Release) -> None:
    with pytest.raises(AcceptanceError, match="/healthz is no JSON"):
        accept(Told(page), release)


@pytest.mark.parametrize("change", [{"kernel_family": None}, {"program": 7}, {"machine": ["x"]}])
def test_health_without_what_it_runs_on_is_an_error(change: dict[str, object], release: Release) -> None:
    whole: dict[str, object] = {"machine": "a Pi", "program": "onnxruntime 1", "kernel_family": "x86-64"}
    with pytest.raises(AcceptanceError, match="does not say what it runs on"):
        accept(Told(health(release, whole | change)), release)


@pytest.mark.parametrize("page", [b"\xff", b'x{a="b} 1\n', b"<html>hello</html>", b"x one\n"])
def test_metrics_that_are_none_are_an_error(page: bytes) -> None:
    with pytest.raises(AcceptanceError, match="/metrics cannot be read"):
        Told(page).samples()


class Broken(Device):
    """Answers so many windows, then with numbers that are none."""

    def __init__(self, served: RuntimeServer, release: Release, right: int) -> None:
        super().__init__(served.url)
        self.id, self.right = release.id, right

    def infer(self, window: Window) -> tuple[str, FloatArray] | None:
        self.right -= 1
        return super().infer(window) if self.right >= 0 else (self.id, np.full(64, np.nan, np.float32))


def test_nan_is_no_answer(served: RuntimeServer, release: Release) -> None:
    with (
        contextlib.closing(Broken(served, release, 1)) as device,
        pytest.raises(AcceptanceError, match="golden window 1 was answered with a number that is not finite"),
    ):
        accept(device, release, windows=1)
    with contextlib.closing(Broken(served, release, 4 + 7)) as device:
        assert accept(device, release, windows=10, rate=500).lost == 3


def test_nan_repeats_no_golden_window(release: Release) -> None:
    (golden, *_) = GoldenWindow.all_of(release)
    for wrong in (np.nan, np.inf):
        with pytest.raises(GoldenMismatchError, match="golden window 0 gives a number that is not finite"):
            golden.check(np.full(64, wrong, np.float32), "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provenance": "measured"}, "measured' for emulator"),
        ({"p95_ms": 1.0}, "no percentiles"),
        ({"p50_ms": float("nan")}, "no percentiles"),
        ({"lost": 3000}, "counts"),
        ({"later_than_45_ms": 1.5}, "counts"),
        ({"at": "yesterday"}, "no time"),
        ({"at": "2026-11-27T20:00:00+01:00"}, "not in UTC"),
        ({"target": "pi"}, "none of"),
        ({"release": "x"}, "release"),
        ({"schema": 2}, "schema"),
        ({"rate": float("inf")}, "counts"),
        ({"cpu_share": float("nan")}, "no number"),
        ({"later_than_45_ms": 0.0125}, "are late, and p99 is 4 ms"),
        ({"later_than_45_ms": 1.0}, "are late, and p99 is 4 ms"),
    ],
)
def test_a_report_that_cannot_be_is_refused(release: Release, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        an_acceptance(release, **change)


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"windows": 1999}, "1999 windows, 2000 are asked"),
        ({"golden_worst": 2.0}, "golden windows differ by 2, 0 is allowed"),
        ({"golden_windows": 0}, "no golden window"),
        ({"golden_worst": float("nan")}, "golden windows differ by nan"),
        ({"rate": 19.0}, "19 windows a second, 20 are asked"),
        ({"lost": 40, "later_than_45_ms": 0.03}, "40 windows were not answered"),
        ({"lost": 1}, "1 windows were not answered"),
        ({"p99_ms": 45.0, "largest_ms": 50.0}, "p99 is 45 ms"),
    ],
)
def test_what_was_not_accepted_says_why(release: Release, change: dict[str, Any], failure: str) -> None:
    assert an_acceptance(release).failures() == ()
    assert an_acceptance(release, **change).failures()[0].startswith(failure)


def hardware(root: Path) -> Release:
    release = ReleaseSimulator(target="hailo8").publish(root, "canary", judged=False)
    keep_verdict(a_store(root), release, a_verdict(release, store=a_store(root)), BUILD)
    return release


def attach(root: Path, release: Release, report: Acceptance) -> None:
    keep_acceptance(a_store(root), release, to_json(report), "a test")


def test_a_chips_release_needs_a_report_that_was_measured(tmp_path: Path) -> None:
    release = hardware(tmp_path)
    store = a_store(tmp_path, accepts_doubles=True)
    with pytest.raises(PromotionRefusedError, match="no acceptance report"):
        promote(store, "hailo8", release.id, ANNA, MANAGER)
    attach(tmp_path, release, an_acceptance(release, lost=2, at="2026-11-27T20:00:00+00:00"))
    with pytest.raises(PromotionRefusedError, match="2 windows were not answered"):
        promote(store, "hailo8", release.id, ANNA, MANAGER)
    attach(tmp_path, release, an_acceptance(release))
    entry = promote(store, "hailo8", release.id, ANNA, MANAGER)
    assert (entry.overridden, {each.kind for each in entry.evidence}) == ((), {"acceptance", "verdict"})


NOW = datetime.now(UTC)
"""One moment for all: two reports of one time would else lie a second apart."""


def at(**ahead: float) -> str:
    return (NOW + timedelta(**ahead)).isoformat(timespec="seconds")


def attached_at(root: Path, release: Release, seconds: int, **changes: Any) -> None:
    """Attach a report so many seconds after the others."""
    report = an_acceptance(release, **changes)
    store = a_store(root)
    path = store.add_evidence(release, "acceptance", "json", to_json(report))
    os.utime(path, (1_764_000_000 + seconds,) * 2)


@pytest.mark.parametrize(
    ("failed", "passed", "promotes"),
    [
        ((0, -200), (1, -100), True),
        ((1, -100), (0, -200), False),
        ((1, -200), (0, -100), False),  # attached later, by a device whose clock is behind
        ((0, -100), (1, -200), False),  # newer by its own clock
        ((0, -200), (0, -100), True),
        ((0, -100), (0, -100), False),
    ],
)
def test_a_report_that_passed_counts_where_none_failed_after_it(
    tmp_path: Path, failed: tuple[int, int], passed: tuple[int, int], promotes: bool
) -> None:
    release = hardware(tmp_path)
    attached_at(tmp_path, release, failed[0], at=at(minutes=failed[1]), lost=2)
    attached_at(tmp_path, release, passed[0], at=at(minutes=passed[1]))
    said = said_by_acceptance(a_store(tmp_path), release)
    assert bool(said) != promotes
    if said:
        assert "2 windows were not answered" in said[0]


def test_a_report_counts_for_a_month(tmp_path: Path) -> None:
    release = hardware(tmp_path)
    attach(tmp_path, release, an_acceptance(release, at=at(days=-29)))
    store = a_store(tmp_path)
    assert said_by_acceptance(store, release) == ()
    later = datetime.now(UTC) + timedelta(days=2)
    assert "counts for 30 days" in said_by_acceptance(store, release, later)[0]


def test_a_report_of_the_future_is_refused(tmp_path: Path) -> None:
    release = hardware(tmp_path)
    ahead = an_acceptance(release, at=at(hours=1))
    with pytest.raises(ManifestError, match="still to come"):
        attach(tmp_path, release, ahead)
    a_store(tmp_path).add_evidence(release, "acceptance", "json", to_json(ahead))
    assert said_by_acceptance(a_store(tmp_path), release) != ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"golden_windows": 1}, "1 golden windows, the release has 4"),
        ({"golden_allowed": 3.0, "golden_worst": 2.5}, "3 is allowed by it, and 2 by the release"),
        ({"golden_allowed": float("nan")}, "nan is allowed"),
    ],
)
def test_what_is_allowed_is_said_by_the_release(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    release = hardware(tmp_path)
    with pytest.raises(ManifestError, match=message):
        check_about(an_acceptance(release, **change), release.manifest, release.id)
    check_about(an_acceptance(release, golden_allowed=2.0), release.manifest, release.id)


def test_a_report_on_hardware_names_its_device(tmp_path: Path) -> None:
    report = an_acceptance(hardware(tmp_path))
    for field in ("device", "hailort", "firmware"):
        with pytest.raises(ManifestError, match="does not say on which"):
            dataclasses.replace(report, identity=dataclasses.replace(report.identity, **{field: ""}))


def test_a_report_is_about_one_release_and_its_artifact(tmp_path: Path, release: Release) -> None:
    mine = hardware(tmp_path)
    for wrong in (an_acceptance(release), an_acceptance(mine, artifact_sha256="a" * 64)):
        with pytest.raises(ManifestError):
            check_about(wrong, mine.manifest, mine.id)
    # Nor does one count that somebody laid there.
    store = a_store(tmp_path)
    store.add_evidence(mine, "acceptance", "json", to_json(an_acceptance(release)))
    store.add_evidence(mine, "acceptance", "json", b"{}")
    assert said_by_acceptance(store, mine)[0].startswith("no acceptance report")
