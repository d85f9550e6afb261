"""One file that carries a release to a machine without a network, and what is taken from it there."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from runtime.contract.arrivals import append_entries, new_entries
from runtime.contract.channels import CHANNELS, entry_name
from runtime.contract.document import MAX_DOCUMENT_BYTES
from runtime.contract.errors import DigestMismatchError, collect_problems, store_errors
from runtime.contract.evidence import read_evidence, write_evidence
from runtime.contract.export_file import EVIDENCE, RELEASE, ROOT, ExportFile, ExportFileError
from runtime.contract.files import write_document
from runtime.contract.gate import check_publishable
from runtime.contract.hef_errors import HefOverlongError
from runtime.contract.hef_header import MAX_HEF_BYTES
from runtime.contract.release import MANIFEST_NAME, SIGNATURE_NAME, Manifest, parse_manifest
from runtime.contract.release_directory import Release, check_statement, check_sum
from runtime.contract.store import ReleaseStore, refuse_double
from runtime.contract.trust import MAX_ENVELOPE_BYTES, Root


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


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and a sentence for each file that was not, since it is not what its name says."""

    release: Release
    left_out: tuple[str, ...]


def export(store: ReleaseStore, identifier: str, path: Path, *, force: bool = False) -> Exported:
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
    buffer, left_out = io.BytesIO(), list[str]()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in _contents(store, release, left_out):
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
    return Exported(release=release, left_out=tuple(left_out))


