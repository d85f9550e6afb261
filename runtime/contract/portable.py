"""One file that carries a release to a machine without a network, and what is taken from it there.

The file is a plain tar of regular files, read here block by block: no link, no folder, no extended
header, no compression, no name but those that a store has.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from runtime.contract.channel_log import ChannelLog, ForkError, NotThereYetError
from runtime.contract.channels import CHANNELS, SignedEntry, check_entry, entry_name
from runtime.contract.document import MAX_DOCUMENT_BYTES
from runtime.contract.errors import (
    DigestMismatchError,
    PipelineError,
    store_errors,
)
from runtime.contract.evidence import MAX_EVIDENCE_BYTES, evidence_name, write_evidence
from runtime.contract.files import make_directory, open_regular, read_bounded, sync_directory, write_document
from runtime.contract.gate import check_publishable
from runtime.contract.release import (
    MANIFEST_NAME,
    MAX_ARTIFACT_BYTES,
    SIGNATURE_NAME,
    TARGETS,
    Manifest,
    parse_manifest,
    release_id,
)
from runtime.contract.release_directory import Release, check_bytes, check_statement
from runtime.contract.store import ReleaseStore, refuse_double
from runtime.contract.trust import MAX_ENVELOPE_BYTES, Root, Trust

BLOCK: Final = 512
MOST_FILES: Final = 20_000
MAX_EXPORT_BYTES: Final = 2 * MAX_ARTIFACT_BYTES
_ID: Final = "[0-9a-f]{64}"
_RELEASE: Final = re.compile(rf"releases/({_ID})/([A-Za-z0-9][A-Za-z0-9._+-]{{0,199}})")
_EVIDENCE: Final = re.compile(rf"evidence/({_ID})/([a-z][a-z0-9_-]{{0,39}})-({_ID})\.(html|json)")
_ENTRY: Final = re.compile(rf"channels/({'|'.join(TARGETS)})/({'|'.join(CHANNELS)})/([0-9]{{8}})\.json")
_ROOT: Final = re.compile(r"trust/([1-9][0-9]{0,5})\.root\.json")
_LIMITS: Final = (
    (_RELEASE, MAX_ARTIFACT_BYTES),
    (_EVIDENCE, MAX_EVIDENCE_BYTES),
    (_ENTRY, MAX_ENVELOPE_BYTES),
    (_ROOT, MAX_ENVELOPE_BYTES),
)


class ExportFileError(PipelineError):
    """A file that is no export, or holds what no export does."""

    code = "export_file"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What came with a file.

    Args:
        release: The release, verified on the disk.
        entries: ``target/channel`` to how many entries were new.
        roots: How many roots of trust were new.
    """

    release: Release
    entries: dict[str, int]
    roots: int


def export(store: ReleaseStore, identifier: str, path: Path, *, force: bool = False) -> Release:
    """Write a release, its evidence, the roots of trust and the histories that name it into one file.

    The same store gives the same bytes. The file appears whole or not at all.

    Args:
        store: Where the release is.
        identifier: Its id.
        path: The file.
        force: Write over a file that is there.

    Raises:
        ExportFileError: A file is there, or a name in the store does not fit.
        ReleaseNotFoundError, SignatureError, DigestMismatchError: There is no such release to be trusted.
        StoreError: It cannot be written.
    """
    # Looked at, not held by a link: a stick's file system may have none.
    if not force and os.path.lexists(path):
        raise ExportFileError(
            "is there already", where=str(path), hint="name another file, or write over it with --force"
        )
    release = store.open_signed(identifier)
    release.verify()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in _contents(store, release):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o444
            try:
                archive.addfile(member, io.BytesIO(data))
            except ValueError as error:  # a name that the format has no room for
                raise ExportFileError(
                    f"its {error}", where=name, hint="an export takes 100 characters"
                ) from error
    with store_errors(path):
        write_document(path, buffer.getvalue())
    return release


