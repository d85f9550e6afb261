"""What is kept of answered windows, how much, and that nobody waits for it."""

from __future__ import annotations

import errno
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.active_model import ActiveModel, ModelHolder
from runtime.config import RuntimeConfig
from runtime.contract.telemetry import ENDING, KeptWindow, parse_file
from runtime.contract.window import FloatArray, Window
from runtime.engines.emulator import EmulatorEngine
from runtime.telemetry import MOST_IN_A_FILE, MOST_WAITING, WRITE_SECONDS, Telemetry
from runtime.telemetry_folder import TelemetryFolder
from runtime.telemetry_metrics import TelemetryCounts
from tests.runtime.service import Service, logged
from tests.simulators import ReleaseSimulator, imu_windows, infer_body, wait_for


@dataclass
class Clock:
    """Both clocks, moved by hand."""

    now: float = 1_796_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Keeper:
    """Telemetry whose thread is the test's."""

    folder: Path
    model: ActiveModel
    settings: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.counts = TelemetryCounts()
        config = RuntimeConfig(telemetry_dir=self.folder, **{"telemetry_margin": 0.0} | self.settings)
        self.telemetry = Telemetry(config, self.folder, self.counts, self.clock, self.clock)

    def offer(self, *windows: Window, every: float = 60.0) -> None:
        for window in windows:
            latent, scores = self.model.infer(window)
            self.telemetry.offer(self.model, window, latent, scores, self.model.plausibility.kinds(window))
            self.clock.now += every

    def written(self) -> list[KeptWindow]:
        self.telemetry.step(last=True)
        return read(self.folder)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{ENDING}"))


def read(folder: Path) -> list[KeptWindow]:
    return [kept for path in files(folder) for kept in parse_file(path.read_bytes(), path.name).windows]


@pytest.fixture(name="model", scope="module")
def a_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActiveModel]:
    release = ReleaseSimulator(calibrated=True).publish(tmp_path_factory.mktemp("store"))
    model = ActiveModel(release, EmulatorEngine(release))
    yield model
    model.close()


@pytest.fixture(name="make")
def a_keeper(tmp_path: Path, model: ActiveModel) -> Callable[..., Keeper]:
    return lambda **settings: Keeper(tmp_path / "kept", model, settings)


def far(seed: int = 5) -> Window:
    window: Window = imu_windows(1, seed)[0] * np.float32(4)
    return window


def stuck(seed: int = 6) -> Window:
    window: Window = imu_windows(1, seed)[0]
    window[:, 2] = 9.8
    return window


def test_an_ordinary_window_is_not_kept(make: Callable[..., Keeper]) -> None:
    keeper = make()
    keeper.offer(*imu_windows(20, seed=7))
    assert keeper.written() == []
    assert not keeper.folder.exists()
    assert sum(keeper.counts.dropped.values()) == 0


def test_a_window_is_kept_whole_with_its_reasons(make: Callable[..., Keeper], model: ActiveModel) -> None:
    keeper, window = make(), far()
    keeper.offer(window, stuck())
    one, two = keeper.written()
    latent, scores = model.infer(window)
    names, (first, second) = model.manifest.motif_head.names, np.argsort(-scores)[:2]
    assert one.reasons == ("far_from_calibration",)
    assert (one.release, one.time) == (model.release_id, "2026-11-30T00:53:20.000000Z")
    assert one.window.tobytes() == window.tobytes()
    assert one.latent.tobytes() == latent.tobytes()
    assert [(scored.motif, scored.score) for scored in one.motifs] == [
        (names[first], scores[first]),
        (names[second], scores[second]),
    ]
    assert one.distance is not None
    assert one.distance > 1.25
    assert "constant_channel" in two.reasons
    origin = parse_file(files(keeper.folder)[0].read_bytes(), "x").origin
    assert origin.runtime_version
    assert origin.cpu
    assert (keeper.counts.kept["far_from_calibration"], keeper.counts.kept["constant_channel"]) == (1, 1)
    assert keeper.counts.size == sum(path.stat().st_size for path in files(keeper.folder))
    assert {path.stat().st_mode & 0o777 for path in files(keeper.folder)} == {0o600}


