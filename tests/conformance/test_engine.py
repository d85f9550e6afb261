"""What every engine promises. A new engine adds a class that says how to construct it."""

from __future__ import annotations

import abc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from runtime.contract.errors import EngineError, WindowValueError
from runtime.contract.release import LSB_ELSEWHERE
from runtime.contract.store import Release
from runtime.contract.window import FloatArray
from runtime.engines import Engine, open_engine
from runtime.engines.emulator import EmulatorEngine
from runtime.engines.hailo import HailoEngine
from runtime.golden import compare_golden
from tests.doubles.hailo import HailoDouble
from tests.simulators import (
    STATISTICS,
    TINY_ENCODER,
    FakeEngine,
    ReleaseSimulator,
    imu_windows,
    reference_latents,
)


class EngineConformance(abc.ABC):
    """One suite for all engines; implementations supply construction."""

    @abc.abstractmethod
    def construct(self, release: Release) -> Engine:
        """Open the engine under test for a release."""

    def simulator(self, **changes: Any) -> ReleaseSimulator:
        """A release that the engine runs; it gives what the tiny encoder gives."""
        return ReleaseSimulator(**changes)

    @pytest.fixture(name="release")
    def a_release(self, tmp_path: Path) -> Release:
        return self.simulator().publish(tmp_path)

    @pytest.fixture(name="engine")
    def an_engine(self, release: Release) -> Iterator[Engine]:
        with self.construct(release) as engine:
            yield engine

    def test_gives_the_reference_latents(self, engine: Engine, release: Release) -> None:
        windows = imu_windows(5, seed=21)
        expected = reference_latents(TINY_ENCODER.read_bytes(), windows, STATISTICS)
        tolerance = release.manifest.golden.artifact_tolerance
        for window, latent in zip(windows, expected, strict=True):
            np.testing.assert_allclose(engine.infer(window), latent, rtol=0, atol=tolerance)

    def test_says_what_runs_it(self, engine: Engine) -> None:
        assert engine.kernel_family
        name, version = engine.program.split(" ")
        assert name
        assert version

    def test_gives_the_golden_integers_that_it_gave(self, engine: Engine, release: Release) -> None:
        """Of its own making, so the kernels are the same: every integer, in any order of windows."""
        output = release.manifest.golden.output
        assert output is not None
        windows = imu_windows(6, seed=9)
        first = [output.integers(engine.infer(window)) for window in windows]
        again = [output.integers(engine.infer(window)) for window in windows[::-1]][::-1]
        np.testing.assert_array_equal(first, again)
        latents = np.stack([engine.infer(window) for window in windows])
        inverse = (np.asarray(first) - output.zero_point).astype(np.float32) * np.float32(output.scale)
        np.testing.assert_array_equal(inverse, latents)

    def test_repeats_the_golden_windows(self, engine: Engine, release: Release) -> None:
        """Recorded on other kernels for all that the release knows; the reference is ONNX Runtime's."""
        found = compare_golden(engine, release)
        assert found.ok
        assert (found.kernel_family, found.allowed) == (engine.kernel_family, LSB_ELSEWHERE)

    def test_recorded_by_itself_they_are_exact(self, engine: Engine, tmp_path: Path) -> None:
        release = self.simulator(kernel_family=engine.kernel_family).publish(tmp_path / "same")
        found = compare_golden(engine, release)
        assert (found.worst, found.allowed, found.exact, found.ok) == (0, 0, True, True)

    def test_gives_64_finite_float32(self, engine: Engine) -> None:
        latent = engine.infer(imu_windows(1)[0])
        assert latent.shape == (64,)
        assert latent.dtype == np.float32
        assert np.isfinite(latent).all()

    def test_different_windows_differ(self, engine: Engine) -> None:
        first, second = (engine.infer(window) for window in imu_windows(2))
        assert not np.array_equal(first, second)

    def test_the_same_window_gives_the_same(self, engine: Engine) -> None:
        window = imu_windows(1)[0]
        np.testing.assert_array_equal(engine.infer(window), engine.infer(window.copy()))

    def test_a_latent_is_not_overwritten_by_the_next(self, engine: Engine) -> None:
        windows = imu_windows(2)
        first = engine.infer(windows[0])
        kept = first.copy()
        engine.infer(windows[1])
        np.testing.assert_array_equal(first, kept)

    def test_the_window_is_left_alone(self, engine: Engine) -> None:
        window = imu_windows(1)[0]
        before = window.copy()
        engine.infer(window)
        np.testing.assert_array_equal(window, before)

    @pytest.mark.parametrize(
        "window",
        [
            np.zeros((99, 9), np.float32),
            np.zeros((9, 100), np.float32),
            np.zeros((1, 100, 9), np.float32),
            np.zeros((100, 9), np.float64),
        ],
    )
    def test_another_shape_or_type_is_refused(self, engine: Engine, window: FloatArray) -> None:
        with pytest.raises(EngineError, match="takes float32"):
            engine.infer(window)

    def test_a_z_score_beyond_float32_is_named(self, engine: Engine) -> None:
        window = imu_windows(1)[0]
        window[3, 4] = 3.4e38
        with pytest.raises(WindowValueError) as caught:
            engine.infer(window)
        assert caught.value.where == "x[3][4]"

    @pytest.mark.parametrize("count", [0, 1, 3, 8, 33])
    def test_many_give_what_each_gives_alone(self, engine: Engine, count: int) -> None:
        windows = imu_windows(33, seed=5)[:count]
        before = windows.copy()
        latents = engine.infer_batch(windows)
        assert latents.shape == (count, 64)
        assert latents.dtype == np.float32
        for window, latent in zip(windows, latents, strict=True):
            np.testing.assert_array_equal(engine.infer(window), latent)
        np.testing.assert_array_equal(windows, before)

    def test_of_many_the_one_that_is_too_large_is_named(self, engine: Engine) -> None:
        windows = imu_windows(4)
        windows[2, 3, 4] = windows[2, 5, 1] = windows[3, 0, 0] = 3.4e38
        with pytest.raises(WindowValueError) as caught:
            engine.infer_batch(windows, first=8)
        assert caught.value.where == "x[10][3][4]"

    def test_a_large_z_score_that_is_a_float32_is_taken(self, engine: Engine) -> None:
        """Its square is none: the quick look alone would refuse it."""
        window = imu_windows(1)[0]
        window[3, 4] = 1e25
        assert np.isfinite(engine.infer(window)).all()

    @pytest.mark.parametrize(
        "windows",
        [np.zeros((2, 99, 9), np.float32), np.zeros((100, 9), np.float32), np.zeros((2, 100, 9), np.float64)],
    )
    def test_many_of_another_shape_or_type_are_refused(self, engine: Engine, windows: FloatArray) -> None:
        with pytest.raises(EngineError, match=r"float32 \(100, 9\)"):
            engine.infer_batch(windows)

    def test_closed_twice_it_refuses(self, release: Release) -> None:
        engine = self.construct(release)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.infer(imu_windows(1)[0])


