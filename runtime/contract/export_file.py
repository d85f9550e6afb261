"""An export, opened to be read: where each file in it lies, and what its bytes' digest is.

The file is a plain tar of regular files, read here block by block: no link, no folder, no extended
header, no compression, no name but those that a store has. Contents are never held, only passed on.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from runtime.contract.channels import CHANNELS
from runtime.contract.errors import DigestMismatchError, PipelineError, store_errors
from runtime.contract.evidence import MAX_EVIDENCE_BYTES
from runtime.contract.files import open_regular
from runtime.contract.release import MAX_ARTIFACT_BYTES, TARGETS
from runtime.contract.trust import MAX_ENVELOPE_BYTES

BLOCK: Final = 512
CHUNK: Final = 1024 * 1024
"""How many bytes of a file's contents are in memory at once."""
MOST_FILES: Final = 20_000
MAX_EXPORT_BYTES: Final = 2 * MAX_ARTIFACT_BYTES
_ID: Final = "[0-9a-f]{64}"
RELEASE: Final = re.compile(rf"releases/({_ID})/([A-Za-z0-9][A-Za-z0-9._+-]{{0,199}})")
EVIDENCE: Final = re.compile(rf"evidence/({_ID})/([a-z][a-z0-9_-]{{0,39}})-({_ID})\.(html|json)")
ENTRY: Final = re.compile(rf"channels/({'|'.join(TARGETS)})/({'|'.join(CHANNELS)})/([0-9]{{8}})\.json")
ROOT: Final = re.compile(r"trust/([1-9][0-9]{0,5})\.root\.json")
_LIMITS: Final = (
    (RELEASE, MAX_ARTIFACT_BYTES),
    (EVIDENCE, MAX_EVIDENCE_BYTES),
    (ENTRY, MAX_ENVELOPE_BYTES),
    (ROOT, MAX_ENVELOPE_BYTES),
)


class ExportFileError(PipelineError):
    """A file that is no export, or holds what no export does."""

    code = "export_file"


@dataclass(frozen=True)
class Part:
    """One file in an export: where its bytes begin, how many there are, and their SHA-256."""

    offset: int
    size: int
    sha256: str


class ExportFile:
    """An export whose every header was judged and whose every byte was read once; closed by ``with``.

    Args:
        path: The file. It stays open, so that what is read later is of the same file.

    Raises:
        ExportFileError: It is no export, or holds something that none does.
        StoreError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with store_errors(path):
            self._file = open_regular(path)
        try:
            self.parts = dict(self._found())
            """Name to what is there."""
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def names(self, prefix: str) -> list[str]:
        """Names that begin so, sorted, without the beginning."""
        return sorted(name.removeprefix(prefix) for name in self.parts if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        """Bytes of one file, a document: never of an artifact, which may be large; raises as ``chunks``."""
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Bytes of one file, ``CHUNK`` at a time, held against the digest that they had when it was opened.

        Raises:
            DigestMismatchError: They are others by now; only after the last was handed out.
            ExportFileError: The file became shorter.
            StoreError: It cannot be read.
        """
        part, digest = self.parts[name], hashlib.sha256()
        for chunk in self._chunks(part.offset, part.size, name):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != part.sha256:
            raise DigestMismatchError(
                "was changed while it was read", where=f"{self.path}: {name}", hint="copy the file again"
            )

    def _chunks(self, offset: int, size: int, name: str) -> Iterator[bytes]:
        end = offset + size
        while offset < end:
            with store_errors(self.path):
                self._file.seek(offset)
                chunk = self._file.read(min(CHUNK, end - offset))
            if not chunk:
                raise ExportFileError("ends before its contents do", where=f"{self.path}: {name}")
            offset += len(chunk)
            yield chunk

    def _found(self) -> Iterator[tuple[str, Part]]:
        seen: set[str] = set()
        with store_errors(self.path):
            size = self._file.seek(0, io.SEEK_END)
            if size > MAX_EXPORT_BYTES or size < 2 * BLOCK or size % BLOCK:
                raise ExportFileError(f"{size} bytes cannot be an export", where=str(self.path))
            self._file.seek(0)
            while (block := self._file.read(BLOCK)) != bytes(BLOCK):
                member = _header(block, self.path)
                where = f"{self.path}: {member.name}"
                if member.name in seen or len(seen) >= MOST_FILES:
                    raise ExportFileError("a name comes twice, or too many", where=where)
                seen.add(member.name)
                offset, padded = self._file.tell(), -(-member.size // BLOCK) * BLOCK
                if padded > size - offset:
                    raise ExportFileError("ends before its contents do", where=where)
                digest = hashlib.sha256()
                for chunk in self._chunks(offset, member.size, member.name):
                    digest.update(chunk)
                yield member.name, Part(offset, member.size, digest.hexdigest())
                self._file.seek(offset + padded)


def _header(block: bytes, path: Path) -> tarfile.TarInfo:
    try:
        member = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise ExportFileError(
            f"is no export: {error}", where=str(path), hint="`releasectl export` makes one; copy it again"
        ) from error
    where = f"{path}: {member.name[:200]!r}"
    if member.type != tarfile.REGTYPE or member.linkname:
        raise ExportFileError("is no regular file", where=where)
    for pattern, most in _LIMITS:
        if pattern.fullmatch(member.name):
            if not 0 <= member.size <= most:
                raise ExportFileError(f"{member.size} bytes, at most {most} are taken", where=where)
            return member
    raise ExportFileError("is no name that an export has", where=where)
