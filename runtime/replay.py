"""Golden windows that are run while nobody asks: a release without traffic still gives evidence."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from runtime.active_model import ActiveModel, ModelHolder
from runtime.contract.errors import (
    DeviceError,
    DeviceInUseError,
    EngineError,
    GoldenMismatchError,
    WindowError,
)
from runtime.metrics import RuntimeMetrics

REPLAY_SECONDS: Final = 5.0
_LOGGER: Final = logging.getLogger("runtime.model")


class Replay:
    """Runs one golden window where the last ``REPLAY_SECONDS`` had no window of a client but probes.

    Args:
        holder: What is served.
        metrics: Where it is counted.
        seconds: Between two looks.
    """

    def __init__(self, holder: ModelHolder, metrics: RuntimeMetrics, seconds: float = REPLAY_SECONDS) -> None:
        self._holder, self._metrics, self._seconds = holder, metrics, seconds
        self._seen: tuple[str, int] = ("", 0)

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look from now on, in the event loop: the engine is its own, and a window takes less than 1 ms."""
        loop.call_later(self._seconds, self._again, loop)

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self.look()
        finally:
            self.begin(loop)

    def look(self) -> None:
        """Run one where it is time."""
        model = self._holder.model
        if model is None:
            return
        now = model.release_id, self._metrics.windows_of(model.release_id)
        seen, self._seen = self._seen, now
        if now == seen and (result := self._result(model)):
            self._metrics.replayed(model.release_id, result)

    def _result(self, model: ActiveModel) -> str:
        """Empty where it was not run: it says nothing of the release."""
        try:
            model.repeat_golden_window()
        except DeviceInUseError:
            return ""
        except GoldenMismatchError as error:
            _LOGGER.error("golden window: %s", error, extra={"fields": {"event": "golden_missed"}})
            return "missed"
        except (EngineError, WindowError) as error:
            if isinstance(error, DeviceError):
                self._holder.lost(model, error)
            _LOGGER.error("golden window: %s", error, extra={"fields": {"event": "golden_failed"}})
            return "failed"
        return "repeated"
