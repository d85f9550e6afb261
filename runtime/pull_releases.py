"""Releases copied into a staging folder, verified there, and renamed into the store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from runtime.contract.channel_log import NotThereYetError
from runtime.contract.document import MAX_DOCUMENT_BYTES
from runtime.contract.envelope import joined
from runtime.contract.errors import DigestMismatchError, ManifestError, PipelineError, store_errors
from runtime.contract.files import make_directory, move_aside, sync_directory
from runtime.contract.release import MANIFEST_NAME, SIGNATURE_NAME
from runtime.contract.release_directory import STATEMENT_TYPE, Release, open_release
from runtime.contract.store import ReleaseStore, is_whole, refuse_double
from runtime.contract.trust import Root, SignatureError
from runtime.pull_staging import discard
from runtime.rsync_copy import Copier, check_space

DOCUMENTS = (MANIFEST_NAME, SIGNATURE_NAME)


class ReleaseTaker:
    """Brings releases into a store.

    Args:
        store: Where they go.
        staging: Where they are copied to; on the same file system.
        copier: Copies into ``staging``.
        root: Whose signatures count.
    """

    def __init__(self, store: ReleaseStore, staging: Path, copier: Copier, root: Root) -> None:
        self._store, self._staging, self._copier, self._root = store, staging, copier, root

    def take(self, wanted: Sequence[str]) -> tuple[dict[str, int], dict[str, PipelineError]]:
        """Take those that are not here whole, under a signature that holds.

        Returns:
            Ids and sizes of releases that are new here; ids of those that could not be taken, and why.

        Raises:
            TransferError, NoSpaceError, StoreBusyError, StoreError: Nothing more could be copied or written.
        """
        missing = [name for name in wanted if not self.is_here(name)]
        names = [f"releases/{name}/{each}" for name in missing for each in DOCUMENTS]
        self._copier.files(names, MAX_DOCUMENT_BYTES, resume=False)
        known: dict[str, Release] = {}
        refused: dict[str, PipelineError] = {}
        for name in missing:
            try:
                known[name] = self._known(name)
            except PipelineError as error:
                refused[name] = error
                self._forget(name)
        self._copy_artifacts(list(known.values()))
        found: dict[str, int] = {}
        for name, release in known.items():
            try:
                found[name] = self._adopt(release)
            except (DigestMismatchError, ManifestError, SignatureError) as error:
                refused[name] = error
                self._forget_damaged(release)
            except PipelineError as error:
                refused[name] = error
        return found, refused

    def is_here(self, name: str) -> bool:
        """Whether a release is in the store, whole, under a signature that holds; StoreError as ``take``."""
        directory = self._store.root / "releases" / name
        with store_errors(directory):
            if not self._store.holds(name) or not is_whole(directory):
                return False
        try:
            self._store.open(name).check_signature(self._root)
        except (SignatureError, ManifestError):
            return False
        return True

    def _known(self, name: str) -> Release:
        """What is to come: its manifest is what was signed, and passes the gate."""
        directory = self._staging / "releases" / name
        for each in DOCUMENTS:
            if not (directory / each).is_file():
                raise NotThereYetError(
                    f"has no {each} of release {name[:16]}...",
                    where="the source",
                    hint="it was pruned there, or is still being copied to it",
                )
        release = open_release(directory, name)
        release.check_signature(self._root)
        release.check_publishable()
        return release

    def _copy_artifacts(self, releases: Sequence[Release]) -> None:
        """What is missing of their artifacts; those that are here whole but for a signature need nothing."""
        names, largest, size = [], 0, 0
        for release in releases:
            folder = self._store.root / "releases" / release.id
            with store_errors(folder):
                if os.path.lexists(folder) and is_whole(folder):
                    continue
                for artifact in release.manifest.artifacts:
                    path = release.directory / artifact.name
                    there = path.lstat().st_size if os.path.lexists(path) else 0
                    names.append(f"releases/{release.id}/{artifact.name}")
                    largest, size = max(largest, artifact.size), size + max(0, artifact.size - there)
        check_space(self._staging, size)
        self._copier.files(names, largest, resume=True)

    def _adopt(self, release: Release) -> int:
        """Verify a release that was copied, and rename it into place; its size."""
        store, directory = self._store, self._store.root / "releases" / release.id
        documents = release.documents([self._root])
        with store_errors(directory), store.writing():
            if os.path.lexists(directory) and is_whole(directory):
                store.put(self._with_ours(directory, documents), self._root)  # its signature does not hold
                self._forget(release.id)
            else:
                self._settle(release)
                if os.path.lexists(directory):
                    move_aside(directory)
                make_directory(directory.parent)
                release.directory.rename(directory)
                sync_directory(directory.parent)
        return sum(artifact.size for artifact in release.manifest.artifacts)

    def _with_ours(self, directory: Path, documents: dict[str, bytes]) -> dict[str, bytes]:
        """With the signatures that are here, too: where a new root is held back, they are what counts."""
        try:
            ours = open_release(directory, directory.name).documents([self._store.trust.root])
            both = joined(documents[SIGNATURE_NAME], ours[SIGNATURE_NAME], STATEMENT_TYPE, str(directory))
        except (SignatureError, ManifestError, DigestMismatchError):
            return documents  # none that counts now
        return documents | {SIGNATURE_NAME: both}

    def _settle(self, release: Release) -> None:
        """Verify every byte, take away what the manifest does not name, and put the rest on the disk."""
        release.verify()
        manifest = release.manifest
        refuse_double(manifest, release.read(manifest.artifact), accepted=self._store.accepts_doubles)
        listed = {*DOCUMENTS, *(artifact.name for artifact in manifest.artifacts)}
        for path in release.directory.iterdir():
            if path.name not in listed:
                discard(path)
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # nothing that leads elsewhere is kept
            try:
                os.fchmod(descriptor, 0o444)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        release.directory.chmod(0o755)
        sync_directory(release.directory)

    def _forget_damaged(self, release: Release) -> None:
        """Take away what is not what the manifest says, so that the next pull copies it anew.

        A file that only ends early is kept: the next pull goes on at its end.
        """
        for artifact in release.manifest.artifacts:
            path = release.directory / artifact.name
            with store_errors(path):
                whole = path.is_file() and path.stat().st_size >= artifact.size
            if whole:
                try:
                    release.read(artifact.name)
                except DigestMismatchError:
                    discard(path)

    def _forget(self, name: str) -> None:
        with store_errors(self._staging):
            discard(self._staging / "releases" / name)
