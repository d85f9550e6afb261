"""Moves that people answer for: promote, roll back, mark bad. One code for Dagster and ``releasectl``."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from runtime.contract.channel_log import Head
from runtime.contract.channels import ChannelEntry
from runtime.contract.errors import (
    DigestMismatchError,
    ManifestError,
    PipelineError,
    ReleaseNotFoundError,
    TargetMismatchError,
)
from runtime.contract.release import Manifest
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore, refuse_double
from runtime.contract.trust import SignatureError, SigningKey

TOOLCHAIN_OF: Final = {"emulator": "emulator", "hailo8": "hailo-dfc", "hailo8l": "hailo-dfc"}
"""Whose numbers count for a target: what another toolchain emulated says nothing about its chip."""
MOST_WORDS: Final = 2000


class PromotionRefusedError(PipelineError):
    """A move that must not be made."""

    code = "promotion_refused"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Who decided, why, and whether against advice.

    Args:
        actor: A person; for canary, automation may.
        reason: Theirs, in words.
        force: Go on where a release is marked bad or was never a canary. Nothing else yields to it.

    Raises:
        PromotionRefusedError: No name, or no reason.
    """

    actor: str
    reason: str
    force: bool = False

    def __post_init__(self) -> None:
        for field in ("actor", "reason"):
            value = getattr(self, field)
            if not value.strip() or len(value) > MOST_WORDS or not value.isprintable():
                raise PromotionRefusedError(
                    "must be said, in one line", where=field, hint="a year later, somebody asks who and why"
                )


def promote(
    store: ReleaseStore, target: str, identifier: str, decision: Decision, key: SigningKey
) -> ChannelEntry:
    """Let ``stable`` take a canary's release.

    Args:
        store: Where both lie.
        target: Whose channel is moved; must be the release's.
        identifier: The release.
        decision: Who, why, against advice.
        key: Of the role ``stable``.

    Returns:
        The entry that names it; the present one where stable does already.

    Raises:
        PromotionRefusedError: Marked bad or never a canary, and not forced; another toolchain's numbers.
        PublicationRefusedError: No passed parity about this artifact; a compiler's double made it.
        TargetMismatchError: It is for another target.
        DigestMismatchError, ManifestError, SignatureError: It is not what was released.
        ChannelMovedError: Somebody else moved stable meanwhile; says who.
    """
    head = store.present(target, "stable")
    release = check_promotable(store, target, identifier)
    if head and head.entry.release == release.id:
        return store.settled(head)
    overridden = _advice(store, release, decision)
    return _move(store, "stable", release, "promote", decision, key, head, overridden)


def check_promotable(store: ReleaseStore, target: str, identifier: str) -> Release:
    """Open a release and hold everything against it that no force overrides; raises as ``promote``."""
    release = store.open_signed(identifier)
    manifest = release.manifest
    if manifest.target != target:
        raise TargetMismatchError(
            f"is for {manifest.target}, the channel is {target}'s",
            where=release.id[:16],
            hint="name the target that it was made for",
        )
    release.verify()
    release.check_publishable()
    refuse_double(manifest, release.read(manifest.artifact), accepted=store.accepts_doubles)
    _check_toolchain(manifest)
    return release


def _check_toolchain(manifest: Manifest) -> None:
    expected = TOOLCHAIN_OF[manifest.target]
    if manifest.toolchain.id != expected:
        raise PromotionRefusedError(
            f"its numbers are {manifest.parity.provenance} by {manifest.toolchain.id}, "
            f"for {manifest.target} only {expected} can say them",
            where="toolchain.id",
            hint="build it with the target's own toolchain",
        )


def _advice(store: ReleaseStore, release: Release, decision: Decision) -> tuple[str, ...]:
    """What speaks against it and yields to force: a sentence each, recorded in the entry."""
    found = []
    if mark := store.is_marked_bad(release):
        found.append(f"marked bad by {mark.actor} on {mark.at}: {mark.reason}")
    target = release.manifest.target
    if all(entry.release != release.id for entry in store.whole_history(target, "canary")):
        found.append("it was never a canary")
    if found and not decision.force:
        raise PromotionRefusedError(
            "; ".join(found), where=release.id[:16], hint="--force goes on, and records what was overridden"
        )
    return tuple(found)


