"""An engine that fails window after window without a device being lost: nobody is answered, so it is said."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

from runtime.contract.errors import DeviceInUseError, PipelineError, WindowError

MOST_IN_A_ROW: Final = 3
"""Failures without a success between them, from which on ``/healthz`` says ``ok: false``."""

_INTERNAL: Final = "an error of the server's own; its log has it"
_LOGGER: Final = logging.getLogger("runtime.model")


class EngineFailures:
    """Windows that a model failed to run, and golden windows it missed, since it last succeeded.

    The event loop's thread only.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self.reason = self.message = ""

    @property
    def alarm(self) -> bool:
        """Whether the engine is to be called failing."""
        return self.in_a_row >= MOST_IN_A_ROW

    def failed(self, error: Exception) -> None:
        """Count one; a window that is wrong itself, or was not tried, says nothing of the engine."""
        if isinstance(error, WindowError | DeviceInUseError):
            return
        self.in_a_row += 1
        # What is no error of ours to tell is for the log alone.
        self.reason, self.message = "internal", _INTERNAL
        if isinstance(error, PipelineError):
            self.reason, self.message = error.code, str(error)
        if self.in_a_row == MOST_IN_A_ROW:
            fields = {"event": "engine_failing"}
            _LOGGER.error("%d windows in a row failed: %s", MOST_IN_A_ROW, error, extra={"fields": fields})

    def succeeded(self) -> None:
        """One was run: all is well again."""
        if self.alarm:
            fields = {"event": "engine_recovered"}
            _LOGGER.warning("a window ran after %d that failed", self.in_a_row, extra={"fields": fields})
        self.in_a_row = 0

    def told(self) -> dict[str, object] | None:
        """For ``/healthz``; None where the last window was run."""
        return {"failed_in_a_row": self.in_a_row, "last": self.message} if self.in_a_row else None


class _Counts(Protocol):
    failures: EngineFailures


_Model = TypeVar("_Model", bound=_Counts)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def counted(
    method: Callable[Concatenate[_Model, _Given], _Result],
) -> Callable[Concatenate[_Model, _Given], _Result]:
    """Count in ``failures`` how this method ends."""

    @functools.wraps(method)
    def run(model: _Model, /, *args: _Given.args, **named: _Given.kwargs) -> _Result:
        try:
            result = method(model, *args, **named)
        except Exception as error:
            model.failures.failed(error)
            raise
        if model.failures.in_a_row:
            model.failures.succeeded()
        return result

    return run
