"""The chip: HailoRT found and checked, and the one VDevice of this process."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any, ClassVar, Final

from runtime.contract.errors import DeviceError
from runtime.contract.hailo_compatibility import SUPPORTED_HAILORT, driver_version, version_findings
from runtime.engines.device_lock import DeviceLock
from runtime.engines.hailo_errors import (
    DeviceFailedError,
    DriverMismatchError,
    HailoRTVersionError,
    NoDeviceError,
    NoHailoRTError,
    device_error,
)

_LOGGER: Final = logging.getLogger("runtime.engine")
READABLE: Final = " to ".join(f"{major}.{minor}" for major, minor in SUPPORTED_HAILORT)
_SAME_VERSION: Final = "install driver, firmware, library and Python package of one HailoRT version"


def import_hailort() -> tuple[Any, str]:
    """Import ``hailo_platform`` and look at its version.

    Returns:
        The package, and its version.

    Raises:
        NoHailoRTError: It is not installed.
        HailoRTVersionError: It does not import, or is none of ``READABLE``.
    """
    # Otherwise it writes hailort.log into the working directory, whichever that is.
    os.environ.setdefault("HAILORT_LOGGER_PATH", "NONE")
    try:
        package = importlib.import_module("hailo_platform")
    except ModuleNotFoundError as error:
        if error.name == "hailo_platform":
            raise NoHailoRTError(
                "HailoRT's Python package is not installed",
                where="hailo_platform",
                hint=f"install HailoRT {READABLE} with its Python package (docs/pi.md); the emulator is "
                "never used instead",
            ) from error
        raise NoHailoRTError(
            f"does not import: {error}", where="hailo_platform", hint="install what its package asks for"
        ) from error
    except Exception as error:
        # libhailort.so or the compiled part is missing or of another version, or numpy is too new for it.
        raise HailoRTVersionError(
            f"does not import: {type(error).__name__}: {error}", where="hailo_platform", hint=_SAME_VERSION
        ) from error
    version = str(getattr(package, "__version__", "without a version"))
    numbers = re.match(r"(\d+)\.(\d+)\.", version)
    oldest, newest = SUPPORTED_HAILORT
    if not numbers or not oldest <= (int(numbers[1]), int(numbers[2])) <= newest:
        raise HailoRTVersionError(
            f"HailoRT {version} is installed, this engine is written for {READABLE}",
            where="hailo_platform",
            hint="5.x drives Hailo-10 and -15 only; a Hailo-8 takes the 4.x line",
        )
    return package, version


def describe_board(board: Any) -> tuple[str, str, str]:
    """Architecture in lower case, firmware's version and serial number of a ``BoardInformation``."""
    architecture = str(board.device_architecture).rpartition(".")[2].lower()
    firmware = str(board.firmware_version).partition(" ")[0]
    return architecture, firmware, str(board.serial_number).rstrip("\x00")


