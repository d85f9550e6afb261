"""What a test wants of the double: a file that is read again whenever it changed.

The folder is named by ``HAILO_DOUBLE``; it also holds the chip (a lock, so that only one process
has it) and a journal of who opened and let go of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

DEFAULTS: dict[str, Any] = {
    "version": "4.23.0",
    "binding_version": None,  # as version
    "devices": ["0000:01:00.0"],
    "architecture": 1,  # DeviceArchitectureTypes
    "firmware": [4, 23, 0],
    "serial": "HLLWM2B000000042",
    "configure_ms": 300,
    "open_status": 0,
    "identify_status": 0,
    "configure_status": 0,
    "shown_input": None,  # shape, instead of the HEF's
    "ready_status": 0,
    "run_status": 0,
    "completion_status": 0,
    "run_ms": 0,  # what a window takes at least
    "hangs": False,
    "doomed": {},  # sha256 of a HEF to where it ends: "hef" or "configure" (the process), "run" (hangs)
    "silent": False,  # says that it is done and wrote nothing
    "leaks": False,  # what is wrapped elsewhere comes as HailoRTStatusException
    "temperature": [41.5, 43.25],
    "temperature_status": 0,
    "reading_hangs": False,
    "power": 1.75,
    "power_status": 0,
}


class Settings:
    """``settings.json`` in the folder; what it does not say is as ``DEFAULTS``."""

    def __init__(self) -> None:
        self.folder = Path(os.environ["HAILO_DOUBLE"])
        self._seen: tuple[int, int] = (0, 0)
        self._values: dict[str, Any] = {}

    def read(self, name: str) -> Any:
        """One value, as it is now."""
        path = self.folder / "settings.json"
        try:
            found = path.stat()
        except FileNotFoundError:
            return DEFAULTS[name]
        seen = (found.st_mtime_ns, found.st_ino)
        if seen != self._seen:
            self._values, self._seen = json.loads(path.read_text()), seen
        return self._values.get(name, DEFAULTS[name])

    def note(self, what: str) -> None:
        """Add a line to the journal."""
        with (self.folder / "journal").open("a") as journal:
            journal.write(f"{what} {os.getpid()}\n")


SETTINGS = Settings()
