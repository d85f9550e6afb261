"""Every error of HailoRT as one of ours; what decides is its status, however it is wrapped."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from runtime.contract.errors import DeviceError, EngineError, NoEngineError

LOG_HINT: Final = "HAILORT_LOGGER_PATH=<folder> makes HailoRT write why; dmesg has the driver's side"


class NoHailoRTError(NoEngineError):
    """HailoRT's Python package is not installed."""

    code = "no_hailort"


class HailoRTVersionError(EngineError):
    """A HailoRT that this engine is not written for, or whose parts are of different versions."""

    code = "hailort_version"


class HefRefusedError(EngineError):
    """HailoRT does not take the artifact, or the artifact is not the manifest's encoder."""

    code = "hef_refused"


class NoDeviceError(DeviceError, NoEngineError):
    """No chip, or no driver for it."""

    code = "no_device"


class DeviceBusyError(DeviceError):
    """Another process has the chip; asked often, so that it is taken over soon."""

    code = "device_busy"
    longest_wait: ClassVar[float] = 2.0


class DeviceLockError(DeviceError):
    """The lock that keeps a second process away cannot be taken."""

    code = "device_lock"


class DeviceTimeoutError(DeviceError):
    """The chip did not answer in time."""

    code = "device_timeout"


class DeviceLostError(DeviceError):
    """The chip, or the way to it, went away."""

    code = "device_lost"


class DriverMismatchError(DeviceError):
    """Driver, firmware and library are not of one version."""

    code = "driver_mismatch"


class DeviceFailedError(DeviceError):
    """HailoRT failed in a way that has no code of its own here."""

    code = "device_failed"


_STATUS_OF: Final = {
    "HailoRTInvalidArgumentException": 2,
    "HailoRTTimeout": 4,
    "HailoRTInvalidOperationException": 6,
    "InvalidProtocolVersionException": 15,
    "HailoRTFirmwareControlFailedException": 18,
    "HailoRTInvalidHEFException": 26,
    "HailoRTDriverOperationFailedException": 36,
    "HailoRTUnsupportedOpcodeException": 48,
    "HailoRTNotFoundException": 61,
    "HailoCommunicationClosedException": 62,
    "HailoRTStreamAborted": 63,
    "HailoRTStreamAbortedByUser": 63,
    "HailoRTNetworkGroupNotActivatedException": 69,
    "HailoRTHEFNotCompatibleWithDevice": 93,
}
"""Classes that pyhailort gives to a status; their text does not name it."""

_IN_TEXT: Final = re.compile(r"failed with error: (\d+) ")
_HEF_STATUSES: Final = frozenset({2, 6, 24, 26, 61, 75, 91, 92, 93})
"""While a HEF is being loaded, wrong arguments and operations come from what is in it."""

_KINDS: Final[tuple[tuple[type[DeviceError], frozenset[int]], ...]] = (
    (NoDeviceError, frozenset({64})),
    (DeviceBusyError, frozenset({73, 74})),
    (DeviceTimeoutError, frozenset({4, 87})),
    (DriverMismatchError, frozenset({15, 16, 23, 37, 38, 39, 40, 41, 42, 48, 76, 78, 85, 86})),
    (DeviceLostError, frozenset({18, 36, 44, 45, 57, 62, 63, 69, 72, 88, 90})),
)
_HINTS: Final[dict[type[DeviceError], str]] = {
    NoDeviceError: "install the driver (hailort-pcie-driver) and look with `hailortcli scan`",
    DeviceBusyError: "end the other process that uses the chip; this one takes over by itself",
    DriverMismatchError: "install driver, firmware, library and Python package of one HailoRT version",
    DeviceLostError: "look at the card's seat, power and temperature, and at `dmesg | grep hailo`",
}


def status_of(error: BaseException) -> int | None:
    """HailoRT's status behind an exception of its package; None where it has none.

    A status leaks as ``HailoRTStatusException('N')`` from calls that the package does not wrap, and
    is the cause of the wrapped ones.
    """
    for each in (error, error.__cause__):
        if each is None:
            continue
        names = [kind.__name__ for kind in type(each).__mro__]
        if "HailoRTStatusException" in names and each.args and str(each.args[0]).isdecimal():
            return int(each.args[0])
        if found := _IN_TEXT.search(str(each)):
            return int(found[1])
        for name in names:
            if name in _STATUS_OF:
                return _STATUS_OF[name]
    return None


def device_error(error: BaseException, doing: str) -> DeviceError:
    """What an exception from HailoRT means for the device.

    Args:
        error: Any exception that a call into HailoRT let out.
        doing: What was being done: "opening the device".
    """
    status = status_of(error)
    kind = next((kind for kind, statuses in _KINDS if status in statuses), DeviceFailedError)
    text = " ".join(str(error).split())[:300] or "no text"
    number = "" if status is None else f" (status {status})"
    what = f"{doing}: {type(error).__name__}: {text}{number}"
    return kind(what, where="HailoRT", hint=_HINTS.get(kind, LOG_HINT))


def loading_error(error: BaseException, artifact: str) -> EngineError:
    """What an exception means that came while an artifact was being loaded.

    Returns:
        HefRefusedError where the artifact is at fault, else what ``device_error`` says.
    """
    found = device_error(error, f"loading {artifact}")
    if status_of(error) not in _HEF_STATUSES:
        return found
    return HefRefusedError(
        found.what,
        where=artifact,
        hint="the HEF must be for this chip, from a compiler that this HailoRT reads, with one network group",
    )
