"""Files that appear whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_synced(path: Path, data: bytes) -> None:
    """Write a read-only file whose bytes are on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)


def sync_directory(path: Path) -> None:
    """Put a directory's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_document(path: Path, data: bytes) -> None:
    """Write or replace a file; a reader sees the old bytes or the new.

    Raises:
        OSError: It cannot be written; nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".document-", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write_synced(temporary, data)
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """Make a directory with these files, at once.

    The directory's name must stand for its content: where another writer was first, its directory
    stays, and is the same.

    Raises:
        OSError: It cannot be written; nothing is left beside it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=directory.parent))
    try:
        for name, data in files.items():
            write_synced(staging / name, data)
        staging.chmod(0o755)
        sync_directory(staging)
        try:
            staging.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move_aside(directory: Path) -> None:
    """Take a damaged directory out of the way, for somebody to look at; it keeps its files."""
    grave = Path(tempfile.mkdtemp(prefix=f".damaged-{directory.name[:16]}-", dir=directory.parent))
    directory.rename(grave / directory.name)