def test_an_uncertain_window_is_kept_below_its_bound_alone(
    make: Callable[..., Keeper], model: ActiveModel
) -> None:
    windows = imu_windows(40, seed=9)
    margins = [float(np.diff(np.sort(model.infer(window)[1])[-2:])[0]) for window in windows]
    keeper = make(telemetry_margin=0.03)
    keeper.offer(*windows)
    expected = [margin for margin in margins if margin < 0.03]
    assert 0 < len(expected) < len(windows)
    found = keeper.written()
    assert [kept.margin for kept in found] == pytest.approx(expected)
    assert {kept.reasons for kept in found} == {("low_margin",)}


def test_without_calibration_statistics_nothing_is_far(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path / "store")
    keeper = Keeper(tmp_path / "kept", ActiveModel(release, EmulatorEngine(release)))
    keeper.offer(far(), stuck())
    (kept,) = keeper.written()
    assert (kept.reasons, kept.distance) == (("constant_channel",), None)


def test_a_head_with_one_motif_has_no_margin(tmp_path: Path) -> None:
    release = ReleaseSimulator(motifs=1).publish(tmp_path / "store")
    keeper = Keeper(
        tmp_path / "kept", ActiveModel(release, EmulatorEngine(release)), {"telemetry_margin": 1.0}
    )
    keeper.offer(imu_windows(1)[0], stuck())
    (kept,) = keeper.written()
    assert (kept.reasons, len(kept.motifs), kept.margin) == (("constant_channel",), 1, None)


def test_one_reason_does_not_fill_a_minute_and_leaves_room_for_others(make: Callable[..., Keeper]) -> None:
    keeper = make(telemetry_per_minute=10)
    keeper.offer(*[stuck(seed) for seed in range(1200)], every=0.05)  # a minute of a dead axis
    keeper.offer(far())
    found = [kept.reasons for kept in keeper.written()]
    assert found.count(("constant_channel",)) == 10
    assert found[-1] == ("far_from_calibration",)
    assert keeper.counts.dropped["rate"] == 1190


def test_a_line_that_nobody_empties_drops(make: Callable[..., Keeper]) -> None:
    keeper = make()
    keeper.offer(*[far(seed) for seed in range(MOST_WAITING + 5)])
    assert keeper.counts.dropped["queue_full"] == 5
    assert len(keeper.written()) == MOST_WAITING
    keeper.offer(far(99))
    assert len(keeper.written()) == MOST_WAITING + 1


def test_a_file_is_written_when_it_is_full_or_old_enough(make: Callable[..., Keeper]) -> None:
    keeper = make()
    keeper.offer(far(), every=WRITE_SECONDS - 1)
    keeper.telemetry.step()
    assert not keeper.folder.exists()
    keeper.clock.now += WRITE_SECONDS
    keeper.telemetry.step()
    assert len(files(keeper.folder)) == 1
    keeper.offer(*[far(seed) for seed in range(MOST_IN_A_FILE)], every=6)
    keeper.telemetry.step()
    assert len(read(keeper.folder)) == 1 + MOST_IN_A_FILE


def test_a_window_that_changes_afterwards_is_kept_as_it_was(make: Callable[..., Keeper]) -> None:
    keeper, window = make(), far()
    before = window.tobytes()
    keeper.offer(window)
    window[:] = 0
    (kept,) = keeper.written()
    assert kept.window.tobytes() == before


def test_what_fails_in_it_is_counted_and_said_once(make: Callable[..., Keeper], model: ActiveModel) -> None:
    keeper = make()
    latent, scores = model.infer(far())
    with logged("INFO") as lines:
        for _ in range(3):
            keeper.telemetry.offer(model, far(), latent[:5], scores, ())
    assert keeper.counts.dropped["internal"] == 3
    assert [line["event"] for line in lines] == ["telemetry"]


