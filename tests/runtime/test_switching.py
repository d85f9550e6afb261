"""A channel that moves while its release is served: taken, or not and why; the old one pays nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.active_model import ActiveModel, ModelHolder, load_chosen
from runtime.config import RuntimeConfig
from runtime.contract.errors import DeviceError, EngineError, PipelineError
from runtime.contract.release_directory import Release
from runtime.engines.hailo_errors import (
    DeviceBusyError,
    DeviceFailedError,
    DeviceLockError,
    DeviceLostError,
    DriverMismatchError,
    NoDeviceError,
)
from runtime.event_loop import EventLoop
from runtime.load_memory import LoadMemory
from runtime.metrics import RuntimeMetrics
from runtime.recovery import follow
from runtime.release_choice import Choice, ReleaseChoice
from runtime.switching import FIRST_WAIT, FULL_LOOK_SECONDS, LONGEST_WAIT, LOOK_SECONDS
from runtime.trial import CrashedOnLoadError, TrialCutShortError, TrialFailedError, try_release
from tests.keys import KEY_OF, TRUST_ROOT, a_store
from tests.moves import channel
from tests.runtime.following import HangingTrial
from tests.runtime.service import Service
from tests.simulators import ARTIFACT, ReleaseSimulator, flip_bit, imu_windows, infer_body, wait_for

BODY = infer_body(imu_windows(1)[0])


class Pi:
    """A runtime that follows ``stable`` of a store, on a clock of the test's own."""

    def __init__(self, root: Path, memory: LoadMemory | None = None) -> None:
        self.store = root / "store"
        trust = root / "root.json"
        trust.write_bytes(TRUST_ROOT)
        self.config = RuntimeConfig(release_store=self.store, trust_root=trust)
        self.now = 1000.0
        self.tried: list[str] = []
        self.loaded: list[str] = []
        self.breaks: Callable[[Release], Exception | None] = lambda release: None
        self.in_trial: Callable[[], None] = lambda: None
        self.metrics = RuntimeMetrics("stable")
        self.memory = memory or LoadMemory(None)

    def start(self) -> ModelHolder:
        self.holder, self.recovery = follow(
            self.config,
            self.metrics,
            EventLoop(),
            memory=self.memory,
            load=self._load,
            attempt=self._try,
            clock=lambda: self.now,
        )
        return self.holder

    @property
    def problem(self) -> Any:
        return self.holder.switch()

    def _try(self, release: Release, cut_short: Callable[[], str]) -> None:
        self.tried.append(release.id)
        self.in_trial()
        if why := cut_short():
            raise TrialCutShortError(why, where=release.id)

    def _load(self, config: RuntimeConfig, chosen: Choice) -> ActiveModel:
        self.loaded.append(chosen.release.id)
        if error := self.breaks(chosen.release):
            raise error
        return load_chosen(config, chosen)

    def point(self, release: Release) -> None:
        a_store(self.store, accepts_doubles=True).point(
            "stable", release, actor="test", reason="a move", key=KEY_OF["stable"]
        )

    def publish(self, motifs: int) -> Release:
        return ReleaseSimulator(motifs=motifs).publish(self.store)

    @property
    def serving(self) -> str | None:
        return self.holder.model.release_id if self.holder.model else None

    def run(self, seconds: float) -> None:
        """Let time pass as the thread would."""
        end = self.now + seconds
        while self.now <= end:
            wait = self.recovery.step()
            self.now += LOOK_SECONDS if wait is None else max(wait, 0.01)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture(name="pi")
def a_pi(tmp_path: Path) -> Pi:
    pi = Pi(tmp_path)
    pi.point(pi.publish(3))
    pi.start()
    return pi


def test_the_next_release_is_tried_loaded_and_served(pi: Pi) -> None:
    first = pi.serving
    new = pi.publish(4)
    pi.run(1)
    assert pi.tried == []
    pi.point(new)
    old = pi.holder.model
    pi.run(2 * LOOK_SECONDS)
    assert pi.serving == new.id != first
    assert pi.tried == [new.id]
    assert pi.holder.model is not None
    assert pi.holder.model.sequence == 2
    assert old is not None
    with pytest.raises(EngineError, match="closed"):
        old.infer(imu_windows(1)[0])
    assert pi.sample("hailo_switch_duration_seconds_count") == 1
    assert pi.sample("hailo_release_switches_total") == 1
    assert pi.sample("hailo_release_switch_failing") == 0


