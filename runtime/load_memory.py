"""Which release was being loaded when a process ended, so that the next one does not load it at once."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from runtime.contract.errors import PipelineError
from runtime.contract.files import read_bounded, sync_directory, write_document
from runtime.contract.release import check_digest

MEMORY_FD: Final = "RUNTIME_MEMORY_FD"
"""Set by gunicorn.conf.py: a file in memory that its workers inherit, one after the other."""

_NAME: Final = "loading.json"
_UNREADABLE: Final = (
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
    PipelineError,
)
_MOST_BYTES: Final = 4096


class LoadMemory:
    """Which release is being loaded just now, so that who comes after a crash knows.

    Args:
        folder: ``STATE_DIR``: outlives everything; None for what gunicorn's workers inherit.
        descriptor: The file in memory that they do; None where there is none either.
    """

    def __init__(self, folder: Path | None, descriptor: int | None = None) -> None:
        self._path = folder / _NAME if folder else None
        self._descriptor = descriptor
        self.left, self.crashes = "", 0
        """The release at whose loading the process before this one ended, and how often in a row."""
        self.serving = ""
        """What that process served; empty where ``STATE_DIR`` knows it."""
        with contextlib.suppress(*_UNREADABLE):
            known = json.loads(self._read())
            if known.get("serving") and folder is None:
                check_digest(known["serving"], "serving")
                self.serving = known["serving"]
            if known["loading"]:
                check_digest(known["loading"], "loading")
                self.left, self.crashes = known["loading"], int(known["crashes"])

    @classmethod
    def of_process(cls, folder: Path | None) -> LoadMemory:
        """As gunicorn.conf.py left it in the environment."""
        text = os.environ.get(MEMORY_FD, "")
        return cls(folder, int(text) if text.isdecimal() else None)

    @contextlib.contextmanager
    def loading(self, release: str) -> Iterator[None]:
        """Remember it while it is loaded."""
        self._note(release, (self.crashes if release == self.left else 0) + 1)
        try:
            yield
            self.serving = release
        finally:
            self.forget()

    def forget(self) -> None:
        """Nothing is being loaded: also what is still under way where the process ends in its own order.

        ``compose`` has it run at exit, and ``RuntimeWorker`` makes a signal to end such an exit, also while
        the first release is loaded. What hangs in a driver then until it is killed is remembered.
        """
        if self._note("", 0) or self._path is None:
            return
        # A full disk bears no new note, but what it holds can be taken away: it would count as a crash.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            sync_directory(self._path.parent)

    def _note(self, loading: str, crashes: int) -> bool:
        """Whether it could be."""
        note = {"loading": loading, "crashes": crashes, "serving": self.serving}
        return self._write(json.dumps(note).encode())

    def _read(self) -> bytes:
        if self._path is not None:
            return read_bounded(self._path, _MOST_BYTES)
        return b"{}" if self._descriptor is None else os.pread(self._descriptor, _MOST_BYTES, 0)

    def _write(self, data: bytes) -> bool:
        # Serving matters more than remembering: what cannot be noted is not, as with the rest of STATE_DIR.
        with contextlib.suppress(OSError):
            if self._path is not None:
                write_document(self._path, data)
            elif self._descriptor is not None:
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, data, 0)
            return True
        return False
