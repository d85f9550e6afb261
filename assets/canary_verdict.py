"""The canary is judged: what is known of it, held against the policy, row by row.

Nothing that is not known counts as kept. What is broken rolls back; what is missing holds; all kept promotes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from assets.canary_evidence import DEADLINE_SECONDS, Histogram, Observation, Served, Shadowed, Source, observe
from assets.canary_policy import CanaryPolicy
from runtime.contract.channel_log import Head
from runtime.contract.channels import ChannelEntry
from runtime.contract.errors import PipelineError, ReleaseNotFoundError
from runtime.contract.promotion import Decision, mark_bad, roll_back
from runtime.contract.release import Manifest
from runtime.contract.store import Release, ReleaseStore
from runtime.contract.trust import SigningKey
from runtime.contract.verdict import (
    BREACHED,
    HOLD,
    MISSING,
    OK,
    PROMOTE,
    ROLL_BACK,
    SHOWN,
    VERDICT_SCHEMA,
    Row,
    Verdict,
    keep_verdict,
    verdicts_on,
)

ACTOR: Final = "canary_verdict"
NO_DATA: Final = "no data"
NO_STABLE: Final = "no stable"
FAULTLESS: Final = (
    "store",
    "store_missing",
    "not_there_yet",
    "internal",
    "shadow_protocol",
    "slow_to_load",
    "stable_unreadable",
    "starved",
)
"""Reasons why a canary does not run beside stable that say nothing of it: it is held until it does."""

_OF_THE_RELEASE: Final = (
    "crashed_on_load",
    "digest_mismatch",
    "engine",
    "golden_mismatch",
    "hef_refused",
    "manifest",
    "publication_refused",
)
"""Reasons why a runtime on its own channel did not load it that are the release's, not the store's, the
setting's or the chip's; so is what begins with ``hef_``."""

_MOST_REASON: Final = 300


@dataclass(frozen=True, kw_only=True)
class Canary:
    """What is judged: the release that ``canary`` names, and what it runs against.

    Args:
        release: The canary.
        stable: What ``stable`` names; None for nothing.
        head: Canary's entry.
    """

    release: Release
    stable: Release | None
    head: Head

    @property
    def same_basis(self) -> bool:
        """Whether latents and motifs of both mean the same: retrained weights live in another basis."""
        if self.stable is None:
            return False
        ours, theirs = self.release.manifest, self.stable.manifest
        return _basis(ours) == _basis(theirs)


def _basis(manifest: Manifest) -> tuple[object, ...]:
    return manifest.upstream.get("onnx_model", ""), manifest.motif_head, manifest.input.normalization


def find_canary(store: ReleaseStore, target: str) -> Canary | None:
    """What is to be judged; None where canary names nothing, or what stable names.

    Raises:
        PipelineError: The channels, or the releases that they name, do not hold.
    """
    head = store.head(target, "canary")
    if head is None or not head.entry.release:
        return None
    release = store.release_of(target, "canary", head)
    try:
        stable: Release | None = store.resolve(target, "stable")
    except ReleaseNotFoundError:
        stable = None
    if stable is not None and stable.id == release.id:
        return None
    return Canary(release=release, stable=stable, head=head)


def judge(canary: Canary, seen: Observation, policy: CanaryPolicy) -> tuple[str, tuple[Row, ...]]:
    """Hold what was seen against the policy.

    Returns:
        ``promote``, ``hold`` or ``roll_back``, and the table.
    """
    rows = [_row("evidence", "; ".join(seen.problems) or seen.source or NO_DATA, "", not seen.problems)]
    if seen.others:
        rows.append(
            Row(
                name="canaries",
                value=f"also {', '.join(seen.others)[:200]}",
                bound="this one",
                outcome=MISSING,
            )
        )
    if seen.served is not None:
        rows += _of_served(canary, seen.served, seen.stable, policy)
    if seen.shadowed is not None:
        rows += _of_shadowed(canary, seen.shadowed, seen.stable, policy)
    if seen.refused:
        rows.append(_refused(seen.refused))
    if seen.served is None and seen.shadowed is None:
        rows.append(Row(name="runs", value=NO_DATA, bound="a runtime runs it", outcome=MISSING))
    outcomes = {row.outcome for row in rows}
    if BREACHED in outcomes:
        return ROLL_BACK, tuple(rows)
    if MISSING in outcomes:
        return policy.missing, tuple(rows)
    return PROMOTE, tuple(rows)


def _row(name: str, value: str, bound: str, known: bool) -> Row:
    return Row(name=name, value=value[:400], bound=bound, outcome=SHOWN if known else MISSING)


def _refused(reasons: Mapping[str, float]) -> Row:
    """A runtime on its channel did not load it: broken where that is the release's own; else shown."""
    told = ", ".join(f"{reason} {count:.4g}" for reason, count in sorted(reasons.items()))
    its_own = any(reason in _OF_THE_RELEASE or reason.startswith("hef_") for reason in reasons)
    outcome = BREACHED if its_own else SHOWN
    return Row(name="not loaded on its channel", value=told[:400], bound="never", outcome=outcome)


