"""The verdict on a canary: what was seen of it while it ran, held against a policy, and signed by who judged.

Kept as evidence beside the release, ``verdict-<sha256>.json``: an envelope of the role ``canary``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from runtime.contract.document import from_json, to_json
from runtime.contract.envelope import sign
from runtime.contract.errors import ManifestError, PipelineError
from runtime.contract.evidence import evidence_kind, read_evidence
from runtime.contract.release import TARGETS, check_digest
from runtime.contract.release_directory import Release
from runtime.contract.store import ReleaseStore, check_role
from runtime.contract.store_reader import StoreReader
from runtime.contract.trust import SignatureError, SigningKey, verify

VERDICT_KIND: Final = "verdict"
VERDICT_TYPE: Final = "application/vnd.hailo-pipeline.verdict+json"
VERDICT_SCHEMA: Final = 1
PROMOTE, HOLD, ROLL_BACK = "promote", "hold", "roll_back"
DECISIONS: Final = (PROMOTE, HOLD, ROLL_BACK)
OK, BREACHED, MISSING, EARLY, SHOWN = "ok", "breached", "missing", "early", "shown"
OUTCOMES: Final = (OK, BREACHED, MISSING, EARLY, SHOWN)
"""Of a row: kept; broken; not known, or too little to be judged yet, neither of which is ever taken for kept;
shown, and not judged."""

_AGAINST: Final = (BREACHED, MISSING, EARLY)

MOST_AGE: Final = timedelta(days=7)
"""No verdict is believed for longer, whatever its policy says: a canary that nobody watches is none."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question to the evidence.

    Args:
        name: What was asked.
        value: What was found, with its unit; ``no data`` or ``no stable`` where there is nothing.
        bound: What the policy asks; empty for what is only shown.
        outcome: One of ``OUTCOMES``.
    """

    name: str
    value: str
    bound: str
    outcome: str

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ManifestError(f"{self.outcome[:40]!r} is none of {', '.join(OUTCOMES)}", where="outcome")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one canary.

    Args:
        schema: ``VERDICT_SCHEMA``.
        target: Whose canary it is.
        release: The canary.
        stable: What stable named then; empty for nothing.
        entry: Digest of canary's entry that named the release: another one is another canary.
        decision: One of ``DECISIONS``.
        rows: All that was asked.
        policy: SHA-256 of the policy's bytes.
        good_for_minutes: For how long it counts, as the policy says.
        source: Where the numbers come from: the address that was asked.
        provenance: Of the numbers: ``measured`` on a chip, ``emulated`` on the emulator.
        at: When, ISO 8601, UTC.

    Raises:
        ManifestError: A field that cannot be; or ``promote`` where a row is broken, missing or too early.
    """

    schema: int
    target: str
    release: str
    stable: str
    entry: str
    decision: str
    rows: tuple[Row, ...]
    policy: str
    good_for_minutes: float
    source: str
    provenance: str
    at: str

    def __post_init__(self) -> None:
        if self.schema != VERDICT_SCHEMA:
            raise ManifestError(f"schema {self.schema}, this version reads {VERDICT_SCHEMA}", where="schema")
        if self.target not in TARGETS or self.decision not in DECISIONS:
            raise ManifestError(f"{self.target[:40]!r}, {self.decision[:40]!r}", where="decision")
        for field in ("release", "stable", "entry", "policy"):
            if (value := getattr(self, field)) or field != "stable":
                check_digest(value, field)
        wrong = [row.name for row in self.rows if row.outcome in _AGAINST]
        if self.decision == PROMOTE and (wrong or not any(row.outcome == OK for row in self.rows)):
            raise ManifestError(f"promote, though {wrong or 'nothing was judged'}", where="rows")
        if not 0 < self.good_for_minutes <= MOST_AGE.total_seconds() / 60:
            raise ManifestError(f"{self.good_for_minutes} minutes", where="good_for_minutes")
        if self.provenance != ("emulated" if self.target == "emulator" else "measured"):
            raise ManifestError(f"{self.provenance[:40]!r} for {self.target}", where="provenance")
        self.time  # noqa: B018  a time that is none is refused here

    @property
    def time(self) -> datetime:
        """``at``; ManifestError where that is no time in UTC."""
        try:
            found = datetime.fromisoformat(self.at)
        except ValueError as error:
            raise ManifestError(f"{self.at[:40]!r} is no time in ISO 8601", where="at") from error
        if found.utcoffset() != timedelta(0):
            raise ManifestError(f"{self.at[:40]!r} is not in UTC", where="at")
        return found

    def reasons(self, outcomes: Collection[str] = _AGAINST) -> tuple[str, ...]:
        """A sentence, in one line, for each row of these outcomes: whatever speaks against the release."""
        return tuple(
            in_one_line(f"{row.name} is {row.value}{f', {row.bound} is asked' if row.bound else ''}")
            for row in self.rows
            if row.outcome in outcomes
        )


