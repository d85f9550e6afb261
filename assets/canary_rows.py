"""What was seen of a canary, held against the policy, row by row: nothing that is not known is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final, TypeVar

from assets.canary_evidence import (
    DEADLINE_SECONDS,
    Compared,
    Histogram,
    Observation,
    Served,
    Shadowed,
)
from assets.canary_policy import CanaryPolicy
from runtime.contract.verdict import BREACHED, EARLY, MISSING, OK, SHOWN, Row, in_one_line

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

T = TypeVar("T")
_UNDECIDED: Final = (EARLY, MISSING)
_NOTHING: Final = Compared(windows=0.0, distances=Histogram(), motifs=0.0, disagreements=0.0)


def rows_on(
    seen: Observation, policy: CanaryPolicy, *, has_stable: bool, stable: str, same_basis: bool
) -> list[Row]:
    """The table.

    Args:
        seen: Of the canary.
        policy: What it must have shown.
        has_stable: Whether there is one to be held against.
        stable: Its release; empty for none, or where it cannot be told.
        same_basis: Whether latents and motifs of both mean the same.
    """
    told = "; ".join(seen.problems) or seen.source or NO_DATA
    rows = [_row("evidence", told, "", MISSING if seen.problems else SHOWN)]
    if seen.others:
        rows.append(_row("canaries", f"also {', '.join(seen.others)[:200]}", "this one", MISSING))
    if seen.gaps:
        rows.append(_row("runtimes", "; ".join(seen.gaps), "each counts all the time", MISSING))
    judge = _Judge(policy, seen.stable, has_stable=has_stable, same_basis=same_basis)
    if seen.served is not None:
        rows += judge.served(seen.served)
    if seen.shadowed is not None:
        rows += judge.shadowed(seen.shadowed, stable)
    if seen.refused:
        rows.append(_refused(seen.refused))
    if seen.served is None and seen.shadowed is None:
        rows.append(_row("runs", NO_DATA, "a runtime runs it", MISSING))
    return rows


def _row(name: str, value: str, bound: str, outcome: str) -> Row:
    """Labels are other people's text."""
    return Row(name=name, value=in_one_line(value)[:400], bound=bound, outcome=outcome)


def _refused(reasons: Mapping[str, float]) -> Row:
    """A runtime on its channel did not load it: broken where that is the release's own; else shown."""
    told = ", ".join(f"{reason} {count:.4g}" for reason, count in sorted(reasons.items()))
    its_own = any(reason in _OF_THE_RELEASE or reason.startswith("hef_") for reason in reasons)
    return _row("not loaded on its channel", told, "never", BREACHED if its_own else SHOWN)


