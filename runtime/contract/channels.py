"""A channel's history: one numbered document for each move, and what makes it hold together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from runtime.contract.document import MAX_DOCUMENT_BYTES, from_json
from runtime.contract.errors import ManifestError, store_errors
from runtime.contract.files import read_bounded
from runtime.contract.release import check_digest

CHANNELS: Final = ("canary", "stable")
ENTRY_SCHEMA: Final = 1
_ENTRY_NAME: Final = re.compile(r"[0-9]{8}\.json")


@dataclass(frozen=True, kw_only=True)
class ChannelEntry:
    """One move of a channel: who, when, why, and what was there before.

    ``previous`` is empty for a channel's first entry. ``at`` is UTC, ISO 8601.

    Raises:
        ManifestError: Another schema, a digest that is none, or a time that is none; names it.
    """

    schema: int
    target: str
    channel: str
    sequence: int
    release: str
    previous: str
    action: str
    actor: str
    reason: str
    at: str

    def __post_init__(self) -> None:
        if self.schema != ENTRY_SCHEMA:
            raise ManifestError(f"schema {self.schema}, this version reads {ENTRY_SCHEMA}", where="schema")
        check_digest(self.release, "release")
        if self.previous:
            check_digest(self.previous, "previous")
        try:
            offset = datetime.fromisoformat(self.at).utcoffset()
        except ValueError as error:
            raise ManifestError(f"{self.at[:40]!r} is no time in ISO 8601", where="at") from error
        if offset != timedelta(0):
            raise ManifestError(f"{self.at[:40]!r} is not in UTC", where="at")


def entry_name(sequence: int) -> str:
    """File name of a channel's entry; names sort as the entries follow each other."""
    return f"{sequence:08}.json"


def is_entry_name(name: str) -> bool:
    """Whether a file of that name is an entry; others in a channel's folder are nobody's business."""
    return _ENTRY_NAME.fullmatch(name) is not None


def read_entry(path: Path) -> ChannelEntry:
    """Read one entry from ``<target>/<channel>/<number>.json``.

    Raises:
        StoreError: It cannot be read.
        ManifestError: It is not what its schema says, or belongs elsewhere.
    """
    with store_errors(path):
        data = read_bounded(path, MAX_DOCUMENT_BYTES)
    entry = from_json(ChannelEntry, data, str(path))
    place = (entry.target, entry.channel, entry.sequence)
    if place != (path.parent.parent.name, path.parent.name, int(path.stem)):
        raise ManifestError(f"says it is {place}", where=str(path), hint="it was copied here")
    return entry


def history_problems(folder: Path, names: Sequence[str], entries: Sequence[ChannelEntry]) -> list[str]:
    """What is wrong between a channel's entries: one sentence each.

    Args:
        folder: The channel's, for messages.
        names: File names of all its entries, sorted.
        entries: Those of them that could be read, in the same order.
    """
    expected = [entry_name(number + 1) for number in range(len(names))]
    missing = sorted(set(expected) - set(names))
    found = [f"{folder}: {name} is missing, a later entry is there" for name in missing]
    releases = {0: ""} | {entry.sequence: entry.release for entry in entries}
    for entry in entries:
        before = releases.get(entry.sequence - 1)
        if before is not None and entry.previous != before:
            found.append(
                f"{folder / entry_name(entry.sequence)}: previous is {entry.previous[:16] or 'empty'}, "
                f"the entry before names {before[:16] or 'nothing'}"
            )
    return found