def _contents(store: ReleaseStore, release: Release, left_out: list[str]) -> Iterator[tuple[str, bytes]]:
    """Every file as it was verified, just read: a link in the store may lead to what is nobody else's."""
    place = f"releases/{release.id}"
    for name, data in release.documents(store.trust.roots).items():
        yield f"{place}/{name}", data
    for artifact in release.manifest.artifacts:
        yield f"{place}/{artifact.name}", release.read(artifact.name)
    for path in store.evidence(release.id):
        with collect_problems(left_out):
            yield f"evidence/{release.id}/{path.name}", read_evidence(path)
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

    The file is read twice: once to verify all of it, before anything is written, and once to copy, a piece
    at a time, each file held against its digest once more. So memory does not grow with it: it holds one
    document or report at a time, and of a release for a chip its HEF, at most 256 MiB, to look into it.

    An entry that comes along must continue the one before it: its digest, and the release that it says the
    channel named before. That release itself need not be here: an export carries one, others may have been
    pruned, and what was named once stays true. A roll back to it says that it is not there.

    Raises:
        ExportFileError: It is no export, or holds something that none does.
        DigestMismatchError, ManifestError, SignatureError: What it holds is not what was released, or an
            entry tells its channel's past otherwise than it was.
        HefError: The target is a chip, and the artifact is not the encoder for it.
        ForkError: Its channel history is another one than the store's.
        NotThereYetError: Its channel history does not reach back to the store's.
        PublicationRefusedError: It would not have been released.
        StoreError: It cannot be read, or the store not written; nothing of it is left.
    """
    with ExportFile(path) as arrived:
        identifiers = {match[1] for name in arrived.parts if (match := RELEASE.fullmatch(name))}
        if len(identifiers) != 1:
            raise ExportFileError(f"holds {len(identifiers)} releases, an export holds one", where=str(path))
        (identifier,) = identifiers
        with store.writing():
            return _take(store, arrived, identifier)


def _take(store: ReleaseStore, arrived: ExportFile, identifier: str) -> Imported:
    trust = store.trust
    roots = 0
    for version in sorted(int(match[1]) for name in arrived.parts if (match := ROOT.fullmatch(name))):
        if version > trust.root.version:
            name = f"trust/{version}.root.json"
            trust.add(arrived.read(name), f"{arrived.path}: {name}")
            roots += 1
    manifest = _check_release(store, arrived, identifier, trust.root)
    histories = {
        channel: new_entries(store, arrived, manifest.target, channel, trust) for channel in CHANNELS
    }
    evidence = _evidence(arrived, identifier)
    release = store.put(_contents_of(arrived, identifier), trust.root)
    for kind, suffix, name in evidence:
        write_evidence(store.evidence_folder(identifier), kind, suffix, arrived.read(name))
    for channel, sequences in histories.items():
        append_entries(store, arrived, manifest.target, channel, sequences, trust)
    # Last: under a new root nothing counts that it does not vouch for.
    for document in trust.documents[len(trust.documents) - roots :]:
        store.add_root(document)
    entries = {f"{manifest.target}/{channel}": len(found) for channel, found in histories.items()}
    return Imported(release=release, entries=entries, roots=roots)


def _contents_of(arrived: ExportFile, identifier: str) -> Mapping[str, bytes]:
    """What ``put`` writes: the two documents that it reads itself, and for each artifact what reads it."""
    prefix = f"releases/{identifier}/"
    files: dict[str, bytes | Iterator[bytes]] = {}
    for name in arrived.names(prefix):
        small = name in (MANIFEST_NAME, SIGNATURE_NAME)
        files[name] = arrived.read(prefix + name) if small else arrived.chunks(prefix + name)
    # ``put`` does not look at artifacts: it hands them to ``write_directory``, which takes pieces, too.
    return cast("Mapping[str, bytes]", files)


def _check_release(store: ReleaseStore, arrived: ExportFile, identifier: str, root: Root) -> Manifest:
    prefix, where = f"releases/{identifier}/", str(arrived.path)
    inside = {name: arrived.parts[prefix + name] for name in arrived.names(prefix)}
    for name in (MANIFEST_NAME, SIGNATURE_NAME):
        if name not in inside:
            raise ExportFileError(f"holds no {name}", where=where)
    stated = inside[MANIFEST_NAME]
    if stated.size > MAX_DOCUMENT_BYTES or stated.sha256 != identifier:
        raise DigestMismatchError(
            f"the manifest's sha256 is {stated.sha256[:16]}..., it is named {identifier[:16]}...",
            where=where,
            hint="copy the file again",
        )
    if inside[SIGNATURE_NAME].size > MAX_ENVELOPE_BYTES:
        raise ExportFileError(f"{inside[SIGNATURE_NAME].size} bytes are no {SIGNATURE_NAME}", where=where)
    signature = arrived.read(prefix + SIGNATURE_NAME)
    check_statement(signature, root, identifier, stated.size, f"{where}: {SIGNATURE_NAME}")
    manifest = parse_manifest(arrived.read(prefix + MANIFEST_NAME), f"{where}: {MANIFEST_NAME}")
    listed = {MANIFEST_NAME, SIGNATURE_NAME, *(artifact.name for artifact in manifest.artifacts)}
    if listed != set(inside):
        raise ExportFileError(f"holds other files than the manifest's {sorted(listed)}", where=where)
    for artifact in manifest.artifacts:
        part = inside[artifact.name]
        check_sum(part.size, part.sha256, artifact, Path(f"{where}: {artifact.name}"))
    check_publishable(manifest)
    if manifest.target != "emulator":  # of that one nobody looks into the bytes before its engine does
        if inside[manifest.artifact].size > MAX_HEF_BYTES:
            size = inside[manifest.artifact].size
            raise HefOverlongError(
                f"has {size} bytes, at most {MAX_HEF_BYTES} are read", where=manifest.artifact
            )
        refuse_double(manifest, arrived.read(prefix + manifest.artifact), accepted=store.accepts_doubles)
    return manifest


def _evidence(arrived: ExportFile, identifier: str) -> list[tuple[str, str, str]]:
    """Kind, suffix and name of each file of evidence, which is what its name says."""
    found = []
    for name, part in arrived.parts.items():
        if match := EVIDENCE.fullmatch(name):
            if (match[1], match[3]) != (identifier, part.sha256):
                raise DigestMismatchError("is not what its name says", where=f"{arrived.path}: {name}")
            found.append((match[2], match[4], name))
    return found
