"""The HailoRT engine on the double: what it refuses, what it makes of errors, and never a wrong number."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.contract.errors import DeviceError, EngineError, PipelineError
from runtime.contract.store import Release
from runtime.engines import hailo, hailo_device
from runtime.engines.hailo import HailoEngine
from runtime.engines.hailo_device import HailoDevice
from runtime.engines.hailo_errors import status_of
from tests.doubles.hailo import HailoDouble
from tests.doubles.tiny_hef import TINY_OUTPUT, tiny_hef
from tests.runtime.hailo import WatchedTurn, hailo_release, open_on, placed
from tests.simulators import STATISTICS, TINY_ENCODER, imu_windows, reference_latents, wait_for

SECOND_OUTPUT = dataclasses.replace(TINY_OUTPUT, name="tiny/fc2")
WINDOW = imu_windows(1, seed=4)[0]


def code_of(chip: HailoDouble, release: Release) -> str:
    """Why the engine does not open."""
    with pytest.raises(PipelineError) as caught:
        open_on(chip, release).close()
    assert HailoDevice._shared is None
    return caught.value.code


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"devices": []}, "no_device"),
        ({"open_status": 74}, "device_busy"),
        ({"open_status": 64}, "no_device"),
        ({"open_status": 76}, "driver_mismatch"),
        ({"open_status": 16}, "driver_mismatch"),
        ({"open_status": 86}, "driver_mismatch"),
        ({"open_status": 36}, "device_lost"),
        ({"open_status": 8}, "device_failed"),
        ({"identify_status": 18}, "device_lost"),
        ({"identify_status": 2}, "device_failed"),
        ({"firmware": [4, 22, 0]}, "driver_mismatch"),
        ({"configure_status": 93}, "hef_refused"),
        ({"configure_status": 26}, "hef_refused"),
        ({"configure_status": 4}, "device_timeout"),
        ({"version": "5.2.0"}, "hailort_version"),
        ({"version": "4.19.0"}, "hailort_version"),
        ({"version": "4.24.0"}, "hailort_version"),
        ({"binding_version": "4.22.0"}, "hailort_version"),
    ],
)
@pytest.mark.parametrize("leaks", [False, True])
def test_what_keeps_it_from_opening_has_a_code(
    tmp_path: Path, chip: HailoDouble, settings: dict[str, Any], code: str, leaks: bool
) -> None:
    """Also where a bare status leaks from a call that the package does not wrap."""
    chip.set(leaks=leaks, **settings)
    assert code_of(chip, hailo_release(tmp_path)) == code


@pytest.mark.parametrize(
    ("hef", "code"),
    [
        (b"", "hef_short"),
        (b"\x01HEF" + bytes(51), "hef_short"),
        (b"Dummy HEF file for testing purposes, long enough to be a header", "hef_text"),
        (tiny_hef()[:-1], "hef_truncated"),
        (tiny_hef(arch="HAILO10H"), "hef_architecture"),
        (tiny_hef(arch=0), "hef_architecture"),
        (tiny_hef(networks=["a", "b"]), "hef_interface"),
        (tiny_hef(outputs=[TINY_OUTPUT, SECOND_OUTPUT]), "hef_interface"),
    ],
)
def test_what_is_no_encoder_for_this_chip_does_not_reach_hailort(
    tmp_path: Path, chip: HailoDouble, hef: bytes, code: str
) -> None:
    """Also where it came around the gate: HailoRT crashes on the first of these."""
    assert code_of(chip, placed(tmp_path, hef)) == code


@pytest.mark.parametrize("shape", [[2, 100, 9], [100, 1, 9], [1, 9, 100]])
def test_what_hailort_sees_otherwise_is_refused(tmp_path: Path, chip: HailoDouble, shape: list[int]) -> None:
    chip.set(shown_input=shape)
    assert code_of(chip, hailo_release(tmp_path)) == "hef_refused"


def test_a_header_that_this_hailort_does_not_read_is_told(tmp_path: Path, chip: HailoDouble) -> None:
    chip.set(version="4.20.1", firmware=[4, 20, 1])
    with pytest.raises(PipelineError, match=r"header version 3, HailoRT 4\.20\.1 does not read it"):
        open_on(chip, hailo_release(tmp_path, hef=tiny_hef(version=3)))


def test_a_hailo8_takes_a_hef_for_8l_and_not_the_other_way_round(tmp_path: Path, chip: HailoDouble) -> None:
    """What counts is the chip that is there, whatever target the release says."""
    for_8l = hailo_release(tmp_path / "8l", hef=tiny_hef(arch="HAILO8L"))
    with open_on(chip, for_8l) as engine:
        assert engine.kernel_family == "hailo8"
    chip.set(architecture=2)
    assert code_of(chip, hailo_release(tmp_path / "8")) == "hef_architecture"
    with open_on(chip, for_8l) as engine:
        assert (engine.kernel_family, engine.program) == ("hailo8l", "hailort 4.23.0")


@pytest.mark.parametrize("version", ["4.20.1", "4.21.0", "4.22.0", "4.23.0"])
def test_each_version_that_it_is_written_for_is_named(
    tmp_path: Path, chip: HailoDouble, version: str
) -> None:
    chip.set(version=version, firmware=[int(number) for number in version.split(".")])
    with open_on(chip, hailo_release(tmp_path)) as engine:
        assert engine.program == f"hailort {version}"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import netaddr_that_is_not_there", "no_hailort"),
        ("raise ImportError('libhailort.so.4.23.0: cannot open shared object file')", "hailort_version"),
        ("raise AttributeError('_ARRAY_API not found')", "hailort_version"),
        ("class MissingPyHRTLib(Exception): pass\nraise MissingPyHRTLib('no _pyhailort')", "hailort_version"),
        ("", "hailort_version"),
    ],
)
def test_a_package_that_does_not_import_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, code: str
) -> None:
    (tmp_path / "hailo_platform.py").write_text(source)
    HailoDouble(tmp_path / "chip").install(monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PipelineError) as caught:
        HailoEngine(hailo_release(tmp_path / "store"), tmp_path)
    assert (caught.value.code, caught.value.where) == (code, "hailo_platform")


def test_both_versions_are_named_where_they_differ(tmp_path: Path, chip: HailoDouble) -> None:
    chip.set(firmware=[4, 20, 1])
    with pytest.raises(DeviceError, match=r"firmware 4\.20\.1, HailoRT 4\.23\.0"):
        open_on(chip, hailo_release(tmp_path))


def test_another_driver_is_refused_before_hailort_opens_it(
    tmp_path: Path, chip: HailoDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hailo_device, "driver_version", lambda: "4.22.0")
    with pytest.raises(DeviceError, match=r"driver 4\.22\.0, HailoRT 4\.23\.0") as caught:
        open_on(chip, hailo_release(tmp_path))
    assert caught.value.code == "driver_mismatch"
    assert chip.journal() == []


def test_a_driver_that_hailort_refuses_is_named_with_its_version(
    tmp_path: Path, chip: HailoDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HailoRT says a status, and neither version."""
    monkeypatch.setattr(hailo_device, "driver_version", lambda: "4.23.0")
    chip.set(open_status=76)
    with pytest.raises(DeviceError, match=r"HailoRT is 4\.23\.0, the driver's version is 4\.23\.0"):
        open_on(chip, hailo_release(tmp_path))
    monkeypatch.setattr(hailo_device, "driver_version", lambda: "")
    with pytest.raises(DeviceError, match="the driver's version is not known"):
        open_on(chip, hailo_release(tmp_path))


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"hangs": True}, "device_timeout"),
        ({"silent": True}, "device_failed"),
        ({"ready_status": 4}, "device_timeout"),
        ({"ready_status": 63}, "device_lost"),
        ({"run_status": 62}, "device_lost"),
        ({"run_status": 6}, "device_failed"),
        ({"run_status": 36}, "device_lost"),
        ({"completion_status": 4}, "device_timeout"),
        ({"completion_status": 63}, "device_lost"),
        ({"completion_status": 8}, "device_failed"),
    ],
)
@pytest.mark.parametrize("leaks", [False, True])
def test_a_window_that_fails_gives_no_number(
    tmp_path: Path, chip: HailoDouble, settings: dict[str, Any], code: str, leaks: bool
) -> None:
    """A window ran before, so that the buffer holds a good latent that must not come out again."""
    with open_on(chip, hailo_release(tmp_path)) as engine:
        engine.infer(WINDOW)
        chip.set(leaks=leaks, **settings)
        with pytest.raises(DeviceError) as caught:
            engine.infer(WINDOW)
        assert caught.value.code == code
        chip.set(leaks=False, **dict.fromkeys(settings, 0))
        with pytest.raises(DeviceError):
            engine.infer(WINDOW)  # Not before it was opened anew: a late job would write into the buffer.
    with open_on(chip, hailo_release(tmp_path)) as engine:
        assert np.isfinite(engine.infer(WINDOW)).all()