class HailoDevice:
    """The VDevice of this process: opened by the first engine, let go by the last one.

    Several engines share it, as a hot swap and a canary need; HailoRT's scheduler takes turns.
    What fails on it fails for all: they are closed, and it is opened anew.

    Args:
        lock_folder: Where the lock is that keeps other processes away; None for the usual places.

    Raises:
        EngineError: As ``import_hailort``.
        DeviceError: Another process has the chip, or it does not open.
    """

    _shared: ClassVar[HailoDevice | None] = None
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, lock_folder: Path | None) -> None:
        self.package, self.version = import_hailort()
        self.failure: DeviceError | None = None
        self.turn: Final = threading.Lock()
        """Held for a window, and while a network is configured, which holds the GIL: a window whose
        completion cannot be told meanwhile would end as a timeout, and take the device with it."""
        self._process = os.getpid()
        self._users = 0
        self._lock = DeviceLock.take(lock_folder)
        self._vdevice: Any = None
        try:
            self._open()
        except BaseException:
            self._let_go()
            raise

    @classmethod
    def acquire(cls, lock_folder: Path | None = None) -> HailoDevice:
        """This process's device, opened where it is not; each call needs a ``release``.

        A DeviceError of here is none of a release: nothing of one was shown to the device yet.
        """
        with cls._guard:
            try:
                shared = cls._usable(lock_folder)
            except DeviceError as error:
                error.of_release = False
                raise
            shared._users += 1
            cls._shared = shared
            return shared

    @classmethod
    def _usable(cls, lock_folder: Path | None) -> HailoDevice:
        shared = cls._shared
        # One of the process that we were forked from is neither usable nor ours to release.
        if shared is None or shared._process != os.getpid():
            return cls(lock_folder)
        if shared.failure is not None:
            raise DeviceFailedError(
                f"is being let go after a failure: {shared.failure.what}", where="HailoRT"
            )
        return shared

    def release(self) -> None:
        """Undo one ``acquire``; the last one lets the chip go."""
        with self._guard:
            self._users -= 1
            if self._users == 0:
                if HailoDevice._shared is self:
                    HailoDevice._shared = None
                self._let_go()

    def create_infer_model(self, hef: bytes) -> Any:
        """HailoRT's InferModel of a HEF; lets out HailoRT's own exceptions."""
        # Fewer bytes than a header crash the interpreter in HailoRT's reader, which no `except` catches.
        assert len(hef) >= 56
        return self._vdevice.create_infer_model(hef)

    def check_usable(self) -> None:
        """Raise what went wrong on it before; DeviceFailedError in a forked process."""
        if self.failure is not None:
            raise self.failure
        if self._process != os.getpid():
            raise DeviceFailedError(
                f"was opened by process {self._process}, not by this one", where="HailoRT"
            )

    def fail(self, error: DeviceError) -> DeviceError:
        """Use it no more; returns the error."""
        self.failure = self.failure or error
        return error

    def _open(self) -> None:
        package = self.package
        # HailoRT looks as well, and says a status without either version. In a container they differ soon:
        # the driver is the host's.
        self._check(driver=driver_version())
        try:
            if not package.Device.scan():
                raise NoDeviceError(
                    "no Hailo device on this machine",
                    where="HailoRT",
                    hint="check `hailortcli scan`, /dev/hailo0 and that the driver is loaded",
                )
            params = package.VDevice.create_params()
            # 4.x defaults to none, 5.x to this one; without it only one network could be active.
            params.scheduling_algorithm = package.HailoSchedulingAlgorithm.ROUND_ROBIN
            self._vdevice = package.VDevice(params)
            with package.Device(self._vdevice.get_physical_devices_ids()[0]) as device:
                board = describe_board(device.control.identify())
        except DeviceError:
            raise
        except Exception as error:
            raise self._with_versions(device_error(error, "opening the device")) from error
        self.architecture, self.firmware, _ = board
        self._check(firmware=self.firmware)

    def _check(self, driver: str = "", firmware: str = "") -> None:
        """DriverMismatchError where one of them is not of HailoRT's version; what is empty is not known."""
        if findings := version_findings(hailort=self.version, driver=driver, firmware=firmware):
            raise DriverMismatchError(findings[0], where="HailoRT", hint=_SAME_VERSION)

    def _with_versions(self, error: DeviceError) -> DeviceError:
        """A mismatch that HailoRT found, with the versions that it does not name."""
        if not isinstance(error, DriverMismatchError):
            return error
        driver = driver_version() or "not known"
        what = f"{error.what}; HailoRT is {self.version}, the driver's version is {driver}"
        return type(error)(what, where=error.where, hint=error.hint)

    def _let_go(self) -> None:
        vdevice, self._vdevice = self._vdevice, None
        try:
            if vdevice is not None:
                vdevice.release()
        except Exception as error:
            _LOGGER.warning("letting go of the device: %s: %s", type(error).__name__, error)
        finally:
            with contextlib.suppress(OSError):
                self._lock.release()
