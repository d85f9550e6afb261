"""Stands where the real package has its compiled part: statuses, the chip, and what runs on it.

Rules and their sources are HailoRT 4.23's (bindings/python/src, net_flow/pipeline/infer_model.cpp);
numbers come from the ONNX graph that a test's HEF carries, quantized as the HEF says.
"""

from __future__ import annotations

import ctypes
import enum
import fcntl
import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np

from . import _hef
from ._hef import Network, Stream
from ._settings import SETTINGS as SETTINGS

__version__ = str(SETTINGS.read("binding_version") or SETTINGS.read("version"))

STATUSES = {
    2: "HAILO_INVALID_ARGUMENT",
    4: "HAILO_TIMEOUT",
    6: "HAILO_INVALID_OPERATION",
    8: "HAILO_INTERNAL_FAILURE",
    16: "HAILO_UNSUPPORTED_FW_VERSION",
    18: "HAILO_FW_CONTROL_FAILURE",
    26: "HAILO_INVALID_HEF",
    36: "HAILO_DRIVER_OPERATION_FAILED",
    61: "HAILO_NOT_FOUND",
    62: "HAILO_COMMUNICATION_CLOSED",
    63: "HAILO_STREAM_ABORT",
    64: "HAILO_DRIVER_NOT_INSTALLED",
    69: "HAILO_NETWORK_GROUP_NOT_ACTIVATED",
    74: "HAILO_OUT_OF_PHYSICAL_DEVICES",
    76: "HAILO_INVALID_DRIVER_VERSION",
    79: "HAILO_NOT_SUPPORTED",
    86: "HAILO_DRIVER_INVALID_IOCTL",
    91: "HAILO_HEF_FILE_CORRUPTED",
    92: "HAILO_HEF_NOT_SUPPORTED",
    93: "HAILO_HEF_NOT_COMPATIBLE_WITH_DEVICE",
}
TIMEOUT, INVALID_ARGUMENT, INVALID_OPERATION, NOT_FOUND = 4, 2, 6, 61
OUT_OF_PHYSICAL_DEVICES, NOT_COMPATIBLE = 74, 93
# Keeps the GIL, as a call into pybind11 without gil_scoped_release does.
_USLEEP = ctypes.PyDLL(None).usleep


class HailoRTStatusException(Exception):
    """What the compiled part throws: the status as text. No HailoRTException."""


class FormatType(enum.IntEnum):
    """As the real one."""

    AUTO = 0
    UINT8 = 1
    UINT16 = 2
    FLOAT32 = 3


class FormatOrder(enum.IntEnum):
    """Those two that the double's streams have."""

    AUTO = 0
    NHWC = 1
    NC = 5


class SchedulingAlgorithm(enum.IntEnum):
    """As the real one; Python's default is NONE in 4.x."""

    NONE = 0
    ROUND_ROBIN = 1


def get_status_message(status: int) -> str:
    """The status' name, or nothing."""
    return STATUSES.get(status, "")


def fail(status: int) -> NoReturn:
    """Throw a status."""
    raise HailoRTStatusException(str(status))


def injected(name: str) -> None:
    """Throw what a test wants thrown here."""
    if status := SETTINGS.read(name):
        fail(status)


def hold_gil(milliseconds: float) -> None:
    """Sleep while no other thread of this process can run Python."""
    _USLEEP(int(milliseconds * 1000))


def load_hef(source: str | bytes) -> Network:
    """Parse a HEF; an empty buffer ends the process, as the real one does."""
    if isinstance(source, str):
        try:
            with open(source, "rb") as file:  # noqa: PTH123
                data = file.read()
        except OSError:
            fail(13)
    else:
        data = source
        if not data:
            end_process()
    if doom_of(data) == "hef":
        end_process()
    try:
        return _hef.parse(data)
    except _hef.RefusedError as error:
        fail(error.args[0])


def end_process() -> NoReturn:
    """End as a segmentation fault does."""
    SETTINGS.note("segfault")
    os.abort()


def doom_of(data: bytes) -> str:
    """Where a test wants these bytes to end; empty where it does not."""
    doomed: dict[str, str] = SETTINGS.read("doomed")
    return doomed.get(hashlib.sha256(data).hexdigest(), "") if doomed else ""


@dataclass
class VDeviceParams:
    """As Python's defaults are in 4.x: no scheduler."""

    device_count: int = 1
    scheduling_algorithm: SchedulingAlgorithm = SchedulingAlgorithm.NONE
    group_id: str = "UNIQUE"
    multi_process_service: bool = False


