"""Releases that are marked bad, and which release a mark is about, whatever is left of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from runtime.contract.audit import pruned_release
from runtime.contract.channels import CHANNELS, MOST_WORDS, ChannelEntry, SignedEntry
from runtime.contract.errors import (
    ManifestError,
    PipelineError,
    ReleaseNotFoundError,
    TargetMismatchError,
    collect_problems,
)
from runtime.contract.release import TARGETS
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.store_reader import SHORTEST_SIGNED, StoreReader


@dataclass(frozen=True)
class Marks:
    """Every mark of a store.

    Args:
        by_release: Id and target of a release to the entries that mark it, the canaries' first.
        broken: A sentence for each history that does not hold, so that marks may be missing.
    """

    by_release: dict[tuple[str, str], list[SignedEntry]]
    broken: tuple[str, ...]

    def of(self, identifier: str, target: str | None) -> list[SignedEntry]:
        """Those of one release; of whichever target where its own cannot be told."""
        targets = [target] if target else TARGETS
        return [signed for name in targets for signed in self.by_release.get((identifier, name), ())]


def all_marks(store: StoreReader, targets: Collection[str] = TARGETS) -> Marks:
    """The marks in all histories of these targets, each verified, as far as they hold.

    Raises:
        TrustRootError: There is no root of trust.
    """
    found: dict[tuple[str, str], list[SignedEntry]] = {}
    broken: list[str] = []
    for target, channel in _channels(targets):
        chain: list[SignedEntry] = []
        with collect_problems(broken):
            try:
                chain = store.whole_chain(target, channel)
                broken += store.displaced(target, channel)
            except ManifestError:
                chain = store.chain(target, channel)
                raise
        for signed in chain:
            if signed.entry.marked:
                found.setdefault((signed.entry.marked, target), []).append(signed)
    return Marks(found, tuple(broken))


def said_against(store: StoreReader, release: Release) -> tuple[str, ...]:
    """Its newest mark, and each history of its target that does not hold, so that more may be missing.

    All of it yields to force: who damaged one channel's history must not keep the other where it is.
    """
    marks = all_marks(store, [release.manifest.target])
    # An entry repeats it, for everybody to read: where this store lies is the operator's business.
    broken = (problem.replace(f"{store.root}/", "") for problem in marks.broken)
    missing = (f"marks may be missing: {problem}"[:MOST_WORDS] for problem in broken)
    return (*_newest(marks, release), *missing)


def mark_texts(store: StoreReader, release: Release) -> tuple[str, ...]:
    """Who marked it bad last, and why; nothing where nobody did."""
    return _newest(all_marks(store, [release.manifest.target]), release)


def _newest(marks: Marks, release: Release) -> tuple[str, ...]:
    entries = (signed.entry for signed in marks.of(release.id, release.manifest.target))
    newest = max(entries, key=lambda entry: entry.at, default=None)
    return (_mark_text(newest),) if newest else ()


def _mark_text(mark: ChannelEntry) -> str:
    """Who marked a release bad, and why; short enough for another entry to repeat."""
    most = MOST_WORDS // 4
    actor, reason = (each if len(each) <= most else f"{each[:most]}..." for each in (mark.actor, mark.reason))
    return f"marked bad by {actor} on {mark.at}: {reason}"


def _channels(targets: Collection[str] = TARGETS) -> Iterator[tuple[str, str]]:
    for target in sorted(targets):
        for channel in CHANNELS:
            yield target, channel


@dataclass(frozen=True, kw_only=True)
class Markable:
    """A release as far as it can still be told: all that a mark needs is its id and its target.

    Args:
        release: What its manifest says, of a pruned one the manifest that was kept; None without either.
        problem: Why it is not there as it was released; empty where it is.
    """

    identifier: str
    target: str
    release: Release | None
    problem: str


def markable(store: ReleaseStore, prefix: str, target: str | None = None) -> Markable:
    """The release whose id begins so, though it be damaged, pruned or lost.

    Args:
        prefix: Of the id of a release that is in the store, left evidence, or is named by a history.
        target: Whose release it is, where neither a manifest nor a history says.

    Raises:
        ReleaseNotFoundError: The store never heard of it, or of several that begin so.
        ManifestError: Whose release it is cannot be told.
        TargetMismatchError: It is for another target.
        StoreError: The store cannot be read.
    """
    named = _named_by_histories(store)
    identifier = _only(prefix, {*store.identifiers(), *store.with_evidence(), *named})
    release, problem = _as_it_is(store, identifier)
    targets = {release.manifest.target} if release else named.get(identifier, set())
    if target and targets and target not in targets:
        raise TargetMismatchError(
            f"is for {' or '.join(sorted(targets))}, not {target}",
            where=identifier[:16],
            hint="leave --target away: it is for a release whose target nothing says",
        )
    if not target and len(targets) != 1:
        found = f"histories of {' and '.join(sorted(targets))} name it" if targets else "no history names it"
        raise ManifestError(
            f"whose release it is cannot be told: {found}, and {problem}",
            where=identifier[:16],
            hint=f"--target says it: one of {', '.join(TARGETS)}",
        )
    return Markable(identifier=identifier, target=target or min(targets), release=release, problem=problem)


def _named_by_histories(store: ReleaseStore) -> dict[str, set[str]]:
    """Id of each release that a channel ever named to the targets whose channels did."""
    named: dict[str, set[str]] = {}
    for target, channel in _channels():
        for entry in store.history(target, channel):
            if entry.release:
                named.setdefault(entry.release, set()).add(target)
    return named


def _only(prefix: str, names: Collection[str]) -> str:
    wanted = prefix.lower()
    found = [name for name in names if name.startswith(wanted)]
    if len(wanted) < SHORTEST_SIGNED or len(found) != 1:
        many = f"names {len(found)} releases" if found else "names no release, pruned or lost ones among them"
        raise ReleaseNotFoundError(
            "is too short to name a release" if len(wanted) < SHORTEST_SIGNED else many,
            where=prefix,
            hint=f"at least {SHORTEST_SIGNED} digits: `releasectl list` and `history` show them",
        )
    return found[0]


def _as_it_is(store: ReleaseStore, identifier: str) -> tuple[Release | None, str]:
    """What can be read of it, and why no more can."""
    try:
        return store.open(identifier), ""
    except ReleaseNotFoundError as error:
        gone = str(error)
    except PipelineError as error:
        return None, str(error)
    try:
        kept = pruned_release(store, identifier)
    except PipelineError as error:
        return None, str(error)
    return kept, "it was pruned" if kept else gone
