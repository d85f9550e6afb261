"""Exceptions of the Python part, and what turns a status into one."""

from __future__ import annotations

from types import TracebackType

from . import _pyhailort
from ._pyhailort import SETTINGS, HailoRTStatusException


class HailoRTException(Exception):
    """As the real one."""


class HailoRTTimeout(HailoRTException):
    """Status 4."""


class HailoRTStreamAborted(HailoRTException):
    """Status 63."""


class HailoRTStreamAbortedByUser(HailoRTException):
    """As the real one."""


class HailoRTInvalidOperationException(HailoRTException):
    """Status 6."""


class HailoRTInvalidArgumentException(HailoRTException):
    """Status 2."""


class HailoRTNotFoundException(HailoRTException):
    """Status 61."""


class HailoRTInvalidHEFException(HailoRTException):
    """Status 26."""


class HailoRTHEFNotCompatibleWithDevice(HailoRTException):
    """Status 93, from 4.21."""


class HailoRTDriverOperationFailedException(HailoRTException):
    """Status 36."""


class HailoRTNetworkGroupNotActivatedException(HailoRTException):
    """Status 69."""


class HailoCommunicationClosedException(HailoRTException):
    """Status 62."""


class HailoRTFirmwareControlFailedException(HailoRTException):
    """Status 18."""


class HailoStatusInvalidValueException(Exception):
    """A status without a name."""


NAMED: dict[int, type[HailoRTException]] = {
    4: HailoRTTimeout,
    63: HailoRTStreamAborted,
    6: HailoRTInvalidOperationException,
    2: HailoRTInvalidArgumentException,
    61: HailoRTNotFoundException,
    26: HailoRTInvalidHEFException,
    93: HailoRTHEFNotCompatibleWithDevice,
    36: HailoRTDriverOperationFailedException,
    69: HailoRTNetworkGroupNotActivatedException,
    62: HailoCommunicationClosedException,
    18: HailoRTFirmwareControlFailedException,
}


class ExceptionWrapper:
    """Turns a status into an exception; a test may let it leak."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(value, HailoRTStatusException) and not SETTINGS.read("leaks"):
            raise self.create_exception_from_status(int(value.args[0])) from value

    @staticmethod
    def create_exception_from_status(status: int) -> HailoRTException:
        """Its own class where there is one, else the bare one with number and name."""
        name = _pyhailort.get_status_message(status)
        if not name:
            raise HailoStatusInvalidValueException(f"Value {status} is not a valid status")
        if status in NAMED:
            return NAMED[status]("See hailort.log for more information")
        return HailoRTException(f"libhailort failed with error: {status} ({name})")
