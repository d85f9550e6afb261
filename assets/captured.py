"""What runtimes kept, read from a folder: within bounds, each window once, nothing in a file trusted."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.document import sha256_bytes
from runtime.contract.files import read_bounded
from runtime.contract.telemetry import (
    ENDING,
    MOST_FILE_BYTES,
    KeptWindow,
    TelemetryError,
    TelemetryFile,
    parse_file,
)

MOST_FILES: Final = 16_384
MOST_WINDOWS: Final = 65_536
"""250 MB of windows; what is beyond is named as left out."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file that was not read, and why."""

    file: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One window, once, however often it was kept.

    Args:
        id: SHA-256 of its values.
        kept: As it was kept first, with the reasons of all.
        file: Where, below the folder.
        machine: On which.
    """

    id: str
    kept: KeptWindow
    file: str
    machine: str


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What a folder held."""

    windows: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    files: int


def read_folder(folder: Path) -> Captured:
    """Read every telemetry file of a folder and those below it, without following a link.

    Raises:
        TelemetryError: The folder cannot be read.
    """
    if not folder.is_dir():
        raise TelemetryError(
            "is no folder", where=str(folder), hint="copy a Pi's TELEMETRY_DIR there: docs/telemetry.md"
        )
    found: dict[str, Candidate] = {}
    left_out: list[LeftOut] = []
    read = 0
    for path in _files(folder, left_out):
        name = str(path.relative_to(folder))
        try:
            held = _read(path, name)
            if len(found) + len(held.windows) > MOST_WINDOWS:
                raise TelemetryError(f"more than {MOST_WINDOWS} windows altogether", where=name)
        except TelemetryError as error:
            left_out.append(LeftOut(file=_shown(name), why=str(error)))
            continue
        read += 1
        for kept in held.windows:
            _add(found, kept, name, held.origin.machine)
    # By time and then by value: the same files give the same order, whatever they are called.
    windows = tuple(sorted(found.values(), key=lambda each: (each.kept.time, each.id)))
    return Captured(windows=windows, left_out=tuple(left_out), files=read)


def _files(folder: Path, left_out: list[LeftOut]) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            if name.startswith("."):
                continue  # half written
            if not name.endswith(ENDING):
                left_out.append(LeftOut(file=_shown(str(path.relative_to(folder))), why="no telemetry file"))
            elif len(found) >= MOST_FILES:
                why = f"more than {MOST_FILES} files"
                left_out.append(LeftOut(file=_shown(str(path.relative_to(folder))), why=why))
            else:
                found.append(path)
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise TelemetryError(f"cannot be read: {error.strerror}", where=str(error.filename)) from error


def _read(path: Path, name: str) -> TelemetryFile:
    if path.is_symlink():
        raise TelemetryError("is a link", where=_shown(name))
    try:
        data = read_bounded(path, MOST_FILE_BYTES)
    except OSError as error:
        raise TelemetryError(f"cannot be read: {error.strerror or error}", where=_shown(name)) from error
    return parse_file(data, _shown(name))


def _shown(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _add(found: dict[str, Candidate], kept: KeptWindow, file: str, machine: str) -> None:
    identifier = sha256_bytes(kept.window.astype("<f4").tobytes())
    new = Candidate(id=identifier, kept=kept, file=_shown(file), machine=machine)
    old = found.get(identifier, new)
    first = min(old, new, key=lambda each: (each.kept.time, each.file))
    reasons = tuple(sorted({*old.kept.reasons, *kept.reasons}))
    found[identifier] = dataclasses.replace(first, kept=dataclasses.replace(first.kept, reasons=reasons))
