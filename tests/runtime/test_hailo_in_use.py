"""The chip is at work for a release that is being loaded: who serves is refused, and nothing stands still."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.errors import DeviceError, DeviceInUseError
from runtime.contract.window import Window
from runtime.engine_failures import MOST_IN_A_ROW
from runtime.engines import hailo
from runtime.engines.hailo import LOOP_SECONDS, TURN_SECONDS, HailoEngine
from runtime.replay import Replay
from tests.doubles.hailo import HailoDouble
from tests.runtime.hailo import WatchedTurn, hailo_release, open_on
from tests.runtime.service import Service
from tests.simulators import imu_windows, infer_body, wait_for

WINDOWS = imu_windows(3, seed=4)
BODY = infer_body(WINDOWS[0])


@pytest.fixture(name="engine")
def an_engine(tmp_path: Path, chip: HailoDouble) -> Iterator[HailoEngine]:
    with open_on(chip, hailo_release(tmp_path)) as engine:
        yield engine


async def refused(engine: HailoEngine, window: Window) -> bool:
    """Whether a window is, in an event loop."""
    try:
        engine.infer(window)
    except DeviceInUseError:
        return True
    return False


def test_an_event_loop_waits_once_and_those_that_follow_are_refused_at_once(engine: HailoEngine) -> None:
    """Each wait holds up all that the loop answers, /healthz among it."""
    turn = WatchedTurn(engine._device)
    for _ in range(2):
        turn.timeouts.clear()
        with turn:
            assert [asyncio.run(refused(engine, WINDOWS[0])) for _ in range(20)] == [True] * 20
        assert sum(turn.timeouts) == pytest.approx(LOOP_SECONDS)
        assert not asyncio.run(refused(engine, WINDOWS[0]))  # And a later one is waited for anew.
    assert LOOP_SECONDS < 0.045  # EdgeInfer's patience


def test_whoever_is_in_no_event_loop_waits(engine: HailoEngine) -> None:
    """A release that is being loaded, beside a window that is served: nothing is known against it."""
    turn, latents = WatchedTurn(engine._device), list[object]()
    asking = threading.Thread(target=lambda: latents.append(engine.infer(WINDOWS[0])))
    with turn:
        asking.start()
        wait_for(lambda: turn.waiting == 1, "a window to wait")
    asking.join(20)
    assert len(latents) == 1
    assert max(turn.timeouts) > LOOP_SECONDS
    assert TURN_SECONDS > 6


def test_where_it_does_not_come_at_all_it_says_so(
    engine: HailoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hailo, "TURN_SECONDS", 0.05)
    with engine._device.turn, pytest.raises(DeviceInUseError, match="another release") as caught:
        engine.infer(WINDOWS[0])
    assert not isinstance(caught.value, DeviceError)
    engine.infer(WINDOWS[0])


def test_what_passes_while_the_gil_is_held_is_no_waiting(
    engine: HailoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at each ``configure``: the loop stood still anyway, and its turn comes right afterwards."""
    monkeypatch.setattr(hailo, "LOOP_SECONDS", 0.5)
    core = importlib.import_module("hailo_platform.pyhailort._pyhailort")
    turn = WatchedTurn(engine._device)
    has_it = threading.Event()

    def configure() -> None:
        with turn:
            has_it.set()
            wait_for(lambda: turn.waiting == 1, "a window to wait", 20)
            core.hold_gil(700)

    configuring = threading.Thread(target=configure)
    configuring.start()
    has_it.wait(20)
    assert not asyncio.run(refused(engine, WINDOWS[0]))
    configuring.join(20)


def test_clients_are_told_and_neither_the_device_nor_the_engine_is_called_failed(
    tmp_path: Path, chip: HailoDouble
) -> None:
    release = hailo_release(tmp_path)
    model = ActiveModel(release, open_on(chip, release))
    service = Service(ModelHolder(model))
    batch = {"headers": {"Content-Type": "application/octet-stream"}}
    turn = WatchedTurn(model._engine._device)  # type: ignore[attr-defined]
    with turn:
        answers = [service.post(BODY) for _ in range(MOST_IN_A_ROW + 1)]
        answers.append(service.post(WINDOWS.tobytes(), **batch))
        answers.append(service.client.simulate_post("/test"))
        health = service.client.simulate_get("/healthz")
    assert {(answer.status_code, answer.json["error"]) for answer in answers} == {(503, "device_in_use")}
    assert all(answer.headers["retry-after"] for answer in answers)
    assert (health.status_code, health.json["ok"], health.json["engine"]) == (200, True, None)
    assert not service.sample("hailo_runtime_engine_errors_total")
    assert service.holder.model is model
    assert not service.holder.trouble.is_set()
    assert service.post(BODY).status_code == 200
    assert service.post(WINDOWS.tobytes(), **batch).status_code == 200
    model.close()


def test_a_golden_window_that_has_no_turn_is_not_counted_against_the_release(
    tmp_path: Path, chip: HailoDouble
) -> None:
    release = hailo_release(tmp_path)
    model = ActiveModel(release, open_on(chip, release))
    service = Service(ModelHolder(model))
    replay = Replay(service.holder, service.metrics)

    async def look() -> None:
        replay.look()

    asyncio.run(look())
    with model._engine._device.turn:  # type: ignore[attr-defined]
        asyncio.run(look())
    assert service.sample("hailo_golden_replays_total") is None
    asyncio.run(look())
    assert service.sample("hailo_golden_replays_total", result="repeated") == 1
    model.close()


def test_a_device_that_failed_while_its_turn_was_waited_for_is_not_used(
    engine: HailoEngine, chip: HailoDouble
) -> None:
    """A late job could write into a buffer that is read."""
    turn, device, told = WatchedTurn(engine._device), engine._device, list[str]()

    def ask() -> None:
        try:
            engine.infer(WINDOWS[0])
        except DeviceError as error:
            told.append(error.what)

    asking = threading.Thread(target=ask)
    with turn:
        asking.start()
        wait_for(lambda: turn.waiting == 1, "a window to wait")
        device.fail(DeviceError("another release's window hung"))
    asking.join(20)
    assert told == ["another release's window hung"]
    assert np.isnan(engine._output).sum() == 0
