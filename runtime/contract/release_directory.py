"""A release on the disk: a directory named by the digest of its manifest."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.contract.document import MAX_DOCUMENT_BYTES, from_json, sha256_bytes, to_json
from runtime.contract.errors import (
    DigestMismatchError,
    IncompleteError,
    ManifestError,
    NoManifestError,
    PublicationRefusedError,
    collect_problems,
    store_errors,
)
from runtime.contract.files import LEFTOVERS, NotRegularError, list_directory, open_regular, read_bounded
from runtime.contract.gate import check_artifact, check_publishable
from runtime.contract.hailo_compatibility import check_architecture, device_of
from runtime.contract.release import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Artifact,
    Manifest,
    parse_manifest,
    release_id,
)
from runtime.contract.trust import (
    MAX_ENVELOPE_BYTES,
    Root,
    SignatureError,
    SigningKey,
    UnsignedError,
    sign,
    verify,
)

# What the system says of a path at which there is no file: somebody took it away or put something
# else there. Any other error says nothing about the bytes.
_NO_FILE: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError, NotRegularError)

_PIECE: Final = 1024 * 1024
STATEMENT_SCHEMA: Final = 1
STATEMENT_TYPE: Final = "application/vnd.hailo-pipeline.release+json"


@dataclass(frozen=True, kw_only=True)
class ReleaseStatement:
    """What is signed of a release: its name, which stands for every byte of it."""

    schema: int
    release: str
    length: int

    def __post_init__(self) -> None:
        if self.schema != STATEMENT_SCHEMA:
            raise ManifestError(
                f"schema {self.schema}, this version reads {STATEMENT_SCHEMA}", where="schema"
            )


def sign_release(manifest: bytes, key: SigningKey) -> bytes:
    """The envelope that vouches for the release with these manifest bytes."""
    statement = ReleaseStatement(schema=STATEMENT_SCHEMA, release=release_id(manifest), length=len(manifest))
    return sign(to_json(statement), STATEMENT_TYPE, [key])


def check_statement(data: bytes, root: Root, identifier: str, length: int, where: str) -> tuple[str, ...]:
    """Ids of the keys that vouch, in this envelope, for a release with a manifest of so many bytes.

    Raises:
        SignatureError: Nobody who may does: unsigned, wrong role, unknown key, altered.
        ManifestError: It is no such envelope, or about another release.
    """
    verified = verify(data, STATEMENT_TYPE, root, "release", where)
    statement = from_json(ReleaseStatement, verified.payload, where)
    if (statement.release, statement.length) != (identifier, length):
        raise ManifestError(
            f"signs release {statement.release[:16]}, it lies beside {identifier[:16]}",
            where=where,
            hint="copy the release again",
        )
    return verified.keyids


class Release:
    """A release whose manifest's bytes are what its name says."""

    def __init__(self, identifier: str, directory: Path, manifest: Manifest, length: int) -> None:
        self.id = identifier
        self.directory = directory
        self.manifest = manifest
        self._length = length

    def check_signature(self, root: Root) -> tuple[str, ...]:
        """Refuse a release that no release key vouches for.

        Returns:
            Ids of the keys whose signatures hold.

        Raises:
            SignatureError: Unsigned, wrong role, unknown key, altered: each its own.
            ManifestError: What is signed is not this release.
            StoreError: It cannot be read.
        """
        return self._check_signature(self._signature(), root)

    def _check_signature(self, data: bytes, root: Root) -> tuple[str, ...]:
        return check_statement(data, root, self.id, self._length, str(self.directory / SIGNATURE_NAME))

    def _signature(self) -> bytes:
        path = self.directory / SIGNATURE_NAME
        with store_errors(path):
            try:
                return read_bounded(path, MAX_ENVELOPE_BYTES)
            except _NO_FILE as error:
                raise UnsignedError(
                    f"has no signature: {error.strerror}",
                    where=str(path),
                    hint="publish it again with a release key; without one it is nobody's",
                ) from error

    def documents(self, roots: Sequence[Root]) -> dict[str, bytes]:
        """The manifest and its signature, as they were just read and verified.

        Args:
            roots: Any of them may vouch for it; the newest is asked first.

        Raises:
            DigestMismatchError: The manifest is not the one that was opened.
            SignatureError: None of them vouches for it.
            StoreError: It cannot be read.
        """
        path = self.directory / MANIFEST_NAME
        with _artifact_errors(path):
            manifest = read_bounded(path, MAX_DOCUMENT_BYTES)
        if release_id(manifest) != self.id:
            raise DigestMismatchError("is not what it was a moment ago", where=str(path))
        signature = self._signature()
        for number, root in enumerate(reversed(roots)):
            try:
                self._check_signature(signature, root)
            except SignatureError:
                if number == len(roots) - 1:
                    raise
            else:
                break
        return {MANIFEST_NAME: manifest, SIGNATURE_NAME: signature}

    def check_signature_by(self, roots: Sequence[Root]) -> None:
        """As ``check_signature``, for a release that any of these roots vouches for: the newest first."""
        for root in reversed(roots[1:]):
            try:
                self.check_signature(root)
            except SignatureError:
                continue
            return
        self.check_signature(roots[0])

    def read(self, name: str) -> bytes:
        """Bytes of an artifact, verified; load these and nothing read later.

        Raises:
            DigestMismatchError: Missing, no file, or not the bytes that the manifest names.
            StoreError: It cannot be read, so nothing is known of its bytes.
        """
        artifact = self.manifest.artifact_named(name)
        path = self.directory / name
        with _artifact_errors(path):
            data = read_bounded(path, artifact.size)
        check_bytes(data, artifact, path)
        return data

    def verify(self) -> None:
        """Read every artifact, a piece at a time; raise, as ``read``, for the first that is another."""
        for artifact in self.manifest.artifacts:
            path, digest, size = self.directory / artifact.name, hashlib.sha256(), 0
            with _artifact_errors(path), open_regular(path) as file:
                while piece := file.read(min(_PIECE, artifact.size + 1 - size)):
                    digest.update(piece)
                    size += len(piece)
            check_sum(size, digest.hexdigest(), artifact, path)

    def check_publishable(self) -> None:
        """Hold the gate against this release: it may have come here around ``publish``.

        Raises:
            PublicationRefusedError: As ``gate.check_publishable``; names the manifest.
        """
        try:
            check_publishable(self.manifest)
        except PublicationRefusedError as error:
            raise error.within(str(self.directory / MANIFEST_NAME)) from error

    def check_artifact(self) -> tuple[str, ...]:
        """Look into the artifact before an engine sees it: is it the encoder, for this target's chip?

        Returns:
            A sentence where it will run, but not as it could.

        Raises:
            HefError: As ``gate.check_artifact``; names the file.
            DigestMismatchError: As ``read``.
            StoreError: As ``read``.
        """
        name = self.manifest.artifact
        where = str(self.directory / name)
        hef = check_artifact(self.manifest, self.read(name), where)
        return check_architecture(hef, device_of(self.manifest.target), where) if hef else ()

    def problems(self) -> list[str]:
        """One sentence for each file or verdict that is wrong."""
        found = self.file_problems()
        with collect_problems(found):
            self.check_publishable()
        if not found:
            with collect_problems(found):
                self.check_artifact()
        return found

    def file_problems(self) -> list[str]:
        """One sentence for each artifact that is not what the manifest says, and each extra file."""
        found: list[str] = []
        for artifact in self.manifest.artifacts:
            with collect_problems(found):
                self.read(artifact.name)
        listed = {MANIFEST_NAME, SIGNATURE_NAME, *(artifact.name for artifact in self.manifest.artifacts)}
        with collect_problems(found), store_errors(self.directory):
            extra = [
                n for n in list_directory(self.directory) if n not in listed and not n.startswith(LEFTOVERS)
            ]
            found += [f"{self.directory / name}: is not named by the manifest" for name in extra]
        return found