class Chip:
    """The compiled VDevice: one for each process that has the chip, and one process at a time."""

    def __init__(self, params: VDeviceParams, device_ids: list[str]) -> None:
        if params.multi_process_service:
            fail(INVALID_OPERATION)
        present = SETTINGS.read("devices")
        if any(name not in present for name in device_ids):
            fail(INVALID_ARGUMENT)
        injected("open_status")
        if not present:
            fail(OUT_OF_PHYSICAL_DEVICES)
        self.scheduled = params.scheduling_algorithm != SchedulingAlgorithm.NONE
        self.configured = 0
        self.released = False
        self._file = (SETTINGS.folder / "chip").open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            fail(OUT_OF_PHYSICAL_DEVICES)
        SETTINGS.note("open")

    def release(self) -> None:
        """Let another process have it."""
        if not self.released:
            SETTINGS.note(f"release-with-{self.configured}-configured" if self.configured else "release")
            self.released = True
            self._file.close()

    def get_physical_devices_ids(self) -> list[str]:
        """Bus addresses."""
        return list(SETTINGS.read("devices")[:1])

    def create_infer_model(self, source: str | bytes, name: str) -> CoreModel:
        """Load a HEF; which chip it is for is not asked yet."""
        network = load_hef(source)
        if (not name and len(network.groups) > 1) or (name and name not in network.groups):
            fail(INVALID_ARGUMENT)
        return CoreModel(self, network, doom_of(source) if isinstance(source, bytes) else "")


class CoreStream:
    """The compiled stream of an InferModel, whose format counts when the model is configured."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.type = FormatType.AUTO

    @property
    def nbytes(self) -> int:
        """Bytes of one frame at the host; AUTO is the chip's own type."""
        size = 4 if self.type == FormatType.FLOAT32 else 2 if self.type == FormatType.UINT16 else 1
        return int(np.prod(self.stream.shape)) * size


class CoreModel:
    """The compiled InferModel."""

    def __init__(self, chip: Chip, network: Network, doom: str = "") -> None:
        self.chip, self.network, self.doom = chip, network, doom
        self.inputs = {stream.name: CoreStream(stream) for stream in network.inputs}
        self.outputs = {stream.name: CoreStream(stream) for stream in network.outputs}

    def find(self, streams: dict[str, CoreStream], name: str) -> CoreStream:
        """The stream of that name, or the only one."""
        if not name and len(streams) == 1:
            return next(iter(streams.values()))
        if name not in streams:
            fail(NOT_FOUND)
        return streams[name]

    def configure(self) -> CoreConfigured:
        """Put it on the chip, and hold the GIL meanwhile."""
        if self.chip.released:
            fail(INVALID_OPERATION)
        hold_gil(SETTINGS.read("configure_ms"))
        if self.doom == "configure":
            end_process()
        injected("configure_status")
        # HAILO8 takes 8P, 8R and 8L; HAILO8L takes 8L alone.
        takes = {1: (1, 2, 3), 2: (3,)}.get(SETTINGS.read("architecture"), ())
        if self.network.architecture not in takes:
            fail(NOT_COMPATIBLE)
        return CoreConfigured(self)


class CoreBindings:
    """Two buffers by stream name; their sizes are looked at when they are run."""

    def __init__(self) -> None:
        self.buffers: dict[str, np.ndarray[Any, Any]] = {}

    def set_buffer(self, name: str, buffer: np.ndarray[Any, Any]) -> None:
        """Take a buffer that can be written, whichever side it is for."""
        if not buffer.flags.writeable:
            raise ValueError("array is not writeable")
        self.buffers[name] = buffer


class CoreProgram:
    """What runs on the chip: the graph, quantized as the HEF says, between buffers as they were chosen."""

    def __init__(self, model: CoreModel) -> None:
        self._network, self.doom = model.network, model.doom
        # Formats count as they were when it was configured.
        self._types = {name: stream.type for name, stream in {**model.inputs, **model.outputs}.items()}
        # Here, so that it imports where ONNX Runtime is not: in an image made for a chip.
        import onnxruntime as ort

        self._session = ort.InferenceSession(model.network.program, providers=["CPUExecutionProvider"])

    def compute(self, binding: CoreBindings) -> None:
        """One frame, from the input's buffer to the output's."""
        (source,), (sink,) = self._network.inputs, self._network.outputs
        given = binding.buffers[source.name]
        if self._types[source.name] == FormatType.FLOAT32:
            integers = quantize(np.frombuffer(given, np.float32), source)
        else:
            integers = np.frombuffer(given, np.uint8).astype(np.float32)
        values = dequantize(integers, source).reshape(1, *source.shape)
        frame = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        result = quantize(self._session.run(None, {"imu_window": frame})[0].reshape(-1), sink)
        target = binding.buffers[sink.name].reshape(-1)
        if self._types[sink.name] == FormatType.FLOAT32:
            target[:] = dequantize(result, sink).view(target.dtype)
        else:
            target.view(np.uint8)[:] = result.astype(np.uint8)


