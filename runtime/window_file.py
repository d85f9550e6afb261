"""Windows from a file, one after the other, and their latents into another."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np

from runtime.contract.errors import ReleaseNotFoundError, WindowShapeError, WindowValueError, store_errors
from runtime.contract.files import NotRegularError, open_regular, write_document
from runtime.contract.window import CHANNELS, LATENT_SIZE, WINDOW_SHAPE, FloatArray, Window

WINDOWS: Final = "windows"
LATENTS: Final = "latents"
MAX_WINDOWS: Final = 100_000
_MEMBER: Final = f"{WINDOWS}.npy"
_WINDOW_BYTES: Final = 4 * WINDOW_SHAPE[0] * WINDOW_SHAPE[1]
_SAVED: Final = (
    f"np.savez(file, {WINDOWS}=...): float32 (N, {WINDOW_SHAPE[0]}, {WINDOW_SHAPE[1]}), physical units"
)


def read_windows(path: Path) -> Iterator[tuple[int, Window]]:
    """Read the windows of a file; never more than one is in memory.

    Args:
        path: npz with ``windows``: float32 (N, 100, 9), finite, physical units, N from 1 to
            ``MAX_WINDOWS``.

    Yields:
        Index and window.

    Raises:
        ReleaseNotFoundError: No such file.
        WindowShapeError: No npz, no ``windows`` in it, another type, shape or order, too many, or the
            file ends before they do.
        WindowValueError: A value is not finite; names window, time and channel.
        StoreError: The file cannot be read.
    """
    with store_errors(path), contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(open_regular(path))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, NotRegularError) as error:
            raise ReleaseNotFoundError(
                f"no such file of windows: {error.strerror}", where=str(path)
            ) from error
        with _archive_errors(path):
            archive = opened.enter_context(zipfile.ZipFile(file))
            member = opened.enter_context(archive.open(_MEMBER))
            count = _count(member, path)
        for index in range(count):
            with _archive_errors(path):
                data = member.read(_WINDOW_BYTES)
            if len(data) != _WINDOW_BYTES:
                raise WindowShapeError(f"ends within window {index} of {count}", where=str(path))
            yield index, _window(data, index, path)
        with _archive_errors(path):
            # Only at its end does zipfile compare the checksum.
            if member.read(1):
                raise WindowShapeError(f"has more bytes than {count} windows", where=str(path))


def write_latents(path: Path, latents: FloatArray) -> None:
    """Write float32 (N, 64) as ``latents`` of an npz, whole or not at all.

    Raises:
        StoreError: It cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **{LATENTS: np.ascontiguousarray(latents.reshape(-1, LATENT_SIZE))})  # type: ignore[arg-type]
    with store_errors(path):
        write_document(path, buffer.getvalue())


@contextlib.contextmanager
def _archive_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, WindowShapeError):
        raise
    except Exception as error:
        # zipfile and numpy raise nearly anything for a file that is none of theirs.
        what = f"is no npz with {WINDOWS!r}: {type(error).__name__}: {error}"
        raise WindowShapeError(what, where=str(path), hint=_SAVED) from error


def _count(member: IO[bytes], path: Path) -> int:
    """N, from the array's header, before anything of that size is read."""
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        # Later formats may announce a header of 4 GB, which numpy reads before it looks at it.
        raise ValueError(f"array format {version[0]}.{version[1]}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(member)
    if dtype != np.dtype("<f4") or len(shape) != 3 or shape[1:] != WINDOW_SHAPE:
        raise WindowShapeError(f"{WINDOWS!r} is {dtype} {shape}", where=str(path), hint=_SAVED)
    if fortran_order:
        raise WindowShapeError(
            f"{WINDOWS!r} is stored column by column", where=str(path), hint="np.ascontiguousarray(windows)"
        )
    count = int(shape[0])
    if not 1 <= count <= MAX_WINDOWS:
        raise WindowShapeError(f"{count} windows, 1 to {MAX_WINDOWS} are read", where=str(path))
    return count


def _window(data: bytes, index: int, path: Path) -> Window:
    window: Window = np.frombuffer(data, "<f4").astype(np.float32).reshape(WINDOW_SHAPE)
    finite = np.isfinite(window)
    if not finite.all():
        time, channel = (int(i) for i in np.argwhere(~finite)[0])
        raise WindowValueError(
            f"{window[time, channel]} is not finite (time {time}, channel {CHANNELS[channel]})",
            where=f"{path}, window {index}",
        )
    return window