def test_a_folder_that_cannot_be_written_is_said_once_and_mends(
    make: Callable[..., Keeper], tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    keeper = make()
    with logged("INFO") as lines:
        for seed in range(3):
            keeper.offer(far(seed))
            keeper.telemetry.step(last=True)
        assert keeper.telemetry.told()["state"] == "failing"
        (tmp_path / "kept").unlink()
        keeper.offer(far(9))
        assert len(keeper.written()) == 1
    assert keeper.counts.dropped["not_written"] == 3
    assert keeper.telemetry.told()["state"] == "keeping"
    assert [line["event"] for line in lines] == ["telemetry_failed", "telemetry_written"]


def test_a_full_disk_leaves_nothing_half_written(make: Callable[..., Keeper]) -> None:
    """RLIMIT_FSIZE ends a write in the middle, as a disk without room does."""
    keeper = make()
    keeper.offer(far(1))
    before = keeper.written()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    keeper.offer(far(2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        keeper.telemetry.step(last=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert keeper.counts.dropped["not_written"] == 1
    assert [path.name for path in keeper.folder.iterdir()] == [path.name for path in files(keeper.folder)]
    assert len(read(keeper.folder)) == len(before) == 1


def test_the_oldest_give_way_and_all_stay_within_the_bound(tmp_path: Path) -> None:
    clock = Clock()
    folder = TelemetryFolder(tmp_path / "kept", 10_000, clock)
    for number in range(50):
        kept = folder.write(bytes([number]) * 900, windows=7)
        clock.now += 60
        there = files(tmp_path / "kept")
        assert sum(path.stat().st_size for path in there) == kept.size <= 10_000
        assert kept.files == len(there)
        assert kept.removed == (0 if number < 11 else 7)
    assert [path.read_bytes()[0] for path in files(tmp_path / "kept")] == list(range(39, 50))
    assert folder.look().size == 9900
    with pytest.raises(OSError, match="bytes"):
        folder.write(bytes(10_001), windows=1)


def test_the_newest_stay_where_the_clock_begins_in_the_past(tmp_path: Path) -> None:
    """A Pi without a battery for its clock begins in 1970, beside files of a year that is still to come."""
    clock = Clock()
    before = TelemetryFolder(tmp_path, 1000, clock)
    for number in range(4):
        before.write(bytes([number]) * 240, windows=1)
        clock.now += 60
    clock.now = 30.0
    after = TelemetryFolder(tmp_path, 1000, clock)  # it began anew
    for number in range(4, 7):
        assert after.write(bytes([number]) * 240, windows=1).removed == 1
        clock.now += 60
        assert [path.read_bytes()[0] for path in files(tmp_path)] == list(range(number - 3, number + 1))
    clock.now = 1_796_100_000.0  # it was set
    after.write(bytes([7]) * 240, windows=1)
    assert [path.read_bytes()[0] for path in files(tmp_path)] == [4, 5, 6, 7]


def test_names_that_say_no_time_stop_nobody(tmp_path: Path) -> None:
    for stamp in ("99991231T235959-999999", "20261399T000000-000000", "00000000T000000-000000"):
        (tmp_path / f"windows-{stamp}Z-1-1{ENDING}").write_bytes(b"x")
    folder = TelemetryFolder(tmp_path, 1000, Clock())
    assert [folder.write(b"y", windows=1).files for _ in range(2)] == [4, 5]
    assert folder.look().files == 5


def test_two_files_of_one_moment_are_two(tmp_path: Path) -> None:
    folder = TelemetryFolder(tmp_path, 10_000, Clock())
    assert [folder.write(b"x", windows=1).files for _ in range(3)] == [1, 2, 3]


def test_what_is_not_ours_is_left_alone_and_leftovers_go(tmp_path: Path) -> None:
    clock = Clock(time.time())
    folder = TelemetryFolder(tmp_path, 1000, clock)
    folder.write(bytes(600), windows=1)
    (name,) = [path.name for path in files(tmp_path)]
    foreign = tmp_path / "notes.txt"
    foreign.write_bytes(bytes(5000))
    target = tmp_path / "elsewhere"
    target.write_bytes(bytes(900))
    link = tmp_path / f"windows-20200101T000000-000000Z-1-1{ENDING}"
    link.symlink_to(target)
    left = tmp_path / f".part-{name.replace(ENDING, '0' + ENDING)}"
    left.write_bytes(b"half")
    folder.write(bytes(600), windows=1)
    assert left.exists()  # somebody may be writing it just now
    clock.now += 3600
    folder.write(bytes(600), windows=1)
    assert not left.exists()
    assert foreign.exists()
    assert link.is_symlink()
    assert target.exists()


def test_a_disk_that_hangs_keeps_nobody_waiting(
    model: ActiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread sits in a write that never returns: requests are answered, what is dropped is counted."""
    goes_on = threading.Event()

    def hang(self: TelemetryFolder, data: bytes, windows: int) -> None:
        goes_on.wait(60)
        raise OSError(errno.EIO, "gave up")

    monkeypatch.setattr(TelemetryFolder, "write", hang)
    monkeypatch.setattr("runtime.telemetry.WRITE_SECONDS", 0.0)
    service, keeper = Service(ModelHolder(model)), Keeper(tmp_path / "kept", model)
    service.app.infer.looked_at = keeper.telemetry.offer
    monkeypatch.setattr(keeper.telemetry, "_spacing", 0.0)
    keeper.telemetry.start()
    try:
        body = infer_body(far())
        for _ in range(MOST_WAITING + MOST_IN_A_FILE + 20):
            assert service.post(body).status_code == 200
        wait_for(lambda: keeper.counts.dropped["queue_full"] > 0 or None, "a full line")
    finally:
        goes_on.set()
        keeper.telemetry.stop()


@pytest.mark.parametrize("batch", [False, True])
def test_the_endpoint_tells_of_each_window_but_probes(
    model: ActiveModel, batch: bool, tmp_path: Path
) -> None:
    service, keeper = Service(ModelHolder(model)), Keeper(tmp_path / "kept", model)
    keeper.telemetry._spacing = 0.0
    service.app.infer.looked_at = keeper.telemetry.offer
    noise = np.random.default_rng(1).uniform(-1, 1, (100, 9)).astype(np.float32)
    windows: FloatArray = np.stack(
        [far(1), imu_windows(1, 3)[0], noise, stuck(2), *imu_windows(8, 4), far(3)]
    )
    headers = {"Content-Type": "application/octet-stream"}
    for body in [windows.tobytes()] if batch else [window.tobytes() for window in windows]:
        assert service.post(body, headers=headers).status_code == 200
    found = keeper.written()
    assert [kept.reasons[-1] for kept in found] == [
        "far_from_calibration",
        "constant_channel",
        "far_from_calibration",
    ]
    for kept, place in zip(found, (0, 3, 12), strict=True):
        assert kept.window.tobytes() == windows[place].tobytes()
        assert kept.latent == pytest.approx(model.infer(windows[place])[0])


def test_what_canary_and_stable_disagree_on_is_kept(make: Callable[..., Keeper], model: ActiveModel) -> None:
    keeper, window = make(), imu_windows(1)[0]
    latent, _ = model.infer(window)
    keeper.telemetry.disagreement(model, model.release_id, window, latent)
    keeper.telemetry.disagreement(model, "of another release", window, latent)
    keeper.telemetry.disagreement(None, model.release_id, window, latent)
    (kept,) = keeper.written()
    assert (kept.reasons, kept.window.tobytes()) == (("disagreement",), window.tobytes())
    assert keeper.counts.dropped["switched"] == 2


def test_a_disputed_window_names_what_else_is_odd_about_it(
    make: Callable[..., Keeper], model: ActiveModel
) -> None:
    """Degrees, which canary and stable are bound to dispute, are no candidates for a calibration set."""
    keeper, degrees = make(telemetry_margin=1.0), imu_windows(1)[0]
    degrees[:, 3:6] *= np.float32(171.9)
    for window in (degrees, stuck()):
        keeper.telemetry.disagreement(model, model.release_id, window, model.infer(window)[0])
        keeper.clock.now += 60
    one, two = (kept.reasons for kept in keeper.written())
    assert one == ("disagreement", "far_from_calibration", "low_margin", "gyroscope_unit", "z_beyond_40")
    assert two[0] == "disagreement"
    assert two[-1] == "constant_channel"