def _contents(store: ReleaseStore, release: Release) -> Iterator[tuple[str, bytes]]:
    with store_errors(release.directory):
        names = [MANIFEST_NAME, SIGNATURE_NAME, *(each.name for each in release.manifest.artifacts)]
        for name in names:
            yield f"releases/{release.id}/{name}", (release.directory / name).read_bytes()
        for path in store.evidence(release.id):
            yield f"evidence/{release.id}/{path.name}", path.read_bytes()
    trust = store.trust
    for root, document in zip(trust.roots[1:], trust.documents[1:], strict=True):
        yield f"trust/{root.version}.root.json", document
    target = release.manifest.target
    for channel in CHANNELS:
        chain = store.chain(target, channel)
        if chain and chain[-1].entry.release == release.id:
            for signed in chain:
                name = entry_name(signed.entry.sequence)
                yield f"channels/{target}/{channel}/{name}", signed.document


def import_file(store: ReleaseStore, path: Path) -> Imported:
    """Take a release out of a file, after everything in it was verified.

    Raises:
        ExportFileError: It is no export, or holds something that none does.
        DigestMismatchError, ManifestError, SignatureError: What it holds is not what was released.
        ForkError: Its channel history is another one than the store's.
        NotThereYetError: Its channel history does not reach back to the store's.
        PublicationRefusedError: It would not have been released.
        StoreError: It cannot be read, or the store not written; nothing of it is left.
    """
    files = dict(_members(path))
    identifiers = {match[1] for name in files if (match := _RELEASE.fullmatch(name))}
    if len(identifiers) != 1:
        raise ExportFileError(f"holds {len(identifiers)} releases, an export holds one", where=str(path))
    (identifier,) = identifiers
    with store.writing():
        trust = store.trust
        roots = 0
        for version in sorted(int(match[1]) for name in files if (match := _ROOT.fullmatch(name))):
            if version > trust.root.version:
                trust.add(files[f"trust/{version}.root.json"], f"{path}: trust/{version}.root.json")
                roots += 1
        prefix = f"releases/{identifier}/"
        inside = {n.removeprefix(prefix): data for n, data in files.items() if n.startswith(prefix)}
        manifest = _check_release(store, inside, identifier, str(path), trust.root)
        histories = {
            f"{manifest.target}/{channel}": _new_entries(store, files, manifest.target, channel, trust)
            for channel in CHANNELS
        }
        evidence = _evidence(files, identifier, str(path))
        release = store.put(inside, trust.root)
        for kind, suffix, data in evidence:
            write_evidence(store.evidence_folder(identifier), kind, suffix, data)
        for place, entries in histories.items():
            target, channel = place.split("/")
            _append(store, target, channel, entries, trust)
        # Last: under a new root nothing counts that it does not vouch for.
        for document in trust.documents[len(trust.documents) - roots :]:
            store.add_root(document)
    return Imported(
        release=release, entries={place: len(found) for place, found in histories.items()}, roots=roots
    )


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file in an export; nothing is allocated that is not there."""
    seen: set[str] = set()
    with store_errors(path):
        file: BinaryIO
        with open_regular(path) as file:
            size = file.seek(0, io.SEEK_END)
            if size > MAX_EXPORT_BYTES or size < 2 * BLOCK or size % BLOCK:
                raise ExportFileError(f"{size} bytes cannot be an export", where=str(path))
            file.seek(0)
            while (block := file.read(BLOCK)) != bytes(BLOCK):
                member = _header(block, path)
                if member.name in seen or len(seen) >= MOST_FILES:
                    raise ExportFileError("a name comes twice, or too many", where=f"{path}: {member.name}")
                seen.add(member.name)
                padded = -(-member.size // BLOCK) * BLOCK
                if padded > size - file.tell():
                    raise ExportFileError("ends before its contents do", where=f"{path}: {member.name}")
                yield member.name, file.read(padded)[: member.size]


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


def _check_release(
    store: ReleaseStore, inside: dict[str, bytes], identifier: str, where: str, root: Root
) -> Manifest:
    for name in (MANIFEST_NAME, SIGNATURE_NAME):
        if name not in inside:
            raise ExportFileError(f"holds no {name}", where=where)
    data = inside[MANIFEST_NAME]
    if len(data) > MAX_DOCUMENT_BYTES or release_id(data) != identifier:
        raise DigestMismatchError(
            f"the manifest's sha256 is {release_id(data)[:16]}..., it is named {identifier[:16]}...",
            where=where,
            hint="copy the file again",
        )
    check_statement(inside[SIGNATURE_NAME], root, identifier, len(data), f"{where}: {SIGNATURE_NAME}")
    manifest = parse_manifest(data, f"{where}: {MANIFEST_NAME}")
    listed = {MANIFEST_NAME, SIGNATURE_NAME, *(artifact.name for artifact in manifest.artifacts)}
    if listed != set(inside):
        raise ExportFileError(f"holds other files than the manifest's {sorted(listed)}", where=where)
    for artifact in manifest.artifacts:
        check_bytes(inside[artifact.name], artifact, Path(f"{where}: {artifact.name}"))
    check_publishable(manifest)
    refuse_double(manifest, inside[manifest.artifact], accepted=store.accepts_doubles)
    return manifest


def _new_entries(
    store: ReleaseStore, files: dict[str, bytes], target: str, channel: str, trust: Trust
) -> list[SignedEntry]:
    """Entries that the store lacks: each signed and continuing the one before, the last by a present key."""
    prefix = f"channels/{target}/{channel}/"
    folder = store.root / "channels" / target / channel
    names = sorted(name.removeprefix(prefix) for name in files if name.startswith(prefix))
    theirs = [check_entry(files[prefix + name], folder / name, trust.roots) for name in names]
    mine = ChannelLog(folder, trust).chain()
    known = {signed.entry.sequence: signed.digest for signed in mine}
    new: list[SignedEntry] = []
    tip = mine[-1] if mine else None
    for signed in theirs:
        sequence = signed.entry.sequence
        if sequence in known:
            if known[sequence] != signed.digest:
                raise ForkError(
                    f"entry {sequence} is another one than the store's", where=f"{target}/{channel}"
                )
            continue
        if sequence != (tip.entry.sequence + 1 if tip else 1):
            raise NotThereYetError(f"entry {sequence} has nothing before it", where=f"{target}/{channel}")
        if signed.entry.previous_entry != (tip.digest if tip else ""):
            raise ForkError(f"entry {sequence} continues another history", where=f"{target}/{channel}")
        new.append(signed)
        tip = signed
    if new:
        check_entry(new[-1].document, folder / entry_name(new[-1].entry.sequence), [trust.root])
    return new


def _evidence(files: dict[str, bytes], identifier: str, where: str) -> list[tuple[str, str, bytes]]:
    found = []
    for name, data in files.items():
        if match := _EVIDENCE.fullmatch(name):
            kind, suffix = match[2], match[4]
            if match[1] != identifier or evidence_name(kind, suffix, data) != name.rpartition("/")[2]:
                raise DigestMismatchError("is not what its name says", where=f"{where}: {name}")
            found.append((kind, suffix, data))
    return found


def _append(store: ReleaseStore, target: str, channel: str, entries: list[SignedEntry], trust: Trust) -> None:
    """Add entries, the newest first: a reader sees the old head or the new one and none between.

    Where this ends in the middle, nobody can continue a history with a gap; the same import closes it.
    """
    folder = store.root / "channels" / target / channel
    log = ChannelLog(folder, trust)
    with store_errors(folder):
        make_directory(folder)
        for signed in reversed(entries):
            if not _is_there(folder / entry_name(signed.entry.sequence), signed.document):
                log.add(signed.document, signed.entry.sequence)
        sync_directory(folder)  # those that were there, too


def _is_there(path: Path, document: bytes) -> bool:
    try:
        return read_bounded(path, MAX_ENVELOPE_BYTES) == document
    except FileNotFoundError:
        return False