class TestEmulator(EngineConformance):
    def construct(self, release: Release) -> Engine:
        return EmulatorEngine(release)


class TestHailo(EngineConformance):
    """On the double of HailoRT, which quantizes and computes as the chip would the same integers."""

    @pytest.fixture(autouse=True)
    def a_chip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HailoDouble]:
        double = HailoDouble(tmp_path / "chip", configure_ms=0)
        double.install(monkeypatch)
        yield double
        events = [line.split()[0] for line in double.journal()]
        assert events == ["open", "release"] * (len(events) // 2), "not let go, or with a network on it"

    def simulator(self, **changes: Any) -> ReleaseSimulator:
        return ReleaseSimulator(target="hailo8", **changes)

    def construct(self, release: Release) -> Engine:
        return HailoEngine(release, release.directory.parent)


class TestFake(EngineConformance):
    """The double keeps the same promises, though it fills one buffer again and again, as a device does."""

    def construct(self, release: Release) -> Engine:
        emulator = EmulatorEngine(release)
        buffer = np.zeros((1, 64), np.float32)

        def answer(tensor: FloatArray) -> FloatArray:
            buffer[...] = emulator._infer(tensor)
            return buffer

        return FakeEngine(release.manifest, answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros(63, np.float32), "not 64 float32"),
        (np.zeros(64, np.float64), "not 64 float32"),
        (np.full(64, np.nan, np.float32), "value 0 is not finite"),
        (np.full(64, np.inf, np.float32), "not finite"),
    ],
)
def test_what_is_no_latent_is_not_let_out(tmp_path: Path, answer: FloatArray, message: str) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    engine = FakeEngine(release.manifest, lambda _: answer)
    with pytest.raises(EngineError, match=message):
        engine.infer(imu_windows(1)[0])


