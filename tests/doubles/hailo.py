"""Puts the HailoRT double in front of a test: in this process, or in one that it starts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

PLACE = Path(__file__).parent


class HailoDouble:
    """A chip of a test's own, shared by every process that has ``environment``.

    Args:
        folder: Where its settings, its lock and its journal are.
        settings: As ``_settings.DEFAULTS``, what should be otherwise.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._settings: dict[str, Any] = {}
        self.set(**settings)

    def set(self, **settings: Any) -> None:
        """Behave otherwise from now on."""
        self._settings |= settings
        made = self.folder / "settings.new"
        made.write_text(json.dumps(self._settings))
        made.replace(self.folder / "settings.json")

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that finds the double, and keeps its lock in the folder."""
        paths = [str(PLACE), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            "PYTHONPATH": os.pathsep.join(paths),
            "HAILO_DOUBLE": str(self.folder),
            "HAILO_LOCK_DIR": str(self.folder),
        }

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process find it, freshly imported, until the test ends."""
        files = (PLACE / "hailo_platform").rglob("*.py")
        parts = (file.relative_to(PLACE).with_suffix("").parts for file in files)
        for name in {".".join(part for part in each if part != "__init__") for each in parts}:
            # Set first, so that it is gone again when the test ends.
            monkeypatch.setitem(sys.modules, name, sys)
            del sys.modules[name]
        monkeypatch.setenv("HAILO_DOUBLE", str(self.folder))
        monkeypatch.syspath_prepend(str(PLACE))

    def journal(self) -> list[str]:
        """Who opened the chip and let go of it, in order."""
        path = self.folder / "journal"
        return path.read_text().splitlines() if path.exists() else []
