"""The Python part, shaped as the real one: what is wrapped there is wrapped here, and leaks alike."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import numpy

from . import _pyhailort
from ._control import BoardInformation, Control, Device, DeviceArchitectureTypes, TemperatureInfo
from ._exceptions import (
    ExceptionWrapper,
    HailoCommunicationClosedException,
    HailoRTDriverOperationFailedException,
    HailoRTException,
    HailoRTFirmwareControlFailedException,
    HailoRTHEFNotCompatibleWithDevice,
    HailoRTInvalidArgumentException,
    HailoRTInvalidHEFException,
    HailoRTInvalidOperationException,
    HailoRTNetworkGroupNotActivatedException,
    HailoRTNotFoundException,
    HailoRTStreamAborted,
    HailoRTStreamAbortedByUser,
    HailoRTTimeout,
    HailoStatusInvalidValueException,
)
from ._hef import Stream
from ._pyhailort import SETTINGS, FormatOrder, FormatType

HailoSchedulingAlgorithm = _pyhailort.SchedulingAlgorithm

__all__ = [
    "HEF",
    "AsyncInferCompletionInfo",
    "AsyncInferJob",
    "BoardInformation",
    "ConfiguredInferModel",
    "Control",
    "Device",
    "DeviceArchitectureTypes",
    "FormatOrder",
    "FormatType",
    "HailoCommunicationClosedException",
    "HailoRTDriverOperationFailedException",
    "HailoRTException",
    "HailoRTFirmwareControlFailedException",
    "HailoRTHEFNotCompatibleWithDevice",
    "HailoRTInvalidArgumentException",
    "HailoRTInvalidHEFException",
    "HailoRTInvalidOperationException",
    "HailoRTNetworkGroupNotActivatedException",
    "HailoRTNotFoundException",
    "HailoRTStreamAborted",
    "HailoRTStreamAbortedByUser",
    "HailoRTTimeout",
    "HailoSchedulingAlgorithm",
    "HailoStatusInvalidValueException",
    "InferModel",
    "TemperatureInfo",
    "VDevice",
]


class HEF:
    """A HEF, parsed; works without a device."""

    def __init__(self, hef_source: str | bytes) -> None:
        if not isinstance(hef_source, (str, bytes)):
            raise ValueError(f"HEF can only be created from str or bytes, not {type(hef_source)}")
        with ExceptionWrapper():
            self._hef = _pyhailort.load_hef(hef_source)

    def get_network_group_names(self) -> list[str]:
        """Names."""
        return list(self._hef.groups)


@dataclass(frozen=True)
class QuantInfo:
    """As the real one."""

    qp_zp: float
    qp_scale: float
    limvals_min: float
    limvals_max: float


@dataclass(frozen=True)
class Format:
    """As the real one, without its flags."""

    type: FormatType
    order: FormatOrder


class InferModel:
    """A HEF that is about to be configured."""

    class InferStream:
        """A stream's parameters; setting them after ``configure`` changes nothing there."""

        def __init__(self, core: _pyhailort.CoreStream) -> None:
            self._core = core
            self._stream: Stream = core.stream

        @property
        def name(self) -> str:
            """The edge's name."""
            return self._stream.name

        @property
        def shape(self) -> list[int]:
            """Without batch; a dense output has one number."""
            shown = None if self._stream.dense else SETTINGS.read("shown_input")
            return list(shown or self._stream.shape)

        @property
        def format(self) -> Format:
            """Type and order at the host."""
            return Format(self._core.type, FormatOrder.NC if self._stream.dense else FormatOrder.NHWC)

        @property
        def quant_infos(self) -> list[QuantInfo]:
            """One for the whole stream."""
            stream = self._stream
            return [QuantInfo(stream.zero_point, stream.scale, stream.smallest, stream.largest)]

        def set_format_type(self, type: FormatType) -> None:
            """Choose the host's type."""
            if not isinstance(type, FormatType):
                raise TypeError("set_format_type(): incompatible function arguments")
            self._core.type = type

    def __init__(self, core: _pyhailort.CoreModel, vdevice: VDevice) -> None:
        self._core, self._vdevice = core, vdevice

    def set_batch_size(self, batch_size: int) -> None:
        """Frames in a burst."""

    @property
    def input_names(self) -> list[str]:
        """Names."""
        return list(self._core.inputs)

    @property
    def output_names(self) -> list[str]:
        """Names."""
        return list(self._core.outputs)

    def input(self, name: str = "") -> InferModel.InferStream:
        """The input of that name, or the only one."""
        with ExceptionWrapper():
            return self.InferStream(self._core.find(self._core.inputs, name))

    def output(self, name: str = "") -> InferModel.InferStream:
        """The output of that name, or the only one."""
        with ExceptionWrapper():
            return self.InferStream(self._core.find(self._core.outputs, name))

    def configure(self) -> ConfiguredInferModel:
        """Put it on the chip."""
        with ExceptionWrapper():
            return ConfiguredInferModel(self._core.configure(), self)


class AsyncInferCompletionInfo:
    """How a job ended."""

    def __init__(self, exception: HailoRTException | None) -> None:
        self.exception = exception


