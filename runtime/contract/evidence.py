"""Evidence kept beside releases: reports and comparisons that are no part of a release's digest.

Layout: ``evidence/<release id>/<kind>-<sha256 of the bytes>.<html|json>``. A file's own digest is in
its name, so that it can be checked, and so that the same evidence is kept once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from runtime.contract.document import sha256_bytes
from runtime.contract.errors import (
    DigestMismatchError,
    ManifestError,
    collect_problems,
    store_errors,
)
from runtime.contract.files import list_directory, read_bounded, sync_directory, write_document

FOLDER: Final = "evidence"
MANIFEST_KIND: Final = "manifest"
"""The manifest of a release that was pruned: what it was can still be told."""
SIGNATURE_KIND: Final = "manifest-signature"
"""Who vouched for a release that was pruned: its ``manifest.dsse.json``."""
PARITY_KIND: Final = "parity"
"""``PublicationEvidence``: as JSON, and as the HTML report of the same numbers."""
MAX_EVIDENCE_BYTES: Final = 32 * 1024 * 1024
_KIND: Final = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_SUFFIXES: Final = ("html", "json")
_NAME: Final = re.compile(rf"({_KIND.pattern})-([0-9a-f]{{64}})\.({'|'.join(_SUFFIXES)})")
_RELEASE: Final = re.compile(r"[0-9a-f]{64}")


def evidence_name(kind: str, suffix: str, data: bytes) -> str:
    """File name of some evidence; ManifestError where it can have none."""
    if not _KIND.fullmatch(kind):
        raise ManifestError(f"{kind!r} cannot name a kind of evidence", where=FOLDER)
    if suffix not in _SUFFIXES:
        raise ManifestError(f"{suffix!r} is none of {', '.join(_SUFFIXES)}", where=FOLDER)
    if len(data) > MAX_EVIDENCE_BYTES:
        raise ManifestError(f"{len(data)} bytes, at most {MAX_EVIDENCE_BYTES} are kept", where=FOLDER)
    return f"{kind}-{sha256_bytes(data)}.{suffix}"


def evidence_kind(path: Path) -> str:
    """What kind of evidence a file is, by its name; ManifestError where that is none."""
    return _parts(path)[0]


def evidence_record(path: Path) -> dict[str, str]:
    """``kind`` and ``sha256`` of a file of evidence, by its name; ManifestError where that is none."""
    kind, digest = _parts(path)
    return {"kind": kind, "sha256": digest}


def write_evidence(folder: Path, kind: str, suffix: str, data: bytes) -> Path:
    """Put a file into a release's folder of evidence, whole or not at all; again changes nothing."""
    path = folder / evidence_name(kind, suffix, data)
    with store_errors(path):
        try:
            there = read_bounded(path, len(data)) == data
        except FileNotFoundError:
            there = False
        if there:
            sync_directory(folder)  # whoever wrote it may have been killed before this
        else:
            write_document(path, data)
    return path


def read_evidence(path: Path) -> bytes:
    """Bytes of a file of evidence, verified.

    Raises:
        ManifestError: The name is none that evidence has.
        DigestMismatchError: The bytes are not what the name says.
        StoreError: It cannot be read.
    """
    digest = _parts(path)[1]
    with store_errors(path):
        data = read_bounded(path, MAX_EVIDENCE_BYTES)
    if sha256_bytes(data) != digest:
        raise DigestMismatchError(
            f"sha256 is {sha256_bytes(data)[:16]}..., the name says {digest[:16]}...",
            where=str(path),
            hint="copy it again, or remove it: the release is whole without it",
        )
    return data


def list_evidence(folder: Path) -> list[Path]:
    """Evidence in a release's folder, sorted by name; other files are not among it."""
    with store_errors(folder):
        return [folder / name for name in list_directory(folder) if _NAME.fullmatch(name)]


def evidence_problems(root: Path, identifier: str | None, is_there: Callable[[str], bool]) -> list[str]:
    """One sentence for each thing that is wrong with the evidence in a store.

    Args:
        root: The store.
        identifier: Of this release only; None for all.
        is_there: Whether the store holds a release of that id.
    """
    found: list[str] = []
    names = [identifier] if identifier else []
    with collect_problems(found), store_errors(root / FOLDER):
        names = names or _visible(root / FOLDER)
    for name in names:
        folder = root / FOLDER / name
        with collect_problems(found), store_errors(folder):
            files = _visible(folder)
            if not _RELEASE.fullmatch(name) or (files and not is_there(name)):
                found.append(f"{folder}: belongs to no release of this store")
                continue
            for file in files:
                with collect_problems(found):
                    read_evidence(folder / file)
    return found


def _visible(folder: Path) -> list[str]:
    # A file that is being written has a dot before its name.
    return [name for name in list_directory(folder) if not name.startswith(".")]


def _parts(path: Path) -> tuple[str, str]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ManifestError(
            "is no name of evidence: <kind>-<sha256>.<html|json>", where=str(path), hint="move it elsewhere"
        )
    return match[1], match[2]
