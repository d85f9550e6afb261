"""HailoRT: a HEF on a Hailo-8 or Hailo-8L, through the InferModel interface of HailoRT 4.20 to 4.23.

Written from HailoRT's sources and tested against a double of them; never run on a device yet.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np

from runtime.contract.errors import DeviceError, DeviceInUseError, EngineError
from runtime.contract.gate import check_hef
from runtime.contract.hailo_compatibility import check_architecture, check_header
from runtime.contract.store import Release
from runtime.contract.window import CHANNELS, LATENT_SIZE, WINDOW_LENGTH, FloatArray
from runtime.engines import Engine
from runtime.engines.hailo_device import HailoDevice
from runtime.engines.hailo_errors import (
    LOG_HINT,
    DeviceFailedError,
    HefRefusedError,
    device_error,
    loading_error,
)

_LOGGER: Final = logging.getLogger("runtime.engine")
INPUT_SHAPE: Final = (1, WINDOW_LENGTH, len(CHANNELS))
"""NHWC without batch, as HailoRT shows the graph's NCHW (1, 9, 1, 100): the window's own bytes."""

FIRST_WAIT_MS: Final = 2000
"""The first window after a start may wait for the network to be loaded into the chip."""

WAIT_MS: Final = 250
"""A window takes about 1 ms, and EdgeInfer stops reading after 45; but a machine that is busy elsewhere is no
lost device, which costs everybody most of a second (once in 1000 switches beside the double and a test suite,
with 100). HailoRT waits up to three times: until a job is taken, for the job, and for its callback."""

TURN_SECONDS: Final = 3 * FIRST_WAIT_MS / 1000 + 1
"""Longer than any window may have its turn."""

LOOP_SECONDS: Final = 0.035
"""How long an event loop waits for the turn, and answers nobody meanwhile. EdgeInfer reads for 45 ms:
whose turn comes later would be run for nobody, and is told ``DeviceInUseError`` instead."""

_PARTS: Final = 5
_IN_USE: Final = "another release has the chip for longer than a window may wait"
_NOT_OURS: Final = "the artifact was not made from this pipeline's onnx_model"


class HailoEngine(Engine):
    """Runs the verified bytes of a HEF on this process's chip; one window in flight.

    A job's end is no success: HailoRT's ``wait`` returns the same for one that failed, and only the
    callback is told. And an output that no job wrote is seen, because it is NaN before each one.

    Args:
        release: A release for a Hailo target.
        lock_folder: Where the lock is that keeps other processes away; None for the usual places.

    Raises:
        NoHailoRTError: HailoRT's Python package is not installed.
        HailoRTVersionError: It is none that this engine is written for.
        HefError: The artifact is not the encoder, or not for this chip or HailoRT.
        HefRefusedError: HailoRT does not take it all the same.
        DeviceError: The chip cannot be used now.
        DigestMismatchError: The artifact's bytes are not what the manifest names.
    """

    def __init__(self, release: Release, lock_folder: Path | None = None) -> None:
        super().__init__(release.manifest)
        self._target, name = release.manifest.target, release.manifest.artifact
        hef = release.read(name)
        self._input: FloatArray = np.zeros(INPUT_SHAPE, np.float32)
        self._output: FloatArray = np.zeros(LATENT_SIZE, np.float32)
        self._wait_ms = FIRST_WAIT_MS
        self._refused = False
        self._completion: Any = None
        self._model: Any = None
        self._configured: Any = None
        self._bindings: Any = None
        self._device = HailoDevice.acquire(lock_folder)
        try:
            self._configure(hef, name)
        except BaseException:
            self.close()
            raise

    @property
    def kernel_family(self) -> str:
        """The chip's architecture: ``hailo8`` or ``hailo8l``."""
        return self._device.architecture

    @property
    def program(self) -> str:
        """HailoRT's version."""
        return f"hailort {self._device.version}"

    def _configure(self, hef: bytes, name: str) -> None:
        device = self._device
        # HailoRT's own reader crashes on some files, and takes those for other chips.
        file = check_hef(hef, self._target, name)
        check_header(file, device.version, name)
        check_architecture(file, device.architecture.upper(), name)
        float32 = device.package.FormatType.FLOAT32
        try:
            self._model = device.create_infer_model(hef)
            _check_streams(self._model, name)
            self._model.set_batch_size(1)
            # Before configure: the default is the chip's own integers.
            self._model.input().set_format_type(float32)
            self._model.output().set_format_type(float32)
            self._take_turn()
            try:
                self._configured = self._model.configure()
            finally:
                device.turn.release()
            self._bindings = self._configured.create_bindings()
            self._bindings.input().set_buffer(self._input)
            self._bindings.output().set_buffer(self._output)
            return
        except EngineError:
            raise
        except Exception as error:
            failure = loading_error(error, name)
        # Outside of the handler: an error that is kept as the reason must not keep HailoRT's frames,
        # whose objects have to be gone before the device is let go.
        raise failure

    def _infer(self, tensor: FloatArray) -> FloatArray:
        device = self._device
        device.check_usable()
        self._take_turn()
        try:
            failure = self._run(tensor)
        finally:
            device.turn.release()
        if failure is not None:
            raise failure
        return self._output

    def _take_turn(self) -> None:
        """Wait for the device's turn; an event loop for ``LOOP_SECONDS``, once as long as nothing is run.

        Raises:
            DeviceInUseError: Somebody else keeps it: a golden window of a release that is being loaded, most
                likely one that hangs.
        """
        turn, waits = self._device.turn, not _in_event_loop()
        if not turn.acquire(blocking=False):
            # Each window that waits in a loop holds up everything in it: one tells of all that follow.
            seconds = TURN_SECONDS if waits else 0.0 if self._refused else LOOP_SECONDS
            if not _acquired(turn, seconds):
                self._refused = not waits
                raise DeviceInUseError(_IN_USE, where="device", hint="ask again")
        self._refused = False

    def _run(self, tensor: FloatArray) -> DeviceError | None:
        """One window into ``_output``, in our turn; why the device failed, where it did.

        Raises:
            DeviceError: It failed while we waited for the turn.
            EngineError: This engine was closed while we did; the device is as good as before.
        """
        device = self._device
        device.check_usable()
        configured, bindings = self._configured, self._bindings
        if configured is None:
            raise EngineError("is closed", where="engine")
        self._input[0] = tensor.reshape(len(CHANNELS), WINDOW_LENGTH).T
        self._output.fill(np.nan)
        self._completion = None
        failure: DeviceError | None
        try:
            configured.wait_for_async_ready(timeout_ms=self._wait_ms)
            configured.run_async([bindings], self._completed).wait(self._wait_ms)
            failure = self._failure()
        except Exception as error:
            failure = device_error(error, f"a window, waiting {self._wait_ms} ms")
        if failure is not None:
            return device.fail(failure)
        self._wait_ms = WAIT_MS
        return None

    def _completed(self, *, completion_info: Any) -> None:
        """Called by HailoRT's own thread, before ``wait`` returns."""
        self._completion = completion_info

    def _failure(self) -> DeviceError | None:
        if self._completion is None:
            return DeviceFailedError("a window ended without being completed", where="HailoRT", hint=LOG_HINT)
        if self._completion.exception is not None:
            return device_error(self._completion.exception, "a window")
        if np.isnan(self._output).any():
            return DeviceFailedError("a window gave no output", where="HailoRT", hint=LOG_HINT)
        return None

    def _close(self) -> None:
        """Buffers, configured network, model, device: HailoRT's order. May wait for a hanging job.

        Never by ``ConfiguredInferModel.shutdown``: it is bound without letting the GIL go (4.20 to 4.23), and
        waits up to 10 s for a job. Who drops the last reference waits as long, and others run meanwhile.
        """
        # The turn, so that no window is between two of its calls; what hangs for longer is not waited for.
        turn = self._device.turn
        taken = turn.acquire(timeout=TURN_SECONDS)
        configured, self._configured = self._configured, None
        self._bindings = None
        if taken:
            turn.release()  # Not while the network is ended: others' windows run meanwhile.
        else:
            _LOGGER.warning("closing the network while a window hangs")
        try:
            if configured is not None:
                configured.__exit__(None, None, None)
        except Exception as error:
            _LOGGER.warning("closing the network: %s: %s", type(error).__name__, error)
        del configured
        self._model = None
        self._device.release()


