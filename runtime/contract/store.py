"""The release store: immutable releases, and channels that point to them.

Layout, all links and names relative, so that a copy or a read-only mount works alike::

    releases/<sha256 of the manifest>/manifest.json, artifacts
    channels/<target>/<channel>/00000001.json     one entry for each move; the highest counts

Everything appears by rename or link of synced files: a reader sees the old state or the new.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from runtime.contract.document import from_json, sha256_bytes, to_json
from runtime.contract.errors import (
    ChannelMovedError,
    DigestMismatchError,
    ManifestError,
    NoManifestError,
    PipelineError,
    PublicationRefusedError,
    ReleaseNotFoundError,
    StoreError,
    TargetMismatchError,
)
from runtime.contract.files import move_aside, sync_directory, write_directory, write_synced
from runtime.contract.release import (
    MANIFEST_NAME,
    TARGETS,
    Artifact,
    Manifest,
    check_digest,
    check_publishable,
    manifest_bytes,
    parse_manifest,
    release_id,
)

CHANNELS: Final = ("canary", "stable")
_ENTRY_NAME: Final = re.compile(r"(\d{8})\.json")
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ChannelEntry:
    """One move of a channel: who, when, why, and what was there before.

    ``previous`` is empty for a channel's first entry. ``at`` is UTC, ISO 8601.
    """

    schema: int
    target: str
    channel: str
    sequence: int
    release: str
    previous: str
    action: str
    actor: str
    reason: str
    at: str


class Release:
    """A release whose manifest's bytes are what its name says."""

    def __init__(self, identifier: str, directory: Path, manifest: Manifest) -> None:
        self.id = identifier
        self.directory = directory
        self.manifest = manifest

    def read(self, name: str) -> bytes:
        """Bytes of an artifact, verified; load these and nothing read later.

        Raises:
            DigestMismatchError: Missing, or not the bytes that the manifest names.
        """
        artifact = self.manifest.artifact_named(name)
        path = self.directory / name
        try:
            data = _read_bounded(path, artifact.size)
        except OSError as error:
            raise DigestMismatchError(
                f"cannot be read: {error.strerror}", where=str(path), hint="copy the release again"
            ) from error
        _check_bytes(data, artifact, path)
        return data

    def verify(self) -> None:
        """Read every artifact; raise for the first that is not what the manifest says."""
        for artifact in self.manifest.artifacts:
            self.read(artifact.name)


def _read_bounded(path: Path, size: int) -> bytes:
    """At most one byte more than expected: a claimed length never decides what is allocated."""
    with path.open("rb") as file:
        return file.read(size + 1)


def _check_bytes(data: bytes, artifact: Artifact, path: Path) -> None:
    if len(data) != artifact.size:
        found = "more" if len(data) > artifact.size else str(len(data))
        raise DigestMismatchError(
            f"{found} bytes, the manifest says {artifact.size}",
            where=str(path),
            hint="copy the release again",
        )
    digest = sha256_bytes(data)
    if digest != artifact.sha256:
        raise DigestMismatchError(
            f"sha256 is {digest[:16]}..., the manifest says {artifact.sha256[:16]}...",
            where=str(path),
            hint="copy the release again",
        )


