"""One writer at a time in a store. Readers do without: what they see is whole at every moment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from runtime.contract.errors import StoreBusyError, StoreError, store_errors
from runtime.contract.files import make_directory

LOCK_NAME: Final = ".lock"
PATIENCE_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.02


@contextlib.contextmanager
def writing(root: Path, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold a store for one writer; the kernel gives it back however the writer ends.

    Raises:
        StoreBusyError: Somebody holds it for longer than ``patience`` seconds; says which process.
        StoreError: The store cannot be written.
    """
    path = root / LOCK_NAME
    with store_errors(path):
        make_directory(root)
        # Not what a link names: it is written to.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _refuse_another_file(descriptor, path)
        with store_errors(path):
            _open_to_those_of(root, descriptor)
        _take(descriptor, path, patience)
        with store_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _refuse_another_file(descriptor: int, path: Path) -> None:
    """It is written to: a second name may be that of a key."""
    if os.fstat(descriptor).st_nlink > 1:
        raise StoreError(
            "is another file, too", where=str(path), hint="remove it: no writer needs it to be kept"
        )


def _open_to_those_of(root: Path, descriptor: int) -> None:
    """Let whoever may write into the folder take its lock; its owner gives it the folder's rights."""
    folder, lock = root.stat(), os.fstat(descriptor)
    if lock.st_uid != os.geteuid() or lock.st_nlink != 1:
        return  # somebody else's, or another file, too
    wanted = folder.st_mode & 0o666 | 0o600
    if lock.st_gid != folder.st_gid:
        try:
            os.fchown(descriptor, -1, folder.st_gid)
        except PermissionError:
            wanted &= ~0o020  # it would let in a group that is not the folder's
    if stat.S_IMODE(lock.st_mode) != wanted:
        os.fchmod(descriptor, wanted)


def _take(descriptor: int, path: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        with store_errors(path), contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > deadline:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise StoreBusyError(
                f"process {holder or 'unknown'} writes to it for more than {patience:g} s",
                where=str(path),
                hint="wait for it to end; a process that ended holds nothing",
            )
        time.sleep(_LOOK_SECONDS)
