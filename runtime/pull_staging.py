"""The staging folder of a pull: its lock, what was copied, and what is taken away again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from runtime.contract.channels import is_entry_name
from runtime.contract.errors import StoreBusyError, store_errors
from runtime.contract.files import list_directory, read_bounded
from runtime.contract.trust import MAX_ENVELOPE_BYTES

STAGING: Final = ".pull"
"""In the store, so that a rename is all that is left to do; no reader looks at it, and a prune leaves it."""
LOCK_NAME: Final = "lock"
_PATIENCE_SECONDS: Final = 5.0
"""How long an rsync that a killed pull left may take to end."""
_LOOK_SECONDS: Final = 0.02


@contextlib.contextmanager
def alone(path: Path) -> Iterator[int]:
    """Be the only pull into a store; the descriptor of the lock."""
    with store_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with store_errors(path), contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise StoreBusyError("another pull is at work", where=str(path), hint="wait for it to end")
            time.sleep(_LOOK_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


class Staged:
    """What was copied, as ``arrivals`` reads it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        with store_errors(folder):
            return [name for name in list_directory(folder) if is_entry_name(name)]

    def read(self, name: str) -> bytes:
        path = self.root / name
        with store_errors(path):
            return read_bounded(path, MAX_ENVELOPE_BYTES)


def sweep(staging: Path, wanted: Collection[str]) -> None:
    """Take away what no pull goes on with; the caller holds the lock.

    Args:
        staging: The folder.
        wanted: Ids of releases whose parts are kept. Others were begun by a pull that was ended, and the
            source has moved on since.

    Raises:
        StoreError: It cannot be read or written.
    """
    with store_errors(staging):
        # Names that begin with a point: lists and temporary files of whoever was killed.
        for folder, _, files in os.walk(staging):
            for name in files:
                if name.startswith("."):
                    discard(Path(folder) / name)
        for name in list_directory(staging / "releases"):
            if name not in wanted:
                discard(staging / "releases" / name)


def discard(path: Path) -> None:
    """Remove what has this name; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
