"""A channel's entries: one numbered, signed document for each move."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from runtime.contract.document import from_json, to_json
from runtime.contract.errors import ManifestError, PipelineError, store_errors
from runtime.contract.files import read_bounded
from runtime.contract.release import TARGETS, check_digest
from runtime.contract.trust import (
    MAX_ENVELOPE_BYTES,
    Root,
    SigningKey,
    UnsignedError,
    Verified,
    open_envelope,
    sign,
    verify,
)

CHANNELS: Final = ("canary", "stable")
"""Each is also the role whose key moves it."""
ENTRY_SCHEMA: Final = 2
ENTRY_TYPE: Final = "application/vnd.hailo-pipeline.channel-entry+json"
ACTIONS: Final = ("publish", "promote", "roll_back", "mark_bad", "reaffirm")
UNMOVED: Final = ("mark_bad", "reaffirm")
"""Of these, those that leave the channel where it is."""
LAST_SEQUENCE: Final = 99_999_999
MOST_WORDS: Final = 2000
"""Characters of what a person says in an entry."""
_ENTRY_NAME: Final = re.compile(r"(?!0{8})[0-9]{8}\.json")


@dataclass(frozen=True, kw_only=True)
class EvidenceRecord:
    """A document beside the release that whoever moved the channel had before them."""

    kind: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ChannelEntry:
    """One move of a channel: who, when, why, and what was there before.

    Args:
        sequence: 1 and up, without a gap.
        previous_entry: SHA-256 of what the entry before says; empty for the first.
        release: What the channel names from now on; empty where it names nothing.
        previous: What it named before; empty where it named nothing.
        action: One of ``ACTIONS``.
        marked: The release that ``mark_bad`` marks; empty otherwise.
        actor: Who answers for it.
        at: UTC, ISO 8601. For people: it decides only how far back a judge of canaries looks.
        overridden: What was refused and forced; empty where nothing was.
        evidence: What lay beside the release when this was decided.

    Raises:
        ManifestError: Another schema, a digest that is none, a time that is none, or words that a terminal
            would obey; names it.
    """

    schema: int
    target: str
    channel: str
    sequence: int
    previous_entry: str
    release: str
    previous: str
    action: str
    marked: str
    actor: str
    reason: str
    at: str
    overridden: tuple[str, ...]
    evidence: tuple[EvidenceRecord, ...]

    def __post_init__(self) -> None:
        if self.schema != ENTRY_SCHEMA:
            raise ManifestError(f"schema {self.schema}, this version reads {ENTRY_SCHEMA}", where="schema")
        if self.target not in TARGETS or self.channel not in CHANNELS:
            raise ManifestError(f"{self.target[:40]!r}/{self.channel[:40]!r} is no channel", where="channel")
        if not 1 <= self.sequence <= LAST_SEQUENCE:
            raise ManifestError(f"{self.sequence} is not within 1 to {LAST_SEQUENCE}", where="sequence")
        for field in ("release", "previous", "previous_entry", "marked"):
            if value := getattr(self, field):
                check_digest(value, field)
        if (self.sequence == 1) != (self.previous_entry == ""):
            raise ManifestError("the first entry, and no other, follows none", where="previous_entry")
        if self.action not in ACTIONS:
            raise ManifestError(f"{self.action[:40]!r} is none of {', '.join(ACTIONS)}", where="action")
        if (self.action == "mark_bad") != bool(self.marked):
            raise ManifestError("`mark_bad`, and nothing else, marks a release", where="marked")
        if self.action in UNMOVED and self.release != self.previous:
            raise ManifestError(f"`{self.action}` moves nothing", where="release")
        self._check_time()
        self._check_words()

    def _check_words(self) -> None:
        """They are shown to people, whoever signed them: nothing that a terminal obeys, and no book."""
        said = [("actor", self.actor), ("reason", self.reason), ("at", self.at)]
        said += [("overridden", each) for each in self.overridden]
        said += [("evidence", each.kind) for each in self.evidence]
        for field, text in said:
            if len(text) > MOST_WORDS or not text.isprintable():
                raise ManifestError(f"is not one line of at most {MOST_WORDS} characters", where=field)
        for each in self.evidence:
            check_digest(each.sha256, "evidence")

    def _check_time(self) -> None:
        try:
            offset = datetime.fromisoformat(self.at).utcoffset()
        except ValueError as error:
            raise ManifestError(f"{self.at[:40]!r} is no time in ISO 8601", where="at") from error
        if offset != timedelta(0):
            raise ManifestError(f"{self.at[:40]!r} is not in UTC", where="at")


@dataclass(frozen=True)
class SignedEntry:
    """An entry as it was signed.

    Args:
        entry: What it says.
        digest: SHA-256 of what was signed: what the next entry names as ``previous_entry``.
        keyids: Keys whose signatures hold.
        document: The envelope's bytes.
    """

    entry: ChannelEntry
    digest: str
    keyids: tuple[str, ...]
    document: bytes


def entry_name(sequence: int) -> str:
    """File name of a channel's entry; names sort as the entries follow each other."""
    return f"{sequence:08}.json"


