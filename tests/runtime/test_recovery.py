"""A failing device: 503 with its code at once, opened again with growing waits, served again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.errors import (
    ConfigError,
    DeviceError,
    DigestMismatchError,
    IncompleteError,
    PipelineError,
)
from runtime.engines.hailo_errors import DeviceBusyError, DeviceLostError
from runtime.recovery import STEADY, Recovery
from tests.runtime.service import Service
from tests.simulators import FakeEngine, ReleaseSimulator, imu_windows, infer_body, wait_for

LOST = DeviceLostError("is gone", where="HailoRT", hint="look at it")
BUSY = DeviceBusyError("process 7 has the chip")
BODY = infer_body(imu_windows(1)[0])
Made = ActiveModel | PipelineError


class Bench:
    """A holder, its recovery, a clock of the test's own, and what comes next from loading."""

    def __init__(self, root: Path, first: DeviceError | None = None) -> None:
        self.release = ReleaseSimulator().publish(root)
        self.now = 1000.0
        self.next: list[Made] = []
        self.attempts: list[float] = []
        self.known: list[str] = []
        self.shown: list[bool] = []
        self.failing: DeviceError | None = None
        self.engines: list[FakeEngine] = []
        self.holder = ModelHolder(first if first is not None else self.model())
        self.recovery = Recovery(
            self.holder, self._load, lambda model: self.shown.append(model is not None), lambda: self.now
        )

    def model(self) -> ActiveModel:
        """A model whose device fails while ``failing`` says so."""

        def answer(tensor: object) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
            if self.failing is not None:
                raise self.failing
            return np.zeros((1, 64), np.float32)

        self.engines.append(FakeEngine(self.release.manifest, answer))
        return ActiveModel(self.release, self.engines[-1])

    def _load(self, known: str) -> Made:
        self.attempts.append(self.now)
        self.known.append(known)
        return self.next.pop(0) if self.next else BUSY

    def run(self, seconds: float) -> None:
        """Let time pass as the thread would: asleep until the next look, or until the end."""
        end = self.now + seconds
        while True:
            wait = self.recovery.step()
            if wait is None or self.now + wait > end:
                self.now = end
                return
            self.now += wait


@pytest.fixture(name="bench")
def a_bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_failing_device_is_a_503_with_its_code_and_then_no_model(bench: Bench) -> None:
    service = Service(bench.holder)
    assert service.post(BODY).status_code == 200
    bench.failing = LOST
    first, second = service.post(BODY), service.post(BODY)
    assert (first.status_code, first.json["error"]) == (503, "device_lost")
    assert (second.status_code, second.json["error"], second.json["reason"]) == (
        503,
        "model_unavailable",
        "device_lost",
    )
    health = service.client.simulate_get("/healthz")
    assert (health.status_code, health.json["ok"], health.json["reason"]) == (503, False, "device_lost")
    assert health.json["hint"] == "look at it"
    assert service.sample("hailo_runtime_engine_errors_total", code="device_lost") == 1
    bench.recovery.step()
    assert bench.shown == [False]


def test_it_is_closed_before_it_is_opened_again_and_serves(bench: Bench) -> None:
    service = Service(bench.holder)
    bench.failing = LOST
    service.post(BODY)
    assert bench.holder.trouble.is_set()
    assert bench.engines[0].closings == 0  # Closing may hang: not in the event loop.
    assert bench.recovery.step() == 0.25
    assert (bench.engines[0].closings, bench.attempts) == (1, [])
    bench.failing = None
    bench.next = [bench.model()]
    bench.run(1)
    assert bench.attempts == [1000.25]
    assert service.post(BODY).status_code == 200
    assert service.client.simulate_get("/healthz").status_code == 200
    assert bench.shown == [False, True]


def test_waits_grow_to_the_errors_own_limit(tmp_path: Path) -> None:
    bench = Bench(tmp_path, first=LOST)
    bench.next = [LOST] * 100
    bench.run(400)
    waits = np.diff([1000.0, *bench.attempts]).tolist()
    assert waits[:10] == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert set(waits[8:]) == {60}


def test_a_busy_device_is_asked_for_every_two_seconds(tmp_path: Path) -> None:
    bench = Bench(tmp_path, first=BUSY)
    bench.run(100)
    waits = np.diff([1000.0, *bench.attempts]).tolist()
    assert waits[:5] == [0.25, 0.5, 1, 2, 2]
    assert set(waits[3:]) == {2}


