"""Weights are seen when they come, and not before they are all there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration import chain
from orchestration.automation import (
    MOST_ATTEMPTS,
    MOST_LOOKS,
    REST_LOOKS,
    Watch,
    calibration_watch,
    look,
    nightly_build,
    rebuild_what_changed,
    state_of,
    wait_for_rest,
    weights_watch,
    windows_state_of,
)
from orchestration.chain import calibration_set, onnx_model, target_assets
from orchestration.definitions import LINKS, build_canary
from orchestration.resources import Places
from orchestration.settings import BuildSettings
from runtime.contract.errors import ConfigError, WeightsError
from tests.chain import CALIB_DATA, SAMPLE_VERSION
from tests.running import Running, end, start
from tests.simulators import wait_for

pytestmark = pytest.mark.build


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["succeeded", "runs"])), max_size=30))
def test_what_came_to_rest_is_judged_once(looks: list[tuple[str, str]]) -> None:
    """Whatever happens to the folder: only a state that was seen twice in a row, and not the last judged."""
    watch = Watch()
    judged: list[str] = []
    for index, (state, outcome) in enumerate(looks):
        watch, waits = look(watch, state, outcome)
        if not waits:
            assert index > 0
            assert looks[index - 1][0] == state
            assert judged[-1:] != [state]
            judged.append(state)
    if len(looks) > 1 and looks[-1][0] == looks[-2][0]:
        assert judged[-1] == looks[-1][0]


@pytest.mark.parametrize("outcome", ["failed", ""])
def test_an_observation_that_failed_or_was_lost_is_repeated_and_then_not(outcome: str) -> None:
    watch, waits = look(Watch(seen="a"), "a", "")
    for _ in range(MOST_ATTEMPTS - 1):
        assert not waits
        watch, waits = look(watch, "a", "runs")
        assert waits == "it is being looked at"
        watch, waits = look(watch, "a", outcome)
    assert not waits
    for _ in range(3):
        watch, waits = look(watch, "a", "failed")
        assert "failed 3 times" in waits
    watch, waits = look(watch, "b", "")
    watch, waits = look(watch, "b", "")
    assert not waits


def test_the_sensor_runs_from_the_start() -> None:
    assert weights_watch.default_status is dg.DefaultSensorStatus.RUNNING


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLE_VERSION, tmp_path / "weights" / "tcn_encoder" / "v0.1.0")
    return tmp_path / "weights"


def grow(folder: Path) -> None:
    with (folder / "tcn_vae.pth").open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    "change",
    [
        grow,
        lambda folder: (folder / "tcn_vae.pth").unlink(),
        lambda folder: (folder / "new.onnx").write_bytes(b""),
        # Of a kind that is not read: it is refused by name, which somebody has to hear.
        lambda folder: (folder / "new.safetensors").write_bytes(b""),
        lambda folder: (folder / "new.PTH").write_bytes(b""),
        lambda folder: folder.rename(folder.with_name("v0.2.0")),
        lambda folder: os.utime(folder / "tcn_vae.pth", ns=(0, 0)),
        lambda folder: shutil.copytree(folder, folder.with_name("v0.2.0")),
    ],
)
@pytest.mark.parametrize("itself", [False, True])
def test_every_change_of_a_folder_is_a_change_of_state(
    weights: Path, change: Callable[[Path], Any], itself: bool
) -> None:
    """Also where WEIGHTS_DIR is the version folder."""
    folder = weights / "tcn_encoder" / "v0.1.0"
    watched = folder if itself else weights
    before = state_of(watched)
    assert state_of(watched) == before
    change(folder)
    if folder.exists() and not (itself and folder.with_name("v0.2.0").exists()):
        assert state_of(watched) != before
    else:
        assert (state_of(watched) == before) == (itself and folder.exists())


def test_a_folder_that_is_not_there_has_a_state_too(tmp_path: Path) -> None:
    assert state_of(tmp_path / "none") == state_of(tmp_path / "none")


def test_what_an_observation_does_not_read_keeps_nobody_waiting(weights: Path) -> None:
    """A training's log that grows, and a link that leads to itself."""
    before = state_of(weights)
    (weights / "tcn_encoder" / "v0.1.0" / "train.log").write_text("epoch 1")
    (weights / "loop").symlink_to(weights / "loop")
    assert state_of(weights) == before
    (weights / "tcn_encoder" / "v0.1.0" / "loop.pth").symlink_to("loop.pth")
    assert state_of(weights) != before