class _Judge:
    """Rows by one policy, beside one stable."""

    def __init__(
        self, policy: CanaryPolicy, stable: Served | None, *, has_stable: bool, same_basis: bool
    ) -> None:
        self._policy = policy
        self._stable = stable
        self._has_stable = has_stable
        self._same_basis = same_basis

    def served(self, served: Served) -> list[Row]:
        """As it answers clients."""
        policy = self._policy
        golden = sum(served.golden.values())
        rows = [
            _at_least("minutes served", served.minutes, policy.least_minutes),
            _at_least("windows served", served.windows + golden, policy.least_windows),
            _golden("golden windows, served", served.golden, needed=not served.windows),
        ]
        if served.untimed:
            told = f"{served.untimed:.4g} counted, none timed: update its runtime"
            return [*rows, _row("requests", told, "timed", MISSING)]
        if not served.requests:
            # Nobody asked: golden windows and the time decide, and there is no request to have failed.
            return [*rows, _row("requests", "none", "", SHOWN)]
        rows += [
            _share_at_most(
                "requests that failed",
                served.failed,
                served.requests,
                policy.error_share,
                policy.least_windows,
            ),
            self._late("requests later than 45 ms", served.durations),
        ]
        theirs = self._stable.durations if self._stable else Histogram()
        for name, quantile in (("p95 against stable", 0.95), ("p99 against stable", 0.99)):
            rows.append(self._ratio(name, served.durations, theirs, quantile, policy.ratio_to_stable))
        return rows

    def shadowed(self, shadowed: Shadowed, stable: str) -> list[Row]:
        """As it runs beside stable."""
        policy = self._policy
        failed = any(count > 0 for reason, count in shadowed.failures.items() if reason not in FAULTLESS)
        told = ", ".join(f"{reason} {count:.4g}" for reason, count in sorted(shadowed.failures.items()))
        rows = [
            _row("failures beside stable", told or "none", "none", BREACHED if failed else OK),
            _at_least("minutes beside stable", shadowed.minutes, policy.least_minutes),
            _at_least("windows beside stable", shadowed.windows, policy.least_windows),
            _golden("golden windows, beside stable", shadowed.golden, needed=True),
        ]
        if others := [name for name in shadowed.against if name != stable]:
            rows.append(_row("runs beside", ", ".join(others), stable[:16], MISSING))
        rows += _by_source(
            "windows later than 45 ms, engine",
            {
                name: self._late("", durations)
                for name, durations in _or_nothing(shadowed.engine, Histogram())
            },
        )
        theirs = self._stable.engine if self._stable else Histogram()
        most = policy.shadow_ratio_to_stable
        rows += _by_source(
            "p95 of the engine",
            {
                name: self._ratio("", durations, theirs, 0.95, most)
                for name, durations in _or_nothing(shadowed.engine, Histogram())
            },
        )
        return [*rows, *self._disagreement(shadowed)]

    def _disagreement(self, shadowed: Shadowed) -> list[Row]:
        compared = _or_nothing(shadowed.compared, _NOTHING)
        rows = [
            *_by_source("p95 of 1 - cosine", {name: self._distance(each) for name, each in compared}),
            *_by_source("clear motifs that differ", {name: self._motifs(each) for name, each in compared}),
        ]
        if self._same_basis:
            return rows
        # Other weights, another basis: how far apart they are says nothing of which is right.
        why = "not judged: other weights"
        return [_row(row.name, row.value, why, SHOWN) for row in rows]

    def _distance(self, compared: Compared) -> Row:
        policy, distances = self._policy, compared.distances
        bound = f"at most {policy.p95_distance:g}"
        found = distances.quantile(0.95)
        if found is None:
            return _row("", NO_DATA, bound, MISSING)
        told = f"{found:.3g} of {distances.total:.4g}"
        if distances.total >= policy.least_windows:
            return _row("", told, bound, OK if found <= policy.p95_distance else BREACHED)
        beyond = distances.surely_above(policy.p95_distance)
        return _row("", told, bound, BREACHED if beyond > 0.05 * policy.least_windows else EARLY)

    def _motifs(self, compared: Compared) -> Row:
        policy = self._policy
        least = policy.clear_share_windows
        row = _share_at_most("", compared.disagreements, compared.motifs, policy.motif_disagreement, least)
        if row.outcome in _UNDECIDED and compared.windows >= policy.least_windows:
            # Stable itself was seldom sure: then the latents decide.
            return _row("", f"{compared.motifs:.4g} clear of {compared.windows:.4g}", "", SHOWN)
        return row

    def _late(self, name: str, durations: Histogram) -> Row:
        late = durations.above(DEADLINE_SECONDS)
        return _share_at_most(
            name, late, durations.total, self._policy.late_share, self._policy.least_windows
        )

    def _ratio(self, name: str, ours: Histogram, theirs: Histogram, quantile: float, most: float) -> Row:
        policy = self._policy
        bound = f"at most {most:.3g}x, or {policy.p95_floor_ms:g} ms"
        value = ours.quantile(quantile)
        if not self._has_stable:
            return _row(name, NO_STABLE, "", SHOWN)
        if value is None:
            return _row(name, NO_DATA, bound, MISSING)
        if ours.total < policy.least_windows:
            return _row(name, f"{ours.total:.4g} windows", bound, EARLY)
        told = f"{1000 * value:.4g} ms"
        if value * 1000 <= policy.p95_floor_ms:
            return _row(name, told, bound, OK)
        base = theirs.quantile(quantile)
        if base is None:
            return _row(name, f"{told}, stable: {NO_DATA}", bound, MISSING)
        if theirs.total < policy.least_windows:
            return _row(name, f"{told}, stable: {theirs.total:.4g} windows", bound, MISSING)
        outcome = OK if value <= most * base else BREACHED
        return _row(name, f"{told}, stable {1000 * base:.4g} ms", bound, outcome)


def _or_nothing(found: Mapping[str, T], nothing: T) -> list[tuple[str, T]]:
    return sorted(found.items()) or [("", nothing)]


def _by_source(name: str, rows: Mapping[str, Row]) -> list[Row]:
    """One row for each source of windows, each with its own totals: broken in one is broken.

    Where there are too few of one to be judged, and nothing is broken yet, the other one decides.
    """
    decided = any(row.outcome not in _UNDECIDED for row in rows.values())
    return [
        dataclasses.replace(
            row,
            name=f"{name}, {source}" if source else name,
            outcome=SHOWN if decided and _is_of_few(row) else row.outcome,
        )
        for source, row in rows.items()
    ]


def _is_of_few(row: Row) -> bool:
    return row.outcome == EARLY or (row.outcome == MISSING and row.value == NO_DATA)


def _at_least(name: str, value: float, least: float) -> Row:
    """Of evidence: less than enough is not broken, it is not there yet."""
    return _row(name, f"{value:.4g}", f"at least {least:g}", OK if value >= least else EARLY)


def _share_at_most(name: str, bad: float | None, total: float, most: float, least: int) -> Row:
    """A share of few is broken only where no number of good ones up to ``least`` could mend it."""
    bound = f"at most {_share(most)} of {least}"
    if total <= 0:
        return _row(name, NO_DATA, bound, MISSING)
    if bad is None:
        return _row(name, f"not told by {total:.4g}", bound, MISSING)
    broken = bad > most * max(total, least)
    outcome = BREACHED if broken else OK if total >= least else EARLY
    return _row(name, f"{_share(bad / total)} of {total:.4g}", bound, outcome)


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _golden(name: str, results: Mapping[str, float], *, needed: bool) -> Row:
    wrong = results.get("missed", 0.0) + results.get("failed", 0.0)
    told = ", ".join(f"{result} {count:.4g}" for result, count in sorted(results.items())) or NO_DATA
    if wrong > 0:
        outcome = BREACHED
    elif results.get("repeated", 0.0) > 0:
        outcome = OK
    else:
        outcome = MISSING if needed else SHOWN
    return _row(name, told, "each repeated", outcome)
