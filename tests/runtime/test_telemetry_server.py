"""Telemetry of a real runtime: kept through its end, its being killed and a full disk; off by default."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.active_model import ActiveModel, ModelHolder
from runtime.config import RuntimeConfig
from runtime.contract.errors import ConfigError
from runtime.engines.emulator import EmulatorEngine
from runtime.shadow import Shadow
from runtime.shadow_child import COMPARED, Reply
from runtime.shadow_metrics import ShadowCollector
from runtime.shadow_process import Child
from tests.runtime.test_telemetry import Keeper, far, read, stuck
from tests.simulators import (
    ReleaseSimulator,
    RuntimeServer,
    imu_windows,
    infer_body,
    running_server,
    wait_for,
)

SETTINGS = {"TELEMETRY_MARGIN": "0", "TELEMETRY_PER_MINUTE": "60000"}


@pytest.fixture(name="store")
def a_store_with_stable(tmp_path: Path) -> Path:
    ReleaseSimulator(calibrated=True).publish(tmp_path / "store", "stable")
    return tmp_path / "store"


def health(server: RuntimeServer) -> Any:
    return httpx.get(f"{server.url}/healthz").json()


def counted(server: RuntimeServer, name: str, **labels: str) -> float | None:
    text = httpx.get(f"{server.url}/metrics").text
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


def post(server: RuntimeServer, *windows: Any) -> None:
    with httpx.Client(base_url=server.url) as client:
        for window in windows:
            assert client.post("/infer", content=infer_body(window)).status_code == 200


def test_off_by_default(store: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, RELEASE_STORE=str(store)) as server:
        post(server, far(), stuck())
        assert health(server)["telemetry"] is None
        assert counted(server, "hailo_telemetry_windows_total") is None
        # Drift needs no file: it is known all the same.
        assert health(server)["drift"]["known"] is False
        wait_for(lambda: counted(server, "hailo_drift_windows") is not None, "a look at calibration")


def test_what_was_kept_is_on_the_disk_when_the_runtime_ends(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    noise = np.random.default_rng(1).uniform(-1, 1, (100, 9)).astype(np.float32)
    with running_server(tmp_path, RELEASE_STORE=str(store), TELEMETRY_DIR=str(folder), **SETTINGS) as server:
        post(server, far(1), noise, imu_windows(1)[0], stuck())
        assert health(server)["telemetry"]["state"] == "keeping"
        release = health(server)["release"]
    kept = read(folder)
    assert [window.reasons for window in kept] == [("far_from_calibration",), ("constant_channel",)]
    assert {window.release for window in kept} == {release}


def test_a_runtime_that_is_killed_leaves_files_that_can_be_read(store: Path, tmp_path: Path) -> None:
    """Killed while it writes one file after the other: each that is there is whole."""
    folder = tmp_path / "kept"
    with running_server(tmp_path, RELEASE_STORE=str(store), TELEMETRY_DIR=str(folder), **SETTINGS) as server:
        goes_on = True

        def send() -> None:
            with httpx.Client(base_url=server.url) as client:
                body = np.stack([far(seed) for seed in range(8)]).tobytes()
                while goes_on:
                    try:
                        client.post(
                            "/infer", content=body, headers={"Content-Type": "application/octet-stream"}
                        )
                    except httpx.TransportError:
                        return

        sender = threading.Thread(target=send)
        sender.start()
        try:
            wait_for(lambda: (counted(server, "hailo_telemetry_files") or 0) >= 2, "two files")
            (worker,) = server.children()
            os.kill(server.process.pid, signal.SIGKILL)  # the arbiter first: it would start another one
            os.kill(worker, signal.SIGKILL)
        finally:
            goes_on = False
            sender.join()
    assert len(read(folder)) >= 128


def test_a_full_disk_costs_no_client_anything(store: Path, tmp_path: Path) -> None:
    """A file where the folder should be: nothing can be written, for as long as it is there."""
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    with (
        running_server(tmp_path, RELEASE_STORE=str(store), TELEMETRY_DIR=str(blocked), **SETTINGS) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        wait_for(lambda: health(server)["telemetry"]["state"] == "failing", "the disk's state")
        body = np.stack([far(seed) for seed in range(32)]).tobytes()
        headers = {"Content-Type": "application/octet-stream"}

        def send() -> bool:
            assert client.post("/infer", content=body, headers=headers).status_code == 200
            return (counted(server, "hailo_telemetry_dropped_total", why="not_written") or 0) >= 128

        wait_for(send, "two files that were not written")
        told = health(server)
        assert told["ok"]
        assert told["telemetry"]["message"].startswith("cannot be written")
    assert server.stdout.count('"telemetry_failed"') == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TELEMETRY_MAX_MB", "0"),
        ("TELEMETRY_PER_MINUTE", "60001"),
        ("TELEMETRY_MARGIN", "1.1"),
        ("TELEMETRY_MARGIN", "nan"),
        ("TELEMETRY_DISTANCE", "0"),
        ("TELEMETRY_DISTANCE", "1e3"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        RuntimeConfig.from_environment({name: text})


class DisagreeingChild:
    """A canary whose first motif is another one on every second window."""

    has_ended = True

    def __init__(self) -> None:
        self.asked = 0

    def ready(self, seconds: float) -> None:
        """Loads at once."""

    def ask(self, frame: bytes, seconds: float) -> Reply:
        self.asked += 1
        return Reply(outcome=COMPARED, distance=0.3, seconds=0.001, agrees=self.asked % 2)

    def end(self) -> None:
        """Nothing is left."""

    kill = end


def test_what_a_shadow_disagrees_on_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "store"
    stable = ReleaseSimulator(version="v1.0.0").publish(root, "canary", "stable")
    ReleaseSimulator(version="v2.0.0").publish(root, "canary")
    model = ActiveModel(stable, EmulatorEngine(stable))
    holder, keeper, child = ModelHolder(model), Keeper(tmp_path / "kept", model), DisagreeingChild()
    keeper.telemetry._spacing = 0.0
    config = RuntimeConfig(release_store=root, trust_root=Path(os.environ["TRUST_ROOT"]))
    now = [1000.0]
    shadow = Shadow(
        config,
        holder,
        ShadowCollector(),
        start=lambda *_: cast(Child, child),
        clock=lambda: now[0],
    )
    shadow.disagreed = lambda *found: keeper.telemetry.disagreement(holder.model, *found)
    shadow.step()  # begins, and runs a golden window, which disagrees with nobody
    windows = imu_windows(4)
    for window in windows:
        latent, _ = model.infer(window)
        shadow.offer(model, window, latent)
        now[0] += 0.1
        shadow.step()
    found = [kept.window.tobytes() for kept in keeper.written()]
    assert found == [windows[0].tobytes(), windows[2].tobytes()]
