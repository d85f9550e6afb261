"""Moves that people answer for: promote, roll back, mark bad. One code for Dagster and ``releasectl``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from runtime.contract.acceptance import said_by_acceptance
from runtime.contract.channel_log import Head
from runtime.contract.channels import MOST_WORDS as MOST_WORDS
from runtime.contract.channels import ChannelEntry
from runtime.contract.errors import (
    DigestMismatchError,
    ManifestError,
    PipelineError,
    PublicationRefusedError,
    ReleaseNotFoundError,
    TargetMismatchError,
)
from runtime.contract.hef_errors import HefError
from runtime.contract.marks import mark_texts, markable, said_against
from runtime.contract.release import Manifest
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore, refuse_double
from runtime.contract.trust import SignatureError, SigningKey
from runtime.contract.verdict import said_by_verdict

TOOLCHAIN_OF: Final = {"emulator": "emulator", "hailo8": "hailo-dfc", "hailo8l": "hailo-dfc"}
"""Whose numbers count for a target: what another toolchain emulated says nothing about its chip."""
MOST_SKIPPED_TOLD: Final = 10


class PromotionRefusedError(PipelineError):
    """A move that must not be made."""

    code = "promotion_refused"


_UNUSABLE: Final = (
    ReleaseNotFoundError,
    DigestMismatchError,
    ManifestError,
    SignatureError,
    TargetMismatchError,
    PublicationRefusedError,
    PromotionRefusedError,
    HefError,
)
"""Why a release is no place to go back to. That the store cannot be read is none: it may be read again."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Who decided, why, and whether against advice.

    Args:
        actor: A person; for canary, automation may.
        reason: Theirs, in words.
        force: Go on against advice: a release marked bad, never a canary, not judged as one, or for a chip
            and never accepted on one. Nothing else yields to it.

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


class Unseen(Enum):
    """Nobody looked at the channel before: it is looked at when the move is made."""

    UNSEEN = "unseen"


UNSEEN: Final = Unseen.UNSEEN
Seen = Head | Unseen | None
"""The newest entry that a decision was made on; None where the channel said nothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A move that could be made, as a person is to see it before they say yes.

    Args:
        release: Where the channel goes; None where it is to name nothing.
        head: What the channel says now. The move is made on that, or not at all.
        advice: What speaks against it and yields to force, a sentence each.
        skipped: Newer releases that a roll back passes over, and why.
    """

    action: str
    target: str
    channel: str
    release: Release | None
    head: Head | None
    advice: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def identifier(self) -> str:
        """Of the release; empty for nothing."""
        return self.release.id if self.release else ""

    def check(self, decision: Decision) -> None:
        """PromotionRefusedError where something speaks against it and the decision does not force it."""
        if self.advice and not decision.force:
            raise PromotionRefusedError(
                "; ".join(self.advice),
                where=self.identifier[:16],
                hint="--force goes on, and records what was overridden",
            )


def promote(
    store: ReleaseStore,
    target: str,
    identifier: str,
    decision: Decision,
    key: SigningKey,
    *,
    seen: Seen = UNSEEN,
) -> ChannelEntry:
    """Let ``stable`` take a canary's release.

    Args:
        store: Where both lie.
        target: Whose channel is moved; must be the release's.
        identifier: The release.
        decision: Who, why, against advice.
        key: Of the role ``stable``.
        seen: What stable said when this was decided.

    Returns:
        The entry that names it; the present one where stable does already.

    Raises:
        PromotionRefusedError: Marked bad, never a canary, without a present verdict ``promote``, or for a
            chip without a measured acceptance report, and not forced; another toolchain's numbers.
        PublicationRefusedError: No passed parity about this artifact; a compiler's double made it.
        TargetMismatchError: It is for another target.
        DigestMismatchError, ManifestError, SignatureError: It is not what was released.
        ChannelMovedError: Somebody else moved stable meanwhile; says who.
    """
    with store.writing():  # What is judged must still be there when it is named: a prune waits.
        plan = plan_promotion(store, target, identifier, seen=seen)
        plan.check(decision)
        head, now = plan.head, store.present(target, "stable")
        if head and now and head.entry.release == identifier and head.signed.digest == now.signed.digest:
            return store.settled(head)
        return _carry_out(store, plan, decision, key)


def plan_promotion(store: ReleaseStore, target: str, identifier: str, *, seen: Seen = UNSEEN) -> Plan:
    """What ``promote`` would do and what speaks against it; raises as it does where no force helps."""
    head = store.present(target, "stable") if isinstance(seen, Unseen) else seen
    release = check_promotable(store, target, identifier)
    settled = head is not None and head.entry.release == release.id
    return Plan(
        action="promote",
        target=target,
        channel="stable",
        release=release,
        head=head,
        advice=() if settled else _advice(store, release, head.entry.release if head else ""),
    )


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


def _advice(store: ReleaseStore, release: Release, stable: str) -> tuple[str, ...]:
    """What speaks against a promotion and yields to force: a sentence each, recorded in the entry."""
    found = said_against(store, release)
    target = release.manifest.target
    if all(entry.release != release.id for entry in store.history(target, "canary")):
        lost = bool(store.history_problems(target, "canary"))
        found += ("no canary entry that holds names it" if lost else "it was never a canary",)
    return (*found, *said_by_verdict(store, release, stable), *said_by_acceptance(store, release))