@contextlib.contextmanager
def _artifact_errors(path: Path) -> Iterator[None]:
    with store_errors(path):
        try:
            yield
        except _NO_FILE as error:
            kind = IncompleteError if isinstance(error, FileNotFoundError) else DigestMismatchError
            raise kind(
                f"cannot be read: {error.strerror}", where=str(path), hint="copy the release again"
            ) from error


def check_bytes(data: bytes, artifact: Artifact, path: Path) -> None:
    """Raise DigestMismatchError where these bytes are not the artifact's; ``path`` is for the message."""
    check_sum(len(data), sha256_bytes(data), artifact, path)


def check_sum(size: int, digest: str, artifact: Artifact, path: Path) -> None:
    """As ``check_bytes``, of bytes that were counted and whose SHA-256 was taken."""
    if size != artifact.size:
        found = "more" if size > artifact.size else str(size)
        kind = DigestMismatchError if size > artifact.size else IncompleteError
        raise kind(
            f"{found} bytes, the manifest says {artifact.size}",
            where=str(path),
            hint="copy the release again",
        )
    if digest != artifact.sha256:
        raise DigestMismatchError(
            f"sha256 is {digest[:16]}..., the manifest says {artifact.sha256[:16]}...",
            where=str(path),
            hint="copy the release again",
        )


def open_release(directory: Path, identifier: str | None = None) -> Release:
    """Open a release directory, whose name must be the digest of its manifest.

    Args:
        directory: The directory, or a link to one.
        identifier: What the digest must be. A store says it: anybody who may write there can place a link.

    Raises:
        NoManifestError: No manifest in it.
        StoreError: The manifest cannot be read.
        DigestMismatchError: The manifest's digest is not the directory's name.
        ManifestError: The manifest is not what its schema says.
    """
    path = directory / MANIFEST_NAME
    with store_errors(path):
        try:
            data = read_bounded(path, MAX_DOCUMENT_BYTES)
        except _NO_FILE as error:
            raise NoManifestError(
                f"no {MANIFEST_NAME}: {error.strerror}",
                where=str(directory),
                hint="name a release directory or the artifact inside one; a bare file is not a release",
            ) from error
    with store_errors(directory):
        # Resolved where its own name may not be the last word: each step of a path costs a look at the disk.
        resolved = directory.name in ("", "..") or directory.is_symlink()
        named = identifier or (directory.resolve().name if resolved else directory.name)
    digest = release_id(data)
    if digest != named:
        raise DigestMismatchError(
            f"the manifest's sha256 is {digest[:16]}..., the directory is named {named[:16]}...",
            where=str(path),
            hint="copy the release again, and keep its directory's name",
        )
    return Release(digest, directory, parse_manifest(data, str(path)), len(data))