def in_one_line(text: str) -> str:
    """A text without what a terminal would obey: labels and errors are other people's."""
    return "".join(each if each.isprintable() else "?" for each in text)


def keep_verdict(store: ReleaseStore, release: Release, verdict: Verdict, key: SigningKey) -> Path:
    """Sign a verdict and keep it beside its release.

    Raises:
        ManifestError: It is about another release.
        SignatureError: The key has not the role canary.
        StoreError: It cannot be written.
    """
    if verdict.release != release.id:
        raise ManifestError(f"is about {verdict.release[:16]}", where=release.id[:16])
    with store.writing():
        check_role(key, store.trust.root, "canary")
        document = sign(to_json(verdict), VERDICT_TYPE, [key])
        return store.add_evidence(release, VERDICT_KIND, "json", document)


def verdicts_on(store: StoreReader, identifier: str) -> list[Verdict]:
    """All verdicts on a release that a key of the present root signed, oldest first.

    What does not hold is none: whoever may write the store can lay anything there.
    """
    found: list[Verdict] = []
    for path in store.evidence(identifier):
        try:
            if evidence_kind(path) != VERDICT_KIND:
                continue
            payload = verify(read_evidence(path), VERDICT_TYPE, store.trust.root, "canary", str(path)).payload
            verdict = from_json(Verdict, payload, str(path))
        except PipelineError:
            continue
        if verdict.release == identifier:
            found.append(verdict)
    return sorted(found, key=lambda verdict: (verdict.time, verdict.decision != PROMOTE))


def said_by_verdict(
    store: StoreReader, release: Release, stable: str, now: datetime | None = None
) -> tuple[str, ...]:
    """What speaks against a promotion: no verdict, another than ``promote``, an old one, or one on something
    else than what the channels name now.

    Args:
        store: Where it lies.
        release: To be promoted.
        stable: What stable names, as whoever promotes sees it; empty for nothing.
        now: The time; the present one where none is given.

    Raises:
        StoreError: The store cannot be read.
    """
    verdicts = verdicts_on(store, release.id)
    if not verdicts:
        return ("no verdict on it as a canary",)
    newest, now = verdicts[-1], now or datetime.now(UTC)
    if newest.decision != PROMOTE:
        reasons = "; ".join(newest.reasons()) or "no reason is given"
        return (f"the verdict on it is {newest.decision}, of {newest.at}: {reasons}"[:900],)
    age = now - newest.time
    if age > timedelta(minutes=newest.good_for_minutes) or age < -timedelta(minutes=5):
        return (f"the verdict on it is of {newest.at}, and counts for {newest.good_for_minutes:g} minutes",)
    if newest.target != release.manifest.target:
        return (f"the verdict on it is about {newest.target}",)
    return _said_by_channels(store, newest, stable)


def _said_by_channels(store: StoreReader, verdict: Verdict, stable: str) -> tuple[str, ...]:
    """Whether canary's entry and stable's release are still those that were judged."""
    try:
        canary = store.head(verdict.target, "canary")
    except (SignatureError, ManifestError) as error:
        told = in_one_line(str(error)).replace(f"{store.root}/", "")
        return (f"what canary names now cannot be told: {told}"[:900],)
    if canary is None or canary.signed.digest != verdict.entry:
        named = canary.entry.release[:12] or "nothing" if canary else "nothing"
        number = f"entry {canary.entry.sequence}, by which it names" if canary else "no entry, and names"
        return (f"the verdict on it is about another entry of canary, which has {number} {named}",)
    if stable != verdict.stable:
        judged, named = verdict.stable[:12] or "nothing", stable[:12] or "nothing"
        return (f"the verdict on it is against {judged} as stable, which names {named} now",)
    return ()
