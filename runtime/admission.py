"""Who is let in to be inferred: what waits is bounded by number and by age, and a batch by turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from runtime.answers import Answer, error_answer
from runtime.infer_body import MAX_WINDOWS

IN_TIME_SECONDS: Final = 0.040
"""From a single window's being there in whole to its answer. EdgeInfer reads for 45 ms: what is later
keeps the chip from what could be in time. Batches of two and more windows are exempt."""

SLICE_SECONDS: Final = 0.002
"""For how long one thing is gone on with before everybody else has a turn; one window at least."""

MOST_IN_BATCHES: Final = 4 * MAX_WINDOWS
"""Windows of batches that wait for their turn; further batches hear 503."""

_LATELY: Final = 8


class AnsweredError(Exception):
    """Ends a request with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class BatchTurns:
    """One batch at a time; bounded in how many windows wait."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self, windows: int) -> AsyncIterator[None]:
        """Wait for a turn, or hear at once that it would take too long."""
        if self.waiting and self.waiting + windows > MOST_IN_BATCHES:
            raise overloaded(f"{self.waiting} windows of other batches wait for their turn")
        self.waiting += windows
        try:
            async with self._one:
                yield
        finally:
            self.waiting -= windows


class Pace:
    """What a window has taken lately, and who is still answered in time by it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def took(self, seconds: float) -> None:
        """One window took this long."""
        self.seconds += (seconds - self.seconds) / _LATELY if self.seconds else seconds

    def check(self, waited: float) -> None:
        """Refuse who cannot be answered in time any more.

        Who has waited for less than half of it is run whatever was measured: else one slow window would
        refuse all that come after it, and nothing would be measured again.

        Args:
            waited: Seconds since the whole request was there.

        Raises:
            AnsweredError: 503.
        """
        if waited > IN_TIME_SECONDS / 2 and waited + self.seconds > IN_TIME_SECONDS:
            most = IN_TIME_SECONDS * 1000
            raise overloaded(f"waited {waited * 1000:.1f} ms and would not be answered within {most:g} ms")


def windows_in_slice(seconds: float, windows: int, most: int) -> int:
    """How many windows the next slice of a batch has: as many as ``SLICE_SECONDS`` allow, one at least.

    Args:
        seconds: What the slice before took.
        windows: How many it had; 0 where there was none, and one window tells.
        most: However fast they are.
    """
    if not windows:
        return 1
    fit = most if seconds <= 0 else int(SLICE_SECONDS * windows / seconds)
    return max(1, min(most, fit))


def overloaded(what: str) -> AnsweredError:
    """503: ask again."""
    return AnsweredError(error_answer(503, "overloaded", what))