def is_entry_name(name: str) -> bool:
    """Whether a file of that name is an entry; others in a channel's folder are nobody's business."""
    return _ENTRY_NAME.fullmatch(name) is not None


def sign_entry(entry: ChannelEntry, key: SigningKey) -> bytes:
    """The envelope of an entry."""
    return sign(to_json(entry), ENTRY_TYPE, [key])


def read_entry(path: Path, roots: Sequence[Root]) -> SignedEntry:
    """Read one entry from ``<target>/<channel>/<number>.json``.

    Args:
        path: Of the file.
        roots: The newest whose keys vouch for it counts; the first error, of the newest, is told.

    Raises:
        StoreError: It cannot be read.
        ManifestError: It is not what its schema says, or belongs elsewhere.
        SignatureError: No key of the channel's role signed it as it is.
    """
    with store_errors(path):
        data = read_bounded(path, MAX_ENVELOPE_BYTES)
    return check_entry(data, path, roots)


def check_entry(data: bytes, path: Path, roots: Sequence[Root]) -> SignedEntry:
    """As ``read_entry``, of bytes that were read; ``path`` says where they belong."""
    where, channel = str(path), path.parent.name
    _refuse_unsigned(data, where)
    first: PipelineError | None = None
    for root in reversed(roots):
        try:
            verified = verify(data, ENTRY_TYPE, root, channel, where)
        except PipelineError as error:
            first = first or error
        else:
            return _parse(verified, data, path)
    assert first is not None
    raise first


def unverified_entry(path: Path) -> SignedEntry:
    """As ``read_entry``, of an entry that a later one vouches for by its digest: no signature is asked."""
    with store_errors(path):
        data = read_bounded(path, MAX_ENVELOPE_BYTES)
    envelope = open_envelope(data, ENTRY_TYPE, str(path))
    return _parse(Verified(envelope.payload, ()), data, path)


def _refuse_unsigned(data: bytes, where: str) -> None:
    # Schema 1 had no envelope: its entries were written before anything was signed.
    if b'"payloadType"' not in data and b'"sequence"' in data:
        raise UnsignedError(
            "was written before entries were signed",
            where=where,
            hint="build again: the new entry takes its place, and this one is kept beside it",
        )


def _parse(verified: Verified, data: bytes, path: Path) -> SignedEntry:
    entry = from_json(ChannelEntry, verified.payload, str(path))
    place = (entry.target, entry.channel, entry.sequence)
    if place != (path.parent.parent.name, path.parent.name, int(path.stem)):
        raise ManifestError(f"says it is {place}", where=str(path), hint="it was copied here")
    return SignedEntry(entry, verified.digest, verified.keyids, data)


def as_document(signed: SignedEntry) -> dict[str, Any]:
    """What ``--json`` shows of an entry."""
    entry = signed.entry
    return {
        "sequence": entry.sequence,
        "target": entry.target,
        "channel": entry.channel,
        "action": entry.action,
        "release": entry.release,
        "previous": entry.previous,
        "marked": entry.marked,
        "actor": entry.actor,
        "reason": entry.reason,
        "at": entry.at,
        "overridden": list(entry.overridden),
        "evidence": [{"kind": each.kind, "sha256": each.sha256} for each in entry.evidence],
        "digest": signed.digest,
        "signed_by": list(signed.keyids),
    }
