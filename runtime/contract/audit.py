"""A whole store, or one release, verified: a sentence for each thing that is wrong."""

from __future__ import annotations

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
from runtime.contract.trust import Root


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
    """Who vouches for a release: ``ok``, ``keys`` (development or own), ``by``, ``problem`` and ``pruned``.

    Of one that was pruned, the signature that was kept is judged.
    """
    with store_errors(store.root):
        pruned = not store.holds(identifier)
    told: dict[str, object] = {"ok": None, "keys": None, "by": [], "problem": None, "pruned": pruned}
    if not store.has_trust:
        return told | {"problem": "not judged: no root of trust here"}
    try:
        root = store.trust.root
        by = _kept_by(store, identifier, root) if pruned else store.open(identifier).check_signature(root)
    except PipelineError as error:
        return told | {"ok": False, "problem": str(error)}
    if not by:
        return told | {"problem": "pruned, and its signature was not kept"}
    return told | {"ok": True, "keys": root.kind, "by": list(by)}


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