def roll_back(
    store: ReleaseStore,
    target: str,
    channel: str,
    decision: Decision,
    key: SigningKey,
    *,
    to: str | None = None,
) -> ChannelEntry:
    """Let a channel return to an earlier release: a new entry, no edit.

    Args:
        to: A release that the channel named before; None takes the newest such that is whole and
            not marked bad. Where there is none, ``canary`` names nothing from then on.

    Raises:
        PromotionRefusedError: Nothing to return to, or ``to`` was never named, or is marked bad, not forced.
        ReleaseNotFoundError: The channel names nothing, or the release was pruned.
        ChannelMovedError: Somebody else moved it meanwhile; says who.
    """
    head = store.head(target, channel)
    if head is None or not head.entry.release:
        raise ReleaseNotFoundError(
            f"channel {channel} of {target} names no release", hint="there is nothing to roll back"
        )
    before = [entry.release for entry in store.whole_history(target, channel)[:-1]]
    earlier = [name for name in reversed(before) if name and name != head.entry.release]
    if to is None:
        to = _newest_good(store, earlier)
        if to is None and channel == "canary":
            return _record(store, head, "", "roll_back", decision, key)
    if to is None or to not in earlier:
        what = "was never named by this channel before" if to else "has no earlier release to return to"
        raise PromotionRefusedError(
            what, where=f"{target}/{channel}", hint="`releasectl history` shows what it named"
        )
    release = check_promotable(store, target, to)
    overridden: tuple[str, ...] = ()
    if mark := store.is_marked_bad(release):
        overridden = (f"marked bad by {mark.actor} on {mark.at}: {mark.reason}",)
        if not decision.force:
            raise PromotionRefusedError(
                overridden[0], where=release.id[:16], hint="--force goes on, and records it"
            )
    return _move(store, channel, release, "roll_back", decision, key, head, overridden)


def _newest_good(store: ReleaseStore, names: list[str]) -> str | None:
    for name in dict.fromkeys(names):
        with contextlib.suppress(ReleaseNotFoundError, DigestMismatchError, ManifestError, SignatureError):
            release = store.open_signed(name)
            release.verify()
            if not store.is_marked_bad(release):
                return name
    return None


def mark_bad(
    store: ReleaseStore, identifier: str, channel: str, decision: Decision, key: SigningKey
) -> ChannelEntry:
    """Say that a release is never to be promoted; no channel moves.

    Args:
        channel: Whose history says it: ``stable`` for a release manager, ``canary`` for a build host.

    Raises:
        ReleaseNotFoundError: No such release.
        ChannelMovedError: Somebody else moved the channel meanwhile.
    """
    release = store.open(identifier)
    head = store.head(release.manifest.target, channel)
    return store.move(
        release.manifest.target,
        channel,
        head.entry.release if head else "",
        action="mark_bad",
        actor=decision.actor,
        reason=decision.reason,
        key=key,
        seen=head,
        marked=release.id,
    ).entry


def reaffirm(
    store: ReleaseStore, target: str, channel: str, decision: Decision, key: SigningKey
) -> ChannelEntry | None:
    """Sign again, with a key of the present root, what a channel named under the one before.

    Returns:
        The entry; None where the channel never named anything.
    """
    chain = store.chain(target, channel)
    if not chain:
        return None
    # Under the new keys nothing holds, so that is what the decision was made on.
    return store.move(
        target,
        channel,
        chain[-1].entry.release,
        action="reaffirm",
        actor=decision.actor,
        reason=decision.reason,
        key=key,
        seen=_head_or_none(store, target, channel),
    ).entry


def _head_or_none(store: ReleaseStore, target: str, channel: str) -> Head | None:
    try:
        return store.head(target, channel)
    except PipelineError:
        return None


def _move(
    store: ReleaseStore,
    channel: str,
    release: Release,
    action: str,
    decision: Decision,
    key: SigningKey,
    seen: Head | None,
    overridden: tuple[str, ...],
) -> ChannelEntry:
    return store.move(
        release.manifest.target,
        channel,
        release.id,
        action=action,
        actor=decision.actor,
        reason=decision.reason,
        key=key,
        seen=seen,
        overridden=overridden,
    ).entry


def _record(
    store: ReleaseStore, head: Head, identifier: str, action: str, decision: Decision, key: SigningKey
) -> ChannelEntry:
    return store.move(
        head.entry.target,
        head.entry.channel,
        identifier,
        action=action,
        actor=decision.actor,
        reason=decision.reason,
        key=key,
        seen=head,
    ).entry
