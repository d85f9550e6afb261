"""Lists what is in a Hailo Archive (HAR) without Hailo's compiler: an uncompressed tar.

Nothing is extracted, and no length that the archive claims decides what is read.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.contract.errors import PipelineError
from runtime.contract.files import open_regular

MAX_MEMBERS: Final = 1000
MAX_METADATA_BYTES: Final = 1024 * 1024
MAX_METADATA: Final = 8
MAX_DEPTH: Final = 4
MAX_READ_BYTES: Final = 2 * 1024 * 1024
"""Of one read, whoever asks: tarfile would read a header's extension of any size at once."""
MAX_FACTS: Final = 64
MAX_FACT_LENGTH: Final = 200
KINDS: Final = {
    ".hn": "graph",
    ".npz": "weights",
    ".metadata.json": "metadata",
    ".alls": "model script",
    ".hef": "HEF",
    ".json": "JSON",
}

Fact = str | int | float | bool | None


class HarError(PipelineError):
    """A file that is not a Hailo Archive, or not a whole one."""

    code = "har"


@dataclass(frozen=True, kw_only=True)
class HarMember:
    """One file in the archive; ``kind`` is one of ``KINDS``, ``other``, or ``not a file``."""

    name: str
    size: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class HarFile:
    """What is in an archive.

    Args:
        size: Bytes of the archive.
        members: In the archive's order.
        facts: What its metadata say, dotted key to value; at most ``MAX_FACTS``.
        notes: What was left out, one sentence each.
    """

    size: int
    members: tuple[HarMember, ...]
    facts: dict[str, Fact]
    notes: tuple[str, ...]


class _BoundedFile(io.RawIOBase):
    """Refuses to read much at once."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise HarError(f"has a header of {size} bytes, at most {MAX_READ_BYTES} are read")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def read_har(path: Path) -> HarFile:
    """List an archive, and read its metadata.

    Raises:
        HarError: It cannot be read, is compressed or no tar, is cut off, or holds no graph.
    """
    place = str(path)
    try:
        with open_regular(path) as file:
            head = file.read(6)
            file.seek(0)
            _refuse_compressed(head, place)
            with tarfile.open(fileobj=_BoundedFile(file), mode="r:", errors="backslashreplace") as archive:
                found = _list(archive, os.fstat(file.fileno()).st_size, place)
                # tarfile takes a damaged header, and the end of the file, for the end of the archive.
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise HarError(
                        f"is damaged or cut off after {len(found.members)} members", hint="copy it again"
                    )
                return found
    except HarError as error:
        raise error if error.where else HarError(error.what, where=place, hint=error.hint) from error
    except Exception as error:
        # tarfile promises no family of errors for bytes that are none.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise HarError(
            f"cannot be read as a HAR: {reason or type(error).__name__}",
            where=place,
            hint="a HAR is an uncompressed tar; copy it again from where it was made",
        ) from error


def _refuse_compressed(head: bytes, place: str) -> None:
    if head.startswith((b"\x1f\x8b", b"PK", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise HarError("is compressed, a HAR is not", where=place, hint="decompress it first")


def _list(archive: tarfile.TarFile, size: int, place: str) -> HarFile:
    members: list[HarMember] = []
    facts: dict[str, Fact] = {}
    notes: list[str] = []
    for info in archive:
        if len(members) == MAX_MEMBERS:
            raise HarError(f"has more than {MAX_MEMBERS} members", where=place)
        kind = _kind(info)
        if kind == "metadata" and sum(member.kind == kind for member in members) < MAX_METADATA:
            found = _facts(archive, info)
            notes += [found] if isinstance(found, str) else []
            facts |= found if isinstance(found, dict) else {}
        members.append(HarMember(name=info.name, size=info.size, kind=kind))
    if not any(member.kind == "graph" for member in members):
        raise HarError(
            f"is a tar with {len(members)} members, but holds no graph (.hn)",
            where=place,
            hint="Hailo's compiler makes a HAR with `save_har`",
        )
    if len(facts) > MAX_FACTS:
        notes.append(f"more than {MAX_FACTS} metadata, the others are not shown")
    shown = dict(itertools.islice(facts.items(), MAX_FACTS))
    return HarFile(size=size, members=tuple(members), facts=shown, notes=tuple(notes))


def _kind(info: tarfile.TarInfo) -> str:
    if not info.isreg():
        return "not a file"
    return next((kind for suffix, kind in KINDS.items() if info.name.endswith(suffix)), "other")


def _facts(archive: tarfile.TarFile, info: tarfile.TarInfo) -> dict[str, Fact] | str:
    """What the metadata say, or a sentence where they cannot be read."""
    file = archive.extractfile(info)
    if file is None or info.size > MAX_METADATA_BYTES:
        return f"{info.name} has {info.size} bytes, at most {MAX_METADATA_BYTES} are read"
    try:
        value = json.loads(file.read(info.size))
    except (ValueError, RecursionError) as error:
        return f"{info.name} is not JSON: {error}"
    return dict(itertools.islice(_flat("", value), MAX_FACTS + 1))


def _flat(key: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Fact]]:
    """Plain values, keys joined by dots; what is long or deep is only counted."""
    if isinstance(value, dict) and depth < MAX_DEPTH:
        for name, inner in value.items():
            yield from _flat(_cut(f"{key}.{name}" if key else name), inner, depth + 1)
    elif isinstance(value, list | dict):
        yield key, f"{len(value)} items"
    elif isinstance(value, float) and not math.isfinite(value):
        yield key, str(value)
    else:
        yield key, _cut(value) if isinstance(value, str) else value


def _cut(text: str) -> str:
    return text if len(text) <= MAX_FACT_LENGTH else f"{text[:MAX_FACT_LENGTH]}..."