def test_the_sensor_waits_for_a_copy_and_then_asks_once(weights: Path) -> None:
    places = Places(weights_dir=str(weights), calib_dir="", build_dir="", release_store="")
    cursor: str | None = None

    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> dg.SensorResult:
            nonlocal cursor
            resources = {"places": places}
            with dg.build_sensor_context(instance, cursor, resources=resources) as context:
                result = weights_watch(context)
            assert isinstance(result, dg.SensorResult)
            cursor = result.cursor
            return result

        def run(request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
            instance.add_run(dg.DagsterRun("observe_weights", tags=dict(request.tags), status=status))

        assert tick().skip_reason
        (request,) = tick().run_requests or []
        run(request, dg.DagsterRunStatus.STARTED)
        assert "being looked at" in str(tick().skip_reason)
        run(request, dg.DagsterRunStatus.FAILURE)
        (request,) = tick().run_requests or []
        run(request, dg.DagsterRunStatus.SUCCESS)
        assert "nothing changed" in str(tick().skip_reason)
        for _ in range(2):
            grow(weights / "tcn_encoder" / "v0.1.0")
            assert "still being copied" in str(tick().skip_reason)
        assert len(tick().run_requests or []) == 1


class Clock:
    """Seconds that pass when somebody sleeps; what happens meanwhile is up to the test."""

    def __init__(self, happens: Callable[[int], None] = lambda second: None) -> None:
        self.slept, self.happens = 0, happens

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.happens(self.slept)


def test_a_build_waits_for_a_copy_that_is_under_way(weights: Path) -> None:
    """Two more pieces come, the second after a pause; then nothing for five seconds."""
    clock = Clock(lambda second: grow(weights / "tcn_encoder" / "v0.1.0") if second in (1, 5) else None)
    said: list[str] = []
    wait_for_rest(weights, said.append, sleep=clock.sleep)
    assert clock.slept == 5 + REST_LOOKS
    (line,) = said
    assert "changed just now" in line


def test_a_build_does_not_wait_for_what_has_long_been_there(weights: Path) -> None:
    """By when the files came, which copies of old files do not tell by their own time."""
    for path in weights.rglob("*"):
        os.utime(path, (0, 0))
    clock = Clock()
    wait_for_rest(weights, lambda _: None, sleep=clock.sleep)
    assert clock.slept == REST_LOOKS
    wait_for_rest(weights, lambda _: pytest.fail("waited"), now=lambda: time.time() + 3600)
    wait_for_rest(weights / "none", lambda _: pytest.fail("waited"))
    ahead = Clock()
    wait_for_rest(weights, lambda _: None, now=lambda: time.time() - 3600, sleep=ahead.sleep)
    assert ahead.slept == REST_LOOKS


def test_a_file_that_never_rests_is_named(weights: Path) -> None:
    clock = Clock(lambda second: grow(weights / "tcn_encoder" / "v0.1.0"))
    with pytest.raises(WeightsError, match=r"v0\.1\.0/tcn_vae\.pth: still changes after 600 s"):
        wait_for_rest(weights, lambda _: None, sleep=clock.sleep)
    assert clock.slept == MOST_LOOKS


def test_windows_that_changed_are_read_once_they_rest(tmp_path: Path) -> None:
    calib = tmp_path / "calib"
    shutil.copytree(CALIB_DATA, calib)
    first = windows_state_of(calib)
    (calib / "README.md").write_text("other words")
    assert windows_state_of(calib) == first
    (calib / "golden.npz").write_bytes(b"other windows")
    assert windows_state_of(calib) != first
    assert windows_state_of(tmp_path / "none") == windows_state_of(tmp_path / "none")
    places = Places(weights_dir="", calib_dir=str(calib), build_dir="", release_store="")
    cursor: str | None = None
    with dg.DagsterInstance.ephemeral() as instance:
        asked = []
        for _ in range(3):
            with dg.build_sensor_context(instance, cursor, resources={"places": places}) as context:
                result = calibration_watch(context)
            assert isinstance(result, dg.SensorResult)
            cursor = result.cursor
            asked.append(len(result.run_requests or []))
    assert asked[:2] == [0, 1]
    assert calibration_watch.job_name == "read_windows"


class Night:
    """The nightly build, asked when a test says so."""

    def __init__(self, instance: dg.DagsterInstance, calib: Path) -> None:
        self.instance, self.calib = instance, calib

    def asked(self) -> dg.RunRequest | str:
        links = [calibration_set, onnx_model, *target_assets("emulator")]
        schedule = nightly_build(build_canary, links, "nightly", "30 2 * * *", "UTC")
        places = Places(weights_dir="", calib_dir=str(self.calib), build_dir="", release_store="")
        with dg.build_schedule_context(self.instance, resources={"places": places}) as context:
            found = schedule(context)
        if isinstance(found, dg.RunRequest):
            return found
        assert isinstance(found, dg.SkipReason)
        return str(found.skip_message)

    def observe(self, version: str) -> None:
        tags = {"dagster/data_version": version}
        self.instance.report_runless_asset_event(dg.AssetObservation("model_weights", tags=tags))

    def ended(self, request: dg.RunRequest | str, status: dg.DagsterRunStatus) -> None:
        assert isinstance(request, dg.RunRequest)
        tags = {**request.tags, "dagster/schedule_name": "nightly_build"}  # as Dagster's daemon adds it
        self.instance.add_run(dg.DagsterRun("build_canary", tags=tags, status=status))


def test_a_night_builds_what_changed_by_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(CALIB_DATA, tmp_path / "calib")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        night = Night(instance, tmp_path / "calib")
        assert "no weights were observed" in str(night.asked())
        night.observe("v1")
        request = night.asked()
        assert isinstance(request, dg.RunRequest)
        assert len(request.asset_selection or []) == 6
        night.ended(request, dg.DagsterRunStatus.FAILURE)
        request = night.asked()  # what failed is tried again
        night.ended(request, dg.DagsterRunStatus.STARTED)
        assert "nothing changed" in str(night.asked())
        night.ended(request, dg.DagsterRunStatus.SUCCESS)
        assert "nothing changed" in str(night.asked())
        for change in (
            lambda: night.observe("v2"),
            lambda: night.observe("v1"),  # back to what was built two nights ago
            lambda: (tmp_path / "calib" / "golden.npz").write_bytes(b"other"),
            lambda: monkeypatch.setattr(chain, "policy_digest", lambda: "f" * 64),
            lambda: monkeypatch.setattr(chain, "made_with", lambda *_, **__: "f" * 64),
        ):
            change()
            night.ended(night.asked(), dg.DagsterRunStatus.SUCCESS)
            assert "nothing changed" in str(night.asked())


@pytest.mark.parametrize(
    ("builds", "at_once", "nightly"),
    [("at_once", True, False), ("nightly", False, True), ("never", False, False)],
)
def test_when_is_a_setting(builds: str, at_once: bool, nightly: bool) -> None:
    sensor = rebuild_what_changed(builds)
    assert (sensor.default_status is dg.DefaultSensorStatus.RUNNING) == at_once
    schedule = nightly_build(build_canary, LINKS, builds, "30 2 * * *", "UTC")
    assert (schedule.default_status is dg.DefaultScheduleStatus.RUNNING) == nightly
    assert BuildSettings.from_environment({"BUILDS": builds}).builds == builds


def test_another_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="BUILDS: 'daily' is none of at_once, nightly, never"):
        BuildSettings.from_environment({"BUILDS": "daily"})


