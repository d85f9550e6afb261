"""The folder of telemetry files: each there whole or not at all, all together within a bound."""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.files import list_directory, make_directory, sync_directory, write_synced
from runtime.contract.telemetry import ENDING

MOST_FILES: Final = 4096
LEFTOVER_SECONDS: Final = 600.0
"""After which a file that is still being written belongs to a process that was killed."""

_PART: Final = ".part-"
_NAME: Final = re.compile(
    r"windows-([0-9]{8}T[0-9]{6})-([0-9]{6})Z-[0-9]{1,10}-([0-9]{1,6})" + re.escape(ENDING)
)
_LATEST: Final = 9000
"""The last year that a name of ours bears: behind a later one there would soon be no room."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a folder holds.

    Args:
        files: How many files.
        size: Their bytes.
        removed: Windows of older files that gave way.
    """

    files: int
    size: int
    removed: int = 0


def _microseconds(name: str) -> int | None:
    """Since 1970, as a name says; None where it says no time."""
    found = _NAME.fullmatch(name)
    try:
        parsed = time.strptime(found[1], "%Y%m%dT%H%M%S") if found else None
    except ValueError:
        return None
    if found is None or parsed is None or not 1970 <= parsed.tm_year <= _LATEST:
        return None
    return calendar.timegm(parsed) * 10**6 + int(found[2])


class TelemetryFolder:
    """Writes files of its own into a folder, and removes the oldest of them where there is no room.

    Several runtimes may share one. Whatever else lies there is left alone.

    Args:
        folder: Made where it is missing.
        most_bytes: Of all its files together.
        clock: Seconds since 1970.
    """

    def __init__(self, folder: Path, most_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._most_bytes, self._clock = folder, most_bytes, clock

    def look(self) -> Kept:
        """What is there.

        Raises:
            OSError: It cannot be read.
        """
        sizes = self._sizes()
        return Kept(files=len(sizes), size=sum(sizes.values()))

    def write(self, data: bytes, windows: int) -> Kept:
        """Write a file; older ones give way first, so that the bound holds at every moment.

        Args:
            data: Its bytes.
            windows: How many windows it holds, for its name.

        Returns:
            What is there now.

        Raises:
            OSError: It cannot be written, or is larger than the bound; nothing of it is left.
        """
        if len(data) > self._most_bytes:
            raise OSError(None, f"a file of {len(data)} bytes, all may have {self._most_bytes}")
        make_directory(self._folder)
        self._tidy()
        sizes, removed = self._sizes(), 0
        name = self._free_name(windows, sizes)
        # The first is the oldest: names begin with a time, and a new one is behind all that are there.
        for old in sorted(sizes):
            if sum(sizes.values()) + len(data) <= self._most_bytes and len(sizes) < MOST_FILES:
                break
            (self._folder / old).unlink(missing_ok=True)
            del sizes[old]
            found = _NAME.fullmatch(old)
            removed += int(found[3]) if found else 0
        part = self._folder / f"{_PART}{name}"
        try:
            # Raw windows of somebody's sensors: nobody else on the machine reads them.
            write_synced(part, data, 0o600)
            part.replace(self._folder / name)
            sync_directory(self._folder)
        finally:
            part.unlink(missing_ok=True)
        return Kept(files=len(sizes) + 1, size=sum(sizes.values()) + len(data), removed=removed)

    def _free_name(self, windows: int, there: Iterable[str]) -> str:
        """A name behind all others, also where the clock began behind them, or stands still.

        A Pi without a battery for its clock begins in the past: named by it, what is newest would give way.
        """
        now = int(self._clock() * 1e6)
        latest = next(filter(None, map(_microseconds, sorted(there, reverse=True))), now - 1)
        now = max(now, latest + 1)
        while True:
            seconds, part = divmod(now, 10**6)
            text = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
            name = f"windows-{text}-{part:06}Z-{os.getpid()}-{windows}{ENDING}"
            if not os.path.lexists(self._folder / name):
                return name
            now += 1

    def _sizes(self) -> dict[str, int]:
        sizes = {}
        for name in list_directory(self._folder):
            if _NAME.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):  # another runtime's, just removed
                    found = (self._folder / name).lstat()
                    if stat.S_ISREG(found.st_mode):
                        sizes[name] = found.st_size
        return sizes

    def _tidy(self) -> None:
        """Remove what killed processes left half written."""
        for name in list_directory(self._folder):
            if name.startswith(_PART) and _NAME.fullmatch(name.removeprefix(_PART)):
                path = self._folder / name
                with contextlib.suppress(OSError):
                    if abs(self._clock() - path.lstat().st_mtime) > LEFTOVER_SECONDS:
                        path.unlink()
