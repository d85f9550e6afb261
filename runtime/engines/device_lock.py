"""One process on the chip: a lock that the kernel gives back when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final, Self

from runtime.engines.hailo_errors import DeviceBusyError, DeviceLockError

FOLDERS: Final = (Path("/run/lock"), Path("/tmp"))
"""Tried in turn where ``HAILO_LOCK_DIR`` says nothing: a container may have a read-only root."""

NAME: Final = "hailo-pipeline.lock"
_HINT: Final = "HAILO_LOCK_DIR names a folder that every process that wants the chip shares"


class DeviceLock:
    """An exclusive lock on a file; ``release`` or the end of the process gives it back.

    ``flock`` belongs to the open file, which no child inherits: a worker that dies leaves nothing
    behind that would have to be cleaned up, and the file itself stays for the next one.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def take(cls, folder: Path | None = None) -> Self:
        """Take the lock, or say at once who has it.

        Args:
            folder: Where the file is; None tries ``FOLDERS``.

        Raises:
            DeviceBusyError: Another process, or this one already, has it.
            DeviceLockError: No such file can be opened.
        """
        descriptor, path = _open(FOLDERS if folder is None else (folder,))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise DeviceBusyError(
                f"process {holder or 'of an unknown id'} has the chip; this one waits for it",
                where=str(path),
                hint="it is taken over when that process has ended",
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise DeviceLockError(f"{error.strerror}", where=str(path), hint=_HINT) from error
        with contextlib.suppress(OSError):  # Somebody else's file may be read only: it locks all the same.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(descriptor, path)

    def release(self) -> None:
        """Give it back; again changes nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _open(folders: tuple[Path, ...]) -> tuple[int, Path]:
    problems = []
    for folder in folders:
        path = folder / NAME
        # First without creating: in a sticky folder a foreign file may be opened, but not with O_CREAT.
        for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDONLY):
            try:
                descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            except OSError as error:
                problems.append(f"{path}: {error.strerror}")
            else:
                return descriptor, path
    raise DeviceLockError("; ".join(dict.fromkeys(problems)), where="lock", hint=_HINT)


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        text = os.pread(descriptor, 16, 0).decode("ascii", "replace").strip()
        return text if text.isdecimal() else ""
    return ""
