"""Roots of trust that a pull brought: taken only where nothing that counts here is lost by it."""

from __future__ import annotations

from typing import Final

from runtime.contract.channel_log import Head, NotThereYetError
from runtime.contract.channels import CHANNELS
from runtime.contract.errors import ManifestError, PipelineError, StoreError
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import StoreReader
from runtime.contract.trust import SignatureError, Trust, TrustRootError

_HELD: Final = (
    "bring the source in order, sign again there (`releasectl keys resign`) and pull again; where a key was "
    "stolen, --take-roots takes the root all the same, and this is served no longer"
)


def take_roots(store: ReleaseStore, trust: Trust, *, whatever: bool) -> tuple[int, list[str]]:
    """Keep the new roots, all of them or none.

    Args:
        store: Which has the roots before them.
        trust: The store's roots, and those that continue them.
        whatever: Take them though channels and releases that count here do so no longer.

    Returns:
        How many were new and are kept; for each channel that keeps them from it a sentence, with the
        release that it names.

    Raises:
        StoreBusyError, StoreError: The store cannot be read or written.
    """
    if trust.root.version <= store.trust.root.version:
        return 0, []  # another writer is nothing to wait for
    with store.writing():
        here = store.trust.root.version
        roots = zip(trust.roots, trust.documents, strict=True)
        new = [document for root, document in roots if root.version > here]
        lost = _lost(store, trust) if new and not whatever else []
        if lost:
            return 0, lost
        for document in new:
            store.add_root(document)
        return len(new), []


def _lost(store: ReleaseStore, trust: Trust) -> list[str]:
    """Of every target that the store has, not only of those that were pulled: a root is for all of them."""
    after = StoreReader(store.root, trust)
    found: list[str] = []
    for target in store.targets():
        for channel in CHANNELS:
            head = store.present(target, channel)
            if head is None:
                continue
            try:
                _check_kept(store, after, head)
            except PipelineError as error:
                if isinstance(error, StoreError) and not isinstance(error, NotThereYetError):
                    raise
                what = f"release {head.entry.release[:16]}..." if head.entry.release else "nothing"
                held = TrustRootError(
                    f"is held back: under it {target}/{channel}, which names {what}, is lost: {error}",
                    where=f"root {trust.root.version}",
                    hint=_HELD,
                )
                found.append(str(held))
    return found


def _check_kept(store: ReleaseStore, after: StoreReader, head: Head) -> None:
    """PipelineError where a channel that counts now goes back, or names what does not count."""
    target, channel, now = head.entry.target, head.entry.channel, head.entry
    try:
        then = after.head(target, channel)
    except (SignatureError, ManifestError):
        if now.release:
            raise
        return  # it names nothing, and would go on doing so
    if then is None or then.entry.sequence < now.sequence:
        raise ManifestError(
            f"it would go back to entry {then.entry.sequence if then else 0} from {now.sequence}",
            where=f"{target}/{channel}",
        )
    if then.entry.release and _counts(store, head):
        after.release_of(target, channel, then)


def _counts(store: ReleaseStore, head: Head) -> bool:
    """Whether what a channel names can be served now: what cannot is not lost."""
    try:
        store.release_of(head.entry.target, head.entry.channel, head)
    except PipelineError as error:
        if isinstance(error, StoreError) and not isinstance(error, NotThereYetError):
            raise
        return False
    return True