def open_release(directory: Path) -> Release:
    """Open a release directory, whose name must be the digest of its manifest.

    Raises:
        NoManifestError: No manifest in it.
        DigestMismatchError: The manifest's digest is not the directory's name.
        ManifestError: The manifest is not what its schema says.
    """
    path = directory / MANIFEST_NAME
    try:
        data = _read_bounded(path, MAX_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise NoManifestError(
            f"no {MANIFEST_NAME}",
            where=str(directory),
            hint="name a release directory or the artifact inside one; a bare file is not a release",
        ) from error
    except OSError as error:
        raise StoreError(f"cannot be read: {error.strerror}", where=str(path)) from error
    identifier = release_id(data)
    if identifier != directory.resolve().name:
        raise DigestMismatchError(
            f"the manifest's sha256 is {identifier[:16]}..., the directory is named "
            f"{directory.resolve().name[:16]}...",
            where=str(path),
            hint="copy the release again, and keep its directory's name",
        )
    return Release(identifier, directory, parse_manifest(data, str(path)))


def _is_whole(directory: Path) -> bool:
    try:
        open_release(directory).verify()
    except PipelineError:
        return False
    return True


class ReleaseStore:
    """Releases and channels in one directory. Readers need no lock and no write access."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, manifest: Manifest, files: Mapping[str, bytes]) -> Release:
        """Add a release; the gate is here, whoever calls.

        Args:
            manifest: Names every artifact with its digest.
            files: Artifact name to bytes, exactly those of the manifest.

        Returns:
            The release, verified from disk. Publishing the same again changes nothing, but for
            putting back a copy that was damaged meanwhile.

        Raises:
            PublicationRefusedError: Parity is missing, failed or about other bytes.
            DigestMismatchError: A file is not what the manifest says.
            StoreError: The store cannot be written.
        """
        check_publishable(manifest)
        names = {artifact.name for artifact in manifest.artifacts}
        if names != set(files):
            raise PublicationRefusedError(
                f"files {sorted(files)} are not the manifest's {sorted(names)}", where="artifacts"
            )
        for artifact in manifest.artifacts:
            _check_bytes(files[artifact.name], artifact, Path(artifact.name))
        data = manifest_bytes(manifest)
        identifier = release_id(data)
        directory = self._directory(identifier)
        with _store_errors(self.root):
            if directory.exists() and not _is_whole(directory):
                move_aside(directory)
            if not directory.exists():
                write_directory(directory, {**files, MANIFEST_NAME: data})
        release = open_release(directory)
        release.verify()
        return release

    def point(
        self, channel: str, release: Release, *, actor: str, reason: str, action: str = "publish"
    ) -> ChannelEntry:
        """Let a channel of the release's own target name this release.

        Returns:
            The entry that names it; the present one where the channel already does.

        Raises:
            ChannelMovedError: Somebody moved the channel at the same time; says who.
        """
        target = release.manifest.target
        current = self.current(target, channel)
        if current and current.release == release.id:
            return current
        entry = ChannelEntry(
            schema=1,
            target=target,
            channel=channel,
            sequence=current.sequence + 1 if current else 1,
            release=release.id,
            previous=current.release if current else "",
            action=action,
            actor=actor,
            reason=reason,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with _store_errors(self.root):
            return self._append(entry)

    def _append(self, entry: ChannelEntry) -> ChannelEntry:
        folder = self._channel(entry.target, entry.channel)
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".entry-", dir=folder)
        os.close(descriptor)
        temporary = Path(name)
        try:
            write_synced(temporary, to_json(entry))
            # A link onto an existing number fails: of two writers exactly one wins.
            (folder / f"{entry.sequence:08}.json").hardlink_to(temporary)
            sync_directory(folder)
        except FileExistsError as error:
            winner = self.current(entry.target, entry.channel)
            if winner and winner.release == entry.release:
                return winner
            raise ChannelMovedError(
                f"{winner.actor if winner else 'somebody'} moved it first",
                where=f"{entry.target}/{entry.channel}",
                hint="look at the channel again, then repeat",
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return entry

    def history(self, target: str, channel: str) -> list[ChannelEntry]:
        """Every move of a channel, oldest first; empty where it never pointed anywhere."""
        folder = self._channel(target, channel)
        with _store_errors(folder):
            names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        return [self._entry(folder / name) for name in names if _ENTRY_NAME.fullmatch(name)]

    def current(self, target: str, channel: str) -> ChannelEntry | None:
        """The newest move of a channel, or None where it never pointed anywhere."""
        folder = self._channel(target, channel)
        with _store_errors(folder):
            names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        newest = max((name for name in names if _ENTRY_NAME.fullmatch(name)), default=None)
        return self._entry(folder / newest) if newest else None

    def _entry(self, path: Path) -> ChannelEntry:
        with _store_errors(path):
            data = path.read_bytes()
        entry = from_json(ChannelEntry, data, str(path))
        check_digest(entry.release, f"{path}.release")
        place = (entry.target, entry.channel, entry.sequence)
        if place != (path.parent.parent.name, path.parent.name, int(path.stem)):
            raise ManifestError(f"says it is {place}", where=str(path), hint="it was copied here")
        return entry

    def open(self, identifier: str) -> Release:
        """Open a release by its id; ReleaseNotFoundError where the store does not hold it."""
        check_digest(identifier, "release")
        directory = self._directory(identifier)
        with _store_errors(directory):
            there = directory.is_dir()
        if not there:
            raise ReleaseNotFoundError(
                f"no release {identifier[:16]}...", where=str(self.root), hint="releasectl list shows all"
            )
        return open_release(directory)

    def resolve(self, target: str, channel: str) -> Release:
        """Open the release that a channel names; ReleaseNotFoundError where it names none."""
        entry = self.current(target, channel)
        if entry is None:
            raise ReleaseNotFoundError(
                f"channel {channel} of {target} names no release",
                where=str(self.root),
                hint="publish one with `make run`, or choose another RELEASE_CHANNEL",
            )
        release = self.open(entry.release)
        if release.manifest.target != target:
            raise TargetMismatchError(
                f"names a release for {release.manifest.target}", where=f"channels/{target}/{channel}"
            )
        return release

    def identifiers(self) -> list[str]:
        """Ids of all releases in the store, sorted; unfinished copies are not among them."""
        folder = self.root / "releases"
        with _store_errors(folder):
            names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        return [name for name in names if re.fullmatch(r"[0-9a-f]{64}", name)]

    def targets(self) -> list[str]:
        """Targets with at least one channel that names a release, sorted."""
        return [t for t in sorted(TARGETS) if any(self.current(t, c) for c in CHANNELS)]

    def channels_of(self, identifier: str) -> list[tuple[str, str]]:
        """(target, channel) of every channel that names the release now."""
        places = [(target, channel) for target in self.targets() for channel in CHANNELS]
        named = ((place, self.current(*place)) for place in places)
        return [place for place, entry in named if entry and entry.release == identifier]

    def problems(self, identifier: str | None = None) -> list[str]:
        """Verify one release, or the whole store: one sentence for each thing that is wrong."""
        found: list[str] = []
        for name in [identifier] if identifier else self.identifiers():
            with _collect(found):
                release = self.open(name)
                for artifact in release.manifest.artifacts:
                    with _collect(found):
                        release.read(artifact.name)
        for target in TARGETS if identifier is None else ():
            for channel in CHANNELS:
                with _collect(found):
                    if self.history(target, channel):
                        self.resolve(target, channel)
        return list(dict.fromkeys(found))

    def _directory(self, identifier: str) -> Path:
        return self.root / "releases" / check_digest(identifier, "release")

    def _channel(self, target: str, channel: str) -> Path:
        if target not in TARGETS:
            raise ReleaseNotFoundError(f"no target {target!r}", hint=f"one of {', '.join(TARGETS)}")
        if channel not in CHANNELS:
            raise ReleaseNotFoundError(f"no channel {channel!r}", hint=f"one of {', '.join(CHANNELS)}")
        return self.root / "channels" / target / channel


@contextlib.contextmanager
def _collect(found: list[str]) -> Iterator[None]:
    try:
        yield
    except PipelineError as error:
        found.append(str(error))


@contextlib.contextmanager
def _store_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.strerror or error}",
            where=str(error.filename or place),
            hint="check the store's path, rights and free space",
        ) from error