def roll_back(
    store: ReleaseStore,
    target: str,
    channel: str,
    decision: Decision,
    key: SigningKey,
    *,
    to: str | None = None,
    seen: Seen = UNSEEN,
) -> ChannelEntry:
    """Let a channel return to an earlier release: a new entry, no edit.

    Args:
        to: A release that the channel named before; None lets ``plan_roll_back`` choose. Empty:
            nothing, and only where it would choose that.
        seen: What the channel said when this was decided.

    Raises:
        PromotionRefusedError: Nothing to return to, or ``to`` was never named, or is marked bad, not forced.
        ReleaseNotFoundError: The channel names nothing, or the release was pruned.
        ChannelMovedError: Somebody else moved it meanwhile; says who.
    """
    with store.writing():
        plan = plan_roll_back(store, target, channel, to=to, seen=seen)
        plan.check(decision)
        return _carry_out(store, plan, decision, key)


def plan_roll_back(
    store: ReleaseStore, target: str, channel: str, *, to: str | None = None, seen: Seen = UNSEEN
) -> Plan:
    """Where ``roll_back`` would go and what speaks against it; raises as it does where no force helps.

    Without ``to`` it is the newest release before that may be promoted and is not marked bad. Where there is
    none, ``canary`` names nothing from then on, so that what is bad does not serve on; ``stable`` stays, and
    somebody has to say where to go.
    """
    head = store.head(target, channel) if isinstance(seen, Unseen) else seen
    if head is None or not head.entry.release:
        raise ReleaseNotFoundError(
            f"channel {channel} of {target} names no release", hint="there is nothing to roll back"
        )
    history = store.whole_history(target, channel)
    before = [entry.release for entry in history if entry.sequence < head.entry.sequence]
    earlier = [name for name in dict.fromkeys(reversed(before)) if name and name != head.entry.release]
    release: Release | None = None
    skipped: tuple[str, ...] = ()
    if to:
        if to not in earlier:
            raise _nowhere(target, channel, "was never named by this channel before")
        release = check_promotable(store, target, to)
    else:
        release, skipped = _newest_good(store, target, earlier)
        if release and to == "":
            raise _nowhere(
                target, channel, f"can return to {release.id[:12]}, and is not taken back to nothing"
            )
    if release is None and channel != "canary":
        why = f": {'; '.join(skipped)}" if skipped else ""
        raise _nowhere(target, channel, f"has no earlier release to return to{why}")
    return Plan(
        action="roll_back",
        target=target,
        channel=channel,
        release=release,
        head=head,
        advice=said_against(store, release) if release else (),
        skipped=skipped,
    )


def _nowhere(target: str, channel: str, what: str) -> PromotionRefusedError:
    return PromotionRefusedError(
        what, where=f"{target}/{channel}", hint="`releasectl history` shows what it named; --to takes one"
    )


def _newest_good(
    store: ReleaseStore, target: str, names: list[str]
) -> tuple[Release | None, tuple[str, ...]]:
    """The first that may be gone back to, and for each before it, why not."""
    skipped: list[str] = []
    for name in names:
        try:
            release = check_promotable(store, target, name)
        except _UNUSABLE as error:
            skipped.append(f"{name[:12]}: {error}")
            continue
        if marks := mark_texts(store, release):
            skipped.append(f"{name[:12]}: {marks[0]}")
        else:
            return release, _shortened(skipped)
    return None, _shortened(skipped)


def _shortened(sentences: list[str]) -> tuple[str, ...]:
    more = len(sentences) - MOST_SKIPPED_TOLD
    return (*sentences[:MOST_SKIPPED_TOLD], *([f"and {more} more"] if more > 0 else ()))


def mark_bad(
    store: ReleaseStore,
    identifier: str,
    channel: str,
    decision: Decision,
    key: SigningKey,
    *,
    target: str | None = None,
    seen: Seen = UNSEEN,
) -> ChannelEntry:
    """Say that a release is never to be promoted, though it be damaged or pruned; no channel moves.

    Args:
        channel: Whose history says it: ``stable`` for a release manager, ``canary`` for a build host.
        target: As for ``marks.markable``, which raises.
        seen: What the channel said when this was decided.

    Raises:
        ReleaseNotFoundError: The store never heard of such a release.
        ChannelMovedError: Somebody else moved the channel meanwhile.
    """
    release = markable(store, identifier, target)
    head = store.head(release.target, channel) if isinstance(seen, Unseen) else seen
    return store.move(
        release.target,
        channel,
        head.entry.release if head else "",
        action="mark_bad",
        actor=decision.actor,
        reason=decision.reason,
        key=key,
        seen=head,
        marked=release.identifier,
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


def _carry_out(store: ReleaseStore, plan: Plan, decision: Decision, key: SigningKey) -> ChannelEntry:
    return store.move(
        plan.target,
        plan.channel,
        plan.identifier,
        action=plan.action,
        actor=decision.actor,
        reason=decision.reason,
        key=key,
        seen=plan.head,
        overridden=plan.advice,
    ).entry