QUERY = """{
  assetNodes {
    assetKey { path }
    staleStatus
    assetObservations(limit: 50) {
      metadataEntries { label ... on TextMetadataEntry { text } }
      tags { key value }
    }
  }
}"""


class Watched:
    """A platform whose weights lie in a folder of the test's own."""

    def __init__(self, running: Running, weights: Path) -> None:
        self.running, self.weights = running, weights

    def _nodes(self) -> dict[str, Any]:
        answer = httpx.post(f"{self.running.ui_url}/graphql", json={"query": QUERY}, timeout=60).json()
        return {"/".join(node["assetKey"]["path"]): node for node in answer["data"]["assetNodes"]}

    def stale(self, asset: str) -> str:
        return str(self._nodes()[asset]["staleStatus"])

    def observed(self) -> list[tuple[str, str]]:
        """(version, data version), newest first."""
        found = []
        for each in self._nodes()["model_weights"]["assetObservations"]:
            texts = {entry["label"]: entry.get("text") for entry in each["metadataEntries"]}
            tags = {tag["key"]: tag["value"] for tag in each["tags"]}
            found.append((str(texts["version"]), tags["dagster/data_version"]))
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    root = tmp_path_factory.mktemp("watched")
    weights = root / "weights"
    shutil.copytree(SAMPLE_VERSION, weights / "tcn_encoder" / "v0.1.0")
    running = start(root, WEIGHTS_DIR=str(weights))
    yield Watched(running, weights)
    end(running)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_new_version_is_observed_while_dagster_runs(watched: Watched) -> None:
    (version, first), *_ = watched.observed()
    assert version == "v0.1.0"
    assert watched.stale("onnx_model") == "FRESH"
    folder = watched.weights / "tcn_encoder" / "v0.2.0"
    shutil.copytree(SAMPLE_VERSION, folder)
    (folder / "sha256sum.txt").unlink()
    began = time.monotonic()
    wait_for(lambda: watched.observed()[0][0] == "v0.2.0", "the observation of v0.2.0", 120)
    print(f"observed after {time.monotonic() - began:.0f} s")
    _, second = watched.observed()[0]
    assert second != first
    assert watched.stale("onnx_model") == "STALE"
    # The same files copied again: looked at once more, and the same data version.
    count = len(watched.observed())
    for path in list(folder.iterdir()):
        copy = path.with_suffix(".copy")
        shutil.copy(path, copy)
        copy.replace(path)
    wait_for(lambda: len(watched.observed()) > count, "another observation", 120)
    assert watched.observed()[0] == ("v0.2.0", second)