def _in_event_loop() -> bool:
    """Whether this thread runs one, which answers nobody while we wait."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _acquired(turn: threading.Lock, seconds: float) -> bool:
    """Whether we had the turn in time, of which what passes while another thread holds the GIL is no part.

    So in parts: while a network is configured one of them ends late, the turn not let go yet but about to be.
    """
    return seconds > 0 and any(turn.acquire(timeout=seconds / _PARTS) for _ in range(_PARTS))


def _check_streams(model: Any, name: str) -> None:
    sides = (("input", model.input_names, INPUT_SHAPE), ("output", model.output_names, (LATENT_SIZE,)))
    for side, names, shape in sides:
        if len(names) != 1:
            raise HefRefusedError(f"has {len(names)} {side}s, not one", where=name, hint=_NOT_OURS)
        found = tuple(int(size) for size in getattr(model, side)().shape)
        # A dense output has one number; one that ends in a convolution has (1, 1, 64).
        expected = shape if side == "input" or len(found) == 1 else (1, 1, LATENT_SIZE)
        order = getattr(model, side)().format.order.name
        if order not in ("NHWC", "NC"):
            raise HefRefusedError(
                f"HailoRT gives the {side} in the order {order}, expected NHWC or NC",
                where=name,
                hint=_NOT_OURS,
            )
        if found != expected:
            raise HefRefusedError(
                f"the {side} is {found}, the manifest says {expected}",
                where=name,
                hint=_NOT_OURS,
            )