def test_a_release_that_passed_is_not_tried_again(pi: Pi) -> None:
    first = pi.holder.model
    assert first is not None
    new = pi.publish(4)
    for release in (new, a_store(pi.store).open(first.release_id), new, new):
        pi.point(release)
        pi.run(2)
        assert pi.serving == release.id
    assert pi.tried == [new.id, first.release_id]


def of_switches(pi: Pi, release: Release) -> list[Any]:
    """Reasons of failures that were counted against a release."""
    families = {each.name: each for each in pi.metrics.registry.collect()}
    samples = families["hailo_release_switch_failures"].samples
    return [each.labels["reason"] for each in samples if each.labels["release"] == release.id]


def test_a_trial_gives_way_to_a_later_release(pi: Pi) -> None:
    slow, good, seen = pi.publish(4), pi.publish(5), list[Any]()

    def moved() -> None:
        pi.now += 2.0
        seen.append(pi.problem)
        pi.in_trial = lambda: None
        pi.point(good)

    pi.in_trial = moved
    pi.point(slow)
    pi.run(2 * LOOK_SECONDS + 2)
    assert [(each["wanted"], each["entry"], each["trying_for_s"]) for each in seen] == [(slow.id, 2, 2.0)]
    assert (seen[0]["reason"], seen[0]["next_attempt_s"]) == (None, None)  # Nothing failed, and it is now.
    assert (pi.serving, pi.problem) == (good.id, None)
    assert pi.tried == [slow.id, good.id]
    assert slow.id not in pi.loaded
    assert of_switches(pi, slow) == []  # Nothing is known against it.
    pi.point(slow)
    pi.run(2 * LOOK_SECONDS)
    assert pi.serving == slow.id


