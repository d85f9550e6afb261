"""The release store: immutable releases, and channels that point to them.

Layout, all links and names relative, so that a copy or a read-only mount works alike::

    releases/<sha256 of the manifest>/manifest.json, artifacts
    channels/<target>/<channel>/00000001.json     one entry for each move; the highest counts
    evidence/<release>/<kind>-<sha256>.<suffix>   kept beside a release, outside its digest

Everything appears by rename or link of synced files: a reader sees the old state or the new.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from runtime.contract.channels import (
    CHANNELS,
    ENTRY_SCHEMA,
    ChannelEntry,
    entry_name,
    history_problems,
    is_entry_name,
    read_entry,
)
from runtime.contract.document import to_json
from runtime.contract.errors import (
    ChannelMovedError,
    DigestMismatchError,
    ManifestError,
    PublicationRefusedError,
    ReleaseNotFoundError,
    TargetMismatchError,
    collect_problems,
    store_errors,
)
from runtime.contract.evidence import FOLDER as EVIDENCE_FOLDER
from runtime.contract.evidence import evidence_problems, list_evidence, write_evidence
from runtime.contract.files import (
    is_directory,
    list_directory,
    make_directory,
    move_aside,
    sync_directory,
    write_directory,
    write_synced,
)
from runtime.contract.gate import check_artifact, check_publishable
from runtime.contract.release import (
    MANIFEST_NAME,
    TARGETS,
    Manifest,
    check_digest,
    manifest_bytes,
    release_id,
)
from runtime.contract.release_directory import Release as Release
from runtime.contract.release_directory import check_bytes
from runtime.contract.release_directory import open_release as open_release


def _is_whole(directory: Path) -> bool:
    """Whether every byte is in place; StoreError where that cannot be told."""
    try:
        open_release(directory).verify()
    except (DigestMismatchError, ManifestError):
        return False
    return True


def _put_aside(directory: Path) -> None:
    """Move a damaged release away, unless another publisher repairs it at the same time."""
    try:
        moved = move_aside(directory)
    except FileNotFoundError:
        return
    if _is_whole(moved):
        # It was put right between our look and our move.
        try:
            moved.rename(directory)
        except OSError:
            # And put right again since: what we moved is one copy too many.
            if not _is_whole(directory):
                raise
        else:
            moved.parent.rmdir()


class ReleaseStore:
    """Releases and channels in one directory. Readers need no lock and no write access.

    Args:
        root: The directory; made when something is published.
        _accepts_doubles: Take HEF files that a test double of the compiler wrote. For fixtures, in code:
            nothing that a person or an environment sets leads here.
    """

    def __init__(self, root: Path, *, _accepts_doubles: bool = False) -> None:
        self.root = root
        self._accepts_doubles = _accepts_doubles

    def publish(self, manifest: Manifest, files: Mapping[str, bytes]) -> Release:
        """Add a release; the gate is here, whoever calls.

        Args:
            manifest: Names every artifact with its digest.
            files: Artifact name to bytes, exactly those of the manifest.

        Returns:
            The release, verified from disk. Publishing the same again changes nothing, but for
            putting back a copy that was damaged meanwhile.

        Raises:
            PublicationRefusedError: Parity is missing, failed or about other bytes; or a test double
                made the artifact.
            DigestMismatchError: A file is not what the manifest says.
            HefError: The target is a chip, and the artifact is not the encoder for it.
            StoreError: The store cannot be read or written.
        """
        check_publishable(manifest)
        names = {artifact.name for artifact in manifest.artifacts}
        if names != set(files):
            raise PublicationRefusedError(
                f"files {sorted(files)} are not the manifest's {sorted(names)}", where="artifacts"
            )
        for artifact in manifest.artifacts:
            check_bytes(files[artifact.name], artifact, Path(artifact.name))
        hef = check_artifact(manifest, files[manifest.artifact])
        if hef and hef.is_double and not self._accepts_doubles:
            raise PublicationRefusedError(
                f"a test double of the compiler wrote it ({hef.sdk_version})",
                where=manifest.artifact,
                hint="compile with Hailo's Dataflow Compiler; no chip runs this file",
            )
        data = manifest_bytes(manifest)
        identifier = release_id(data)
        directory = self._directory(identifier)
        with store_errors(self.root):
            if directory.exists() and not _is_whole(directory):
                _put_aside(directory)
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
            schema=ENTRY_SCHEMA,
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
        with store_errors(self.root):
            return self._append(entry)

    def _append(self, entry: ChannelEntry) -> ChannelEntry:
        folder = self._channel(entry.target, entry.channel)
        make_directory(folder)
        descriptor, name = tempfile.mkstemp(prefix=".entry-", dir=folder)
        os.close(descriptor)
        temporary = Path(name)
        try:
            write_synced(temporary, to_json(entry))
            # A link onto an existing number fails: of two writers exactly one wins.
            (folder / entry_name(entry.sequence)).hardlink_to(temporary)
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
        return [read_entry(folder / name) for name in _entry_names(folder)]

    def current(self, target: str, channel: str) -> ChannelEntry | None:
        """The newest move of a channel, or None where it never pointed anywhere."""
        folder = self._channel(target, channel)
        names = _entry_names(folder)
        return read_entry(folder / names[-1]) if names else None

    def open(self, identifier: str) -> Release:
        """Open a release by its id; ReleaseNotFoundError where the store does not hold it."""
        check_digest(identifier, "release")
        directory = self._directory(identifier)
        with store_errors(directory):
            there = self._holds(identifier)
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

    def add_evidence(self, release: Release, kind: str, suffix: str, data: bytes) -> Path:
        """Keep a document beside a release of this store; the release does not change.

        Args:
            release: It belongs to this one.
            kind: What it is, ``evidence.PARITY_KIND`` for one.
            suffix: ``html`` or ``json``.
            data: At most ``evidence.MAX_EVIDENCE_BYTES``.

        Returns:
            The file, whose name holds the digest of its bytes; the same again changes nothing.

        Raises:
            ReleaseNotFoundError: The store does not hold the release.
            ManifestError: Kind or suffix cannot be.
            StoreError: It cannot be written; nothing is left.
        """
        return write_evidence(self._evidence(self.open(release.id).id), kind, suffix, data)

    def evidence(self, identifier: str) -> list[Path]:
        """Files kept beside a release, sorted; read them with ``evidence.read_evidence``."""
        return list_evidence(self._evidence(identifier))

    def identifiers(self) -> list[str]:
        """Ids of all releases in the store, sorted; unfinished copies are not among them."""
        folder = self.root / "releases"
        with store_errors(folder):
            names = list_directory(folder)
        return [name for name in names if re.fullmatch(r"[0-9a-f]{64}", name)]

    def targets(self) -> list[str]:
        """Targets with at least one channel that names a release, sorted."""
        return [t for t in sorted(TARGETS) if any(self.current(t, c) for c in CHANNELS)]

    def problems(self, identifier: str | None = None) -> list[str]:
        """Verify one release, or the whole store: one sentence for each thing that is wrong."""
        found: list[str] = []
        with collect_problems(found):
            for name in [identifier] if identifier else self.identifiers():
                with collect_problems(found):
                    found += self.open(name).problems()
            found += evidence_problems(
                self.root, identifier, lambda name: is_directory(self._directory(name))
            )
        for target in TARGETS if identifier is None else ():
            with collect_problems(found):
                if self._channel_names(target):
                    for channel in CHANNELS:
                        found += self._channel_problems(target, channel)
        return list(dict.fromkeys(found))

    def _channel_names(self, target: str) -> list[str]:
        # From above to below, so that a file in a folder's place is one problem, not one a channel.
        folder = self.root / "channels"
        with store_errors(folder):
            return list_directory(folder) and list_directory(folder / target)

    def _channel_problems(self, target: str, channel: str) -> list[str]:
        found: list[str] = []
        entries: list[ChannelEntry] = []
        folder = self._channel(target, channel)
        with collect_problems(found):
            names = _entry_names(folder)
            for name in names:
                with collect_problems(found):
                    entries.append(read_entry(folder / name))
            found += history_problems(folder, names, entries)
            if names:
                self.resolve(target, channel)
        return found

    def _holds(self, identifier: str) -> bool:
        return is_directory(self._directory(identifier))

    def _directory(self, identifier: str) -> Path:
        return self.root / "releases" / check_digest(identifier, "release")

    def _evidence(self, identifier: str) -> Path:
        return self.root / EVIDENCE_FOLDER / check_digest(identifier, "release")

    def _channel(self, target: str, channel: str) -> Path:
        if target not in TARGETS:
            raise ReleaseNotFoundError(f"no target {target!r}", hint=f"one of {', '.join(TARGETS)}")
        if channel not in CHANNELS:
            raise ReleaseNotFoundError(f"no channel {channel!r}", hint=f"one of {', '.join(CHANNELS)}")
        return self.root / "channels" / target / channel


def _entry_names(folder: Path) -> list[str]:
    """File names of a channel's entries, oldest first."""
    with store_errors(folder):
        return [name for name in list_directory(folder) if is_entry_name(name)]
