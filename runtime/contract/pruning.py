"""Releases that nothing needs any more, taken away; what they were can still be told."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime.contract.channels import CHANNELS, ChannelEntry
from runtime.contract.errors import ManifestError, PipelineError, store_errors
from runtime.contract.evidence import MANIFEST_KIND, SIGNATURE_KIND, write_evidence
from runtime.contract.files import LEFTOVERS, NotRegularError, is_directory, read_bounded, sync_directory
from runtime.contract.release import MANIFEST_NAME, SIGNATURE_NAME, TARGETS
from runtime.contract.store import ReleaseStore
from runtime.contract.trust import MAX_ENVELOPE_BYTES, SignatureError


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What a pruning takes away, or would.

    Args:
        removed: Ids of releases.
        kept: Id to why it is kept, one sentence.
        size: Bytes of the releases that are removed.
        leftovers: Files and folders that killed writers left.
    """

    removed: tuple[str, ...]
    kept: dict[str, str]
    size: int
    leftovers: tuple[Path, ...]


def prune(store: ReleaseStore, keep: int, *, dry_run: bool) -> Pruning:
    """Take away every release that no channel names now or within its last ``keep`` entries.

    Manifests of removed releases, their signatures and evidence are kept; so is whatever has a release's
    name and cannot be read as one.

    Args:
        keep: 1 or more; the newest entry of each channel is always among them.
        dry_run: Only say what would be done.

    Raises:
        ManifestError: A channel's history does not hold, or no channel names anything, so that nobody
            knows what is needed.
        StoreError, StoreBusyError: The store cannot be read or written.
    """
    if keep < 1:
        raise ManifestError("must be 1 or more", where="keep", hint="what a channel names is never removed")
    if dry_run:
        return _plan(store, keep)
    with store.writing():
        plan = _plan(store, keep)
        # First, so that no name that is needed is taken.
        with store_errors(store.root):
            _remove_leftovers(plan.leftovers)
        for identifier in plan.removed:
            _remove(store, identifier)
    return plan


def _plan(store: ReleaseStore, keep: int) -> Pruning:
    kept = _needed(store, keep)
    names = store.identifiers()
    if names and not kept:
        raise ManifestError(
            "no channel names a release: all of them would be removed",
            where=str(store.root / "channels"),
            hint="nothing was removed: wait for the channels, where the store is still being copied",
        )
    removed = []
    for name in names:
        if name not in kept:
            # What is no release cannot be told of later, and is nobody's to remove unseen.
            try:
                store.open(name)
            except PipelineError as error:
                kept[name] = f"is no release that can be read: {error}"
            else:
                removed.append(name)
    folder = store.root / "releases"
    with store_errors(folder):
        leftovers = _leftovers(store.root)
        size = sum(path.lstat().st_size for name in removed for path in (folder / name).iterdir())
    return Pruning(removed=tuple(removed), kept=kept, size=size, leftovers=tuple(leftovers))


def _leftovers(root: Path) -> list[Path]:
    """Of writers that were killed: whoever holds the writers' lock is alone, so that they are nobody's."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root, onerror=_raise) if is_directory(root) else ():
        found += [Path(folder) / name for name in sorted([*folders, *files]) if name.startswith(LEFTOVERS)]
        folders[:] = [name for name in folders if not name.startswith(".")]
    return found


def _raise(error: OSError) -> None:
    raise error


def _remove_leftovers(paths: Iterable[Path]) -> None:
    for path in paths:
        sync_directory(path.parent)  # a release that was renamed must not come back without its files
        _discard(path)
        sync_directory(path.parent)


def _discard(path: Path) -> None:
    """Remove what has this name; of a link the link alone, wherever it leads."""
    if path.is_symlink() or not is_directory(path):
        path.unlink()
    else:
        shutil.rmtree(path)


def _needed(store: ReleaseStore, keep: int) -> dict[str, str]:
    kept: dict[str, str] = {}
    for target in TARGETS:
        for channel in CHANNELS:
            for number, entry in enumerate(list(reversed(_history(store, target, channel)))[:keep]):
                if entry.release:
                    when = "named now" if number == 0 else f"within its last {keep} entries"
                    kept.setdefault(entry.release, f"{target}/{channel}: {when}")
    return kept


def _history(store: ReleaseStore, target: str, channel: str) -> list[ChannelEntry]:
    """All of a channel up to its head; where there are entries, one must hold under the present keys."""
    try:
        store.head(target, channel)
        return store.whole_history(target, channel)
    except (ManifestError, SignatureError) as error:
        raise ManifestError(
            f"its history does not hold: {error}",
            where=f"{target}/{channel}",
            hint="nothing was removed: put the missing entries back first",
        ) from error


def _remove(store: ReleaseStore, identifier: str) -> None:
    folder = store.root / "releases"
    with store_errors(folder / identifier):
        manifest = read_bounded(folder / identifier / MANIFEST_NAME, 4 * 1024 * 1024)
        evidence = store.evidence_folder(identifier)
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotRegularError):
            signature = read_bounded(folder / identifier / SIGNATURE_NAME, MAX_ENVELOPE_BYTES)
            write_evidence(evidence, SIGNATURE_KIND, "json", signature)
        # Last: with it, what lies there is known to be of a release that was pruned.
        write_evidence(evidence, MANIFEST_KIND, "json", manifest)
        # First out of sight, at once; a reader never sees a release that is half there.
        hidden = (folder / identifier).rename(folder / f".pruned-{identifier}")
        sync_directory(folder)
        _discard(hidden)
        sync_directory(folder)


def pruned_text(plan: Pruning, *, dry_run: bool) -> Iterable[str]:
    """What was, or would be, done."""
    verb = "would remove" if dry_run else "removed"
    yield f"{verb} {len(plan.removed)} releases, {plan.size / 2**20:.1f} MiB"
    yield from (f"  {identifier}" for identifier in plan.removed)
    if plan.leftovers:
        yield f"{verb} {len(plan.leftovers)} leftovers of writers that were killed"
    yield f"kept {len(plan.kept)}"
    yield from (f"  {identifier[:16]}  {why}" for identifier, why in sorted(plan.kept.items()))
