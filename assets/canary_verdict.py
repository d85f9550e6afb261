"""The canary is judged: what is known of it, held against the policy, and what follows from that.

What is broken rolls back; what is missing holds, or rolls back where the policy says so; what is too early
holds; all kept promotes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from assets.canary_evidence import Observation, observe
from assets.canary_policy import CanaryPolicy
from assets.canary_rows import rows_on
from assets.canary_source import Source
from runtime.contract.channel_log import Head
from runtime.contract.channels import ChannelEntry
from runtime.contract.errors import ManifestError, PipelineError, store_errors
from runtime.contract.files import is_directory
from runtime.contract.marks import mark_texts
from runtime.contract.promotion import Decision, mark_bad, roll_back
from runtime.contract.release import Manifest
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import SigningKey
from runtime.contract.verdict import (
    BREACHED,
    EARLY,
    HOLD,
    MISSING,
    PROMOTE,
    ROLL_BACK,
    VERDICT_SCHEMA,
    Row,
    Verdict,
    in_one_line,
    keep_verdict,
    verdicts_on,
)

ACTOR: Final = "canary_verdict"
_MOST_REASON: Final = 300


@dataclass(frozen=True, kw_only=True)
class Canary:
    """What is judged: the release that ``canary`` names, and what it runs against.

    Args:
        release: The canary.
        stable: What ``stable`` names; None for nothing.
        head: Canary's entry.
        since: When canary came to name it.
        problem: Why it cannot be told what ``stable`` names; empty where it can.
        marked: Who marked it bad, and why; empty where nobody did.
    """

    release: Release
    stable: Release | None
    head: Head
    since: datetime
    problem: str = ""
    marked: str = ""

    @property
    def same_basis(self) -> bool:
        """Whether latents and motifs of both mean the same: retrained weights live in another basis."""
        if self.stable is None:
            return False
        ours, theirs = self.release.manifest, self.stable.manifest
        return _basis(ours) == _basis(theirs)

    def minutes(self, now: datetime) -> float:
        """For how long canary has named it."""
        return (now - self.since).total_seconds() / 60


def _basis(manifest: Manifest) -> tuple[object, ...]:
    return manifest.upstream.get("onnx_model", ""), manifest.motif_head, manifest.input.normalization


def find_canary(store: ReleaseStore, target: str) -> Canary | None:
    """What is to be judged; None where canary names nothing, or what stable names.

    Raises:
        PipelineError: Canary, or the release that it names, does not hold.
    """
    head = store.head(target, "canary")
    if head is None or not head.entry.release:
        return None
    release = store.release_of(target, "canary", head)
    stable, problem = None, ""
    try:
        stable = _stable(store, target, release.id)
    except PipelineError as error:
        problem = str(error)
    if stable is not None and stable.id == release.id:
        return None
    return Canary(
        release=release,
        stable=stable,
        head=head,
        since=_named_since(store, head),
        problem=problem,
        marked="; ".join(mark_texts(store, release)),
    )


def _stable(store: ReleaseStore, target: str, canary: str) -> Release | None:
    """What stable names; None where it never named anything. That its entries are lost is not that."""
    chain = store.whole_chain(target, "stable")
    head = store.head(target, "stable")
    if head is not None and head.entry.release:
        return store.release_of(target, "stable", head)
    folder = store.root / "channels" / target / "stable"
    with store_errors(folder):
        emptied = not chain and is_directory(folder)
    if emptied:
        raise ManifestError(
            "is there, and holds no entry", where=f"{target}/stable", hint="copy the store again"
        )
    if any(each.stable for each in verdicts_on(store, canary)):
        raise ManifestError(
            "named a release when canary was judged, and does not now", where=f"{target}/stable"
        )
    return None


def _named_since(store: ReleaseStore, head: Head) -> datetime:
    """When the channel came to name what it names: marks of other releases are entries, too."""
    since = head.entry.at
    for entry in reversed(store.history(head.entry.target, head.entry.channel)):
        if entry.sequence <= head.entry.sequence:
            if entry.release != head.entry.release:
                break
            since = entry.at
    return datetime.fromisoformat(since)


def judge(
    canary: Canary, seen: Observation, policy: CanaryPolicy, now: datetime | None = None
) -> tuple[str, tuple[Row, ...]]:
    """Hold what was seen against the policy.

    Returns:
        ``promote``, ``hold`` or ``roll_back``, and the table.
    """
    rows = rows_on(
        seen,
        policy,
        has_stable=canary.stable is not None,
        stable=canary.stable.id if canary.stable else "",
        same_basis=canary.same_basis,
    )
    for name, value, bound, outcome in (
        ("stable", canary.problem, "can be told", MISSING),
        ("marked bad", canary.marked, "by nobody", BREACHED),
    ):
        if value:
            rows.append(Row(name=name, value=in_one_line(value)[:400], bound=bound, outcome=outcome))
    outcomes = {row.outcome for row in rows}
    if BREACHED in outcomes:
        return ROLL_BACK, tuple(rows)
    young = canary.minutes(now or datetime.now(UTC)) < policy.least_minutes
    if EARLY in outcomes or (MISSING in outcomes and young):
        return HOLD, tuple(rows)
    if MISSING in outcomes:
        return policy.missing, tuple(rows)
    return PROMOTE, tuple(rows)


def verdict_on(
    store: ReleaseStore,
    target: str,
    open_source: Callable[[], Source],
    policy: CanaryPolicy,
    policy_digest: str,
    now: datetime | None = None,
) -> tuple[Canary, Verdict] | None:
    """Look at what ``canary`` of a target names, and judge it; None where there is nothing to judge.

    Raises:
        PipelineError: As ``find_canary``. All else that cannot be told holds.
    """
    canary = find_canary(store, target)
    if canary is None:
        return None
    now = now or datetime.now(UTC)
    stable = canary.stable.id if canary.stable else ""
    # Of an earlier entry's time, or of before, is another canary's evidence.
    minutes = min(policy.window_minutes, canary.minutes(now))
    seen = observe(open_source, canary.release.id, stable, max(0.0, minutes))
    mine = tuple(name for name in seen.others if not _is_for_another(store, name, target))
    seen = dataclasses.replace(seen, others=mine)
    decision, rows = judge(canary, seen, policy, now)
    return canary, Verdict(
        schema=VERDICT_SCHEMA,
        target=target,
        release=canary.release.id,
        stable=stable,
        entry=canary.head.signed.digest,
        decision=decision,
        rows=rows,
        policy=policy_digest,
        good_for_minutes=policy.good_for_minutes,
        source=in_one_line(seen.source)[:400],
        provenance="emulated" if target == "emulator" else "measured",
        at=now.isoformat(timespec="microseconds"),
    )


def _is_for_another(store: ReleaseStore, identifier: str, target: str) -> bool:
    """Whether a release that runs somewhere is another target's; one that is not known here is none."""
    try:
        return store.open(identifier).manifest.target != target
    except PipelineError:
        return False


