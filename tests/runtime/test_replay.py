"""Golden windows while nobody asks: evidence of a release that has no traffic."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.errors import DeviceError, EngineError, GoldenMismatchError
from runtime.engine_failures import MOST_IN_A_ROW
from runtime.engines.emulator import EmulatorEngine
from runtime.replay import Replay
from tests.runtime.service import NO_RELEASE, Service, logged
from tests.simulators import FakeEngine, ReleaseSimulator, imu_windows, infer_body

GOOD = infer_body(imu_windows(1)[0])


@pytest.fixture(name="service")
def a_service(tmp_path: Path) -> Service:
    release = ReleaseSimulator().publish(tmp_path)
    return Service(ModelHolder(ActiveModel(release, EmulatorEngine(release))))


def replays(service: Service, result: str) -> float:
    return service.sample("hailo_golden_replays_total", result=result) or 0.0


def test_only_without_traffic(service: Service) -> None:
    replay = Replay(service.holder, service.metrics)
    replay.look()  # nothing is known yet of the time before
    assert replays(service, "repeated") == 0
    replay.look()
    assert replays(service, "repeated") == 1
    service.post(GOOD)
    replay.look()
    assert replays(service, "repeated") == 1
    replay.look()
    assert replays(service, "repeated") == 2
    assert service.sample("hailo_runtime_windows_total") == 1  # none of them is a client's


def test_a_health_checks_noise_is_answered_and_is_no_traffic(service: Service) -> None:
    noise = np.random.default_rng(1).uniform(-1, 1, (3, 100, 9)).astype(np.float32)
    replay = Replay(service.holder, service.metrics)
    replay.look()
    for number in range(1, 4):
        assert len(service.post(infer_body(noise[0])).json["latent"]) == 64
        replay.look()
        assert replays(service, "repeated") == number
    assert service.sample("hailo_runtime_windows_total") is None
    assert service.sample("hailo_runtime_engine_duration_seconds_count") is None
    # Among others, too: one window of a batch is a client's.
    batch = np.concatenate([noise, imu_windows(1)])
    answer = service.post(batch.tobytes(), headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == 200
    assert service.sample("hailo_runtime_probes_total") == 6
    assert service.sample("hailo_runtime_windows_total") == 1
    assert service.sample("hailo_runtime_engine_duration_seconds_count") == 1
    replay.look()
    assert replays(service, "repeated") == 3


@pytest.mark.parametrize(
    ("error", "result", "lost"),
    [
        (GoldenMismatchError("differs by 3"), "missed", False),
        (EngineError("failed"), "failed", False),
        (DeviceError("gone"), "failed", True),
    ],
)
def test_what_goes_wrong_is_counted_and_told(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: EngineError, result: str, lost: bool
) -> None:
    def fails(self: ActiveModel) -> None:
        raise error

    monkeypatch.setattr(ActiveModel, "repeat_golden_window", fails)
    replay = Replay(service.holder, service.metrics)
    replay.look()
    with logged("ERROR") as lines:
        replay.look()
    assert replays(service, result) == 1
    assert "golden window" in lines[0]["message"]
    assert isinstance(service.holder.state, DeviceError) == lost


def test_golden_windows_that_are_missed_in_a_row_are_no_health(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    engine = FakeEngine(release.manifest, lambda _: np.zeros(64, np.float32))
    service = Service(ModelHolder(ActiveModel(release, engine)))
    replay = Replay(service.holder, service.metrics)
    replay.look()
    with logged("ERROR") as lines:
        for _ in range(MOST_IN_A_ROW):
            assert service.client.simulate_get("/healthz").json["ok"] is True
            replay.look()
        health = service.client.simulate_get("/healthz")
    assert (health.status_code, health.json["reason"]) == (503, "golden_mismatch")
    assert [line["event"] for line in lines] == ["golden_missed"] * 2 + ["engine_failing", "golden_missed"]


def test_without_a_model_nothing_is_run(service: Service) -> None:
    service.holder.replace(NO_RELEASE)
    replay = Replay(service.holder, service.metrics)
    replay.look()
    replay.look()
    assert service.sample("hailo_golden_replays_total") is None


def test_it_looks_again_whatever_happens(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def fails(self: Replay) -> None:
        looked.append(1)
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(Replay, "look", fails)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        Replay(service.holder, service.metrics, seconds=0.001).begin(loop)
        while len(looked) < 3:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(story(), 20))


def test_each_golden_window_has_its_turn(service: Service) -> None:
    model = service.holder.model
    assert model is not None
    for _ in range(9):
        model.repeat_golden_window()