def _at_least(name: str, value: float, least: float, unit: str) -> Row:
    """Of evidence: less than enough is not broken, it is not there yet."""
    return Row(
        name=name,
        value=f"{value:.4g}{unit}",
        bound=f"at least {least:g}{unit}",
        outcome=OK if value >= least else MISSING,
    )


def _share_at_most(name: str, bad: float | None, total: float, most: float, policy: CanaryPolicy) -> Row:
    """A share of few is broken only where no number of good ones up to ``least_windows`` could mend it."""
    bound = f"at most {_share(most)} of {policy.least_windows}"
    if bad is None or total <= 0:
        return Row(name=name, value=NO_DATA, bound=bound, outcome=MISSING)
    enough = total >= policy.least_windows
    broken = bad > most * max(total, policy.least_windows)
    outcome = BREACHED if broken else OK if enough else MISSING
    return Row(name=name, value=f"{_share(bad / total)} of {total:.4g}", bound=bound, outcome=outcome)


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _times(value: float) -> str:
    return f"{value:.3g}x"


def _of_served(canary: Canary, served: Served, stable: Served | None, policy: CanaryPolicy) -> list[Row]:
    golden = sum(served.golden.values())
    rows = [
        _at_least("minutes served", served.minutes, policy.least_minutes, ""),
        _at_least("windows served", served.windows + golden, policy.least_windows, ""),
        _golden("golden windows, served", served.golden, needed=not served.windows),
    ]
    if not served.requests:
        # Nobody asked: golden windows and the time decide, and there is no request to have failed.
        return [*rows, Row(name="requests", value="none", bound="", outcome=SHOWN)]
    rows += [
        _share_at_most("requests that failed", served.failed, served.requests, policy.error_share, policy),
        _late("requests later than 45 ms", served.durations, policy),
    ]
    for name, quantile in (("p95 against stable", 0.95), ("p99 against stable", 0.99)):
        theirs = stable.durations if stable else Histogram()
        most = policy.ratio_to_stable
        rows.append(_ratio(name, served.durations, theirs, quantile, most, canary, policy))
    return rows


def _of_shadowed(
    canary: Canary, shadowed: Shadowed, stable: Served | None, policy: CanaryPolicy
) -> list[Row]:
    failures = sum(count for reason, count in shadowed.failures.items() if reason not in FAULTLESS)
    told = ", ".join(f"{reason} {count:.4g}" for reason, count in sorted(shadowed.failures.items()))
    rows = [
        Row(
            name="failures beside stable",
            value=told or "none",
            bound="none",
            outcome=BREACHED if failures > 0 else OK,
        ),
        _at_least("minutes beside stable", shadowed.minutes, policy.least_minutes, ""),
        _at_least("windows beside stable", shadowed.windows, policy.least_windows, ""),
        _golden("golden windows, beside stable", shadowed.golden, needed=True),
        _late("windows later than 45 ms, engine", shadowed.engine, policy),
    ]
    theirs = stable.engine if stable else Histogram()
    most = policy.shadow_ratio_to_stable
    rows.append(_ratio("p95 of the engine", shadowed.engine, theirs, 0.95, most, canary, policy))
    return [*rows, *_disagreement(canary, shadowed, policy)]


def _late(name: str, durations: Histogram, policy: CanaryPolicy) -> Row:
    share = durations.share_above(DEADLINE_SECONDS)
    late = None if share is None else share * durations.total
    return _share_at_most(name, late, durations.total, policy.late_share, policy)


def _disagreement(canary: Canary, shadowed: Shadowed, policy: CanaryPolicy) -> list[Row]:
    distance = shadowed.distances.quantile(0.95)
    bound = f"at most {policy.p95_distance:g}"
    if distance is None or shadowed.distances.total < policy.least_windows:
        outcome = MISSING
    else:
        outcome = OK if distance <= policy.p95_distance else BREACHED
    value = NO_DATA if distance is None else f"{distance:.3g} of {shadowed.distances.total:.4g}"
    clear, differ = shadowed.motifs, shadowed.disagreements
    motifs = dataclasses.replace(policy, least_windows=policy.clear_share_windows)
    row = _share_at_most("clear motifs that differ", differ, clear, policy.motif_disagreement, motifs)
    if row.outcome == MISSING and shadowed.windows >= policy.least_windows:
        # Stable itself was seldom sure: then the latents decide.
        row = Row(
            name=row.name, value=f"{clear:.4g} clear of {shadowed.windows:.4g}", bound="", outcome=SHOWN
        )
    rows = [Row(name="p95 of 1 - cosine", value=value, bound=bound, outcome=outcome), row]
    if canary.same_basis:
        return rows
    # Other weights, another basis: how far apart they are says nothing of which is right.
    why = "not judged: other weights"
    return [Row(name=row.name, value=row.value, bound=why, outcome=SHOWN) for row in rows]


