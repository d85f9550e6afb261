"""Files that appear whole or not at all: written beside, synced, renamed. Read without surprises."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

LEFTOVERS: Final = (".document-", ".entry-", ".incoming-", ".pruned-")
"""How names begin that a killed writer may leave; nobody reads them, and a prune takes them away."""


Contents = bytes | Iterable[bytes]
"""Bytes of a file, or pieces of them in turn, read once, while it is written."""


class NotRegularError(OSError):
    """Something that has no bytes of its own: a pipe, a device."""


def is_no_file(error: BaseException | None, path: Path) -> bool:
    """Whether a name cannot be opened for what it is, not for rights or a failing disk.

    A folder, a pipe, a socket: no other reader would get further. And a link, whatever is amiss where it
    leads: to a name that is too long, to what nobody may read, to a file of the kernel's.
    """
    if isinstance(error, OSError) and path.is_symlink():
        return True
    known = FileNotFoundError | NotADirectoryError | IsADirectoryError | NotRegularError
    return isinstance(error, known) or (
        isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENXIO)
    )


def read_bounded(path: Path, limit: int) -> bytes:
    """Bytes of a regular file, one more than ``limit`` at most.

    Neither a length that a manifest claims nor a file that grows decides what is allocated, and
    nothing that is no file makes the reader wait.

    Raises:
        NotRegularError: A pipe or a device.
        OSError: It cannot be read, IsADirectoryError among them.
    """
    with open_regular(path) as file:
        return file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file to read, without waiting for anything.

    Raises:
        NotRegularError: A pipe or a device.
        OSError: It cannot be opened.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotRegularError(None, "is no regular file", str(path))
    return file


def _open_at_once(path: str, flags: int) -> int:
    # A pipe without a writer would keep a plain open waiting for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def is_directory(path: Path) -> bool:
    """Whether a directory is there; False for a file and for nothing.

    Raises:
        OSError: It cannot be told: no rights, links in a circle, too long a name. pathlib would
            say False to some of these and raise for others, as its version goes.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def list_directory(path: Path) -> list[str]:
    """Names in a directory, sorted; none where nothing is there.

    Raises:
        OSError: It cannot be read, is a file, or is a link to nothing.
    """
    try:
        return sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError:
        if os.path.lexists(path):
            raise
        return []


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing, all on the disk when this returns."""
    missing = []
    for there in (path, *path.parents):
        if is_directory(there):
            break
        missing.append(there)
    # Whoever made it may have been killed before this; above a store there may be nothing to see.
    with contextlib.suppress(PermissionError):
        sync_directory(there.parent)
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        sync_directory(made.parent)


def write_synced(path: Path, data: Contents, mode: int = 0o444) -> None:
    """Write a read-only file whose bytes are on the disk when this returns.

    Nobody who ``mode`` keeps away can read it meanwhile either. What reading a piece raises comes out.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for piece in (data,) if isinstance(data, bytes) else data:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    make_directory(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=".document-", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        write_synced(temporary, data)
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_directory(directory: Path, files: Mapping[str, Contents], mode: int = 0o444) -> None:
    """Make a directory with these files, at once.

    The directory's name must stand for its content: where another writer was first, its directory
    stays, and is the same.

    Args:
        directory: Made with those above it.
        files: Name to what is in it.
        mode: Of each file.

    Raises:
        OSError: It cannot be written; nothing is left beside it.
    """
    make_directory(directory.parent)
    staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=directory.parent))
    try:
        for name, data in files.items():
            write_synced(staging / name, data, mode)
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


def clear_way(path: Path) -> None:
    """Move aside what is no file where a document is to be written: a folder cannot be renamed over."""
    if path.is_dir() and not path.is_symlink():
        move_aside(path)


def move_aside(directory: Path) -> Path:
    """Take a damaged directory out of the way, for somebody to look at; it keeps files and name.

    Returns:
        Where it is now.
    """
    grave = Path(tempfile.mkdtemp(prefix=f".damaged-{directory.name[:16]}-", dir=directory.parent))
    try:
        return directory.rename(grave / directory.name)
    except OSError:
        grave.rmdir()
        raise
