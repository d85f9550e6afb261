"""A whole store, or one release, verified: a sentence for each thing that is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from runtime.contract.channels import CHANNELS
from runtime.contract.errors import PipelineError, collect_problems, store_errors
from runtime.contract.evidence import FOLDER as EVIDENCE_FOLDER
from runtime.contract.evidence import (
    MANIFEST_KIND,
    SIGNATURE_KIND,
    evidence_kind,
    evidence_problems,
    read_evidence,
)
from runtime.contract.files import list_directory
from runtime.contract.release import TARGETS, parse_manifest, release_id
from runtime.contract.release_directory import check_statement
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.store_reader import SHORTEST_PREFIX
from runtime.contract.trust import Root, UnknownKeyError


def store_problems(store: ReleaseStore, identifier: str | None = None) -> list[str]:
    """Verify one release, or the whole store with its channels and roots of trust.

    Without a root of trust, that is one problem, and everything but signatures is verified.
    """
    found: list[str] = []
    with collect_problems(found):
        found += store.trust.refused
    signed = not found or store.has_trust
    with collect_problems(found):
        for name in [identifier] if identifier else store.identifiers():
            with collect_problems(found):
                release = store.open(name)
                if problems := release.problems():
                    found += problems
                elif signed:
                    release.check_signature(store.trust.root)
        found += evidence_problems(store.root, identifier, lambda name: _known(store, name))
    for target in TARGETS if identifier is None and signed else ():
        with collect_problems(found):
            if _channel_names(store, target):
                for channel in CHANNELS:
                    found += _channel_problems(store, target, channel)
    return list(dict.fromkeys(found))


def _known(store: ReleaseStore, name: str) -> bool:
    """Whether evidence may lie beside it: it is there, or it was pruned and its manifest was kept."""
    return store.holds(name) or _kept_manifest(store, name) is not None


def _kept_manifest(store: ReleaseStore, name: str) -> bytes | None:
    """The manifest that was kept of a pruned release: its digest is the release's id, or it is another's."""
    for path in store.evidence(name):
        if evidence_kind(path) == MANIFEST_KIND:
            data = read_evidence(path)
            if release_id(data) == name:
                return data
    return None


def _channel_names(store: ReleaseStore, target: str) -> list[str]:
    # From above to below, so that a file in a folder's place is one problem, not one a channel.
    folder = store.root / "channels"
    with store_errors(folder):
        return list_directory(folder) and list_directory(folder / target)


def _channel_problems(store: ReleaseStore, target: str, channel: str) -> list[str]:
    found: list[str] = []
    with collect_problems(found):
        found += store.history_problems(target, channel)
        head = store.head(target, channel)
        if head:
            found += [problem for problem in head.refused if problem not in found]
            if head.entry.release:
                store.resolve(target, channel)
    return found


def pruned_release(store: ReleaseStore, prefix: str) -> Release | None:
    """What a release was that is no longer in the store; None where none whose id begins so was pruned.

    Its files are gone: only what the manifest says can be asked.
    """
    folder = store.root / EVIDENCE_FOLDER
    with store_errors(folder):
        names = [name for name in list_directory(folder) if name.startswith(prefix.lower())]
    if len(prefix) < SHORTEST_PREFIX or len(names) != 1 or store.holds(names[0]):
        return None
    data = _kept_manifest(store, names[0])
    if data is None:
        return None
    where = str(store.evidence_folder(names[0]))
    return Release(names[0], store.root / "releases" / names[0], parse_manifest(data, where), len(data))


def signature_of(store: ReleaseStore, identifier: str) -> dict[str, object]:
    """Who vouches for a release, as ``show`` says it.

    Of one that was pruned, the signature that was kept is judged. A rotation does not sign it again, so one
    that a key of an earlier root made is neither held nor refused: nobody can tell on which side of the
    rotation it was made, and nothing serves it.

    Returns:
        ``ok``: whether a release key of the present root vouches; None where that is not said.
        ``keys``: ``development keys`` or ``own keys``, and ``by``, a list of key ids, where it is True.
        ``problem``: a sentence where it is not.
        ``pruned``: whether the release is gone.
        ``earlier_root``: version of the root whose key vouched for a pruned one; None for any other.
    """
    with store_errors(store.root):
        pruned = not store.holds(identifier)
    told: dict[str, object] = {"ok": None, "keys": None, "by": [], "problem": None}
    told |= {"pruned": pruned, "earlier_root": None}
    if not store.has_trust:
        return told | {"problem": "not judged: no root of trust here"}
    try:
        roots = store.trust.roots
        root = roots[-1]
        by = _kept_by(store, identifier, root) if pruned else store.open(identifier).check_signature(root)
    except PipelineError as error:
        rotated = pruned and isinstance(error, UnknownKeyError)
        earlier = _earlier(store, identifier, roots) if rotated else None
        return told | (earlier or {"ok": False, "problem": str(error)})
    if not by:
        return told | {"problem": "pruned, and its signature was not kept"}
    return told | {"ok": True, "keys": root.kind, "by": list(by)}


def _earlier(store: ReleaseStore, identifier: str, roots: Sequence[Root]) -> dict[str, object] | None:
    """What is said of a pruned release that a key of an earlier root vouched for; None where none did."""
    for root in reversed(roots[:-1]):
        with contextlib.suppress(PipelineError):
            if by := _kept_by(store, identifier, root):
                return {
                    "problem": f"root {roots[-1].version} no longer names key {by[0][:16]}, which signed it "
                    f"under root {root.version}; a rotation does not sign again what was pruned, and whether "
                    "this was signed before it cannot be told. Nothing serves it: build it again to use it",
                    "earlier_root": root.version,
                }
    return None


def _kept_by(store: ReleaseStore, identifier: str, root: Root) -> tuple[str, ...]:
    """Ids of the keys that vouched for a pruned release; none where no signature was kept."""
    manifest = _kept_manifest(store, identifier)
    refused: PipelineError | None = None
    for path in store.evidence(identifier) if manifest else ():
        if evidence_kind(path) == SIGNATURE_KIND:
            try:
                return check_statement(read_evidence(path), root, identifier, len(manifest or b""), str(path))
            except PipelineError as error:
                refused = error
    if refused:
        raise refused
    return ()
