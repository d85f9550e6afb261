"""The release store: immutable releases, and channels that point to them.

Layout, all links and names relative, so that a copy or a read-only mount works alike::

    releases/<sha256 of the manifest>/manifest.json, manifest.dsse.json, artifacts
    channels/<target>/<channel>/00000001.json     one signed entry a move; the highest that holds counts
    trust/<n>.root.json                           roots of trust that follow the first, which lies elsewhere
    evidence/<release>/<kind>-<sha256>.<suffix>   kept beside a release, outside its digest
    requests/<sha256>.json                        moves that wait for a signature; say nothing by themselves

Everything appears by rename or link of synced files: a reader sees the old state or the new.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from runtime.contract.channel_log import ChannelLog, Head, next_sequence
from runtime.contract.channels import ENTRY_SCHEMA, ChannelEntry, EvidenceRecord, SignedEntry
from runtime.contract.envelope import MAX_ENVELOPE_BYTES, also_signed
from runtime.contract.errors import (
    ChannelMovedError,
    DigestMismatchError,
    ManifestError,
    PipelineError,
    PublicationRefusedError,
    StoreError,
    store_errors,
)
from runtime.contract.evidence import evidence_record, read_evidence, write_evidence
from runtime.contract.files import (
    clear_way,
    is_no_file,
    move_aside,
    read_bounded,
    sync_directory,
    write_directory,
    write_document,
)
from runtime.contract.gate import check_artifact, check_publishable
from runtime.contract.release import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Manifest,
    manifest_bytes,
    release_id,
)
from runtime.contract.release_directory import STATEMENT_TYPE, check_bytes, sign_release
from runtime.contract.release_directory import Release as Release
from runtime.contract.release_directory import open_release as open_release
from runtime.contract.store_reader import Resolved as Resolved
from runtime.contract.store_reader import StoreReader
from runtime.contract.trust import (
    Root,
    SignatureError,
    SigningKey,
    Trust,
    UnknownKeyError,
    WrongRoleError,
    root_name,
)
from runtime.contract.writers_lock import writing

MOST_EVIDENCE: Final = 50
"""Files of evidence that an entry names."""


def is_whole(directory: Path) -> bool:
    """Whether every byte is in place; StoreError where that cannot be told."""
    try:
        open_release(directory, directory.name).verify()
    except (DigestMismatchError, ManifestError):
        return False
    except StoreError as error:
        if not is_no_file(error.__cause__, directory):
            raise
        return False
    return True


class ReleaseStore(StoreReader):
    """Releases and channels in one directory, read and written; one writer at a time.

    Args:
        root: The directory; made when something is published.
        trust: As for ``StoreReader``.
        _accepts_doubles: Take HEF files that a test double of the compiler wrote. For fixtures, in code:
            nothing that a person or an environment sets leads here.
    """

    def __init__(self, root: Path, trust: Trust | None, *, _accepts_doubles: bool = False) -> None:
        super().__init__(root, trust)
        self._accepts_doubles = _accepts_doubles
        self._writer = 0  # the thread that holds the lock, of those of this process

    @property
    def accepts_doubles(self) -> bool:
        """Whether this is a fixture's store."""
        return self._accepts_doubles

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer for a while; a thread may nest it. Raises as ``writers_lock.writing``."""
        me = threading.get_ident()
        if self._writer == me:
            yield
            return
        with writing(self.root):
            self._writer = me
            try:
                yield
            finally:
                self._writer = 0

    def publish(self, manifest: Manifest, files: Mapping[str, bytes], key: SigningKey) -> Release:
        """Add a release; the gate is here, whoever calls.

        Args:
            manifest: Names every artifact with its digest.
            files: Artifact name to bytes, exactly those of the manifest.
            key: A key of the role ``release``, which vouches for it.

        Returns:
            The release, verified from disk. Publishing the same again changes nothing, but for
            putting back a copy that was damaged meanwhile, or a signature that no longer holds.

        Raises:
            PublicationRefusedError: Parity is missing, failed or about other bytes; or a test double
                made the artifact.
            DigestMismatchError: A file is not what the manifest says.
            HefError: The target is a chip, and the artifact is not the encoder for it.
            SignatureError: The key is none that may release.
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
        refuse_double(manifest, files[manifest.artifact], accepted=self._accepts_doubles)
        data = manifest_bytes(manifest)
        signature = sign_release(data, key)
        with self.writing():
            root = self.trust.root
            check_role(key, root, "release")
            return self.put({**files, MANIFEST_NAME: data, SIGNATURE_NAME: signature}, root)

    def put(self, files: Mapping[str, bytes], root: Root) -> Release:
        """Write a release's files, signature included, as they were verified."""
        directory = self._directory(release_id(files[MANIFEST_NAME]))
        with store_errors(self.root):
            if os.path.lexists(directory) and not is_whole(directory):
                move_aside(directory)
            if directory.exists():
                self._settle(directory)
            else:
                write_directory(directory, files)
        release = open_release(directory, directory.name)
        release.verify()
        try:
            release.check_signature(root)
        except (SignatureError, ManifestError):
            with store_errors(directory):
                clear_way(directory / SIGNATURE_NAME)
                write_document(directory / SIGNATURE_NAME, files[SIGNATURE_NAME])
            release.check_signature(root)
        return release

    @staticmethod
    def _settle(directory: Path) -> None:
        """Put names in a directory, and its own, on the disk: who wrote them may have been killed before."""
        sync_directory(directory)
        sync_directory(directory.parent)

    def sign_release_again(self, identifier: str, key: SigningKey) -> None:
        """Vouch with a key of the present root for a release that one of an earlier root vouched for.

        The earlier signature stays: a reader that has not seen the new root yet goes by that one.

        Raises:
            SignatureError: No root of the store ever vouched for it, or the key may not.
            DigestMismatchError: It is damaged.
        """
        with self.writing():
            trust = self.trust
            check_role(key, trust.root, "release")
            release = self.open(identifier)
            release.verify()
            release.check_signature_by(trust.roots)
            path = release.directory / SIGNATURE_NAME
            with store_errors(path):
                document = read_bounded(path, MAX_ENVELOPE_BYTES)
                write_document(path, also_signed(document, STATEMENT_TYPE, key, str(path)))
            release.check_signature(trust.root)

    def point(
        self,
        channel: str,
        release: Release,
        *,
        actor: str,
        reason: str,
        key: SigningKey,
        action: str = "publish",
    ) -> ChannelEntry:
        """Let a channel of the release's own target name this release; the present entry where it does.

        Raises:
            PublicationRefusedError: The release is marked bad, and the channel does not name it yet.
            ChannelMovedError: Somebody moved the channel at the same time; says who.
            SignatureError: The key may not move this channel.
        """
        target = release.manifest.target
        head = self.present(target, channel)
        if head and head.entry.release == release.id:
            return self.settled(head)
        if mark := self.is_marked_bad(release):
            raise PublicationRefusedError(
                f"marked bad by {mark.actor} on {mark.at}: {mark.reason}",
                where=f"{target}/{channel}",
                hint="change what it is built from; no force brings it to canary, `releasectl promote "
                "--force` lets stable take it, recorded",
            )
        return self.move(
            target, channel, release.id, action=action, actor=actor, reason=reason, key=key, seen=head
        ).entry

    def present(self, target: str, channel: str) -> Head | None:
        """As ``head``, but None where nothing of the channel holds: a new entry takes the place of that."""
        try:
            return self.head(target, channel)
        except (SignatureError, ManifestError):
            return None

    def settled(self, head: Head) -> ChannelEntry:
        """What a channel says already, on the disk when this returns."""
        folder = self._channel(head.entry.target, head.entry.channel)
        with store_errors(folder):
            self._settle(folder)
        return head.entry

    def move(
        self,
        target: str,
        channel: str,
        identifier: str,
        *,
        action: str,
        actor: str,
        reason: str,
        key: SigningKey,
        seen: Head | None,
        marked: str = "",
        overridden: tuple[str, ...] = (),
    ) -> SignedEntry:
        """Add an entry to a channel; whether it may be is asked in ``promotion``.

        Args:
            identifier: What the channel names from now on; empty for nothing.
            seen: The entry that the decision was made on.

        Raises:
            ChannelMovedError: The channel is not where it was seen; says who moved it.
            ManifestError: The channel's history does not hold, so that nothing can continue it.
            SignatureError: The key may not move this channel.
            StoreBusyError, StoreError: It cannot be written; nothing is left.
        """
        with self.writing():
            log = self._log(target, channel)
            check_role(key, self.trust.root, channel)
            tip = self._tip(log, seen)
            entry = ChannelEntry(
                schema=ENTRY_SCHEMA,
                target=target,
                channel=channel,
                sequence=next_sequence(tip, log.where),
                previous_entry=tip.digest if tip else "",
                release=identifier,
                previous=tip.entry.release if tip else "",
                action=action,
                marked=marked,
                actor=actor,
                reason=reason,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                overridden=overridden,
                evidence=() if marked else self._evidence_records(identifier),
            )
            return log.append(entry, key)

    def _tip(self, log: ChannelLog, seen: Head | None) -> SignedEntry | None:
        """The end of the chain, which must be what the decision was made on."""
        chain, head = log.whole_and_head()
        tip = chain[-1] if chain else None
        was, now = seen.signed if seen else None, head.signed if head else None
        if (was.digest if was else "") != (now.digest if now else ""):
            who = f"{now.entry.actor} moved it" if now else "it names nothing any more"
            what = f" to {now.entry.release[:12] or 'nothing'}: {now.entry.reason}" if now else ""
            raise ChannelMovedError(
                f"{who} first{what}", where=log.where, hint="look at the channel again, then repeat"
            )
        return tip

    def _evidence_records(self, identifier: str) -> tuple[EvidenceRecord, ...]:
        """What is what its name says, by name, up to a number: no file laid there can stop a move."""
        found: list[EvidenceRecord] = []
        for path in self.evidence(identifier) if identifier else ():
            with contextlib.suppress(PipelineError):
                read_evidence(path)
                found.append(EvidenceRecord(**evidence_record(path)))
            if len(found) == MOST_EVIDENCE:
                break
        return tuple(found)

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
        with self.writing():
            return write_evidence(self.evidence_folder(self.open(release.id).id), kind, suffix, data)

    @contextlib.contextmanager
    def rotating(self, document: bytes) -> Iterator[ReleaseStore]:
        """The store under the root that continues the present one, which is kept last, as the single switch.

        What is signed inside is signed for the new root; until the end readers go by the old one, under
        which the new signatures say nothing. Whoever is killed inside leaves the old state. Nobody else
        writes meanwhile: under the old root a writer would move the new entries aside.

        Raises:
            SignatureError, ManifestError: It does not continue the present root; nothing was written.
            StoreBusyError, StoreError: It cannot be written.
        """
        with self.writing():
            trust = self.trust
            trust.add(document, "the new root")
            after = ReleaseStore(self.root, trust, _accepts_doubles=self._accepts_doubles)
            after._writer = self._writer
            yield after
            self.add_root(document)

    def add_root(self, document: bytes) -> Root:
        """Keep the root that continues the present one; refused as ``Trust.add``."""
        with self.writing():
            trust = self.trust
            trust.add(document, "root")
            path = self.root / "trust" / root_name(trust.root.version)
            with store_errors(path):
                clear_way(path)
                write_document(path, document)
            return trust.root


def refuse_double(manifest: Manifest, artifact: bytes, *, accepted: bool = False) -> None:
    """Look into the artifact's bytes as ``gate.check_artifact``; refuse what a compiler's double wrote."""
    hef = check_artifact(manifest, artifact)
    if hef and hef.is_double and not accepted:
        raise PublicationRefusedError(
            f"a test double of the compiler wrote it ({hef.sdk_version})",
            where=manifest.artifact,
            hint="compile with Hailo's Dataflow Compiler; no chip runs this file",
        )


def check_role(key: SigningKey, root: Root, role: str) -> None:
    """Refuse a key that may not act for a role, before anything is written.

    Raises:
        WrongRoleError, UnknownKeyError: It may not.
    """
    if key.keyid in root.roles[role].keyids:
        return
    roles = root.roles_of(key.keyid)
    kind = WrongRoleError if roles else UnknownKeyError
    held = f"has the role {' and '.join(roles)}" if roles else f"is not in root {root.version}"
    raise kind(
        f"key {key.keyid[:16]} {held}: this takes a key of role {role}",
        hint="`releasectl keys show` says who holds which",
    )
