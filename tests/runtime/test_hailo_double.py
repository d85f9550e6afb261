"""The double refuses what HailoRT refuses: an engine that used it wrongly would not pass by it."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.doubles.hailo import HailoDouble
from tests.doubles.tiny_hef import tiny_hef
from tests.simulators import ROOT, clean_environment


@pytest.fixture(name="double")
def a_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HailoDouble:
    double = HailoDouble(tmp_path / "chip", configure_ms=0)
    double.install(monkeypatch)
    return double


@pytest.fixture(name="api")
def an_api(double: HailoDouble) -> Any:
    return importlib.import_module("hailo_platform.pyhailort.pyhailort")


@pytest.fixture(name="device")
def a_device(api: Any) -> Iterator[Any]:
    with api.VDevice(scheduled(api)) as device:
        yield device


def scheduled(api: Any) -> Any:
    params = api.VDevice.create_params()
    assert params.scheduling_algorithm == api.HailoSchedulingAlgorithm.NONE
    params.scheduling_algorithm = api.HailoSchedulingAlgorithm.ROUND_ROBIN
    return params


def bound(configured: Any, source: Any, sink: Any) -> Any:
    """A request with these buffers."""
    bindings = configured.create_bindings()
    bindings.input().set_buffer(source)
    bindings.output().set_buffer(sink)
    return bindings


def test_names_are_where_the_real_ones_are(api: Any) -> None:
    package = importlib.import_module("hailo_platform")
    assert not {"InferModel", "HailoRTTimeout", "HefModel", "InferInterface"} & set(dir(package))
    assert {"InferModel", "HailoRTTimeout", "HailoRTInvalidHEFException"} <= set(dir(api))


@pytest.mark.parametrize("make", ["HEF", "create_infer_model"])
def test_a_path_object_is_refused(api: Any, device: Any, tmp_path: Path, make: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        (api.HEF if make == "HEF" else device.create_infer_model)(tmp_path)


def test_an_empty_buffer_ends_the_process(double: HailoDouble) -> None:
    command = [sys.executable, "-c", "import hailo_platform; hailo_platform.HEF(b'')"]
    environment = clean_environment() | double.environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode < 0
    assert "segfault" in double.journal()[0]


def test_the_default_format_is_the_chips_own(api: Any, device: Any) -> None:
    """Formats count as they were at configure; only the number of bytes is looked at, and only then."""
    model = device.create_infer_model(tiny_hef())
    with model.configure() as configured:
        model.input().set_format_type(api.FormatType.FLOAT32)
        floats = bound(configured, np.zeros((1, 100, 9), np.float32), np.zeros(64, np.float32))
        with pytest.raises(api.HailoRTInvalidOperationException):
            configured.run_async([floats])
        integers = bound(configured, np.zeros((1, 100, 9), np.uint8), np.zeros(64, np.uint8))
        configured.run([integers], 1000)


def test_buffers_must_be_whole_and_writable(api: Any, device: Any) -> None:
    with device.create_infer_model(tiny_hef()).configure() as configured:
        bindings = configured.create_bindings()
        with pytest.raises(api.HailoRTException, match="C_CONTIGUOUS"):
            bindings.input().set_buffer(np.zeros((9, 100), np.uint8).T)
        frozen = np.zeros(900, np.uint8)
        frozen.flags.writeable = False
        with pytest.raises(ValueError, match="writeable"):
            bindings.input().set_buffer(frozen)


def test_activation_is_for_those_without_a_scheduler(api: Any, device: Any) -> None:
    configured = device.create_infer_model(tiny_hef()).configure()
    with configured, pytest.raises(api.HailoRTInvalidOperationException):
        configured.activate()
    device.release()
    with api.VDevice() as unscheduled, unscheduled.create_infer_model(tiny_hef()).configure() as configured:
        with pytest.raises(api.HailoRTNetworkGroupNotActivatedException):
            configured.wait_for_async_ready()
        configured.activate()
        configured.wait_for_async_ready()


def test_several_network_groups_need_a_name(api: Any, device: Any) -> None:
    with pytest.raises(api.HailoRTInvalidArgumentException):
        device.create_infer_model(tiny_hef(networks=["a", "b"]))
    device.create_infer_model(tiny_hef(networks=["a", "b"]), "b")


def test_nothing_works_after_the_device_was_let_go(api: Any, device: Any) -> None:
    model = device.create_infer_model(tiny_hef())
    with model.configure() as configured:
        device.release()
        device.release()
        with pytest.raises(api.HailoRTInvalidOperationException):
            configured.wait_for_async_ready()
    with pytest.raises(api.HailoRTInvalidOperationException):
        model.configure()


def test_a_second_device_is_out_of_physical_devices(api: Any, device: Any) -> None:
    with pytest.raises(api.HailoRTException, match=r"error: 74 \(HAILO_OUT_OF_PHYSICAL_DEVICES\)") as caught:
        api.VDevice(scheduled(api))
    assert type(caught.value) is api.HailoRTException
    assert not isinstance(caught.value.__cause__, api.HailoRTException)


def test_a_status_leaks_from_what_is_not_wrapped(api: Any) -> None:
    with pytest.raises(Exception, match=r"^2$") as caught:
        api.Device("0001:01:00.0")
    assert not isinstance(caught.value, api.HailoRTException)


def test_waiting_does_not_tell_of_a_failed_job(api: Any, device: Any, double: HailoDouble) -> None:
    """As AsyncInferJobImpl::wait: whoever passes no callback reads what the buffer held before."""
    told: list[Any] = []
    sink = np.full(64, 7, np.uint8)
    with device.create_infer_model(tiny_hef()).configure() as configured:
        bindings = bound(configured, np.zeros(900, np.uint8), sink)
        double.set(completion_status=63)
        configured.run_async([bindings], lambda completion_info: told.append(completion_info)).wait(1000)
    assert isinstance(told[0].exception, api.HailoRTStreamAborted)
    assert (sink == 7).all()


def test_floats_are_clipped_and_rounded_half_to_even(api: Any) -> None:
    core = importlib.import_module("hailo_platform.pyhailort._pyhailort")
    stream = core.Stream("s", (4,), 0.5, 10.0, -5.0, 100.0, True)
    values = np.array([-1e9, 0.25, 0.75, 1e9, np.nan], np.float32)
    np.testing.assert_array_equal(core.quantize(values, stream), [0, 10, 12, 210, 0])
    np.testing.assert_array_equal(core.dequantize(np.array([0, 12], np.float32), stream), [-5, 1])


@contextlib.contextmanager
def ticking() -> Iterator[list[float]]:
    """Moments at which another thread ran, each 5 ms where it may; there when the block has ended."""
    ticks = [time.monotonic()]
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.005):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield ticks
        time.sleep(0.02)
    finally:
        stop.set()
        thread.join()


def test_configure_holds_the_gil(device: Any, double: HailoDouble) -> None:
    """No other thread runs meanwhile, as in the real one: whoever serves HTTP beside it stands still."""
    double.set(configure_ms=300)
    with ticking() as ticks, device.create_infer_model(tiny_hef()).configure():
        pass
    assert max(np.diff(ticks)) > 0.25


@pytest.mark.parametrize("explicit", [True, False])
def test_a_job_is_waited_for_and_the_gil_kept_only_where_it_is_told_to_end(
    api: Any, device: Any, double: HailoDouble, explicit: bool
) -> None:
    """``shutdown`` is bound without gil_scoped_release; the destructor waits as long, the GIL free."""
    double.set(run_ms=400)
    sink = np.full(64, 7, np.uint8)
    with ticking() as ticks, device.create_infer_model(tiny_hef()).configure() as configured:
        configured.run_async([bound(configured, np.zeros(900, np.uint8), sink)])
        ran = len(ticks)
        if explicit:
            configured.shutdown()
        else:
            configured.__exit__()
        assert not (sink == 7).all()
        during = len(ticks) - ran
    assert device._vdevice.configured == 0
    # 80 ticks fit; a busy machine may lose most of them.
    assert (max(np.diff(ticks)) > 0.25) if explicit else (during > 2)


@pytest.mark.parametrize(("device_arch", "hef_arch", "fits"), [(1, "HAILO8R", True), (2, "HAILO8P", False)])
def test_the_architecture_is_looked_at_when_it_is_configured(
    api: Any, device: Any, double: HailoDouble, device_arch: int, hef_arch: str, fits: bool
) -> None:
    double.set(architecture=device_arch)
    model = device.create_infer_model(tiny_hef(arch=hef_arch))
    if fits:
        model.configure()
    else:
        with pytest.raises(api.HailoRTHEFNotCompatibleWithDevice):
            model.configure()