def _golden(name: str, results: Mapping[str, float], *, needed: bool) -> Row:
    wrong = results.get("missed", 0.0) + results.get("failed", 0.0)
    told = ", ".join(f"{result} {count:.4g}" for result, count in sorted(results.items())) or NO_DATA
    if wrong > 0:
        outcome = BREACHED
    elif results.get("repeated", 0.0) > 0:
        outcome = OK
    else:
        outcome = MISSING if needed else SHOWN
    return Row(name=name, value=told, bound="each repeated", outcome=outcome)


def _ratio(
    name: str,
    ours: Histogram,
    theirs: Histogram,
    quantile: float,
    most: float,
    canary: Canary,
    policy: CanaryPolicy,
) -> Row:
    bound = f"at most {_times(most)}, or {policy.p95_floor_ms:g} ms"
    value = ours.quantile(quantile)
    if canary.stable is None:
        return Row(name=name, value=NO_STABLE, bound="", outcome=SHOWN)
    if value is None or ours.total < policy.least_windows:
        return Row(
            name=name, value=f"{ours.total:.4g} windows" if value else NO_DATA, bound=bound, outcome=MISSING
        )
    told = f"{1000 * value:.4g} ms"
    if value * 1000 <= policy.p95_floor_ms:
        return Row(name=name, value=told, bound=bound, outcome=OK)
    base = theirs.quantile(quantile)
    if base is None:
        return Row(name=name, value=f"{told}, stable: {NO_DATA}", bound=bound, outcome=MISSING)
    kept = value <= most * base
    return Row(
        name=name, value=f"{told}, stable {1000 * base:.4g} ms", bound=bound, outcome=OK if kept else BREACHED
    )


def verdict_on(
    store: ReleaseStore,
    target: str,
    open_source: Callable[[], Source],
    policy: CanaryPolicy,
    policy_digest: str,
    now: datetime | None = None,
) -> tuple[Canary, Verdict] | None:
    """Look at what ``canary`` of a target names, and judge it; None where there is nothing to judge."""
    canary = find_canary(store, target)
    if canary is None:
        return None
    stable = canary.stable.id if canary.stable else ""
    seen = observe(open_source, canary.release.id, stable)
    mine = tuple(name for name in seen.others if not _is_for_another(store, name, target))
    seen = dataclasses.replace(seen, others=mine)
    decision, rows = judge(canary, seen, policy)
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
        source=seen.source[:400],
        provenance="emulated" if target == "emulator" else "measured",
        at=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
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
    kept = [each for each in verdicts_on(store, verdict.release) if each.entry == verdict.entry]
    if not kept or (kept[-1].decision, kept[-1].policy) != (verdict.decision, verdict.policy):
        return True
    spent = (verdict.time - kept[-1].time).total_seconds() / 60
    return verdict.decision != HOLD and spent >= kept[-1].good_for_minutes / 2


def carry_out(
    store: ReleaseStore, canary: Canary, verdict: Verdict, policy: CanaryPolicy, key: SigningKey
) -> ChannelEntry | None:
    """Keep a verdict, and let canary return where it says so and the policy lets it.

    Killed at any moment, the next call ends in the same state: the verdict is kept first, and a canary that
    is still named is judged again.

    Returns:
        The entry by which canary moved; None where it stays.

    Raises:
        ChannelMovedError: Somebody moved canary meanwhile: that one has not been judged.
        PipelineError: As ``keep_verdict``, ``roll_back`` and ``mark_bad``.
    """
    keep_verdict(store, canary.release, verdict, key)
    if verdict.decision != ROLL_BACK or not policy.roll_back_by_itself:
        return None
    decision = Decision(actor=ACTOR, reason="; ".join(verdict.reasons())[:_MOST_REASON] or "judged")
    with store.writing():
        entry = roll_back(store, verdict.target, "canary", decision, key, seen=canary.head)
        # Else the next build that changes nothing would bring it back.
        mark_bad(store, canary.release.id, "canary", decision, key, target=verdict.target)
    return entry