def test_the_first_window_may_take_longer(tmp_path: Path, chip: HailoDouble) -> None:
    with open_on(chip, hailo_release(tmp_path)) as engine:
        first = engine._wait_ms
        engine.infer(WINDOW)
        assert (first, engine._wait_ms) == (2000, 250)


def test_the_network_is_off_the_chip_before_the_chip_is_let_go(tmp_path: Path, chip: HailoDouble) -> None:
    """Whoever still holds one of HailoRT's objects, the frames of an error among them."""
    engine = open_on(chip, hailo_release(tmp_path))
    kept = engine._configured
    engine.close()
    assert kept is not None
    assert [line.split()[0] for line in chip.journal()] == ["open", "release"]


def test_a_window_that_still_runs_is_waited_for_before_the_chip_is_let_go(
    tmp_path: Path, chip: HailoDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By dropping the network, never by ``shutdown``, which holds the GIL until what runs has ended."""
    engine = open_on(chip, hailo_release(tmp_path))
    told: list[str] = []
    monkeypatch.setattr(type(engine._configured), "shutdown", lambda network: told.append("shutdown"))
    engine.infer(WINDOW)
    chip.set(run_ms=600)
    with pytest.raises(DeviceError) as caught:
        engine.infer(WINDOW)
    assert caught.value.code == "device_timeout"
    engine.close()
    assert told == []
    assert [line.split()[0] for line in chip.journal()] == ["open", "release"]


def test_two_releases_share_the_chip(tmp_path: Path, chip: HailoDouble) -> None:
    """As a hot swap and a canary need: one VDevice, let go when the last one is closed."""
    first = open_on(chip, hailo_release(tmp_path, version="v1.0.0"))
    second = open_on(chip, hailo_release(tmp_path, version="v1.0.1"))
    expected = first.infer(WINDOW)
    np.testing.assert_array_equal(second.infer(WINDOW), expected)
    first.close()
    np.testing.assert_array_equal(second.infer(WINDOW), expected)
    assert len(chip.journal()) == 1
    second.close()
    assert len(chip.journal()) == 2


def test_closed_between_two_windows_it_says_so_and_the_device_is_as_good_as_before(
    tmp_path: Path, chip: HailoDouble
) -> None:
    """The rest of a batch, where its lease has ended before it has."""
    release = hailo_release(tmp_path)
    with open_on(chip, release) as second:
        first = open_on(chip, release)
        outputs = first._infer_many(np.zeros((3, 1, 9, 1, 100), np.float32))
        next(outputs)
        first.close()
        with pytest.raises(EngineError, match="is closed") as caught:
            next(outputs)
        assert not isinstance(caught.value, DeviceError)
        assert np.isfinite(second.infer(WINDOW)).all()


def test_a_close_waits_for_the_window_that_has_the_turn(tmp_path: Path, chip: HailoDouble) -> None:
    """Between two of its calls the network would be gone, which would look like the device's failure."""
    release = hailo_release(tmp_path)
    with open_on(chip, release) as second:
        first = open_on(chip, release)
        turn = WatchedTurn(first._device)
        with turn:
            closing = threading.Thread(target=first.close)
            closing.start()
            wait_for(lambda: turn.waiting == 1, "the close to wait")
            assert first._configured is not None
        closing.join(20)
        assert first._configured is None
        assert np.isfinite(second.infer(WINDOW)).all()


def test_a_window_that_hangs_does_not_keep_it_from_closing(
    tmp_path: Path, chip: HailoDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hailo, "TURN_SECONDS", 0.05)
    engine = open_on(chip, hailo_release(tmp_path))
    with engine._device.turn:
        engine.close()
    assert [line.split()[0] for line in chip.journal()] == ["open", "release"]


def test_what_fails_for_one_fails_for_both_until_both_are_closed(tmp_path: Path, chip: HailoDouble) -> None:
    release = hailo_release(tmp_path)
    first, second = open_on(chip, release), open_on(chip, release)
    chip.set(completion_status=63)
    with pytest.raises(DeviceError, match="Stream"):
        first.infer(WINDOW)
    chip.set(completion_status=0)
    with pytest.raises(DeviceError, match="Stream"):
        second.infer(WINDOW)
    first.close()
    with pytest.raises(DeviceError, match="is being let go") as caught:
        open_on(chip, release)
    assert not caught.value.of_release
    second.close()
    open_on(chip, release).close()


def test_a_failed_opening_leaves_nothing_behind(tmp_path: Path, chip: HailoDouble) -> None:
    release = hailo_release(tmp_path)
    for settings in ({"identify_status": 18}, {"configure_status": 8}, {"open_status": 74}):
        chip.set(**settings)
        with pytest.raises(DeviceError):
            open_on(chip, release)
        chip.set(**dict.fromkeys(settings, 0))
    open_on(chip, release).close()


@pytest.mark.parametrize(
    ("settings", "of_release"),
    [
        ({"open_status": 74}, False),
        ({"open_status": 4}, False),
        ({"identify_status": 18}, False),
        ({"devices": []}, False),
        ({"firmware": [4, 22, 0]}, False),
        ({"configure_status": 8}, True),
        ({"configure_status": 4}, True),
    ],
)
def test_a_release_is_suspected_only_where_the_device_was_open(
    tmp_path: Path, chip: HailoDouble, settings: dict[str, Any], of_release: bool
) -> None:
    chip.set(**settings)
    with pytest.raises(DeviceError) as caught:
        open_on(chip, hailo_release(tmp_path))
    assert caught.value.of_release is of_release


def test_a_forked_process_does_not_use_it(
    tmp_path: Path, chip: HailoDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_on(chip, hailo_release(tmp_path)) as engine:
        with monkeypatch.context() as forked:
            forked.setattr("os.getpid", lambda: -1)
            with pytest.raises(DeviceError, match="opened by process"):
                engine.infer(WINDOW)
        engine.infer(WINDOW)


def test_a_clipped_window_saturates_as_on_the_chip(tmp_path: Path, chip: HailoDouble) -> None:
    window = WINDOW.copy()
    window[:, 0] = 1e6
    expected = reference_latents(TINY_ENCODER.read_bytes(), window[np.newaxis], STATISTICS)[0]
    with open_on(chip, hailo_release(tmp_path)) as engine:
        np.testing.assert_array_equal(engine.infer(window), expected)


def test_the_chip_is_given_the_windows_own_bytes(tmp_path: Path, chip: HailoDouble) -> None:
    """NHWC (1, 100, 9) is the normalized window as it lies in memory: (time, channel)."""
    with open_on(chip, hailo_release(tmp_path)) as engine:
        engine.infer(WINDOW)
        mean, std = STATISTICS.arrays()
        assert engine._input.tobytes() == ((WINDOW - mean) / std).tobytes()
        assert engine._input.flags.c_contiguous


def test_no_log_file_is_left_in_the_working_directory(
    tmp_path: Path, chip: HailoDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HAILORT_LOGGER_PATH", raising=False)
    open_on(chip, hailo_release(tmp_path)).close()
    assert os.environ["HAILORT_LOGGER_PATH"] == "NONE"


def test_a_status_is_found_however_it_is_wrapped() -> None:
    bare = type("HailoRTStatusException", (Exception,), {})
    named = type("HailoRTTimeout", (type("HailoRTException", (Exception,), {}),), {})
    assert status_of(bare("61")) == 61
    assert status_of(named("Received a timeout")) == 4
    assert status_of(Exception("libhailort failed with error: 74 (HAILO_OUT_OF_PHYSICAL_DEVICES)")) == 74
    wrapped = Exception("See hailort.log for more information")
    wrapped.__cause__ = bare("92")
    assert status_of(wrapped) == 92
    assert status_of(ValueError("26")) is None


def test_no_network_is_configured_while_a_window_has_its_turn(tmp_path: Path, chip: HailoDouble) -> None:
    """Its completion could not be told meanwhile: it would end as a timeout, and take the device with it."""
    release = hailo_release(tmp_path, version="v1.0.1")
    with open_on(chip, hailo_release(tmp_path, version="v1.0.0")) as first:
        opened: list[HailoEngine] = []
        opening = threading.Thread(target=lambda: opened.append(open_on(chip, release)))
        with first._device.turn:
            opening.start()
            opening.join(0.5)
            assert opened == []
        opening.join(20)
        assert len(opened) == 1
        opened[0].close()
        with first._device.turn:
            asking = threading.Thread(target=first.infer, args=(WINDOW,))
            asking.start()
            asking.join(0.3)
            assert asking.is_alive()
        asking.join(20)
        assert not asking.is_alive()