def test_the_same_reason_is_not_logged_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, first=BUSY)
    bench.next = [BUSY, LOST, BUSY]
    bench.run(2)
    assert bench.known[:3] == ["device_busy", "device_busy", "device_lost"]


def test_what_another_moment_does_not_mend_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, first=LOST)
    bench.holder.state = ConfigError("a wrong setting")
    fresh = Recovery(bench.holder, bench._load, lambda model: None, lambda: bench.now)
    assert fresh.step() is None
    assert bench.attempts == []


def test_a_store_that_is_still_being_copied_is_looked_at_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, first=LOST)
    bench.holder.state = IncompleteError("ends early")
    fresh = Recovery(bench.holder, bench._load, lambda model: None, lambda: bench.now)
    assert fresh.step() is not None


def test_after_a_devices_failure_whatever_comes_is_tried_again(tmp_path: Path) -> None:
    """A chip that comes back confused fails its golden windows first."""
    bench = Bench(tmp_path, first=LOST)
    bench.next = [DigestMismatchError("other bytes"), bench.model()]
    bench.run(10)
    assert len(bench.attempts) == 2
    assert bench.holder.model is not None


def fail_again(bench: Bench) -> None:
    """Serve one window that fails."""
    model = bench.holder.model
    assert model is not None
    bench.holder.lost(model, LOST)


@pytest.mark.parametrize(("served", "wait"), [(1.0, 0.5), (STEADY + 1, 0.25)])
def test_a_device_that_fails_soon_after_each_opening_is_not_opened_at_once(
    bench: Bench, served: float, wait: float
) -> None:
    fail_again(bench)
    bench.next = [bench.model(), bench.model()]
    bench.run(1)
    assert bench.holder.model is not None
    bench.now += served
    fail_again(bench)
    assert bench.recovery.step() == wait


def lost_and_served_again(bench: Bench, *attempts: Made) -> float:
    """Seconds from a loss until a model is served, when these attempts come before the one that succeeds."""
    fail_again(bench)
    begin = bench.now
    bench.next = [*attempts, bench.model()]
    while bench.holder.model is None:
        wait = bench.recovery.step()
        if bench.holder.model is None:
            assert wait is not None
            bench.now += wait
    return bench.now - begin


def test_a_glitch_after_a_long_wait_for_a_busy_device_is_short(tmp_path: Path) -> None:
    bench = Bench(tmp_path, first=BUSY)
    bench.run(30)
    bench.next = [bench.model()]
    bench.run(2)
    bench.now += 1
    assert lost_and_served_again(bench) == 0.25


def test_waiting_for_a_busy_device_is_no_failure_of_it(bench: Bench) -> None:
    """It was lost, somebody else had it for a while, and then it failed once."""
    assert lost_and_served_again(bench, *[BUSY] * 8) == 0.25 + 0.5 + 1 + 6 * 2
    assert lost_and_served_again(bench, *[BUSY] * 8, LOST) == 0.5 + 0.5 + 1 + 6 * 2 + 0.5


def test_attempts_that_failed_are_forgotten_when_it_is_served_again(bench: Bench) -> None:
    """The first loss waits 0.25 s, those that come soon after twice as long each time: nothing else adds."""
    failed = 0.5 + 1 + 2
    waits = [lost_and_served_again(bench, LOST, LOST, LOST) - failed for _ in range(11)]
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    bench.now += STEADY
    assert lost_and_served_again(bench) == 0.25


def test_a_late_failure_of_a_model_that_was_replaced_changes_nothing(bench: Bench) -> None:
    old, new = bench.holder.model, bench.model()
    assert old is not None
    bench.holder.replace(new)
    bench.holder.lost(old, LOST)
    assert bench.holder.model is new
    assert bench.recovery.step() is None


def test_the_thread_opens_again_and_closes_at_the_end(tmp_path: Path) -> None:
    """In real time: only that it runs, wakes and ends."""
    bench = Bench(tmp_path)
    shown: list[bool] = []
    new = bench.model()
    recovery = Recovery(bench.holder, lambda known: new, lambda model: shown.append(model is not None))
    recovery.start()
    fail_again(bench)
    wait_for(lambda: bench.holder.model is new, "another model")
    recovery.stop()
    assert [engine.closings for engine in bench.engines] == [1, 1]
    assert shown == [False, True]