def test_of_many_the_latent_that_is_not_finite_is_named(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    answers = iter([0, 0, np.nan])
    engine = FakeEngine(release.manifest, lambda _: np.full((1, 64), next(answers), np.float32))
    with pytest.raises(EngineError, match="value 0 is not finite") as caught:
        engine.infer_batch(imu_windows(3), first=4)
    assert caught.value.where == "latent[6]"


def test_the_adapter_sees_the_normalized_window_channels_first(tmp_path: Path) -> None:
    release = ReleaseSimulator().publish(tmp_path)
    seen: list[FloatArray] = []

    def answer(tensor: FloatArray) -> FloatArray:
        seen.append(tensor)
        return np.zeros((1, 64), np.float32)

    window = imu_windows(1)[0]
    FakeEngine(release.manifest, answer).infer(window)
    mean, std = STATISTICS.arrays()
    np.testing.assert_allclose(seen[0][0, :, 0, :], ((window - mean) / std).T, rtol=1e-6)


@pytest.mark.parametrize("target", ["hailo8", "hailo8l"])
def test_there_is_no_emulator_in_a_chips_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setitem(sys.modules, "hailo_platform", None)
    release = ReleaseSimulator(target=target).publish(tmp_path)
    with pytest.raises(EngineError, match="not installed") as caught:
        open_engine(release, tmp_path)
    assert caught.value.code == "no_hailort"
    assert "never used instead" in caught.value.hint


@pytest.mark.parametrize("model", [b"", b"not a model", b"\x08\x08" * 40])
def test_bytes_that_are_no_graph_are_refused(tmp_path: Path, model: bytes) -> None:
    release = ReleaseSimulator(model=model).publish(tmp_path)
    with pytest.raises(EngineError, match="rebuild the release"):
        open_engine(release)


def test_a_graph_with_other_names_is_refused(tmp_path: Path) -> None:
    model = ReleaseSimulator().model.replace(b"imu_window", b"imu_widnow")
    release = ReleaseSimulator(model=model).publish(tmp_path)
    with pytest.raises(EngineError, match="the graph's input is"):
        open_engine(release)


def test_the_verified_bytes_are_the_loaded_bytes(tmp_path: Path) -> None:
    """A file swapped after the engine opened changes nothing."""
    release = ReleaseSimulator().publish(tmp_path)
    window = imu_windows(1)[0]
    with open_engine(release) as engine:
        before = engine.infer(window)
        path = release.directory / release.manifest.artifact
        path.chmod(0o644)
        path.write_bytes(b"")
        np.testing.assert_array_equal(engine.infer(window), before)


def test_the_emulator_keeps_to_one_thread_that_never_spins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other core is for HTTP: a spinning pool would take it and show in no other test."""
    release = ReleaseSimulator().publish(tmp_path)
    given: list[ort.SessionOptions] = []
    session = ort.InferenceSession

    def remember(data: bytes, options: ort.SessionOptions, **more: object) -> ort.InferenceSession:
        given.append(options)
        return session(data, options, **more)

    monkeypatch.setattr(ort, "InferenceSession", remember)
    open_engine(release).close()
    (options,) = given
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    for pool in ("intra", "inter"):
        assert options.get_session_config_entry(f"session.{pool}_op.allow_spinning") == "0"