def test_what_is_overtaken_after_the_last_look_of_its_trial_is_not_loaded(
    pi: Pi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load takes the device's time, and what is served pays for it."""
    slow, good = pi.publish(4), pi.publish(5)

    def passes_and_moves(release: Release, cut_short: Callable[[], str]) -> None:
        assert cut_short() == ""
        if release.id == slow.id:
            pi.point(good)

    monkeypatch.setattr(pi.recovery._follower.switch, "_attempt", passes_and_moves)  # type: ignore[union-attr]
    pi.point(slow)
    pi.run(3 * LOOK_SECONDS)
    assert (pi.serving, pi.problem) == (good.id, None)
    assert slow.id not in pi.loaded
    assert of_switches(pi, slow) == []


def test_a_trial_goes_on_where_its_release_is_named_once_more(pi: Pi) -> None:
    new, other = pi.publish(4), pi.publish(5)

    def there_and_back() -> None:
        pi.point(other)
        pi.point(new)

    pi.in_trial = there_and_back
    pi.point(new)
    pi.run(2 * LOOK_SECONDS)
    assert (pi.serving, pi.tried) == (new.id, [new.id])
    pi.run(2 * LOOK_SECONDS)
    assert pi.holder.model is not None
    assert pi.holder.model.sequence == 4


def test_what_the_channel_no_longer_names_when_it_is_loaded_is_not_served(
    pi: Pi, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, new, closed, served = pi.holder.model, pi.publish(4), list[str](), list[str]()
    assert first is not None
    close, replace = ActiveModel.close, pi.holder.replace

    def taken_back(release: Release) -> None:
        pi.point(a_store(pi.store).open(first.release_id))

    def seen_close(model: ActiveModel) -> None:
        closed.append(model.release_id)
        close(model)

    def seen_replace(state: ActiveModel | PipelineError) -> ActiveModel | PipelineError:
        served.append(str(state))
        return replace(state)

    pi.breaks = taken_back
    monkeypatch.setattr(ActiveModel, "close", seen_close)
    monkeypatch.setattr(pi.holder, "replace", seen_replace)
    pi.point(new)
    pi.run(3 * LOOK_SECONDS)
    assert (pi.holder.model, served, pi.problem) == (first, [], None)
    assert (pi.loaded[-1], closed) == (new.id, [new.id])
    assert pi.memory.serving == first.release_id  # A process that comes after does not fall back on it.
    assert of_switches(pi, new) == []


def test_a_trial_gives_way_to_a_device_that_failed(pi: Pi) -> None:
    """And what is opened anew is what passed once, not what was in its trial."""
    first, new = pi.holder.model, pi.publish(4)
    assert first is not None

    def lose() -> None:
        pi.in_trial = lambda: None
        assert pi.holder.model is not None
        pi.holder.lost(pi.holder.model, DeviceLostError("is gone", where="HailoRT"))

    pi.in_trial = lose
    pi.point(new)
    pi.run(FIRST_WAIT)
    assert (pi.serving, pi.loaded) == (first.release_id, [first.release_id] * 2)
    assert (pi.problem["reason"], pi.problem["attempts"]) == ("trial_cut_short", 0)
    assert of_switches(pi, new) == []
    pi.run(2 * FIRST_WAIT)
    assert (pi.serving, pi.problem) == (new.id, None)
    assert pi.tried == [new.id] * 2


def test_the_end_of_the_process_does_not_wait_for_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pi = Pi(tmp_path)
    pi.point(pi.publish(3))
    pi.start()
    hanging = HangingTrial(tmp_path, monkeypatch)
    monkeypatch.setattr(pi.recovery._follower.switch, "_attempt", try_release)  # type: ignore[union-attr]
    pi.point(pi.publish(4))
    pi.recovery.start()
    wait_for(lambda: hanging.pids, "the trial")
    pi.recovery.stop()
    assert not pi.recovery._thread.is_alive()
    wait_for(lambda: not hanging.alive, "the end of the trial")


def test_a_quiet_store_is_not_read(pi: Pi, monkeypatch: pytest.MonkeyPatch) -> None:
    pi.run(2)
    looks: list[float] = []
    find = ReleaseChoice.find

    def counted(self: ReleaseChoice) -> Choice:
        looks.append(pi.now)
        return find(self)

    monkeypatch.setattr(ReleaseChoice, "find", counted)
    pi.run(FULL_LOOK_SECONDS * 3)
    assert 2 <= len(looks) <= 4


def damage(release: Release) -> None:
    flip_bit(release.directory / ARTIFACT, 5000, 3)


def test_a_damaged_release_leaves_the_old_one_serving_and_says_so(pi: Pi) -> None:
    first, bad = pi.serving, pi.publish(4)
    damage(bad)
    pi.point(bad)
    pi.run(1)
    service = Service(pi.holder)
    assert (pi.serving, service.post(BODY).status_code) == (first, 200)
    health = service.client.simulate_get("/healthz")
    assert (health.status_code, health.json["ok"]) == (200, True)
    assert health.json["switch"]["wanted"] == bad.id
    assert health.json["switch"]["reason"] == "digest_mismatch"
    assert health.json["switch"]["entry"] == 2
    assert "digest" in health.json["store"]["alarm"] or ARTIFACT in health.json["store"]["alarm"]
    whose = {"release": bad.id, "channel": "stable"}
    failures = pi.sample("hailo_release_switch_failures_total", reason="digest_mismatch", **whose)
    assert failures is not None
    assert failures >= 1
    assert pi.sample("hailo_release_switch_failing") == 1


def test_it_is_tried_again_with_growing_waits_and_a_later_one_at_once(pi: Pi) -> None:
    bad, good = pi.publish(4), pi.publish(5)
    times: list[float] = []

    def breaks(release: Release) -> Exception | None:
        if release.id == bad.id:
            times.append(pi.now)
            return EngineError("does not load", where="tiny.onnx")
        return None

    pi.breaks = breaks
    pi.point(bad)
    pi.run(1500)
    waits = np.diff(times)
    assert waits[0] == pytest.approx(FIRST_WAIT, abs=2 * LOOK_SECONDS)
    assert waits[-1] == pytest.approx(LONGEST_WAIT, abs=2 * LOOK_SECONDS)
    assert (np.diff(waits) > -2 * LOOK_SECONDS).all()
    assert len(times) < 15
    pi.point(good)
    pi.run(1)
    assert pi.serving == good.id
    assert pi.problem is None


def test_who_promotes_it_once_more_need_not_wait(pi: Pi) -> None:
    bad = pi.publish(4)
    pi.breaks = lambda release: EngineError("no") if release.id == bad.id else None
    pi.point(bad)
    pi.run(100)
    pi.breaks = lambda release: None
    first = pi.holder.model
    assert first is not None
    pi.point(a_store(pi.store).open(first.release_id))
    pi.run(1)
    pi.point(bad)
    pi.run(1)
    assert pi.serving == bad.id


def test_an_entry_that_nobody_may_sign_changes_nothing(pi: Pi) -> None:
    first = pi.serving
    place = channel(pi.store) / "00000002.json"
    place.write_text('{"payload": "junk"}')
    pi.run(3)
    assert pi.serving == first
    alarm = Service(pi.holder).client.simulate_get("/healthz").json["store"]["alarm"]
    assert "00000002" in alarm
    place.unlink()
    pi.run(1)
    assert Service(pi.holder).client.simulate_get("/healthz").json["store"]["alarm"] is None


def test_a_store_that_goes_away_and_comes_back(pi: Pi) -> None:
    first, new = pi.serving, pi.publish(4)
    away = pi.store.with_name("away")
    pi.store.rename(away)
    pi.run(5)
    assert pi.serving == first
    assert pi.problem is not None
    away.rename(pi.store)
    pi.point(new)
    pi.run(3)
    assert pi.serving == new.id
    assert pi.problem is None


def test_a_release_that_is_still_being_copied_is_taken_when_it_is_there(pi: Pi) -> None:
    new = pi.publish(4)
    artifact = new.directory / ARTIFACT
    data = artifact.read_bytes()
    artifact.chmod(0o644)
    artifact.unlink()
    pi.point(new)
    pi.run(60)
    assert pi.serving != new.id
    artifact.write_bytes(data[:100])
    pi.run(60)
    assert pi.serving != new.id
    artifact.write_bytes(data)
    pi.run(4)
    assert pi.serving == new.id


def test_a_release_that_breaks_the_device_gives_way_to_the_old_one(pi: Pi) -> None:
    """Both are on one chip: it is opened anew, for the old one."""
    first, bad = pi.serving, pi.publish(4)
    lost = DeviceLostError("is gone", where="HailoRT")
    pi.breaks = lambda release: lost if release.id == bad.id else None
    pi.point(bad)
    pi.run(1)
    assert pi.serving == first
    assert pi.loaded[-2:] == [bad.id, first]
    assert isinstance(pi.holder.state, ActiveModel)
    assert pi.holder.switch()["reason"] == lost.code  # type: ignore[index]
    assert Service(pi.holder).post(BODY).status_code == 200
    good = pi.publish(5)
    pi.point(good)
    pi.run(2)
    assert pi.serving == good.id


def test_a_device_that_is_gone_for_both_is_opened_again(pi: Pi) -> None:
    first, bad = pi.serving, pi.publish(4)
    lost = DeviceLostError("is gone", where="HailoRT")
    pi.breaks = lambda release: lost
    pi.point(bad)
    pi.run(3)
    assert isinstance(pi.holder.state, DeviceError)
    pi.breaks = lambda release: lost if release.id == bad.id else None
    pi.run(70)
    assert pi.serving == first


def test_the_first_attempt_after_a_device_failed_ends_with_what_it_bears(pi: Pi) -> None:
    first, bad = pi.holder.model, pi.publish(4)
    assert first is not None
    lost = DeviceLostError("is gone", where="HailoRT")
    pi.breaks = lambda release: lost if release.id == bad.id else None
    pi.point(bad)
    pi.holder.lost(first, lost)
    pi.run(0.3)
    assert pi.loaded[-2:] == [bad.id, first.release_id]
    assert pi.serving == first.release_id


@pytest.mark.parametrize("error", [DeviceBusyError, NoDeviceError, DeviceLockError, DriverMismatchError])
def test_a_device_that_is_late_at_the_start_says_nothing_of_the_release(
    tmp_path: Path, error: type[DeviceError]
) -> None:
    """The channel moved while nobody ran, and the one before is here, too: it is not what is asked for."""
    pi, before = Pi(tmp_path), ReleaseSimulator(motifs=3).publish(tmp_path / "store")
    pi.memory.serving = before.id
    new = pi.publish(4)
    pi.point(before)
    pi.point(new)
    pi.breaks = lambda release: not_open(error("is not there"))
    holder = pi.start()
    pi.run(1)
    assert (holder.state.code, pi.problem) == (error.code, None)  # type: ignore[union-attr]
    assert set(pi.loaded) == {new.id}
    pi.breaks = lambda release: None
    pi.run(2)
    assert (pi.serving, pi.problem, holder.alarm_kind) == (new.id, None, "")
    assert [of_switches(pi, each) for each in (before, new)] == [[], []]


def not_open(error: DeviceError) -> DeviceError:
    """As the device says it before anything was shown to it."""
    error.of_release = False
    return error


def test_a_device_that_is_being_let_go_says_nothing_of_the_release(pi: Pi) -> None:
    """The one that is served lost it a moment before the new one was to be configured."""
    new = pi.publish(4)
    lose_at(pi, new, [not_open(DeviceFailedError("is being let go after a failure", where="HailoRT"))])
    pi.point(new)
    pi.run(3 * FIRST_WAIT)
    assert (pi.serving, pi.problem, of_switches(pi, new)) == (new.id, None, [])


def lose_at(pi: Pi, release: Release, errors: list[DeviceError]) -> None:
    """Let each of these loadings of a release fail, when a window has just reported the loss."""

    def lost_before(loaded: Release) -> Exception | None:
        if loaded.id != release.id or not errors:
            return None
        if pi.holder.model is not None:
            pi.holder.lost(pi.holder.model, DeviceLostError("is gone", where="HailoRT"))
        return errors.pop()

    pi.breaks = lost_before


def test_a_device_that_a_window_lost_while_another_release_is_loaded_is_not_held_against_it(pi: Pi) -> None:
    first, new = pi.serving, pi.publish(4)
    lose_at(pi, new, [DeviceLostError("is gone", where="HailoRT")])
    pi.point(new)
    while pi.loaded[-1] != new.id:
        pi.run(0)
    pi.run(0)
    assert pi.loaded[-1] == new.id  # The device has its time before it is opened again.
    pi.run(FIRST_WAIT / 2)
    assert (pi.serving, pi.problem["reason"], pi.problem["attempts"]) == (first, "device_lost", 0)
    pi.run(2 * FIRST_WAIT)
    assert (pi.serving, pi.problem, of_switches(pi, new)) == (new.id, None, [])


def test_a_release_that_breaks_the_device_again_is_held_back_though_a_window_told_first(pi: Pi) -> None:
    first, bad = pi.serving, pi.publish(4)
    lose_at(pi, bad, [DeviceLostError("is gone", where="HailoRT") for _ in range(9)])
    pi.point(bad)
    pi.run(LONGEST_WAIT / 2)
    assert (pi.serving, pi.loaded.count(bad.id)) == (first, 2)
    assert of_switches(pi, bad) == ["device_lost"]


def test_what_is_served_and_opened_anew_is_no_switch_that_failed(pi: Pi) -> None:
    first = pi.holder.model
    assert first is not None
    lost = DeviceLostError("is gone", where="HailoRT")
    pi.breaks = lambda release: lost
    pi.holder.lost(first, lost)
    pi.run(2)
    assert pi.loaded[1:] == [first.release_id] * len(pi.loaded[1:])
    pi.breaks = lambda release: None
    pi.run(5)
    assert pi.serving == first.release_id
    assert of_switches(pi, a_store(pi.store).open(first.release_id)) == []


def test_where_nothing_is_served_a_later_release_is_taken(tmp_path: Path) -> None:
    """What made the first one fail is no device's and no store's fault, and nobody restarts the process."""
    pi = Pi(tmp_path)
    pi.point(ReleaseSimulator(golden_offset=1.0).publish(pi.store))
    holder = pi.start()
    pi.run(2)
    assert not isinstance(holder.state, ActiveModel)
    good = pi.publish(4)
    pi.point(good)
    pi.run(2)
    assert pi.serving == good.id


class Death(BaseException):
    """The end of a process in the middle of loading."""


@pytest.mark.parametrize("kept", ["folder", "descriptor"])
def test_a_release_that_ends_the_process_is_not_loaded_by_the_next_one(tmp_path: Path, kept: str) -> None:
    descriptor = os.memfd_create("loading")

    def memory() -> LoadMemory:
        return LoadMemory(tmp_path, None) if kept == "folder" else LoadMemory(None, descriptor)

    pi = Pi(tmp_path, memory())
    first = pi.publish(3)
    pi.point(first)
    pi.start()
    bad = pi.publish(4)
    pi.point(bad)

    def die(release: Release) -> Exception | None:
        if release.id == bad.id:
            raise Death
        return None

    pi.breaks = die
    state = pi.config
    note = pi.memory._write
    with pytest.MonkeyPatch.context() as patch:
        # A process that ends does not come to its ``finally``.
        patch.setattr(pi.memory, "_write", lambda data: note(data) if b'"loading": ""' not in data else True)
        with pytest.raises(Death):
            pi.run(1)
    later = Pi(tmp_path, memory())
    later.config = state
    later.breaks = die
    holder = later.start()
    if kept == "folder":  # Here no setting says that it is STATE_DIR, which alone knows what was served.
        assert isinstance(holder.state, CrashedOnLoadError)
    else:
        assert later.serving == first.id
    assert bad.id not in later.loaded
    good = later.publish(5)
    later.point(good)
    later.run(2)
    assert later.serving == good.id
    os.close(descriptor)


def test_a_power_cut_at_the_loading_of_what_was_served_costs_nothing(tmp_path: Path) -> None:
    descriptor = os.memfd_create("loading")
    pi = Pi(tmp_path, LoadMemory(None, descriptor))
    release = pi.publish(3)
    pi.point(release)
    pi.start()
    loading = pi.memory.loading(release.id)
    loading.__enter__()  # and then the process ends
    again = Pi(tmp_path, LoadMemory(None, descriptor))
    again.start()
    assert again.memory.left == release.id
    assert again.serving == release.id
    os.close(descriptor)


def test_crashes_in_a_row_are_counted_and_forgotten_after_a_success(tmp_path: Path) -> None:
    name = "a" * 64
    for crashes in range(1, 4):
        memory = LoadMemory(tmp_path)
        loading = memory.loading(name)
        loading.__enter__()
        assert LoadMemory(tmp_path).crashes == crashes
    with LoadMemory(tmp_path).loading(name):
        pass
    assert (LoadMemory(tmp_path).left, LoadMemory(tmp_path).crashes) == ("", 0)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\xff", b'{"loading": "../x", "crashes": 1}', b"[" * 5000]
)
def test_a_memory_that_cannot_be_read_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "loading.json").write_bytes(data)
    assert LoadMemory(tmp_path).left == ""


def test_a_trial_passes_refuses_and_survives_a_crash(tmp_path: Path) -> None:
    good = ReleaseSimulator().publish(tmp_path)
    try_release(good)
    wrong = ReleaseSimulator(golden_offset=1.0).publish(tmp_path / "wrong")
    with pytest.raises(TrialFailedError, match="golden window") as caught:
        try_release(wrong)
    assert caught.value.code == "golden_mismatch"


@pytest.mark.parametrize(
    ("dies", "told"),
    [
        ("os.abort()", "SIGABRT"),
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("print('no module', file=sys.stderr, flush=True); os._exit(1)", "exit code 1: no module"),
        ("time.sleep(60)", "more than 5 s"),
        ("print('{', flush=True); os._exit(3)", "exit code 3"),
    ],
)
def test_a_trial_that_dies_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str, told: str
) -> None:
    release = ReleaseSimulator().publish(tmp_path / "store")
    site = tmp_path / "site"
    site.mkdir()
    script = f"import os, sys, time\nif 'runtime.trial' in sys.orig_argv:\n    {dies}\n"
    (site / "sitecustomize.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(site))
    with pytest.raises(CrashedOnLoadError, match=told):
        try_release(release, seconds=5)


def test_entries_and_times_change_the_signs_and_looking_does_not(tmp_path: Path) -> None:
    pi = Pi(tmp_path)
    store = a_store(pi.store, accepts_doubles=True)
    seen = [store.signs("emulator", "stable")]
    for motifs in (3, 4, 5):
        pi.point(pi.publish(motifs))
        seen.append(store.signs("emulator", "stable"))
        assert store.signs("emulator", "stable") == seen[-1]
    (channel(pi.store) / "00000003.json").touch()
    seen.append(store.signs("emulator", "stable"))
    assert all(a != b for a, b in itertools.pairwise(seen))
    assert json.dumps(seen)


def test_a_stall_is_what_the_loop_did_not_run(tmp_path: Path) -> None:
    loop = EventLoop()
    found: dict[str, Any] = {}

    def watch() -> None:
        with loop.watched() as stall:
            time.sleep(0.1)
        found["stall"] = stall.seconds
        loop.wait_until_passed()
        found["passed"] = True

    async def story() -> None:
        loop.attach(asyncio.get_running_loop())
        thread = threading.Thread(target=watch)
        thread.start()
        await asyncio.sleep(0.02)
        time.sleep(0.3)
        while thread.is_alive():
            await asyncio.sleep(0.01)

    asyncio.run(story())
    assert 0.25 < found["stall"] < 10
    assert found["passed"]