class ConfiguredInferModel:
    """Takes jobs; to be used as a context."""

    class Bindings:
        """The buffers of one request."""

        class InferStream:
            """One buffer."""

            def __init__(self, core: _pyhailort.CoreBindings, name: str) -> None:
                self._core, self._name = core, name
                self._buffer: Any = None

            def set_buffer(self, buffer: numpy.ndarray[Any, Any]) -> None:
                """Only its layout is looked at here, its size when it is run."""
                if not buffer.flags.c_contiguous:
                    raise HailoRTException("Buffer must be C_CONTIGUOUS")
                self._core.set_buffer(self._name, buffer)
                self._buffer = buffer

            def get_buffer(self, tf_format: bool | None = False) -> Any:
                """The very array that was set."""
                return self._buffer

        def __init__(self, inputs: list[str], outputs: list[str]) -> None:
            self._core = _pyhailort.CoreBindings()
            self._names = {"input": inputs, "output": outputs}
            self._streams: dict[str, ConfiguredInferModel.Bindings.InferStream] = {}

        def _find(self, side: str, name: str) -> ConfiguredInferModel.Bindings.InferStream:
            names = self._names[side]
            if name == "" and len(names) == 1:
                name = names[0]
            if name not in names:
                raise HailoRTNotFoundException("Item not found. See hailort.log for more information")
            return self._streams.setdefault(name, self.InferStream(self._core, name))

        def input(self, name: str = "") -> ConfiguredInferModel.Bindings.InferStream:
            """The input of that name, or the only one."""
            return self._find("input", name)

        def output(self, name: str = "") -> ConfiguredInferModel.Bindings.InferStream:
            """The output of that name, or the only one."""
            return self._find("output", name)

        def get(self) -> _pyhailort.CoreBindings:
            """The compiled one."""
            return self._core

    def __init__(self, core: _pyhailort.CoreConfigured, infer_model: InferModel) -> None:
        self._configured: Any = core
        self._infer_model = infer_model
        self._buffer_guards: deque[Any] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._configured = None

    def create_bindings(self) -> ConfiguredInferModel.Bindings:
        """Buffers of one request."""
        self._configured.check_usable()
        return self.Bindings(self._infer_model.input_names, self._infer_model.output_names)

    def activate(self) -> None:
        """Wrong where there is a scheduler."""
        with ExceptionWrapper():
            self._configured.set_active(True)

    def deactivate(self) -> None:
        """Wrong where there is a scheduler."""
        with ExceptionWrapper():
            self._configured.set_active(False)

    def wait_for_async_ready(self, timeout_ms: int = 1000, frames_count: int = 1) -> None:
        """Wait until a job is taken."""
        with ExceptionWrapper():
            self._configured.wait_for_async_ready(timedelta(milliseconds=timeout_ms), frames_count)

    def run(self, bindings: list[ConfiguredInferModel.Bindings], timeout: int) -> None:
        """Run and wait; a job that failed looks like one that did not."""
        self.run_async(bindings).wait(timeout)

    def run_async(
        self, bindings: list[ConfiguredInferModel.Bindings], callback: Callable[..., None] | None = None
    ) -> AsyncInferJob:
        """Start a job; called back as ``callback(completion_info=...)``."""
        self._buffer_guards.append(bindings)

        def called_back(status: int) -> None:
            error = ExceptionWrapper.create_exception_from_status(status) if status else None
            if callback:
                callback(completion_info=AsyncInferCompletionInfo(error))
            self._buffer_guards.popleft()

        with ExceptionWrapper():
            job = self._configured.run_async([each.get() for each in bindings], called_back)
        return AsyncInferJob(job)

    def shutdown(self) -> None:
        """No longer usable afterwards."""
        with ExceptionWrapper():
            self._configured.shutdown()


class AsyncInferJob:
    """A job that runs."""

    def __init__(self, job: _pyhailort.CoreJob) -> None:
        self._job = job

    def wait(self, timeout_ms: int) -> None:
        """Wait until it and its callback have ended."""
        with ExceptionWrapper():
            self._job.wait(timedelta(milliseconds=timeout_ms))


class VDevice:
    """The chip, for inference."""

    def __init__(
        self, params: _pyhailort.VDeviceParams | None = None, *, device_ids: list[str] | None = None
    ) -> None:
        self._vdevice: Any = None
        self._creation_pid = os.getpid()
        with ExceptionWrapper():
            self._vdevice = _pyhailort.Chip(params or self.create_params(), device_ids or [])

    @staticmethod
    def create_params() -> _pyhailort.VDeviceParams:
        """Defaults; group ``UNIQUE``, no scheduler."""
        return _pyhailort.VDeviceParams()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go; again changes nothing."""
        if self._vdevice is not None:
            self._vdevice.release()
            self._vdevice = None

    __del__ = release

    def get_physical_devices_ids(self) -> list[str]:
        """Bus addresses."""
        with ExceptionWrapper():
            ids: list[str] = self._vdevice.get_physical_devices_ids()
            return ids

    def create_infer_model(self, hef_source: str | bytes, name: str = "") -> InferModel:
        """Load a HEF."""
        if os.getpid() != self._creation_pid:
            raise HailoRTException("InferModel can be created only from the process VDevice was created in.")
        with ExceptionWrapper():
            if not isinstance(hef_source, (str, bytes)):
                raise TypeError("create_infer_model_from_file(): incompatible function arguments")
            return InferModel(self._vdevice.create_infer_model(hef_source, name), self)