class CoreConfigured:
    """The compiled ConfiguredInferModel, with the thread that calls back."""

    def __init__(self, model: CoreModel) -> None:
        self.model = model
        # Sizes count as they were when it was configured.
        self.sizes = {name: s.nbytes for name, s in {**model.inputs, **model.outputs}.items()}
        self.active = self.model.chip.scheduled
        self.model.chip.configured += 1
        self._program = CoreProgram(model)
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Knows the queue alone: who drops the last reference to this object ends it, as in C++.
        self._thread = threading.Thread(target=work_off, args=(self._queue,), daemon=True)
        self._thread.start()
        self._job: CoreJob | None = None
        self._down = False

    def shutdown(self) -> None:
        """No longer usable; waits for what runs, 10 s at most, and holds the GIL meanwhile.

        As ConfiguredInferModelWrapper::shutdown, which is bound without gil_scoped_release in 4.20 to 4.23.
        """
        if not self._down and self._job is not None and not self._job.called_back.is_set():
            hold_gil(1000 * min(10.0, max(0.0, self._job.due - time.monotonic())))
        self._end()

    def _end(self) -> None:
        """As the destructor: waits for what runs as well, the GIL free."""
        if not self._down:
            self._down = True
            self._queue.put(None)
            if self._thread is not threading.current_thread():
                self._thread.join()
            self.model.chip.configured -= 1

    __del__ = _end

    def set_active(self, active: bool) -> None:
        """Where there is no scheduler only."""
        if self.model.chip.scheduled:
            fail(INVALID_OPERATION)
        self.active = active

    def check_usable(self) -> None:
        """Neither shut down, nor on a device that was let go."""
        if self._down or self.model.chip.released:
            fail(INVALID_OPERATION)
        if not self.active:
            fail(69)

    def wait_for_async_ready(self, timeout: timedelta, frames: int) -> None:
        """Ready at once, unless a test says otherwise."""
        self.check_usable()
        injected("ready_status")

    def run_async(self, bindings: list[CoreBindings], callback: Callable[[int], None]) -> CoreJob:
        """Start; the callback comes from another thread."""
        self.check_usable()
        injected("run_status")
        for binding in bindings:
            for name, size in self.sizes.items():
                if name not in binding.buffers or binding.buffers[name].nbytes != size:
                    fail(INVALID_OPERATION)
        hangs = SETTINGS.read("hangs") or self._program.doom == "run"
        job = self._job = CoreJob(float("inf") if hangs else SETTINGS.read("run_ms") / 1000)
        # Not this object: a job keeps nothing alive that its destructor is to wait for.
        program = self._program

        def task() -> None:
            status = SETTINGS.read("completion_status")
            if SETTINGS.read("hangs") or program.doom == "run":
                return
            time.sleep(SETTINGS.read("run_ms") / 1000)
            if not status and not SETTINGS.read("silent"):
                for binding in bindings:
                    program.compute(binding)
            job.called.set()
            callback(status)
            job.called_back.set()

        self._queue.put(task)
        return job


def work_off(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """Run what is queued until None comes."""
    while (task := tasks.get()) is not None:
        task()
        del task


def quantize(values: np.ndarray[Any, Any], stream: Stream) -> np.ndarray[Any, Any]:
    """Integers as float32: clipped to the limits, half to even; NaN becomes 0."""
    clipped = np.clip(np.asarray(values, np.float32), np.float32(stream.smallest), np.float32(stream.largest))
    integers = np.rint(clipped / np.float32(stream.scale) + np.float32(stream.zero_point))
    stored: np.ndarray[Any, Any] = np.clip(np.nan_to_num(integers, nan=0.0), 0, 255).astype(np.float32)
    return stored


def dequantize(integers: np.ndarray[Any, Any], stream: Stream) -> np.ndarray[Any, Any]:
    """float32."""
    values: np.ndarray[Any, Any] = (integers - np.float32(stream.zero_point)) * np.float32(stream.scale)
    return values


class CoreJob:
    """The compiled AsyncInferJob.

    ``wait`` says that the job has ended, not how: a failed one ends as well, and only the callback
    is told (AsyncInferJobImpl::wait). It waits for the job and then for the callback, each with the
    whole timeout.

    Args:
        seconds: After which the chip is to be done.
    """

    def __init__(self, seconds: float) -> None:
        self.due = time.monotonic() + seconds
        self.called, self.called_back = threading.Event(), threading.Event()

    def wait(self, timeout: timedelta) -> None:
        """Wait, the GIL free."""
        for event in (self.called, self.called_back):
            if not event.wait(timeout.total_seconds()):
                fail(TIMEOUT)


class CoreDevice:
    """The compiled Device, for control alone: any process may have one, whoever has the chip."""

    def __init__(self, name: str) -> None:
        if name not in SETTINGS.read("devices"):
            fail(INVALID_ARGUMENT)
        injected("identify_status")

    def temperature(self) -> tuple[float, float]:
        """Both sensors."""
        if SETTINGS.read("reading_hangs"):
            time.sleep(3600)
        injected("temperature_status")
        first, second = SETTINGS.read("temperature")
        return first, second

    def power(self) -> float:
        """W, where the board measures it."""
        injected("power_status")
        return float(SETTINGS.read("power"))