def is_worth_keeping(store: ReleaseStore, verdict: Verdict, policy: CanaryPolicy) -> bool:
    """Whether a verdict says something that the newest kept one does not, moves canary, or renews that one.

    A canary that is still there was not rolled back, though it was judged so: who was to do it ended before.
    """
    if verdict.decision == ROLL_BACK and policy.roll_back_by_itself:
        return True
    kept = verdicts_on(store, verdict.release)
    if not kept or _essence(kept[-1]) != _essence(verdict):
        return True
    spent = (verdict.time - kept[-1].time).total_seconds() / 60
    return verdict.decision != HOLD and spent >= kept[-1].good_for_minutes / 2


def _essence(verdict: Verdict) -> tuple[str, ...]:
    """What a promotion asks of a verdict, its age apart."""
    return verdict.decision, verdict.policy, verdict.entry, verdict.stable


def carry_out(
    store: ReleaseStore, canary: Canary, verdict: Verdict, policy: CanaryPolicy, key: SigningKey
) -> ChannelEntry | None:
    """Keep a verdict, and let canary return where it says so and the policy lets it.

    Killed at any moment, the next call ends in the same state: the verdict is kept first, the release marked
    next, and moved away from last. What canary still names is judged again, and one that is marked has
    broken a row, whatever else is known of it by then.

    Returns:
        The entry by which canary moved; None where it stays.

    Raises:
        ChannelMovedError: Somebody moved canary meanwhile: that one has not been judged.
        PipelineError: As ``keep_verdict``, ``mark_bad`` and ``roll_back``.
    """
    keep_verdict(store, canary.release, verdict, key)
    if verdict.decision != ROLL_BACK or not policy.roll_back_by_itself:
        return None
    decision = Decision(actor=ACTOR, reason="; ".join(verdict.reasons([BREACHED]))[:_MOST_REASON] or "judged")
    with store.writing():
        seen: Head | None = canary.head
        if not canary.marked:
            # Else the next build that changes nothing would bring it back. And first: nobody looks again at
            # what canary has left.
            mark_bad(store, canary.release.id, "canary", decision, key, target=verdict.target, seen=seen)
            seen = store.head(verdict.target, "canary")
        return roll_back(store, verdict.target, "canary", decision, key, seen=seen)
